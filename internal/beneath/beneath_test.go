package beneath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, maxDirs int) (*Root, string) {
	t.Helper()
	dir := t.TempDir()
	r, err := Open(dir, maxDirs)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r, dir
}

func TestCheckPath(t *testing.T) {
	for _, p := range []string{"", "a", "a/b", "a/..b/.c/d..", strings.Repeat("n", 255), "\xff\n"} {
		if err := CheckPath(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	for _, p := range []string{"/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\x00", strings.Repeat("n", 256)} {
		if err := CheckPath(p); !errors.Is(err, ErrPath) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

func TestOutOfReach(t *testing.T) {
	r, dir := open(t, 0)
	outside := t.TempDir()
	must(t, os.Mkdir(filepath.Join(outside, "d"), 0o755))
	must(t, os.WriteFile(filepath.Join(outside, "d", "f"), nil, 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "in"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	for name, target := range map[string]string{
		"abs": outside, "rel": "../" + filepath.Base(outside), "in/up": "../..", "within": "in",
		"magic": "/proc/self/cwd", "link": filepath.Join(outside, "d", "f"),
	} {
		must(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	for _, path := range []string{
		"abs/d", "abs/d/f", "rel/d/f", "in/up/x", "within/x", "magic/x", "file/x", "missing/x", "abs/d/missing",
		"../x", "..", ".", "/", "/etc", "in/../file", "in//x", "in/", "a\x00b", outside + "/d",
	} {
		if l, err := r.At(path); err == nil {
			l.Release()
			t.Errorf("At(%q) succeeded", path)
		}
		if d, err := r.Dir(path); err == nil {
			d.Release()
			t.Errorf("Dir(%q) succeeded", path)
		}
		if fd, err := r.Open(path, unix.O_RDONLY); err == nil {
			_ = unix.Close(fd)
			t.Errorf("Open(%q) succeeded", path)
		}
		var st unix.Stat_t
		if err := r.Stat(path, &st); err == nil {
			t.Errorf("Stat(%q) succeeded", path)
		}
	}
	for _, path := range []string{"link", "abs", "within"} {
		if _, err := r.Open(path, unix.O_RDONLY); !errors.Is(err, unix.ELOOP) {
			t.Errorf("Open(%q) of a link: %v", path, err)
		}
		if _, err := r.Dir(path); !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("Dir(%q) of a link: %v", path, err)
		}
		var st unix.Stat_t
		if err := r.Stat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
			t.Errorf("Stat(%q) of a link: mode %o, %v", path, st.Mode, err)
		}
	}
}

func (r *Root) ino(t *testing.T, path string) uint64 {
	t.Helper()
	d, err := r.Dir(path)
	must(t, err)
	defer d.Release()
	var st unix.Stat_t
	must(t, unix.Fstat(d.FD(), &st))
	return st.Ino
}

func TestForget(t *testing.T) {
	r, dir := open(t, 0)
	must(t, os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755))
	must(t, os.MkdirAll(filepath.Join(dir, "ab"), 0o755))
	old, other := r.ino(t, "a/b/c"), r.ino(t, "ab")
	r.ino(t, "a")
	must(t, os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "z")))
	if got := r.ino(t, "a/b/c"); got != old {
		t.Fatalf("not cached: inode %d, was %d", got, old)
	}
	r.Forget("a/b/c/d")
	if got := r.ino(t, "a/b/c"); got != old {
		t.Errorf("forgotten with what was below: inode %d, was %d", got, old)
	}
	r.Forget("a")
	if _, err := r.Dir("a/b/c"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a/b/c after it was renamed: %v", err)
	}
	if got := r.ino(t, "z/b/c"); got != old {
		t.Errorf("z/b/c has inode %d, want %d", got, old)
	}
	must(t, os.Rename(filepath.Join(dir, "ab"), filepath.Join(dir, "y")))
	if got := r.ino(t, "ab"); got != other {
		t.Errorf("ab was forgotten with a")
	}
	r.ForgetAll()
	if _, err := r.Dir("ab"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("ab after all was forgotten: %v", err)
	}
	if len(r.below) != 0 || r.dirs.Len() != 0 {
		t.Errorf("counts %v for %d directories", r.below, r.dirs.Len())
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestCacheIsBounded(t *testing.T) {
	r, dir := open(t, 4)
	before := openFDs(t)
	for i := range 50 {
		path := fmt.Sprintf("d%d/e", i)
		must(t, os.MkdirAll(filepath.Join(dir, path), 0o755))
		d, err := r.Dir(path)
		must(t, err)
		d.Release()
	}
	if n := openFDs(t) - before; n != 4 {
		t.Errorf("%d directories are open, want 4", n)
	}
	if len(r.below) != 8 {
		t.Errorf("counts %v, want those of 4 paths and their parents", r.below)
	}
	// What is in use stays open when it is not cached any more.
	d, err := r.Dir("d0")
	must(t, err)
	r.ForgetAll()
	var st unix.Stat_t
	must(t, unix.Fstat(d.FD(), &st))
	d.Release()
	if n := openFDs(t) - before; n != 0 {
		t.Errorf("%d directories are open, want none", n)
	}
}

func TestLongPaths(t *testing.T) {
	r, _ := open(t, 0)
	name := strings.Repeat("d", 200)
	at, path := r.FD(), ""
	var fds []int
	for range 60 { // 12000 bytes
		must(t, unix.Mkdirat(at, name, 0o755))
		fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_CLOEXEC, 0)
		must(t, err)
		fds, at = append(fds, fd), fd
		if path != "" {
			path += "/"
		}
		path += name
	}
	var want, got unix.Stat_t
	must(t, unix.Fstat(at, &want))
	for _, fd := range fds {
		must(t, unix.Close(fd))
	}
	before := openFDs(t)
	must(t, r.Stat(path, &got))
	if got.Ino != want.Ino {
		t.Errorf("inode %d, want %d", got.Ino, want.Ino)
	}
	r.ForgetAll()
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors, were %d", n, before)
	}
}

// Lookups race with renames; each gives one of the directories that had the
// path, or none, and nothing is left open.
func TestConcurrentUse(t *testing.T) {
	r, dir := open(t, 8)
	before := openFDs(t)
	must(t, os.MkdirAll(filepath.Join(dir, "a/s"), 0o755))
	must(t, os.MkdirAll(filepath.Join(dir, "b/s"), 0o755))
	inodes := map[uint64]bool{r.ino(t, "a/s"): true, r.ino(t, "b/s"): true}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 2000 {
				d, err := r.Dir("a/s")
				if err != nil {
					t.Error(err)
					return
				}
				var st unix.Stat_t
				if err := unix.Fstat(d.FD(), &st); err != nil || !inodes[st.Ino] {
					t.Errorf("inode %d, %v", st.Ino, err)
				}
				d.Release()
			}
		})
	}
	for range 2000 {
		err := unix.Renameat2(r.FD(), "a", r.FD(), "b", unix.RENAME_EXCHANGE)
		r.Forget("a")
		r.Forget("b")
		must(t, err)
	}
	wg.Wait()
	r.ForgetAll()
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors, were %d", n, before)
	}
}
