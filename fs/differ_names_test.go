package fs

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// nameKinds are the operations on names.
var nameKinds = []opKind{
	{"open", 22, genOpen, doOpen},
	{"tmpfile", 4, genTmpfile, doOpen},
	{"openat", 3, func(g *gen, o *op) {
		genOpen(g, o)
		o.slot2, o.path = g.IntN(slots), pick(g, names...)
	}, func(s *side, o *op) string {
		return s.opened(o, func() (int, error) {
			return unix.Openat(s.fds[o.slot2], o.path, o.flags|unix.O_CLOEXEC, o.mode)
		})
	}},
	{"reopen", 2, genOpen, func(s *side, o *op) string {
		from := s.fds[o.slot2]
		if s.lost(o.slot2) {
			return "a known difference"
		}
		return s.opened(o, func() (int, error) {
			return unix.Open(fmt.Sprintf("/proc/self/fd/%d", from), o.flags&^(unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW)|unix.O_CLOEXEC, 0)
		})
	}},
	{"close", 6, func(g *gen, o *op) { o.slot = g.IntN(slots) }, func(s *side, o *op) string {
		return outcome(s.closeSlot(o.slot), "")
	}},
	{"mkdir", 6, func(g *gen, o *op) { o.path, o.mode = g.path(), g.perm() }, func(_ *side, o *op) string {
		return outcome(unix.Mkdir(o.path, o.mode), "")
	}},
	{"mknod", 5, func(g *gen, o *op) {
		o.path = g.path()
		o.mode = g.perm() | pick[uint32](g, unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, 0)
		if o.mode&unix.S_IFMT == unix.S_IFCHR {
			o.a = int(unix.Mkdev(1, 3)) // null
		}
	}, func(_ *side, o *op) string {
		return outcome(unix.Mknod(o.path, o.mode, o.a), "")
	}},
	{"symlink", 5, func(g *gen, o *op) {
		o.path = g.path()
		o.text = pick(g, pick(g, names...), "../"+pick(g, names...), "../open/"+pick(g, names...), "no/such",
			"", longName, strings.Repeat("x", 4095), strings.Repeat("x", 4096), "\xff", "/nonexistent/replfs")
	}, func(_ *side, o *op) string {
		return outcome(unix.Symlink(o.text, o.path), "")
	}},
	{"readlink", 3, genPath, func(_ *side, o *op) string {
		buf := make([]byte, 5000)
		n, err := unix.Readlink(o.path, buf)
		return outcome(err, "%q", buf[:max(n, 0)])
	}},
	{"link", 6, func(g *gen, o *op) {
		o.path, o.path2, o.flags = g.path(), g.path(), pick(g, 0, 0, unix.AT_SYMLINK_FOLLOW)
	}, func(_ *side, o *op) string {
		return outcome(unix.Linkat(unix.AT_FDCWD, o.path, unix.AT_FDCWD, o.path2, o.flags), "")
	}},
	{"link of an open file", 5, func(g *gen, o *op) {
		o.slot, o.path2, o.a = g.IntN(slots), g.path(), g.IntN(3)
	}, func(s *side, o *op) string {
		if s.lost(o.slot) {
			return "a known difference"
		}
		if o.a == 0 { // needs a capability
			return outcome(unix.Linkat(s.fds[o.slot], "", unix.AT_FDCWD, o.path2, unix.AT_EMPTY_PATH), "")
		}
		from := fmt.Sprintf("/proc/self/fd/%d", s.fds[o.slot])
		return outcome(unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, o.path2, unix.AT_SYMLINK_FOLLOW), "")
	}},
	{"unlink", 8, genPath, func(_ *side, o *op) string { return outcome(unix.Unlink(o.path), "") }},
	{"rmdir", 4, genPath, func(_ *side, o *op) string { return outcome(unix.Rmdir(o.path), "") }},
	{"rename", 10, func(g *gen, o *op) {
		o.path, o.path2 = g.path(), g.path()
		o.flags = pick(g, 0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_EXCHANGE, unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE, 64)
	}, func(_ *side, o *op) string {
		return outcome(unix.Renameat2(unix.AT_FDCWD, o.path, unix.AT_FDCWD, o.path2, uint(o.flags)), "")
	}},
	{"readdir", 4, genPath, doReaddir},
	{"stat", 10, func(g *gen, o *op) {
		o.path, o.flags = g.path(), pick(g, 0, unix.AT_SYMLINK_NOFOLLOW)
	}, func(_ *side, o *op) string {
		var st unix.Stat_t
		err := unix.Fstatat(unix.AT_FDCWD, o.path, &st, o.flags)
		return outcome(err, "%s", show(&st))
	}},
	{"fstat", 6, func(g *gen, o *op) { o.slot = g.IntN(slots) }, func(s *side, o *op) string {
		var st unix.Stat_t
		err := unix.Fstat(s.fds[o.slot], &st)
		return outcome(err, "%s", show(&st))
	}},
	{"statx", 4, func(g *gen, o *op) {
		o.path = g.path()
		o.flags = pick(g, 0, unix.AT_SYMLINK_NOFOLLOW) | pick(g, unix.AT_STATX_SYNC_AS_STAT, unix.AT_STATX_FORCE_SYNC, unix.AT_STATX_DONT_SYNC)
	}, doStatx},
	{"access", 6, func(g *gen, o *op) {
		o.path, o.mode = g.path(), uint32(g.IntN(8))
		o.flags = some(g, 0.3, unix.AT_EACCESS, unix.AT_SYMLINK_NOFOLLOW)
	}, func(_ *side, o *op) string {
		return outcome(unix.Faccessat2(unix.AT_FDCWD, o.path, o.mode, o.flags), "")
	}},
	{"umask", 1, func(g *gen, o *op) { o.a = pick(g, 0, 0o022, 0o027, 0o077, 0o002) }, func(_ *side, o *op) string {
		unix.Umask(o.a) // twice the same
		return "ok"
	}},
	{"chdir", 1, genPath, func(_ *side, o *op) string { return outcome(unix.Chdir(o.path), "") }},
}

func genPath(g *gen, o *op) { o.path = g.path() }

func genOpen(g *gen, o *op) {
	o.path, o.slot, o.slot2, o.mode = g.path(), g.IntN(slots), g.IntN(slots), g.perm()
	o.flags = pick(g, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR) | unix.O_NONBLOCK
	if g.IntN(2) == 0 {
		o.flags |= unix.O_CREAT
	}
	if g.IntN(12) == 0 {
		o.flags |= unix.O_PATH
	}
	o.flags |= some(g, 0.15, unix.O_TRUNC, unix.O_APPEND, unix.O_EXCL)
	o.flags |= some(g, 0.06, unix.O_NOFOLLOW, unix.O_DIRECTORY, unix.O_SYNC, unix.O_DSYNC, unix.O_DIRECT, unix.O_NOATIME)
	if o.flags&unix.O_DIRECT != 0 {
		o.flags &^= unix.O_APPEND // at ends that are no blocks: a known difference
	}
}

func genTmpfile(g *gen, o *op) {
	genOpen(g, o)
	o.path = startDirs[g.IntN(len(startDirs))].name
	o.flags = o.flags&^(unix.O_CREAT|unix.O_PATH|unix.O_ACCMODE) | unix.O_TMPFILE | pick(g, unix.O_RDWR, unix.O_RDWR, unix.O_WRONLY, unix.O_RDONLY)
}

func doOpen(s *side, o *op) string {
	return s.opened(o, func() (int, error) { return unix.Open(o.path, o.flags|unix.O_CLOEXEC, o.mode) })
}

// opened keeps what open gives in a slot and says what it is.
func (s *side) opened(o *op, open func() (int, error)) string {
	var fd int
	err := retry(func() (err error) { fd, err = open(); return err })
	if err != nil {
		return outcome(err, "")
	}
	closed := s.closeSlot(o.slot)
	s.fds[o.slot], s.flags[o.slot] = fd, o.flags
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return outcome(err, "%s, closed: %s", show(&st), outcome(closed, ""))
}

func (s *side) closeSlot(i int) error {
	fd := s.fds[i]
	if fd < 0 {
		return unix.EBADF
	}
	s.fds[i] = -1
	return unix.Close(fd)
}

// lost tells whether a descriptor is an O_PATH one of a regular file without a
// name.
func (s *side) lost(slot int) bool {
	var st unix.Stat_t
	return s.flags[slot]&unix.O_PATH != 0 && unix.Fstat(s.fds[slot], &st) == nil && st.Nlink == 0 && st.Mode&unix.S_IFMT == unix.S_IFREG
}

func doReaddir(_ *side, o *op) string {
	fd, err := unix.Open(o.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return outcome(err, "")
	}
	defer unix.Close(fd)
	var entries []string
	buf := make([]byte, 4096)
	for range 1000 {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return outcome(err, "")
		}
		if n == 0 {
			break
		}
		for rest := buf[:n]; len(rest) > 0; {
			var e string
			e, rest = dirent(fd, rest)
			entries = append(entries, e)
		}
	}
	slices.Sort(entries)
	return strings.Join(entries, " ")
}

// dirent takes an entry of getdents64(2) apart: its name, its type, and
// whether its inode number is what stat says.
func dirent(dirfd int, buf []byte) (entry string, rest []byte) {
	ino := le64(buf)
	length := int(buf[16]) | int(buf[17])<<8
	typ := buf[18]
	name := string(buf[19:length])
	name, _, _ = strings.Cut(name, "\x00")
	number := "other"
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		number = outcome(err, "")
	} else if st.Ino == ino {
		number = "same"
	}
	if name == ".." { // outside of what is compared at the top
		number = "-"
	}
	return fmt.Sprintf("%q:%d:%s", name, typ, number), buf[length:]
}

func le64(b []byte) (v uint64) {
	for i := range 8 {
		v |= uint64(b[i]) << (8 * i)
	}
	return v
}

func doStatx(_ *side, o *op) string {
	var x unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, o.path, o.flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &x); err != nil {
		return outcome(err, "")
	}
	st := unix.Stat_t{
		Mode: uint32(x.Mode), Uid: x.Uid, Gid: x.Gid, Nlink: uint64(x.Nlink), Size: int64(x.Size),
		Mtim: unix.Timespec{Sec: x.Mtime.Sec, Nsec: int64(x.Mtime.Nsec)}, Rdev: unix.Mkdev(x.Rdev_major, x.Rdev_minor),
	}
	born := x.Mask&unix.STATX_BTIME != 0 && x.Btime.Sec > 0
	return fmt.Sprintf("%s basic %t born %t", show(&st), x.Mask&unix.STATX_BASIC_STATS == unix.STATX_BASIC_STATS, born)
}
