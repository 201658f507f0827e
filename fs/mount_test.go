package fs

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

func itoa(n int) string { return strconv.Itoa(n) }

// mountFlag is what findmnt would show: ro or rw.
func mountFlag(t testing.TB, point string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 3 && f[1] == point {
			return strings.Split(f[3], ",")[0]
		}
	}
	return "not mounted"
}

// helperMount mounts store at point and waits to be killed.
func helperMount(store, point string) int {
	f, err := New(Config{Store: store, Log: &testLog{}})
	if err == nil {
		_, err = f.Mount(point, MountOptions{Source: "replfs:test"})
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("mounted")
	select {}
}

// killedMount leaves the mount of a killed process behind.
func killedMount(t *testing.T, store, point string) {
	t.Helper()
	cmd := helperCommand("mount", store, point)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "mounted\n" {
		t.Errorf("helper: %q, %v", line, err)
	}
	must(t, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil {
		t.Error("the helper was not killed")
	}
}

func mountDirs(t *testing.T) (store, point string) {
	t.Helper()
	base, err := os.MkdirTemp(tmpfs, tempPattern)
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(base)) })
	store, point = filepath.Join(base, "store"), filepath.Join(base, "mnt")
	must(t, os.Mkdir(store, 0o700))
	must(t, os.Mkdir(point, 0o755))
	return store, point
}

// TestDeadMount: the mounts that killed daemons left are detached by the next
// one, however many there are.
func TestDeadMount(t *testing.T) {
	store, point := mountDirs(t)
	must(t, os.WriteFile(store+"/f", []byte("x"), 0o644))
	killedMount(t, store, point)
	if _, err := os.Stat(point); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("the mount is not dead: %v", err)
	}
	f, err := New(Config{Store: store, Log: &testLog{}})
	must(t, err)
	m, err := f.Mount(point, MountOptions{Source: "replfs:test"})
	must(t, err)
	if b, err := os.ReadFile(point + "/f"); string(b) != "x" {
		t.Errorf("read %q, %v", b, err)
	}
	if flag := mountFlag(t, point); flag != "ro" && flag != "rw" {
		t.Error(flag)
	}
	eventually(t, "the mount is read-only", func() bool { return mountFlag(t, point) == "ro" })
	// A live one is left alone.
	err = DetachStale(point, zap.NewNop())
	if err == nil || !strings.Contains(err.Error(), "already mounted") {
		t.Errorf("a second mount: %v", err)
	}
	must(t, m.Unmount(time.Second, false))
	must(t, f.Close())
	select {
	case <-m.Done():
	default:
		t.Error("unmounted, but not done")
	}
}

// TestMountRefusals: errors say what is wrong and what to do.
func TestMountRefusals(t *testing.T) {
	store, point := mountDirs(t)
	f, err := New(Config{Store: store, Log: &testLog{}})
	must(t, err)
	t.Cleanup(func() { must(t, f.Close()) })
	must(t, os.WriteFile(point+"/data", nil, 0o644))
	for _, c := range []struct{ what, point, want string }{
		{"not empty", point, `is not empty (it has "data"): move its content into the store first (or hide it with --nonempty)`},
		{"missing", point + "/no", "does not exist: create it with mkdir"},
		{"a file", point + "/data", "not a directory"},
	} {
		_, err := f.Mount(c.point, MountOptions{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("mount point %s: %v", c.what, err)
		}
	}
	m, err := f.Mount(point, MountOptions{NonEmpty: true})
	must(t, err)
	if ents, err := os.ReadDir(point); err != nil || len(ents) > 0 {
		t.Errorf("what is beneath shows: %v, %v", ents, err)
	}
	must(t, m.Unmount(time.Minute, false))
	if _, err := New(Config{Store: store + "/no"}); err == nil || !strings.Contains(err.Error(), "mkdir -m 700") {
		t.Errorf("missing store: %v", err)
	}
	if _, err := New(Config{Store: point + "/data"}); err == nil {
		t.Error("a file was taken for a store")
	}
}

// TestUnmountBusy: who will not go keeps nobody from stopping, and gets errors
// instead of a file system without a daemon. The dead mount stays, so that
// nothing is written beneath it, unless it is to be detached.
func TestUnmountBusy(t *testing.T) {
	for _, lazy := range []bool{false, true} {
		t.Run(fmt.Sprintf("lazy=%t", lazy), func(t *testing.T) { unmountBusy(t, lazy) })
	}
}

func unmountBusy(t *testing.T, lazy bool) {
	e := newEnv(t, options{})
	root.must(t, e.mnt, "echo x >f")
	fd, err := unix.Open(e.in("f"), unix.O_RDWR, 0)
	must(t, err)
	stay := shellIn(e.mnt, "exec sleep 300")
	must(t, stay.Start())
	eventually(t, "somebody stays inside", func() bool {
		wd, _ := os.Readlink("/proc/" + itoa(stay.Process.Pid) + "/cwd")
		return wd == e.mnt
	})
	m, f := e.m, e.fs
	e.m, e.fs = nil, nil
	err = m.Unmount(50*time.Millisecond, lazy)
	<-m.Done()
	must(t, f.Close())
	if lazy {
		must(t, err)
	} else if !IsBusy(err) || !strings.Contains(err.Error(), itoa(stay.Process.Pid)+" (s") {
		t.Errorf("unmount: %v", err)
	}
	if _, err := unix.Write(fd, []byte("y")); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("write after the unmount: %v", err)
	}
	err = os.WriteFile(e.in("beneath"), nil, 0o600)
	if !lazy && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("a file made where the mount was: %v", err)
	}
	if lazy {
		must(t, errors.Join(err, os.Remove(e.in("beneath"))))
	}
	if err := unix.Close(fd); err != nil && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		t.Error(err)
	}
	must(t, stay.Process.Kill())
	if err := stay.Wait(); err == nil {
		t.Error("it was not killed")
	}
	if got := mountFlag(t, e.mnt); (got == "not mounted") != lazy {
		t.Error(got)
	}
	e.mount() // detaches what is dead
	root.must(t, e.mnt, "echo z >>f")
	e.equal()
}

// TestPanic: a handler that panics costs its caller an error and the node its
// good name, and nothing else.
func TestPanic(t *testing.T) {
	e := newEnv(t, options{})
	e.log.mu.Lock()
	e.log.dead = true
	e.log.mu.Unlock()
	if err := unix.Mkdir(e.in("d"), 0o755); !errors.Is(err, unix.EIO) {
		t.Errorf("mkdir: %v", err)
	}
	e.log.revive()
	e.mu.Lock()
	if len(e.suspect) != 1 || !strings.Contains(e.suspect[0], "panicked") {
		t.Errorf("suspect: %q", e.suspect)
	}
	e.mu.Unlock()
	root.must(t, e.mnt, "mkdir d; echo x >d/f; mv d e; rm -r e")
	e.equal()
}
