package beneath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRemoveTree(t *testing.T) {
	r, dir := open(t, 0)
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "f"), nil, 0o600))
	for i := range 300 {
		d := filepath.Join(dir, "t", fmt.Sprint(i%7), fmt.Sprint(i))
		must(t, os.MkdirAll(d, 0o755))
		must(t, os.WriteFile(filepath.Join(d, "f"), nil, 0o600))
		must(t, os.Symlink(outside, filepath.Join(d, "link")))
	}
	before := openFDs(t)
	_, err := RemoveTree(r.FD(), "t", RemoveOptions{})
	must(t, err)
	if _, err := os.Lstat(filepath.Join(dir, "t")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	must(t, os.Symlink(outside, filepath.Join(dir, "link")))
	_, err = RemoveTree(r.FD(), "link", RemoveOptions{})
	must(t, err)
	if _, err := os.Stat(filepath.Join(outside, "f")); err != nil {
		t.Errorf("removed through a link: %v", err)
	}
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors, were %d", n, before)
	}
	if _, err := RemoveTree(r.FD(), "t", RemoveOptions{}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("removing what is not there: %v", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "a\x00"} {
		if _, err := RemoveTree(r.FD(), name, RemoveOptions{}); !errors.Is(err, ErrPath) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A tree may be deeper than a process may have files open.
func TestRemoveDeepTree(t *testing.T) {
	r, dir := open(t, 0)
	must(t, unix.Mkdirat(r.FD(), "t", 0o755))
	at, err := unix.Openat(r.FD(), "t", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	for range 3000 {
		must(t, unix.Mkdirat(at, "d", 0o755))
		next, err := unix.Openat(at, "d", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(at))
		at = next
	}
	must(t, unix.Close(at))
	most, before := 0, openFDs(t)
	_, err = RemoveTree(r.FD(), "t", RemoveOptions{Before: func() error {
		most = max(most, openFDs(t)-before)
		return nil
	}})
	must(t, err)
	if _, err := os.Lstat(filepath.Join(dir, "t")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	if most > maxDepth {
		t.Errorf("%d directories were open at a time", most)
	}
}

func TestRemoveTreeStops(t *testing.T) {
	r, dir := open(t, 0)
	must(t, os.MkdirAll(filepath.Join(dir, "t/d"), 0o755))
	stop := errors.New("stop")
	if _, err := RemoveTree(r.FD(), "t", RemoveOptions{Before: func() error { return stop }}); !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "t/d")); err != nil {
		t.Error(err)
	}
}

func TestRemoveTreeKeeps(t *testing.T) {
	r, dir := open(t, 0)
	for _, d := range []string{"t/a/b", "t/c", "t/keep/x"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for _, f := range []string{"t/a/b/keep", "t/a/b/f", "t/c/f", "t/keep/x/f"} {
		must(t, os.WriteFile(filepath.Join(dir, f), nil, 0o600))
	}
	kept, err := RemoveTree(r.FD(), "t", RemoveOptions{Keep: func(rel string) bool {
		return filepath.Base(rel) == "keep"
	}})
	if err != nil || !kept {
		t.Errorf("kept %v, %v", kept, err)
	}
	for f, want := range map[string]bool{
		"t/a/b/keep": true, "t/keep/x/f": true, "t/a/b/f": false, "t/c": false,
	} {
		if _, err := os.Lstat(filepath.Join(dir, f)); (err == nil) != want {
			t.Errorf("%s: %v, want it kept: %v", f, err, want)
		}
	}
}
