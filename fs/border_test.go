package fs

import (
	"errors"

	"golang.org/x/sys/unix"
)

// borderCases: what is excluded gives no records, and what crosses the
// border travels as what it means on the other side.
func borderCases() []opCase {
	rename := func(from, to string, flags uint) func(dir) error {
		return func(d dir) error {
			return unix.Renameat2(unix.AT_FDCWD, d.in(from), unix.AT_FDCWD, d.in(to), flags)
		}
	}
	// in/ is replicated, tmp/ is not; each has a file, a directory with
	// content, and a socket.
	both := func(d dir) {
		for _, p := range []string{"in", "tmp"} {
			must(d.e.t, unix.Mkdir(d.in(p), 0o755))
			must(d.e.t, unix.Mkdir(d.in(p+"/dir"), 0o750))
			must(d.e.t, unix.Mkdir(d.in(p+"/dir/sub"), 0o700))
			d.file(p+"/f", "content of "+p)
			d.file(p+"/g", "other")
			d.file(p+"/dir/sub/a", "deep")
			must(d.e.t, unix.Link(d.in(p+"/dir/sub/a"), d.in(p+"/dir/b")))
			must(d.e.t, unix.Symlink("a", d.in(p+"/dir/sub/l")))
			must(d.e.t, unix.Setxattr(d.in(p+"/dir/sub/a"), "user.x", []byte("y"), 0))
			must(d.e.t, unix.Mknod(d.in(p+"/s"), unix.S_IFSOCK|0o600, 0))
		}
	}
	return []opCase{
		{name: "excluded directory comes and goes", run: func(d dir) error {
			return errors.Join(unix.Mkdir(d.in("tmp"), 0o755), unix.Rmdir(d.in("tmp")))
		}, want: []string{"setattr . mtime", "setattr . mtime"}},
		{name: "inside an excluded directory", setup: both, run: func(d dir) error {
			d.file("tmp/new", "x")
			return errors.Join(rename("tmp/new", "tmp/newer", 0)(d), unix.Chmod(d.in("tmp/newer"), 0o600),
				unix.Truncate(d.in("tmp/newer"), 9), unix.Setxattr(d.in("tmp/newer"), "user.a", nil, 0),
				unix.Link(d.in("tmp/newer"), d.in("tmp/newest")), rename("tmp/newer", "tmp/f", unix.RENAME_EXCHANGE)(d),
				unix.Unlink(d.in("tmp/newer")), unix.Mkdir(d.in("tmp/q"), 0o755), rename("tmp/q", "tmp/r", 0)(d))
		}},
		{name: "fsync of an excluded file", setup: both, run: func(d dir) error {
			return d.with("tmp/f", unix.O_RDWR|unix.O_SYNC, func(fd int) error { return errors.Join(writeAll(fd, "x"), unix.Fsync(fd)) })
		}},
		{name: "file leaves", setup: both, run: rename("in/f", "tmp/h", 0), want: []string{"remove-tree in/f"}},
		{name: "file leaves for an excluded name", setup: both, run: rename("in/f", "in/f.skip", 0),
			want: []string{"setattr in mtime", "remove-tree in/f"}},
		{name: "directory leaves", setup: both, run: rename("in/dir", "tmp/d", 0), want: []string{"remove-tree in/dir"}},
		{name: "file enters", setup: both, run: rename("tmp/f", "in/h", 0),
			want: []string{"state in/h live", "state-data in/h live", "state-end in/h live", "fsync in/h live"}},
		{name: "file enters over another", setup: both, run: rename("tmp/f", "in/f", 0),
			want: []string{"remove-tree in/f last", "state in/f live", "state-data in/f live", "state-end in/f live", "fsync in/f live"}},
		{name: "directory enters", setup: both, any: true, run: rename("tmp/dir", "in/d", 0)},
		{name: "link into", setup: both, run: func(d dir) error { return unix.Link(d.in("tmp/f"), d.in("in/h")) },
			want: []string{"state in/h live", "state-data in/h live", "state-end in/h live", "fsync in/h live"}},
		{name: "link out", setup: both, run: func(d dir) error { return unix.Link(d.in("in/f"), d.in("tmp/h")) }},
		{name: "link out, then the name inside goes", setup: both, run: func(d dir) error {
			return errors.Join(unix.Link(d.in("in/f"), d.in("tmp/h")), unix.Unlink(d.in("in/f")), unix.Truncate(d.in("tmp/h"), 1))
		}, want: []string{"unlink in/f"}},
		{name: "link out, written by the name outside", setup: both, run: func(d dir) error {
			return errors.Join(unix.Link(d.in("in/f"), d.in("tmp/h")), unix.Truncate(d.in("tmp/h"), 1))
		}, want: []string{"setattr in/f size,mtime"}},
		{name: "exchange across", setup: both, fails: unix.EXDEV, run: rename("in/f", "tmp/f", unix.RENAME_EXCHANGE)},
		{name: "file leaves, replacing nothing", setup: both, run: rename("in/f", "in/f.skip", unix.RENAME_NOREPLACE),
			want: []string{"setattr in mtime", "remove-tree in/f"}},
		{name: "file enters, replacing nothing", setup: both, run: rename("tmp/f", "in/h", unix.RENAME_NOREPLACE),
			want: []string{"state in/h live", "state-data in/h live", "state-end in/h live", "fsync in/h live"}},
		{name: "excluded names come", run: func(d dir) error {
			return d.with("f.skip", unix.O_CREAT|unix.O_WRONLY, func(int) error { return nil })
		}, want: []string{"setattr . mtime"}},
		{name: "excluded directory", run: func(d dir) error { return unix.Mkdir(d.in("d.skip"), 0o755) }, want: []string{"setattr . mtime"}},
		{name: "excluded symlink", run: func(d dir) error { return unix.Symlink("x", d.in("l.skip")) }, want: []string{"setattr . mtime"}},
		{name: "excluded link", setup: withF, run: func(d dir) error { return unix.Link(d.in("f"), d.in("g.skip")) },
			want: []string{"setattr . mtime"}},
		{name: "excluded directory goes", setup: func(d dir) { must(d.e.t, unix.Mkdir(d.in("d.skip"), 0o755)) },
			run: func(d dir) error { return unix.Rmdir(d.in("d.skip")) }, want: []string{"setattr . mtime"}},
		{name: "copy from an excluded file", setup: func(d dir) { d.file("f.skip", "12345"); withF(d) },
			run: copyRange("f.skip", "f", 1, 2, 3), want: []string{"write f 2+3"}},
		{name: "socket renamed", setup: both, run: rename("in/s", "in/t", 0), want: []string{"setattr in mtime"}},
		{name: "socket over a file", setup: both, run: rename("in/s", "in/f", 0), want: []string{"remove-tree in/f last"}},
		{name: "file over a socket", setup: both, run: rename("in/f", "in/s", 0), want: []string{"rename in/s in/f"}},
		{name: "socket and file exchanged", setup: both, run: rename("in/s", "in/f", unix.RENAME_EXCHANGE), want: []string{"rename in/s in/f"}},
		{name: "socket and file exchanged elsewhere", setup: both, run: rename("in/dir/b", "in/s", unix.RENAME_EXCHANGE), want: []string{"rename in/s in/dir/b"}},
		{name: "directory with excluded ones below moves", setup: func(d dir) { both(d); d.file("in/dir/x.skip", "") },
			run: rename("in/dir", "in/e", 0), want: []string{"rename in/e in/dir"}},
	}
}
