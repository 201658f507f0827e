package fs

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMovedDirectoryTime: a file system that changes a directory's own mtime
// when it moves to another one (XFS, for "..") leaves the standby with the same.
func TestMovedDirectoryTime(t *testing.T) {
	for _, fstype := range fsTypes {
		t.Run(fstype, func(t *testing.T) {
			e := newEnv(t, options{base: newFilesystem(t, fstype, "")})
			for _, name := range []string{"a", "b", "a/x", "b/y", "a/z", "b/s"} {
				if name == "b/s" {
					must(t, unix.Mknod(e.in(name), unix.S_IFSOCK|0o600, 0))
				} else {
					must(t, unix.Mkdir(e.in(name), 0o755))
				}
			}
			for i, c := range []struct {
				from, to string
				flags    uint
			}{
				{"a/x", "b/x", 0},
				{"b/x", "a/x", unix.RENAME_NOREPLACE},
				{"a/x", "b/y", unix.RENAME_EXCHANGE},
				{"a/z", "b/y", 0},                    // over an empty one
				{"a/x", "b/s", unix.RENAME_EXCHANGE}, // with a socket, which the standby has not
				{"a/x", "b/s", unix.RENAME_EXCHANGE},
			} {
				for _, p := range []string{"a/x", "b/x", "a/z", "b/y"} {
					old := []unix.Timespec{{Sec: 1}, {Sec: int64(i + 2)}}
					if err := unix.UtimesNanoAt(unix.AT_FDCWD, e.in(p), old, 0); err != nil && err != unix.ENOENT {
						t.Fatal(err)
					}
				}
				must(t, unix.Renameat2(unix.AT_FDCWD, e.in(c.from), unix.AT_FDCWD, e.in(c.to), c.flags))
				e.equal()
				if t.Failed() {
					t.Fatalf("after %+v", c)
				}
			}
			e.sound()
		})
	}
}

// TestUnlinkedSpecials: FIFOs and devices that are open keep all of their
// attributes when their last name goes, though no open of theirs reaches the
// daemon.
func TestUnlinkedSpecials(t *testing.T) {
	e := newEnv(t, options{base: newFilesystem(t, "ext4", "")})
	for i, remove := range []func(string) error{
		unix.Unlink,
		func(p string) error { return os.Rename(e.in("other"), p) },
	} {
		must(t, os.WriteFile(e.in("other"), nil, 0o600))
		for _, typ := range []uint32{unix.S_IFIFO, unix.S_IFCHR} {
			p := e.in(fmt.Sprintf("special%d%d", i, typ))
			must(t, unix.Mknod(p, typ|0o644, int(unix.Mkdev(1, 3))))
			fd, err := unix.Open(p, unix.O_RDWR|unix.O_NONBLOCK, 0)
			must(t, err)
			must(t, remove(p))
			if i == 1 {
				must(t, os.Rename(p, e.in("other")))
			}
			must(t, unix.Fchmod(fd, 0o640))
			must(t, unix.Fchown(fd, 7, 8))
			must(t, unix.UtimesNanoAt(fd, "", []unix.Timespec{{Sec: 1}, {Sec: 2}}, unix.AT_EMPTY_PATH))
			must(t, unix.Fsetxattr(fd, "trusted.a", []byte("b"), 0))
			if got := showXattr(func(b []byte) (int, error) { return unix.Fgetxattr(fd, "trusted.a", b) }); got != "1; 1; 62" {
				t.Error(got)
			}
			must(t, unix.Fremovexattr(fd, "trusted.a"))
			var st unix.Stat_t
			must(t, unix.Fstat(fd, &st))
			if st.Mode&0o7777 != 0o640 || st.Uid != 7 || st.Gid != 8 || st.Nlink != 0 || st.Mtim.Sec != 2 {
				t.Errorf("type %#o: %+v", typ, st)
			}
			must(t, unix.Close(fd))
		}
	}
	e.equal()
	e.sound()
}
