package fs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// fileCap is a value of security.capability: cap_net_raw, effective.
var fileCap = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// acl makes an ACL that gives a user rights beside rwxr-x---.
func acl(uid uint32, perm uint16) []byte {
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) }
	put(uint32(2))
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, ^uint32(0)}, {2, perm, uid}, {4, 5, ^uint32(0)}, {16, 7, ^uint32(0)}, {32, 0, ^uint32(0)}} {
		put(e.tag)
		put(e.perm)
		put(e.id)
	}
	return b.Bytes()
}

// attributeCases: attributes change with exactly one record each.
func attributeCases() []opCase {
	now, omit := unix.Timespec{Nsec: unix.UTIME_NOW}, unix.Timespec{Nsec: unix.UTIME_OMIT}
	some, other := unix.Timespec{Sec: 981173106, Nsec: 123456789}, unix.Timespec{Sec: -5, Nsec: 1}
	utimens := func(name string, a, m unix.Timespec) func(dir) error {
		return func(d dir) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, d.in(name), []unix.Timespec{a, m}, unix.AT_SYMLINK_NOFOLLOW)
		}
	}
	setx := func(name, attr string, value []byte, flags int) func(dir) error {
		return func(d dir) error { return unix.Lsetxattr(d.in(name), attr, value, flags) }
	}
	removex := func(attr string) func(dir) error {
		return func(d dir) error { return unix.Lremovexattr(d.in("f"), attr) }
	}
	after := func(setup ...func(dir) error) func(dir) {
		return func(d dir) {
			withF(d)
			must(d.e.t, unix.Symlink("f", d.in("l")))
			for _, s := range setup {
				must(d.e.t, s(d))
			}
		}
	}
	chmod := func(mode uint32) func(dir) error {
		return func(d dir) error { return unix.Chmod(d.in("f"), mode) }
	}
	chown := func(name string, uid, gid int) func(dir) error {
		return func(d dir) error { return unix.Lchown(d.in(name), uid, gid) }
	}
	return []opCase{
		{name: "chmod", setup: withF, run: chmod(0o640), want: []string{"setattr f mode"}},
		{name: "fchmod", setup: withF, run: func(d dir) error {
			return d.with("f", unix.O_RDONLY, func(fd int) error { return unix.Fchmod(fd, 0o6755) })
		}, want: []string{"setattr f mode"}},
		{name: "chmod of a directory", run: func(d dir) error { return unix.Chmod(d.in("."), 0o3777) }, want: []string{"setattr . mode"}},
		{name: "chown", setup: withF, run: chown("f", 1000, 1001), want: []string{"setattr f owner,mode"}},
		{name: "chgrp", setup: withF, run: chown("f", -1, 1001), want: []string{"setattr f owner,mode"}},
		{name: "chown clears suid", setup: after(chmod(0o6755)), run: chown("f", 1000, -1), want: []string{"setattr f owner,mode"}},
		{name: "chown clears capabilities", setup: after(setx("f", capability, fileCap, 0)), run: chown("f", 1000, -1),
			// The kernel asks for their removal by itself.
			want: []string{"removexattr f security.capability", "setattr f owner,mode"}},
		{name: "lchown", setup: after(), run: chown("l", 1000, 1001), want: []string{"setattr l owner"}},
		{name: "utimens", setup: withF, run: utimens("f", some, other), want: []string{"setattr f atime,mtime"}},
		{name: "utimens now", setup: withF, run: utimens("f", now, now), want: []string{"setattr f atime,mtime"}},
		{name: "utimens atime only", setup: withF, run: utimens("f", some, omit), want: []string{"setattr f atime"}},
		{name: "utimens mtime only", setup: withF, run: utimens("f", omit, now), want: []string{"setattr f mtime"}},
		{name: "utimens neither", setup: withF, run: utimens("f", omit, omit)},
		{name: "utimens of a symlink", setup: after(), run: utimens("l", some, some), want: []string{"setattr l atime,mtime"}},
		{name: "utimens of a directory", run: utimens(".", some, some), want: []string{"setattr . atime,mtime"}},
		{name: "futimens", setup: withF, run: func(d dir) error {
			return d.with("f", unix.O_WRONLY, func(fd int) error { return unix.Futimes(fd, []unix.Timeval{{Sec: 7}, {Sec: 8}}) })
		}, want: []string{"setattr f atime,mtime"}},
		{name: "setxattr", setup: withF, run: setx("f", "user.a", []byte("b"), 0), want: []string{"setxattr f user.a"}},
		{name: "setxattr empty", setup: withF, run: setx("f", "user.a", nil, 0), want: []string{"setxattr f user.a"}},
		{name: "setxattr trusted of a symlink", setup: after(), run: setx("l", "trusted.a", []byte("b"), 0), want: []string{"setxattr l trusted.a"}},
		{name: "setxattr create of what exists", setup: after(setx("f", "user.a", nil, 0)), fails: unix.EEXIST,
			run: setx("f", "user.a", []byte("c"), unix.XATTR_CREATE)},
		{name: "setxattr replace of nothing", setup: withF, fails: unix.ENODATA, run: setx("f", "user.a", nil, unix.XATTR_REPLACE)},
		{name: "setxattr too large", setup: withF, fails: unix.ENOSPC, run: setx("f", "user.a", make([]byte, 60000), 0)},
		{name: "removexattr", setup: after(setx("f", "user.a", nil, 0)), run: removex("user.a"), want: []string{"removexattr f user.a"}},
		{name: "removexattr of nothing", setup: withF, fails: unix.ENODATA, run: removex("user.a")},
		{name: "capability", setup: withF, run: setx("f", capability, fileCap, 0), want: []string{"setxattr f security.capability"}},
		{name: "acl", setup: withF, run: setx("f", accessACL, acl(1000, 6), 0), want: []string{"setxattr f system.posix_acl_access"}},
		{name: "acl removed", setup: after(setx("f", accessACL, acl(1000, 6), 0)), run: removex(accessACL),
			want: []string{"removexattr f system.posix_acl_access"}},
		{name: "default acl", run: setx(".", defaultACL, acl(1000, 6), 0), want: []string{"setxattr . system.posix_acl_default"}},
		{name: "create under a default acl", setup: func(d dir) { must(d.e.t, setx(".", defaultACL, acl(1000, 6), 0)(d)) },
			run: func(d dir) error {
				return errors.Join(d.with("f", unix.O_CREAT|unix.O_WRONLY, func(int) error { return nil }),
					unix.Mkdir(d.in("p"), 0o777), unix.Mkfifo(d.in("q"), 0o666), unix.Symlink("x", d.in("l")))
			}, want: []string{"create f 100640", "mkdir p 40770", "create q 10660", "symlink l x"}},
	}
}

// TestNoSpace: what a full store refuses gives no record of its own. Only the
// mtime that the refused write has moved travels.
func TestNoSpace(t *testing.T) {
	small := t.TempDir()
	must(t, unix.Mount("small", small, "tmpfs", 0, "size=1m,nr_inodes=20,mode=755"))
	t.Cleanup(func() { must(t, unix.Unmount(small, 0)) })
	e := newEnv(t, options{store: small})
	d := dir{e, "d"}
	must(t, unix.Mkdir(e.in(d.name), 0o755))
	d.file("f", "x")
	e.records()
	// In pieces, so that one of them is cut short.
	must(t, d.with("f", unix.O_WRONLY, func(fd int) error {
		chunk := strings.Repeat("y", 300<<10)
		for off := int64(0); ; {
			n, err := unix.Pwrite(fd, []byte(chunk), off)
			if errors.Is(err, unix.ENOSPC) {
				return nil
			}
			if err != nil {
				return err
			}
			off += int64(n)
		}
	}))
	recs := e.records()
	if last := summary(&recs[len(recs)-1], "d"); last != "setattr f size,mtime" {
		t.Errorf("the refused write gave %q", last)
	}
	e.equal()
	err := d.with("f", unix.O_WRONLY, func(fd int) error { return unix.Fallocate(fd, 0, 0, 8<<20) })
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("fallocate: %v", err)
	}
	for i := 0; ; i++ {
		err := unix.Mknod(d.in(strings.Repeat("n", i+1)), unix.S_IFREG|0o600, 0)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		must(t, err)
	}
	e.equal()
	before := e.ring.Last()
	if err := unix.Mkdir(d.in("more"), 0o755); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("mkdir: %v", err)
	}
	if e.ring.Last() != before {
		t.Error("a refused mkdir gave a record")
	}
	e.sound()
}

// TestTrustedXattrs: who may not read trusted attributes does not see their
// names either, whatever the size asked for.
func TestTrustedXattrs(t *testing.T) {
	e := newEnv(t, options{base: disk})
	f := e.in("f")
	must(t, os.WriteFile(f, nil, 0o644))
	must(t, unix.Chmod(f, 0o666))
	for _, name := range []string{"trusted.a", "user.b", "trusted.c"} {
		must(t, unix.Setxattr(f, name, []byte("x"), 0))
	}
	for _, c := range []struct {
		who  string
		want string
	}{{"root", "trusted.a,trusted.c,user.b"}, {"bob", "user.b"}, {"lessroot", "user.b"}} {
		a, err := startActor(actors[slices.IndexFunc(actors, func(i identity) bool { return i.name == c.who })])
		must(t, err)
		buf := make([]byte, 100)
		var size, n int
		var small error
		a.do(func() {
			size, err = unix.Listxattr(f, nil)
			n, _ = unix.Listxattr(f, buf)
			_, small = unix.Listxattr(f, buf[:3])
		})
		a.stop()
		must(t, err)
		if got := sorted(string(buf[:n])); got != c.want || size != n || small != unix.ERANGE {
			t.Errorf("%s sees %q, size %d, then %d; with too little room %v", c.who, got, size, n, small)
		}
	}
}
