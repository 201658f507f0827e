package fs

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReadOnlyStore: a store that became read-only under the mount says so, and
// nothing is recorded.
func TestReadOnlyStore(t *testing.T) {
	store := newFilesystem(t, "ext4", "")
	must(t, os.WriteFile(store+"/f", []byte("content"), 0o644))
	e := newEnv(t, options{store: store, noStandby: true})
	e.records()
	must(t, unix.Mount("", store, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	for what, err := range map[string]error{
		"create":   os.WriteFile(e.in("g"), nil, 0o644),
		"write":    os.WriteFile(e.in("f"), nil, 0o644),
		"mkdir":    os.Mkdir(e.in("d"), 0o755),
		"chmod":    os.Chmod(e.in("f"), 0o600),
		"setxattr": unix.Setxattr(e.in("f"), "user.a", nil, 0),
		"rename":   os.Rename(e.in("f"), e.in("g")),
		"unlink":   os.Remove(e.in("f")),
		"link":     os.Link(e.in("f"), e.in("g")),
		"tmpfile":  dir{e, "."}.nameless(0, func(int) error { return nil }),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if b, err := os.ReadFile(e.in("f")); string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
	if recs := e.records(); len(recs) != 0 {
		t.Errorf("records: %v", recs)
	}
	must(t, unix.Mount("", store, "", unix.MS_REMOUNT, ""))
	must(t, os.Remove(e.in("f")))
	e.sound()
}

// TestAtime: reading moves the atime as the store is mounted (relatime here),
// and the mount shows what the store has.
func TestAtime(t *testing.T) {
	store := newFilesystem(t, "ext4", "")
	e := newEnv(t, options{store: store, noStandby: true})
	long := []unix.Timespec{{Sec: 1_000_000_000}, {Sec: 1_000_000_001}}
	atime := func(path string) unix.Timespec {
		t.Helper()
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		return st.Atim
	}
	for _, c := range []struct {
		name  string
		flags int
		moves bool
	}{
		{"read", unix.O_RDONLY, true},
		{"direct", unix.O_RDONLY | unix.O_DIRECT, true},
		{"noatime", unix.O_RDONLY | unix.O_NOATIME, false},
	} {
		path := e.in(c.name)
		must(t, os.WriteFile(path, make([]byte, page), 0o644))
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, long, 0))
		fd, err := unix.Open(path, c.flags, 0)
		must(t, err)
		_, err = unix.Read(fd, make([]byte, page))
		must(t, errors.Join(err, unix.Close(fd)))
		behind, shown := atime(store+"/"+c.name), atime(path)
		if moved := behind.Sec != long[0].Sec; moved != c.moves || behind != shown {
			t.Errorf("%s: the store has %v, the mount %v", c.name, behind, shown)
		}
	}
	e.records()
	e.sound()
}
