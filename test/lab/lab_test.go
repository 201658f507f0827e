package lab

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testRoot makes a working directory that the test removes.
func testRoot(t *testing.T) *Root {
	t.Helper()
	NeedRoot(t)
	root, err := NewRoot("", "replfs-labtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := root.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(root.Dir()); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", root.Dir(), err)
		}
	})
	return root
}

// limit bounds a part of a test.
func limit(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestNetworkCutAndHeal(t *testing.T) {
	NeedRoot(t)
	nw, err := NewNetwork("a", "b", "c")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := nw.Close(); err != nil {
			t.Error(err)
		}
	}()
	expect := func(when, from, to string, want bool) {
		t.Helper()
		wait := 3 * time.Second
		if !want {
			wait = 400 * time.Millisecond
		}
		err := nw.Reachable(limit(t, wait), from, to)
		if got := err == nil; got != want {
			t.Errorf("%s: %s reaches %s: %v, want %v (%v)", when, from, to, got, want, err)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	expect("at first", "a", "b", true)
	expect("at first", "c", "a", true)

	// A connection from before the cut hangs, and goes on after it.
	conn, err := openEcho(limit(t, 3*time.Second), nw, "a", "b")
	do(err)
	defer func() { _ = conn.Close() }()
	do(nw.Cut("a", "b"))
	expect("cut", "a", "b", false)
	expect("cut", "b", "a", false)
	expect("cut", "a", "c", true)
	expect("cut", "c", "b", true)
	do(conn.SetDeadline(time.Now().Add(300 * time.Millisecond)))
	if err := pingPong(conn); err == nil {
		t.Error("an old connection still works after the cut")
	}
	do(nw.Heal("a", "b"))
	expect("healed", "a", "b", true)
	expect("healed", "b", "a", true)
	do(conn.SetReadDeadline(time.Now().Add(5 * time.Second)))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Errorf("the old connection did not go on after the cut was healed: %v", err)
	}

	do(nw.CutOneWay("a", "b"))
	expect("one way", "a", "b", false)
	do(nw.Heal("a", "b"))
	do(nw.Unplug("b"))
	expect("unplugged", "a", "b", false)
	expect("unplugged", "a", "c", true)
	do(nw.Plug("b"))
	expect("plugged", "a", "b", true)
}

func TestProcessesShareTheMountNamespace(t *testing.T) {
	root := testRoot(t)
	nw, err := NewNetwork("a")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nw.Close() }()
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	sh := func(script string) string {
		t.Helper()
		out, err := RunOK(limit(t, 10*time.Second), Command{
			Name: "sh", Path: "/bin/sh", Args: []string{"-c", script}, Namespace: nw.Namespace("a")})
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	if got := sh("readlink /proc/self/ns/mnt"); got != own {
		t.Errorf("the child's mount namespace is %s, not %s", got, own)
	}
	if got := sh("cat /proc/self/net/dev"); !strings.Contains(got, nodeInterface) {
		t.Errorf("the child is not in its network:\n%s", got)
	}
	// A mount made by a child is seen here, and the root takes it away.
	if err := os.Mkdir(root.Path("m"), 0o755); err != nil {
		t.Fatal(err)
	}
	sh("mount -t tmpfs lab " + root.Path("m"))
	mounts, err := mountsBeneath(root.Dir())
	if err != nil || len(mounts) != 1 {
		t.Errorf("mounts beneath the root: %v, %v", mounts, err)
	}
}

func TestKillTakesDescendants(t *testing.T) {
	root := testRoot(t)
	p, err := StartProcess(Command{
		Name: "sh", Path: "/bin/sh", Isolated: true,
		// A grandchild in a session of its own, as PostgreSQL's are.
		Args: []string{"-c", "setsid sleep 1000 & exec sleep 1000"},
	}, root.Path("log"))
	if err != nil {
		t.Fatal(err)
	}
	ns, err := os.Readlink(filepath.Join("/proc", itoa(p.Pid()), "ns/ipc"))
	if err != nil {
		t.Fatal(err)
	}
	err = poll(t.Context(), time.Minute, "two processes", func(context.Context) error {
		if got := inNamespace(t, ns); got != 2 {
			return &countError{got}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	if got := inNamespace(t, ns); got != 0 {
		t.Errorf("%d processes outlived the kill", got)
	}
}

// TestNothingOutlivesTheLab kills a program that uses the lab and looks for its
// child, its mount and its directory.
func TestNothingOutlivesTheLab(t *testing.T) {
	NeedRoot(t)
	if dir := os.Getenv("REPLFS_LAB_VICTIM"); dir != "" {
		victim(t, dir)
		return
	}
	parent := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestNothingOutlivesTheLab$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), "REPLFS_LAB_VICTIM="+parent)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := filepath.Join(parent, "ready")
	err := poll(t.Context(), time.Minute, "the victim", func(context.Context) error {
		_, err := os.Stat(ready)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	data, err := os.ReadFile(ready)
	if err != nil {
		t.Error(err)
	}
	child, dir, _ := strings.Cut(string(data), " ")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the victim was not killed")
	}
	err = poll(t.Context(), time.Minute, "clean up after the victim", func(context.Context) error {
		if _, err := os.Stat(filepath.Join("/proc", child)); err == nil {
			return os.ErrExist
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			return os.ErrExist
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if mounts, err := mountsBeneath(parent); err != nil || len(mounts) > 0 {
		t.Errorf("mounts left: %v, %v", mounts, err)
	}
}

// victim uses the lab until it is killed.
func victim(t *testing.T, parent string) {
	root, err := NewRoot(parent, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(root.Path("m"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("lab", root.Path("m"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	p, err := StartProcess(Command{Name: "sleep", Path: "/bin/sleep", Args: []string{"1000"}, Isolated: true}, root.Path("log"))
	if err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(parent, "tmp")
	if err := os.WriteFile(tmp, []byte(itoa(p.Pid())+" "+root.Dir()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(parent, "ready")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Second)
}
