package fs

import (
	"fmt"
	"hash/crc32"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dataKinds are the operations on what files hold.
var dataKinds = []opKind{
	{"write", 12, genData, func(s *side, o *op) string {
		buf, off := s.aligned(o)
		write := func() (int, error) { return unix.Write(s.fds[o.slot], buf) }
		if s.direct(o.slot) {
			write = func() (int, error) { return unix.Pwrite(s.fds[o.slot], buf, off) }
		}
		var st unix.Stat_t
		if unix.Fstat(s.fds[o.slot], &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
			return "a known difference"
		}
		n, err := write()
		return outcome(err, "%d", n)
	}},
	{"pwrite", 12, genData, func(s *side, o *op) string {
		buf, off := s.aligned(o)
		n, err := unix.Pwrite(s.fds[o.slot], buf, off)
		return outcome(err, "%d", n)
	}},
	{"read", 6, genData, func(s *side, o *op) string {
		buf, off := s.aligned(o)
		read := func() (int, error) { return unix.Read(s.fds[o.slot], buf) }
		if s.direct(o.slot) {
			read = func() (int, error) { return unix.Pread(s.fds[o.slot], buf, off) }
		}
		n, err := read()
		return outcome(err, "%d %08x", n, crc32.ChecksumIEEE(buf[:max(n, 0)]))
	}},
	{"pread", 10, genData, func(s *side, o *op) string {
		buf, off := s.aligned(o)
		n, err := unix.Pread(s.fds[o.slot], buf, off)
		return outcome(err, "%d %08x", n, crc32.ChecksumIEEE(buf[:max(n, 0)]))
	}},
	{"read whole", 8, genPath, func(_ *side, o *op) string {
		fd, err := unix.Open(o.path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return outcome(err, "")
		}
		defer unix.Close(fd)
		buf := make([]byte, 4<<20)
		n, err := unix.Pread(fd, buf, 0)
		return outcome(err, "%d %08x", n, crc32.ChecksumIEEE(buf[:max(n, 0)]))
	}},
	{"lseek", 6, func(g *gen, o *op) {
		genData(g, o)
		o.a = pick(g, unix.SEEK_SET, unix.SEEK_CUR, unix.SEEK_END, unix.SEEK_DATA, unix.SEEK_HOLE)
	}, doSeek},
	{"truncate", 6, func(g *gen, o *op) { genTruncate(g, o); o.path = g.path() }, func(_ *side, o *op) string {
		return outcome(unix.Truncate(o.path, o.off), "")
	}},
	{"ftruncate", 5, genTruncate, func(s *side, o *op) string { return outcome(unix.Ftruncate(s.fds[o.slot], o.off), "") }},
	{"fallocate", 7, func(g *gen, o *op) {
		genData(g, o)
		o.mode = pick[uint32](g, 0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE,
			unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE)
		if g.fstype == "btrfs" && o.mode&unix.FALLOC_FL_PUNCH_HOLE != 0 {
			o.who = 0 // a known difference
		}
		if g.fstype == "tmpfs" && o.mode&unix.FALLOC_FL_ZERO_RANGE != 0 {
			o.mode = 0 // tmpfs refuses it: a known difference
		}
	}, func(s *side, o *op) string { return outcome(unix.Fallocate(s.fds[o.slot], o.mode, o.off, o.n), "") }},
	{"copy_file_range", 6, func(g *gen, o *op) {
		genData(g, o)
		o.off2 = offset(g)
	}, func(s *side, o *op) string {
		from, to := o.off, o.off2
		if s.direct(o.slot) || s.direct(o.slot2) {
			return "a known difference"
		}
		n, err := unix.CopyFileRange(s.fds[o.slot], &from, s.fds[o.slot2], &to, int(o.n), 0)
		return outcome(err, "%d", n)
	}},
	{"sync", 2, func(g *gen, o *op) { o.slot, o.a = g.IntN(slots), g.IntN(2) }, func(s *side, o *op) string {
		if o.a == 0 {
			return outcome(unix.Fsync(s.fds[o.slot]), "")
		}
		return outcome(unix.Fdatasync(s.fds[o.slot]), "")
	}},
	{"mapped", 4, genData, doMapped},
	{"fcntl", 1, func(g *gen, o *op) {
		o.slot, o.a = g.IntN(slots), some(g, 0.5, unix.O_APPEND, unix.O_NONBLOCK)
	}, func(s *side, o *op) string {
		if s.direct(o.slot) {
			return "a known difference"
		}
		_, err := unix.FcntlInt(uintptr(s.fds[o.slot]), unix.F_SETFL, o.a|unix.O_NONBLOCK)
		return outcome(err, "")
	}},
}

func offset(g *gen) int64 {
	if g.IntN(2) == 0 {
		return int64(g.IntN(8)) * page
	}
	return int64(g.IntN(40000))
}

func genData(g *gen, o *op) {
	o.slot, o.slot2, o.off = g.IntN(slots), g.IntN(slots), offset(g)
	o.n = pick(g, 0, 1, 100, page, 2*page, int64(g.IntN(20000)))
	o.a, o.b = g.IntN(256), g.IntN(2)
	if g.IntN(50) == 0 {
		o.off = -1
	}
}

func genTruncate(g *gen, o *op) {
	genData(g, o)
	if o.off == 0 && g.fstype == "xfs" { // of an empty file: a known difference
		o.off = 1
	}
}

// direct says that the store's file system may ask for whole blocks, which is a
// known difference: then it gets some.
func (s *side) direct(slot int) bool { return s.flags[slot]&unix.O_DIRECT != 0 }

// aligned is the buffer and the offset of an operation.
func (s *side) aligned(o *op) ([]byte, int64) {
	buf := make([]byte, o.n+2*page)
	shift := -int(uintptr(unsafe.Pointer(&buf[0]))) & (page - 1)
	off, n := o.off, o.n
	if s.direct(o.slot) && off >= 0 {
		off, n = off/page*page, (n+page-1)/page*page
		if n > o.n+page {
			n = page
		}
	}
	buf = buf[shift:][:n]
	for i := range buf {
		buf[i] = byte(o.a + i)
	}
	return buf, off
}

func doSeek(s *side, o *op) string {
	fd := s.fds[o.slot]
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return "a directory's offsets are its own"
	}
	off, err := unix.Seek(fd, o.off, o.a)
	if o.a == unix.SEEK_DATA || o.a == unix.SEEK_HOLE {
		return soundSeek(fd, o, off, err, &st)
	}
	return outcome(err, "%d", off)
}

// soundSeek judges where data or a hole was found: a file system may take holes
// for data, and what was allocated hangs on more than the file's content.
func soundSeek(fd int, o *op, off int64, err error, st *unix.Stat_t) string {
	if o.off < 0 && (err == nil || err == unix.ENXIO) {
		return "before the beginning" // which btrfs takes for the beginning
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || o.off < 0 || o.off >= st.Size {
		return outcome(err, "%d", off)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return outcome(err, "")
	}
	if err == unix.ENXIO && o.a == unix.SEEK_DATA {
		off, err = st.Size, nil
	}
	if err != nil {
		return outcome(err, "")
	}
	if off < o.off || off > st.Size {
		return fmt.Sprintf("%d is not between %d and %d", off, o.off, st.Size)
	}
	buf := make([]byte, 1)
	for at := o.off; o.a == unix.SEEK_DATA && at < off; at++ {
		if n, err := unix.Pread(fd, buf, at); err == nil && (n != 1 || buf[0] != 0) {
			return fmt.Sprintf("there is data at %d, before %d", at, off)
		} else if err != nil {
			break // open for writing only, or O_DIRECT
		}
	}
	return "sound"
}

// doMapped reads, or with b changes, a byte of the file by way of a mapping.
func doMapped(s *side, o *op) string {
	prot := unix.PROT_READ
	if o.b != 0 {
		prot |= unix.PROT_WRITE
	}
	var st unix.Stat_t
	if err := unix.Fstat(s.fds[o.slot], &st); err != nil {
		return outcome(err, "")
	}
	if s.direct(o.slot) {
		return "a known difference"
	}
	m, err := unix.Mmap(s.fds[o.slot], 0, 16*page, prot, unix.MAP_SHARED)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
		if m != nil {
			_ = unix.Munmap(m)
		}
		return outcome(err, "mapped %t", m != nil)
	}
	at := max(o.off, 0) % min(st.Size, 16*page) // behind the end is SIGBUS
	had := m[at]
	if o.b != 0 {
		m[at] ^= 0x55
		if err := unix.Msync(m, unix.MS_SYNC); err != nil {
			return "msync: " + outcome(err, "")
		}
		// The mtime is a known difference.
		if _, err := unix.Pwrite(s.fds[o.slot], m[at:at+1], at); err != nil {
			return "pwrite: " + outcome(err, "")
		}
	}
	return outcome(unix.Munmap(m), "%s", fmt.Sprint(had))
}
