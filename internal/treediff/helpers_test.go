package treediff

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	sparseSize = wholeReadMax + 4<<20 // large enough for holes to be skipped
	oddName    = "odd\xff\n name"
)

// aclRead is a POSIX ACL: user::rw-, user:1000:r--, group::r--, mask::r--, other::r--.
var aclRead = acl([][3]uint32{{1, 6, ^uint32(0)}, {2, 4, 1000}, {4, 4, ^uint32(0)}, {0x10, 4, ^uint32(0)}, {0x20, 4, ^uint32(0)}})

func acl(entries [][3]uint32) []byte {
	raw := []byte{2, 0, 0, 0}
	for _, e := range entries {
		raw = append(raw, byte(e[0]), byte(e[0]>>8), byte(e[1]), byte(e[1]>>8),
			byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
	}
	return raw
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// build makes a tree that has something of everything.
func build(t testing.TB, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, name) }
	must(t, os.Mkdir(root, 0o751))
	must(t, os.MkdirAll(at("dir/sub"), 0o755))
	must(t, os.Mkdir(at("empty"), 0o700))
	must(t, os.WriteFile(at("file"), bytes.Repeat([]byte("0123456789abcdef"), 50_000), 0o644))
	must(t, os.WriteFile(at("dir/small"), []byte("small"), 0o600))
	must(t, os.WriteFile(at("dir/sub/"+oddName), []byte("odd"), 0o644))
	must(t, os.WriteFile(at("nothing"), nil, 0o644))
	must(t, os.WriteFile(at("l1"), []byte("linked"), 0o644))
	for _, name := range []string{"l2", "dir/l3"} {
		must(t, os.Link(at("l1"), at(name)))
	}
	must(t, os.WriteFile(at("alone"), []byte("linked"), 0o644))
	must(t, os.WriteFile(at("sparse"), []byte("head"), 0o644))
	patch(t, at("sparse"), sparseSize-1, "z")
	must(t, os.Symlink("file", at("sym")))
	must(t, unix.Mkfifo(at("fifo"), 0o640))
	must(t, unix.Mknod(at("chr"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(at("blk"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 200))))
	must(t, unix.Mknod(at("dir/sock"), unix.S_IFSOCK|0o600, 0))
	must(t, os.Chown(at("dir/small"), 1000, 1001))
	must(t, os.Chmod(at("nothing"), os.ModeSetuid|os.ModeSetgid|0o755))
	must(t, os.Chmod(at("dir/sub"), os.ModeSticky|os.ModeSetgid|0o777))

	must(t, unix.Setxattr(at("file"), "user.long", bytes.Repeat([]byte("v"), 2000), 0))
	must(t, unix.Setxattr(at("file"), "user.empty", nil, 0))
	must(t, unix.Setxattr(at("dir"), "trusted.t", []byte("t"), 0))
	must(t, unix.Setxattr(at("dir"), "system.posix_acl_default", aclRead, 0))
	must(t, unix.Setxattr(at("l1"), "system.posix_acl_access", aclRead, 0))
	must(t, unix.Lsetxattr(at("sym"), "trusted.s", []byte("s"), 0))
	must(t, unix.Setxattr(at("fifo"), "security.replfs_test", []byte("f"), 0))

	i := int64(0)
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		i++
		setMtime(t, path, unix.Timespec{Sec: 1_000_000_000 + i, Nsec: 123_456_789 + i})
		return err
	}))
}

// copyTree copies as cp -a does, and adds what cp leaves behind.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	out, err := exec.Command("cp", "-a", "--sparse=always", from, to).CombinedOutput()
	if err != nil {
		t.Fatalf("cp -a: %v\n%s", err, out)
	}
	// Whether cp copies the xattrs of symlinks and special files depends on its version.
	quietly(t, filepath.Join(to, "sym"), func(p string) { must(t, unix.Lsetxattr(p, "trusted.s", []byte("s"), 0)) })
	quietly(t, filepath.Join(to, "fifo"), func(p string) {
		must(t, unix.Setxattr(p, "security.replfs_test", []byte("f"), 0))
	})
}

func setMtime(t testing.TB, path string, mtime unix.Timespec) {
	t.Helper()
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path,
		[]unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}, unix.AT_SYMLINK_NOFOLLOW))
}

// quietly runs change and puts back the mtimes of path and its directory.
func quietly(t testing.TB, path string, change func(path string)) {
	t.Helper()
	type saved struct {
		path  string
		mtime unix.Timespec
	}
	var all []saved
	for _, p := range []string{path, filepath.Dir(path)} {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err == nil {
			all = append(all, saved{p, st.Mtim})
		}
	}
	change(path)
	for _, s := range all {
		var st unix.Stat_t
		if err := unix.Lstat(s.path, &st); err == nil {
			setMtime(t, s.path, s.mtime)
		}
	}
}

func patch(t testing.TB, path string, off int64, data string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(data), off)
	must(t, err)
	must(t, f.Close())
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes devices, owners and trusted xattrs: needs root")
	}
}
