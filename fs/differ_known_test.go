package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// difference is something in which the mount differs from the store's own file
// system.
type difference struct {
	what, why string
	// here tells whether an operation of a sequence shows it. Without, the
	// sequences leave it out, because the two sides would go on differing.
	here func(fstype string, o *op, plain, mount string) bool
	// show does it in a directory; what it says differs. on is the file system
	// that it shows on, ext4 if empty.
	show func(t *testing.T, dir string) string
	on   string
}

// knownDifferences are all there are, and why. docs/ARCHITECTURE.md has the same
// list for people.
var knownDifferences = []difference{
	{
		what: "statx(2) with AT_STATX_DONT_SYNC may give old attributes, and gives no time of birth",
		why:  "the kernel answers from what it has cached, as it is asked to, and it caches no such time (fuse_update_get_attr)",
		here: func(_ string, o *op, _, _ string) bool {
			return o.kind.name == "statx" && o.flags&unix.AT_STATX_DONT_SYNC != 0
		},
		show: func(_ *testing.T, dir string) string {
			return doStatx(nil, &op{path: dir + "/f", flags: unix.AT_STATX_DONT_SYNC})
		},
	},
	{
		what: "on a btrfs store, listxattr(2) hides trusted.* from those who may not read them, as the other file systems do",
		why:  "btrfs alone shows the names to everybody (btrfs_listxattr)",
		here: func(fstype string, o *op, plain, _ string) bool {
			return fstype == "btrfs" && strings.HasSuffix(o.kind.name, "listxattr") && strings.Contains(plain, "trusted.")
		},
		on: "btrfs",
		show: func(t *testing.T, dir string) (got string) {
			must(t, unix.Setxattr(dir+"/f", "trusted.a", nil, 0))
			as(t, "bob", func() {
				got = listXattr(func(buf []byte) (int, error) { return unix.Listxattr(dir+"/f", buf) })
			})
			return got
		},
	},
	{
		what: "chown(2) with neither an owner nor a group does nothing: it clears no suid or sgid and is never refused",
		why:  "the kernel sends a request that asks for nothing (fuse_setattr)",
		show: func(t *testing.T, dir string) string {
			must(t, unix.Chmod(dir+"/f", 0o6755))
			return outcome(unix.Chown(dir+"/f", -1, -1), "") + stat(t, dir+"/f")
		},
	},
	{
		what: "on a tmpfs store, removing the access ACL of a file of another group does not clear sgid",
		why:  "tmpfs alone does that (simple_set_acl), and the request does not say that the caller is not of the group",
		on:   "tmpfs",
		show: func(t *testing.T, dir string) string {
			must(t, unix.Chown(dir+"/f", 4002, 4100))
			must(t, unix.Setxattr(dir+"/f", accessACL, []byte(aclOf(7, 7, 7, map[uint32]uint16{4001: 7})), 0))
			must(t, unix.Chmod(dir+"/f", 0o2775))
			as(t, "bob", func() { must(t, unix.Removexattr(dir+"/f", accessACL)) })
			return stat(t, dir+"/f")
		},
	},
	{
		what: "on a tmpfs store, a store to a shared mapping changes the mtime, as POSIX has it",
		why:  "it arrives as a write; tmpfs itself does not notice it",
		on:   "tmpfs",
		show: func(t *testing.T, dir string) string {
			must(t, unix.Truncate(dir+"/f", 2*page))
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/f", old, 0))
			must(t, mmapped(dir+"/f", "sync"))
			return times(t, dir+"/f")
		},
	},
	{
		what: "on a btrfs store, punching a hole where there is one already clears suid and sgid, as on the other file systems",
		why:  "btrfs returns before it would (btrfs_punch_hole); nothing tells the daemon so for certain",
		on:   "btrfs",
		show: func(t *testing.T, dir string) string {
			must(t, unix.Truncate(dir+"/f", 16*page))
			must(t, unix.Chmod(dir+"/f", 0o4777))
			as(t, "bob", func() {
				must(t, with(dir+"/f", unix.O_WRONLY, func(fd int) error {
					return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8*page, page)
				}))
			})
			return stat(t, dir+"/f")
		},
	},
	{
		what: "on an XFS store, truncating an empty file to nothing clears suid and sgid, as on the other file systems",
		why:  "XFS returns before it would (xfs_setattr_size); nothing tells the daemon so for certain",
		on:   "xfs",
		show: func(t *testing.T, dir string) string {
			must(t, unix.Chmod(dir+"/f", 0o4777))
			as(t, "bob", func() { must(t, unix.Truncate(dir+"/f", 0)) })
			return stat(t, dir+"/f")
		},
	},
	{
		what: "O_DIRECT takes any offset, length and buffer",
		why:  "FUSE asks for no alignment, and the daemon's own descriptor has no O_DIRECT",
		show: func(_ *testing.T, dir string) string {
			return outcome(with(dir+"/f", unix.O_WRONLY|unix.O_DIRECT, func(fd int) error { return writeAll(fd, "x") }), "")
		},
	},
	{
		what: "an O_PATH descriptor alone does not keep a regular file whose last name is gone: all but fstat(2) is ESTALE",
		why:  "the kernel says nothing to the daemon about O_PATH; to keep a descriptor of every removed file would cost each unlink two calls",
		show: func(t *testing.T, dir string) string {
			return outcome(with(dir+"/f", unix.O_PATH, func(fd int) error {
				must(t, os.Remove(dir+"/f"))
				return with(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY, func(int) error { return nil })
			}), "")
		},
	},
	{
		what: "what is read from or written to a FIFO or a device does not change its times",
		why:  "the kernel does it itself and leaves a FUSE inode's times alone (S_NOCMTIME)",
		show: func(t *testing.T, dir string) string {
			must(t, unix.Mkfifo(dir+"/p", 0o644))
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/p", old, 0))
			must(t, with(dir+"/p", unix.O_RDWR, func(fd int) error { return writeAll(fd, "x") }))
			return times(t, dir+"/p")
		},
	},
	{
		what: "reading what the kernel has in its page cache, or in its listing of a directory, does not move the atime",
		why:  "no request reaches the daemon; the atime does not travel either",
		show: func(t *testing.T, dir string) string {
			must(t, with(dir+"/f", unix.O_RDWR, func(fd int) error {
				err := writeAll(fd, string(make([]byte, page)))
				must(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/f", old, 0))
				_, rerr := unix.Pread(fd, make([]byte, page), 0)
				return errors.Join(err, rerr)
			}))
			return times(t, dir+"/f")
		},
	},
	{
		what: "st_blocks may be out of date until the file is changed",
		why:  "the kernel caches attributes, and a file system allocates when it writes back",
	},
	{
		what: "fallocate(2) with FALLOC_FL_COLLAPSE_RANGE, INSERT_RANGE or UNSHARE_RANGE is EOPNOTSUPP",
		why:  "the kernel refuses it (fuse_file_fallocate)",
		show: func(t *testing.T, dir string) string {
			must(t, os.WriteFile(dir+"/f", make([]byte, 16*page), 0o644))
			return outcome(with(dir+"/f", unix.O_RDWR, func(fd int) error {
				return unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 4*page, 4*page)
			}), "")
		},
	},
	{
		what: "a fallocate(2) that the store refuses has removed the file's capabilities already",
		why:  "the kernel does so before it asks the daemon (fuse_file_fallocate)",
		on:   "tmpfs",
		show: func(t *testing.T, dir string) string {
			must(t, unix.Setxattr(dir+"/f", capability, fileCap, 0))
			err := with(dir+"/f", unix.O_RDWR, func(fd int) error { return unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 0, page) })
			return outcome(err, "") + " " + listXattr(func(buf []byte) (int, error) { return unix.Listxattr(dir+"/f", buf) })
		},
	},
	{
		what: "renameat2(2) with RENAME_WHITEOUT is EINVAL",
		why:  "it would be two changes in one, and nothing but overlayfs asks for it, of its upper layer",
		show: func(_ *testing.T, dir string) string {
			return outcome(unix.Renameat2(unix.AT_FDCWD, dir+"/f", unix.AT_FDCWD, dir+"/g", unix.RENAME_WHITEOUT), "")
		},
	},
	{
		what: "ioctl(2) is ENOTTY: no chattr(1) flags (nor those of statx), no reflinks (FICLONE), no project ids",
		why:  "none of it would reach the standby",
		show: func(_ *testing.T, dir string) string {
			return outcome(with(dir+"/f", unix.O_RDONLY, func(fd int) error {
				_, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
				return err
			}), "")
		},
	},
	{
		what: "statfs(2) says FUSE, with no file system id and the mount's own flags",
		why:  "the kernel fills them in",
		show: func(t *testing.T, dir string) string {
			var s unix.Statfs_t
			must(t, unix.Statfs(dir, &s))
			return fmt.Sprint(s.Type)
		},
	},
	{
		what: "fanotify(7) marks on the mount or file system with file handles (FAN_REPORT_FID) are refused; those on inodes work",
		why:  "they need a file system id",
		show: func(t *testing.T, dir string) string {
			fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_FID|unix.FAN_CLOEXEC, unix.O_RDONLY)
			if errors.Is(err, unix.ENOSYS) {
				t.Skip("this kernel has no fanotify")
			}
			must(t, err)
			defer unix.Close(fd)
			return outcome(unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_CREATE, unix.AT_FDCWD, dir), "")
		},
	},
	{
		what: "user.replfs.* is the daemon's: user.replfs.position is there without being listed, the rest is not, and none can be set",
		why:  "it tells scripts how far the log was when the file was changed last",
		show: func(_ *testing.T, dir string) string {
			_, err := unix.Getxattr(dir+"/f", positionAttr, nil)
			return outcome(err, "") + outcome(unix.Setxattr(dir+"/f", "user.replfs.x", nil, 0), "")
		},
	},
	{
		what: "a file handle (name_to_handle_at) is ESTALE once the kernel has dropped the inode, and after a restart of the daemon",
		why:  "node ids do not outlive either; see TestFileHandles",
	},
	{
		what: "quotas and blocks reserved for root do not bind users",
		why:  "the daemon writes as root; what it writes counts for its owner",
		show: func(t *testing.T, dir string) (got string) {
			must(t, unix.Chmod(dir+"/f", 0o666))
			as(t, "bob", func() {
				got = outcome(with(dir+"/f", unix.O_WRONLY, func(fd int) error {
					var s unix.Statfs_t
					must(t, unix.Fstatfs(fd, &s))
					err := unix.Fallocate(fd, 0, 0, int64(s.Bavail)*s.Bsize+4<<20)
					return errors.Join(err, unix.Ftruncate(fd, 0))
				}), "")
			})
			return got
		},
	},
}

// known tells whether a difference has to be.
func known(fstype string, o *op, plain, mount string) bool {
	for _, k := range knownDifferences {
		if k.here != nil && k.here(fstype, o, plain, mount) {
			return true
		}
	}
	return false
}

// old are an atime and an mtime of long ago.
var old = []unix.Timespec{{Sec: 1_000_000_000}, {Sec: 1_000_000_001}}

func times(t testing.TB, path string) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return moment(st.Atim) + " " + moment(st.Mtim)
}

// as runs f with an actor's credentials.
func as(t testing.TB, name string, f func()) {
	t.Helper()
	for _, who := range actors {
		if who.name == name {
			a, err := startActor(who)
			must(t, err)
			defer a.stop()
			a.do(f)
			return
		}
	}
	t.Fatalf("nobody is called %s", name)
}

// with opens a file for f.
func with(path string, flags int, f func(fd int) error) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(f(fd), unix.Close(fd))
}

// TestKnownDifferences: each of them is still there; what is not any more is to
// be taken off the list.
func TestKnownDifferences(t *testing.T) {
	for _, fstype := range fsTypes {
		t.Run(fstype, func(t *testing.T) {
			e := newEnv(t, options{base: newFilesystem(t, fstype, "")})
			native := e.path("native")
			must(t, os.Mkdir(native, 0o755))
			for i, k := range knownDifferences {
				if k.show == nil || k.on != fstype && (k.on != "" || fstype != "ext4") {
					continue
				}
				t.Run(fmt.Sprint(i), func(t *testing.T) {
					t.Log(k.what)
					var got [2]string
					for side, root := range []string{native, e.mnt} {
						dir := fmt.Sprintf("%s/%d", root, i)
						must(t, os.Mkdir(dir, 0o755))
						must(t, os.WriteFile(dir+"/f", nil, 0o644))
						got[side] = k.show(t, dir)
					}
					if got[0] == got[1] {
						t.Errorf("it is not there any more: both say %s", got[0])
					}
				})
			}
			e.equal()
			e.sound()
		})
	}
}
