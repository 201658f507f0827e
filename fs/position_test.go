package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// position reads the attribute of a file in the mount.
func (e *env) position(name string) (epoch, lsn uint64) {
	e.t.Helper()
	buf := make([]byte, 100)
	n, err := unix.Getxattr(e.in(name), positionAttr, buf)
	must(e.t, err)
	if _, err := fmt.Sscanf(string(buf[:n]), "%d/%d", &epoch, &lsn); err != nil {
		e.t.Fatalf("position %q: %v", buf[:n], err)
	}
	return epoch, lsn
}

// TestPosition: it is that of the last record about the file, whatever happens
// to other ones.
func TestPosition(t *testing.T) {
	e := newEnv(t, options{exclude: []string{"tmp/"}})
	root.must(t, e.mnt, "mkdir d d/sub other tmp; echo x >d/f; echo y >d/g; ln d/f other/link; echo z >tmp/in")
	// The kernel keeps what is held, and so does the table.
	for _, name := range []string{".", "d", "d/sub", "other", "d/f", "d/g", "tmp/in"} {
		fd, err := unix.Open(e.in(name), unix.O_PATH, 0)
		must(t, err)
		defer unix.Close(fd)
	}
	open := func(name string, do func(fd int) error) error { return with(e.in(name), unix.O_RDWR, do) }
	for _, c := range []struct {
		what  string
		do    func() error
		moved string // the files whose last record it gives
	}{
		{"write", func() error { return open("d/f", func(fd int) error { return writeAll(fd, "more") }) }, "d/f other/link"},
		{"other write", func() error { return open("d/g", func(fd int) error { return writeAll(fd, "more") }) }, "d/g"},
		{"chmod", func() error { return unix.Chmod(e.in("d/g"), 0o640) }, "d/g"},
		{"truncate", func() error { return unix.Truncate(e.in("d/g"), 1) }, "d/g"},
		{"fsync", func() error { return open("d/f", unix.Fsync) }, "d/f other/link"},
		{"fsync of a directory", func() error { return with(e.in("d"), unix.O_RDONLY, unix.Fsync) }, "d"},
		{"fallocate", func() error { return open("d/f", func(fd int) error { return unix.Fallocate(fd, 0, 0, 4*page) }) }, "d/f other/link"},
		{"setxattr", func() error { return unix.Setxattr(e.in("d/g"), "user.a", []byte("v"), 0) }, "d/g"},
		{"removexattr", func() error { return unix.Removexattr(e.in("d/g"), "user.a") }, "d/g"},
		{"utimes", func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, e.in("d"), old, 0) }, "d"},
		{"O_TRUNC", func() error { return with(e.in("d/g"), unix.O_WRONLY|unix.O_TRUNC, func(int) error { return nil }) }, "d/g"},
		{"create", func() error { return os.WriteFile(e.in("d/new"), nil, 0o644) }, "d d/new"},
		{"mkdir", func() error { return unix.Mkdir(e.in("d/sub/dir"), 0o755) }, "d/sub d/sub/dir"},
		{"link", func() error { return unix.Link(e.in("d/g"), e.in("other/g")) }, "other d/g other/g"},
		{"unlink of one name", func() error { return unix.Unlink(e.in("other/g")) }, "other d/g"},
		{"unlink of the last name", func() error { return unix.Unlink(e.in("d/new")) }, "d"},
		{"rename", func() error { return unix.Rename(e.in("d/g"), e.in("other/h")) }, "d other other/h"},
		{"rename back", func() error { return unix.Rename(e.in("other/h"), e.in("d/g")) }, "d other d/g"},
		{"rmdir", func() error { return unix.Rmdir(e.in("d/sub/dir")) }, "d/sub"},
		{"copy", func() error {
			return open("d/f", func(src int) error {
				return open("d/g", func(dst int) error {
					_, err := unix.CopyFileRange(src, nil, dst, nil, 10, 0)
					return err
				})
			})
		}, "d/g"},
		{"of an excluded file", func() error { return open("tmp/in", func(fd int) error { return writeAll(fd, "more") }) }, ""},
		{"entering", func() error { return unix.Rename(e.in("tmp/in"), e.in("d/in")) }, "d d/in"},
		{"leaving", func() error { return unix.Rename(e.in("d/in"), e.in("tmp/in")) }, "d"},
	} {
		names := []string{".", "d", "d/sub", "other", "d/f", "d/g", "other/link"}
		before := map[string]uint64{}
		for _, name := range names {
			if _, err := os.Lstat(e.in(name)); err == nil {
				_, before[name] = e.position(name)
			}
		}
		begin := e.ring.Last()
		must(t, c.do())
		end := e.ring.Last()
		moved := map[string]bool{}
		for name := range strings.FieldsSeq(c.moved) {
			moved[name] = true
			// Entering gives several.
			if epoch, lsn := e.position(name); epoch != e.epoch || lsn <= begin || lsn > end || c.what != "entering" && end-begin == 1 && lsn != end {
				t.Errorf("%s: %s is at %d/%d, its record is %d/%d", c.what, name, epoch, lsn, e.epoch, end)
			}
		}
		for name, was := range before {
			if _, err := os.Lstat(e.in(name)); err != nil || moved[name] {
				continue
			}
			if _, lsn := e.position(name); lsn != was {
				t.Errorf("%s: %s went from %d to %d", c.what, name, was, lsn)
			}
		}
	}
	// What has no records has no position.
	if _, err := unix.Getxattr(e.in("tmp/in"), positionAttr, make([]byte, 100)); !errors.Is(err, unix.ENODATA) {
		t.Errorf("the position of an excluded file: %v", err)
	}
	e.equal()
	e.sound()
}

// TestPositionReserved: the name is the daemon's, is in no list and in no store.
func TestPositionReserved(t *testing.T) {
	e := newEnv(t, options{prepare: func(store string) {
		must(t, os.WriteFile(store+"/f", nil, 0o644))
		must(t, unix.Setxattr(store+"/f", "user.replfs.stored", []byte("by somebody"), 0))
		must(t, unix.Setxattr(store+"/f", "user.own", nil, 0))
	}})
	e.records()
	buf := make([]byte, 200)
	if n, err := unix.Getxattr(e.in("f"), positionAttr, nil); err != nil || n != maxPosition {
		t.Errorf("its size: %d, %v", n, err)
	}
	if _, err := unix.Getxattr(e.in("f"), positionAttr, buf[:1]); !errors.Is(err, unix.ERANGE) {
		t.Errorf("a short buffer: %v", err)
	}
	for _, name := range []string{"user.replfs.other", "user.replfs.stored", "user.replfs."} {
		if _, err := unix.Getxattr(e.in("f"), name, buf); !errors.Is(err, unix.ENODATA) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for what, err := range map[string]error{
		"set":       unix.Setxattr(e.in("f"), positionAttr, []byte("1/1"), 0),
		"set other": unix.Setxattr(e.in("f"), "user.replfs.x", nil, 0),
		"remove":    unix.Removexattr(e.in("f"), positionAttr),
	} {
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v", what, err)
		}
	}
	n, err := unix.Listxattr(e.in("f"), buf)
	must(t, err)
	if got := string(buf[:n]); got != "user.own\x00" {
		t.Errorf("listed: %q", got)
	}
	if recs := e.records(); len(recs) != 0 {
		t.Errorf("records: %v", recs)
	}
	e.equal()
	e.sound()
}

// TestPositionBound: what is not known is answered by the end of the log, and
// by the same until the file changes; a standby says what it shows.
func TestPositionBound(t *testing.T) {
	e := newEnv(t, options{prepare: func(store string) {
		must(t, os.WriteFile(store+"/f", nil, 0o644))
		must(t, os.WriteFile(store+"/g", nil, 0o644))
	}})
	fd, err := unix.Open(e.in("f"), unix.O_PATH, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, os.WriteFile(e.in("g"), []byte("x"), 0o644))
	bound := e.ring.Last()
	for range 3 {
		if epoch, lsn := e.position("f"); epoch != e.epoch || lsn != bound {
			t.Errorf("a file that never changed is at %d/%d, want %d/%d", epoch, lsn, e.epoch, bound)
		}
		must(t, os.WriteFile(e.in("g"), []byte("x"), 0o644))
	}
	must(t, unix.Chmod(e.in("f"), 0o600))
	changed := e.ring.Last()
	must(t, os.WriteFile(e.in("g"), []byte("x"), 0o644))
	if _, lsn := e.position("f"); lsn != changed {
		t.Errorf("it is at %d, its record was %d", lsn, changed)
	}
	// Another node changes it meanwhile.
	e.records()
	e.fs.SetReadOnly()
	applied := e.applier.State()
	for _, name := range []string{"f", "g", "."} {
		if epoch, lsn := e.position(name); epoch != applied.Epoch || lsn != applied.Applied {
			t.Errorf("on a standby %s is at %d/%d, it shows %d/%d", name, epoch, lsn, applied.Epoch, applied.Applied)
		}
	}
	e.promote()
	if epoch, lsn := e.position("f"); epoch != e.epoch || lsn != e.ring.Last() || lsn == changed {
		t.Errorf("after the change of roles it is at %d/%d, the log at %d/%d", epoch, lsn, e.epoch, e.ring.Last())
	}
	e.equal()
	e.sound()
}

// TestAppendSync: it passes the gate, so that nothing is in the log behind what a
// node that hands over has said of it.
func TestAppendSync(t *testing.T) {
	e := newEnv(t, options{})
	must(t, os.WriteFile(e.in("f"), nil, 0o644))
	lsn, err := e.fs.AppendSync()
	if err != nil || lsn != e.ring.Last() {
		t.Errorf("%d, %v; the log ends at %d", lsn, err, e.ring.Last())
	}
	e.equal()
	e.fs.Freeze()
	done := make(chan error, 1)
	go func() {
		_, err := e.fs.AppendSync()
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("it did not wait for the gate: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	e.fs.SetReadOnly()
	if err := <-done; !errors.Is(err, unix.EROFS) {
		t.Errorf("behind a closed gate: %v", err)
	}
	if e.ring.Last() != lsn {
		t.Errorf("the log went from %d to %d", lsn, e.ring.Last())
	}
	e.sound()
}
