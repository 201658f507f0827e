package treediff

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func found(t testing.TB, a, b string, opts Options) []string {
	t.Helper()
	diffs, err := Compare(a, b, opts)
	must(t, err)
	got := []string{}
	for _, d := range diffs {
		if d.A == d.B {
			t.Errorf("both sides read the same: %v", d)
		}
		got = append(got, d.Path+" "+string(d.Kind))
	}
	return got
}

func expect(t testing.TB, a, b string, opts Options, want ...string) {
	t.Helper()
	// Whichever tree comes first, the findings are the same.
	for _, pair := range [][2]string{{a, b}, {b, a}} {
		if got := found(t, pair[0], pair[1], opts); !slices.Equal(got, append([]string{}, want...)) {
			t.Errorf("found %q, want %q", got, want)
		}
	}
}

func TestEqualTrees(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	build(t, a)
	copyTree(t, a, b)
	expect(t, a, b, Options{})
	expect(t, a, a, Options{})

	t.Run("holes and zeros are the same", func(t *testing.T) {
		quietly(t, filepath.Join(b, "sparse"), func(p string) { patch(t, p, 1<<20, strings.Repeat("\x00", 3<<20)) })
		expect(t, a, b, Options{})
	})
	t.Run("sockets do not count", func(t *testing.T) {
		quietly(t, filepath.Join(b, "dir/sock"), func(p string) { must(t, os.Remove(p)) })
		expect(t, a, b, Options{})
	})
	t.Run("a symlink leads to the root", func(t *testing.T) {
		must(t, os.Symlink(a, filepath.Join(dir, "to-a")))
		expect(t, filepath.Join(dir, "to-a"), b, Options{})
	})
}

// TestPlanted plants one difference at a time and wants it found, and nothing else.
func TestPlanted(t *testing.T) {
	needRoot(t)
	plants := []struct {
		name  string
		path  string
		plant func(t *testing.T, p string)
		want  []string
	}{
		{"missing file", "file", func(t *testing.T, p string) { must(t, os.Remove(p)) }, []string{"file presence"}},
		{"missing tree", "dir", func(t *testing.T, p string) { must(t, os.RemoveAll(p)) }, []string{"dir presence"}},
		{"missing odd name", "dir/sub/" + oddName, func(t *testing.T, p string) { must(t, os.Remove(p)) },
			[]string{"dir/sub/" + oddName + " presence"}},
		{"extra file", "empty/new", func(t *testing.T, p string) { must(t, os.WriteFile(p, nil, 0o644)) }, []string{"empty/new presence"}},
		{"extra last", "zzz", func(t *testing.T, p string) { must(t, os.Mkdir(p, 0o755)) }, []string{"zzz presence"}},
		{"type", "nothing", func(t *testing.T, p string) {
			must(t, os.Remove(p))
			must(t, os.Mkdir(p, 0o755))
		}, []string{"nothing type"}},
		{"file in place of a socket", "dir/sock", func(t *testing.T, p string) {
			must(t, os.Remove(p))
			must(t, os.WriteFile(p, nil, 0o600))
		}, []string{"dir/sock presence"}},
		{"size", "dir/small", func(t *testing.T, p string) { must(t, os.Truncate(p, 4)) }, []string{"dir/small size"}},
		{"zeros at the end", "dir/small", func(t *testing.T, p string) { must(t, os.Truncate(p, 6)) }, []string{"dir/small size"}},
		{"last byte", "file", func(t *testing.T, p string) { patch(t, p, 799_999, "!") }, []string{"file content"}},
		{"first byte", "file", func(t *testing.T, p string) { patch(t, p, 0, "!") }, []string{"file content"}},
		{"byte in a skipped hole", "sparse", func(t *testing.T, p string) { patch(t, p, 40<<20+12345, "!") }, []string{"sparse content"}},
		{"byte after a skipped hole", "sparse", func(t *testing.T, p string) { patch(t, p, sparseSize-1, "!") }, []string{"sparse content"}},
		{"permissions", "dir/small", func(t *testing.T, p string) { must(t, os.Chmod(p, 0o601)) }, []string{"dir/small mode"}},
		{"suid", "nothing", func(t *testing.T, p string) { must(t, os.Chmod(p, os.ModeSetgid|0o755)) }, []string{"nothing mode"}},
		{"sgid", "nothing", func(t *testing.T, p string) { must(t, os.Chmod(p, os.ModeSetuid|0o755)) }, []string{"nothing mode"}},
		{"sticky", "dir/sub", func(t *testing.T, p string) { must(t, os.Chmod(p, os.ModeSetgid|0o777)) }, []string{"dir/sub mode"}},
		{"root's mode", ".", func(t *testing.T, p string) { must(t, os.Chmod(p, 0o750)) }, []string{". mode"}},
		{"uid", "dir/small", func(t *testing.T, p string) { must(t, os.Chown(p, 1002, -1)) }, []string{"dir/small owner"}},
		{"gid", "empty", func(t *testing.T, p string) { must(t, os.Chown(p, -1, 1)) }, []string{"empty owner"}},
		{"symlink's owner", "sym", func(t *testing.T, p string) { must(t, os.Lchown(p, 1, 1)) }, []string{"sym owner"}},
		{"user xattr value", "file", func(t *testing.T, p string) {
			must(t, unix.Setxattr(p, "user.long", []byte(strings.Repeat("v", 1999)+"w"), 0))
		}, []string{"file xattr"}},
		{"empty xattr gone", "file", func(t *testing.T, p string) { must(t, unix.Removexattr(p, "user.empty")) }, []string{"file xattr"}},
		{"xattr more", "nothing", func(t *testing.T, p string) { must(t, unix.Setxattr(p, "user.new", nil, 0)) }, []string{"nothing xattr"}},
		{"trusted xattr", "dir", func(t *testing.T, p string) { must(t, unix.Setxattr(p, "trusted.t", []byte("u"), 0)) }, []string{"dir xattr"}},
		{"default acl", "dir", func(t *testing.T, p string) { must(t, unix.Removexattr(p, "system.posix_acl_default")) }, []string{"dir xattr"}},
		{"access acl", "l1", func(t *testing.T, p string) {
			raw := slices.Clone(aclRead)
			raw[4+8+4] = 0xe9 // another user
			must(t, unix.Setxattr(p, "system.posix_acl_access", raw, 0))
		}, []string{"dir/l3 xattr"}}, // where the walk meets the inode first
		{"symlink's xattr", "sym", func(t *testing.T, p string) { must(t, unix.Lremovexattr(p, "trusted.s")) }, []string{"sym xattr"}},
		{"fifo's xattr", "fifo", func(t *testing.T, p string) { must(t, unix.Setxattr(p, "security.replfs_test", []byte("g"), 0)) }, []string{"fifo xattr"}},
		{"two xattrs", "file", func(t *testing.T, p string) {
			must(t, unix.Removexattr(p, "user.long"))
			must(t, unix.Setxattr(p, "user.long2", nil, 0))
		}, []string{"file xattr", "file xattr"}},
		{"link broken", "l2", func(t *testing.T, p string) {
			copyAttributes(t, p)
		}, []string{"l2 hardlink"}},
		{"first link broken", "dir/l3", func(t *testing.T, p string) {
			copyAttributes(t, p)
		}, []string{"l1 hardlink", "l2 hardlink"}},
		{"target", "sym", func(t *testing.T, p string) {
			var st unix.Stat_t
			must(t, unix.Lstat(p, &st))
			must(t, os.Remove(p))
			must(t, os.Symlink("fil3", p))
			must(t, unix.Lsetxattr(p, "trusted.s", []byte("s"), 0))
			setMtime(t, p, st.Mtim)
		}, []string{"sym target"}},
		{"character device", "chr", func(t *testing.T, p string) { remakeDevice(t, p, unix.S_IFCHR, unix.Mkdev(1, 5)) }, []string{"chr device"}},
		{"block device", "blk", func(t *testing.T, p string) { remakeDevice(t, p, unix.S_IFBLK, unix.Mkdev(8, 200)) }, []string{"blk device"}},
	}
	for _, name := range []string{".", "file", "dir/sub", "sym", "fifo", "chr", "blk"} {
		plants = append(plants, struct {
			name  string
			path  string
			plant func(t *testing.T, p string)
			want  []string
		}{"mtime of " + name, name, nil, []string{name + " mtime"}})
	}
	base := t.TempDir()
	a := filepath.Join(base, "a")
	build(t, a)
	for i, p := range plants {
		t.Run(p.name, func(t *testing.T) {
			b := filepath.Join(base, fmt.Sprintf("b%d", i))
			copyTree(t, a, b)
			defer func() { must(t, os.RemoveAll(b)) }()
			path := filepath.Join(b, p.path)
			if p.plant != nil {
				quietly(t, path, func(path string) { p.plant(t, path) })
				expect(t, a, b, Options{}, p.want...)
				return
			}
			var st unix.Stat_t
			must(t, unix.Lstat(path, &st))
			setMtime(t, path, unix.Timespec{Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec ^ 1})
			expect(t, a, b, Options{}, p.want...)
			expect(t, a, b, Options{IgnoreMtime: true})
		})
	}
}

// copyAttributes replaces a name by a file of its own that looks the same.
func copyAttributes(t *testing.T, p string) {
	t.Helper()
	must(t, os.Rename(p, p+".old"))
	data, err := os.ReadFile(p + ".old")
	must(t, err)
	must(t, os.WriteFile(p, data, 0o600))
	must(t, unix.Setxattr(p, "system.posix_acl_access", aclRead, 0))
	var st unix.Stat_t
	must(t, unix.Lstat(p+".old", &st))
	setMtime(t, p, st.Mtim)
	must(t, os.Remove(p+".old"))
}

func remakeDevice(t *testing.T, p string, format uint32, dev uint64) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(p, &st))
	must(t, os.Remove(p))
	must(t, unix.Mknod(p, format|0o600, int(dev)))
	setMtime(t, p, st.Mtim)
}

// TestLinkGroups wants a partition compared, not link counts: both sides have
// two pairs, paired differently, and a link from outside the tree is no matter.
func TestLinkGroups(t *testing.T) {
	base := t.TempDir()
	a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
	for dir, pairs := range map[string][2][2]string{a: {{"1", "2"}, {"3", "4"}}, b: {{"1", "3"}, {"2", "4"}}} {
		must(t, os.Mkdir(dir, 0o755))
		for _, p := range pairs {
			must(t, os.WriteFile(filepath.Join(dir, p[0]), nil, 0o644))
			must(t, os.Link(filepath.Join(dir, p[0]), filepath.Join(dir, p[1])))
		}
		must(t, os.WriteFile(filepath.Join(dir, "5"), nil, 0o644))
	}
	must(t, os.Link(filepath.Join(a, "5"), filepath.Join(base, "outside")))
	expect(t, a, b, Options{IgnoreMtime: true}, "2 hardlink", "3 hardlink", "4 hardlink")
}

func TestExclude(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
	build(t, a)
	copyTree(t, a, b)
	for _, p := range []string{"dir/sub/" + oddName, "file"} {
		quietly(t, filepath.Join(b, p), func(p string) { must(t, os.Remove(p)) })
	}
	quietly(t, filepath.Join(b, "fifo"), func(p string) { must(t, os.Remove(p)) })
	exclude := func(path string, isDir bool) bool {
		return path == "dir/sub" && isDir || path == "file" && !isDir || path == "fifo" && isDir
	}
	expect(t, a, b, Options{Exclude: exclude}, "fifo presence")
}

func TestMaxDifferences(t *testing.T) {
	base := t.TempDir()
	a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
	must(t, os.Mkdir(a, 0o755))
	must(t, os.Mkdir(b, 0o755))
	for i := range DefaultMaxDifferences + 20 {
		must(t, os.WriteFile(filepath.Join(a, fmt.Sprintf("f%03d", i)), nil, 0o644))
	}
	for limit, want := range map[int]int{0: DefaultMaxDifferences, 7: 7, 1000: DefaultMaxDifferences + 20, -1: DefaultMaxDifferences + 20} {
		if got := found(t, a, b, Options{MaxDifferences: limit, IgnoreMtime: true}); len(got) != want {
			t.Errorf("limit %d: found %d, want %d", limit, len(got), want)
		}
	}
}

// TestDeeperThanPathMax wants a difference found where no path can reach.
func TestDeeperThanPathMax(t *testing.T) {
	base := t.TempDir()
	const depth = 1500
	bottom := strings.TrimSuffix(strings.Repeat("ddd/", depth), "/")
	for _, root := range []string{"a", "b"} {
		fd, err := unix.Open(base, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		for _, name := range append([]string{root}, strings.Split(bottom, "/")...) {
			must(t, unix.Mkdirat(fd, name, 0o755))
			next, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			must(t, err)
			must(t, unix.Close(fd))
			fd = next
		}
		if root == "b" {
			must(t, unix.Symlinkat("x", fd, "extra"))
		}
		must(t, unix.Close(fd))
	}
	expect(t, filepath.Join(base, "a"), filepath.Join(base, "b"), Options{IgnoreMtime: true}, bottom+"/extra presence")
}

func TestCompareFails(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	must(t, os.WriteFile(file, nil, 0o644))
	for _, bad := range []string{file, filepath.Join(base, "none")} {
		if _, err := Compare(base, bad, Options{}); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("comparing with %s: %v, want an error that names it", bad, err)
		}
	}
}

func TestNoDescriptorsLeft(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
	build(t, a)
	copyTree(t, a, b)
	open := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(all)
	}
	expect(t, a, b, Options{}) // what the runtime opens once is open now
	before := open()
	expect(t, a, b, Options{})
	must(t, os.Remove(filepath.Join(b, "dir/small")))
	for limit := range 3 {
		found(t, a, b, Options{MaxDifferences: limit})
	}
	if after := open(); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func TestString(t *testing.T) {
	d := Difference{Path: "a\n\xff", Kind: Mode, A: "0644", B: "0600"}
	if got, want := d.String(), `"a\n\xff": mode: 0644 != 0600`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
