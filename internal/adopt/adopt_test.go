package adopt

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// data makes a directory with something in it, and names a store beside it.
func data(t *testing.T) Dirs {
	t.Helper()
	d := Dirs{Mount: filepath.Join(t.TempDir(), "data")}
	d.Store = d.Mount + ".store"
	mkdir(t, d.Mount)
	write(t, filepath.Join(d.Mount, "file"))
	return d
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func wantData(t *testing.T, dir string, ino uint64) {
	t.Helper()
	if got := inode(t, dir); got != ino {
		t.Errorf("%s is inode %d, the data were in %d", dir, got, ino)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "content" {
		t.Errorf("the file in %s: %q, %v", dir, b, err)
	}
}

func wantRefused(t *testing.T, err error, say string) {
	t.Helper()
	var refused *RefusedError
	if !errors.As(err, &refused) {
		t.Fatalf("got %v, want a refusal", err)
	}
	if !strings.Contains(err.Error(), say) {
		t.Errorf("refused with %q, which does not say %q", err, say)
	}
}

func TestAdoptAndUndo(t *testing.T) {
	d := data(t)
	ino := inode(t, d.Mount)
	if err := Adopt(d); err != nil {
		t.Fatal(err)
	}
	wantData(t, d.Store, ino)
	st, err := os.Stat(d.Mount)
	if err != nil {
		t.Fatal(err)
	}
	if empty, err := isEmpty(d.Mount); err != nil || !empty || st.Mode().Perm() != 0o700 {
		t.Errorf("the mount point: mode %o, empty %v (%v)", st.Mode().Perm(), empty, err)
	}
	wantRefused(t, Adopt(d), "adopted already")
	if err := Undo(d); err != nil {
		t.Fatal(err)
	}
	wantData(t, d.Mount, ino)
	if _, err := os.Lstat(d.Store); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the store is still there: %v", err)
	}
	wantRefused(t, Undo(d), "does not exist")
}

// An adoption that was killed before its exchange has left an empty store, and
// an undoing that was killed after it, too.
func TestAdoptAfterKill(t *testing.T) {
	d := data(t)
	ino := inode(t, d.Mount)
	mkdir(t, d.Store)
	if err := Adopt(d); err != nil {
		t.Fatal(err)
	}
	wantData(t, d.Store, ino)
	if err := exchange(d); err != nil {
		t.Fatal(err)
	}
	if err := Adopt(d); err != nil {
		t.Fatal(err)
	}
	wantData(t, d.Store, ino)
}

func TestRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, d *Dirs)
		say     string
	}{
		"missing":       {func(_ *testing.T, d *Dirs) { d.Mount += "-not" }, "does not exist"},
		"a file":        {func(_ *testing.T, d *Dirs) { d.Mount += "/file" }, "not a directory"},
		"a symlink":     {symlinked, "is a symbolic link to "},
		"store exists":  {func(t *testing.T, d *Dirs) { mkdir(t, d.Store); write(t, d.Store+"/x") }, "not empty"},
		"store a file":  {func(t *testing.T, d *Dirs) { write(t, d.Store) }, "exists and is not a directory"},
		"other fs":      {func(t *testing.T, d *Dirs) { d.Store = tmpfs(t, t.TempDir()) + "/store" }, "different file systems"},
		"mount inside":  {func(t *testing.T, d *Dirs) { mkdir(t, d.Mount+"/in"); tmpfs(t, d.Mount+"/in") }, "is mounted inside of"},
		"a mount":       {func(t *testing.T, d *Dirs) { write(t, tmpfs(t, d.Mount)+"/file") }, "a file system of its own"},
		"store a mount": {func(t *testing.T, d *Dirs) { mkdir(t, d.Store); tmpfs(t, d.Store) }, "is mounted"},
		"a bind mount":  {bound, "a file system of its own"},
	} {
		t.Run(name, func(t *testing.T) {
			d := data(t)
			c.prepare(t, &d)
			wantRefused(t, Check(d), c.say)
			wantRefused(t, Adopt(d), c.say)
		})
	}
}

func symlinked(t *testing.T, d *Dirs) {
	link := d.Mount + "-link"
	if err := os.Symlink(d.Mount, link); err != nil {
		t.Fatal(err)
	}
	d.Mount = link
}

func bound(t *testing.T, d *Dirs) {
	if err := unix.Mount(d.Mount, d.Mount, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, d.Mount) })
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

func tmpfs(t *testing.T, dir string) string {
	t.Helper()
	if err := unix.Mount("adopt-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

func unmount(t *testing.T, dir string) {
	if err := unix.Unmount(dir, 0); err != nil {
		t.Errorf("unmount %s: %v", dir, err)
	}
}

// Every way to use a directory is found, names the process, and is over when
// the process is.
func TestInUse(t *testing.T) {
	for name, c := range map[string]struct{ script, say string }{
		"working directory": {`cd "$1" && echo ready && read -r x`, "working directory"},
		"open file":         {`exec 3<"$1/file" && echo ready && read -r x`, "file open"},
		"program":           {`cp /bin/bash "$1/prog" && exec "$1/prog" -c 'echo ready; read -r x'`, "runs "},
		"deleted file":      {`exec 3>"$1/gone" && rm "$1/gone" && echo ready && read -r x`, "gone (deleted) open"},
	} {
		t.Run(name, func(t *testing.T) {
			d := data(t)
			ino := inode(t, d.Mount)
			cmd, stop := process(t, c.script, d.Mount)
			err := Adopt(d)
			wantRefused(t, err, c.say)
			if who := fmt.Sprintf("process %d (", cmd.Process.Pid); !strings.Contains(err.Error(), who) {
				t.Errorf("%q does not name %q", err, who)
			}
			wantData(t, d.Mount, ino)
			stop()
			if err := Adopt(d); err != nil {
				t.Error(err)
			}
		})
	}
}

// process runs a script that says when it is ready and ends with its input.
func process(t *testing.T, script string, args ...string) (cmd *exec.Cmd, stop func()) {
	t.Helper()
	cmd = exec.Command("/bin/bash", append([]string{"-c", script, "bash"}, args...)...)
	cmd.Dir = "/"
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = in.Close()
		_ = cmd.Wait() // read fails at the end of its input
	}
	t.Cleanup(stop)
	if _, err := fmt.Fscan(out, new(string)); err != nil {
		t.Fatal(err)
	}
	return cmd, stop
}

// Who comes in between the look and the exchange finds everything as it was.
func TestInUseMeanwhile(t *testing.T) {
	d := data(t)
	ino := inode(t, d.Mount)
	process(t, `exec 3<"$1/file" && echo ready && read -r x`, d.Mount)
	wantRefused(t, swap(d), "file open")
	wantData(t, d.Mount, ino)
	if _, err := os.Lstat(d.Store); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the store is there: %v", err)
	}
}

func TestInUseMapped(t *testing.T) {
	d := data(t)
	f, err := os.Open(filepath.Join(d.Mount, "file"))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, 1, unix.PROT_READ, unix.MAP_SHARED)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, Adopt(d), "file mapped")
	if err := unix.Munmap(mem); err != nil {
		t.Fatal(err)
	}
	if err := Adopt(d); err != nil {
		t.Error(err)
	}
}

func TestInUseSocket(t *testing.T) {
	d := data(t)
	path := filepath.Join(d.Mount, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	wantRefused(t, Adopt(d), "listens on "+path)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Adopt(d); err != nil {
		t.Error(err)
	}
}

// A directory whose name only begins like another's is another.
func TestWithin(t *testing.T) {
	for path, want := range map[string]bool{"/a/b": true, "/a/b/c": true, "/a/bc": false, "/a": false, "/a/b (deleted)": false} {
		if got := within(path, "/a/b"); got != want {
			t.Errorf("within(%q) = %v", path, got)
		}
	}
}
