package fs

import (
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A directory is reached through a descriptor that is opened when it is first
// needed, by its parent's, and closed again when there are too many: the
// kernel may know more directories than a process may have descriptors.

// defaultOpenDirs bounds the descriptors kept for directories, if the limit on
// open files allows as many. Each keeps an inode of the store in memory.
const defaultOpenDirs = 32 << 10

// dirFiles are the directories that have a descriptor.
type dirFiles struct {
	// limit is how many may be open before some are closed.
	limit int
	// open lists them, oldest first; some may have been closed since. Guarded
	// by table.mu.
	open []*inode
	// count is how many of open have a descriptor. Guarded by table.mu.
	count int
	// held keeps all open, for who works without FS.tree. Guarded by table.mu.
	held bool
}

// dirFD is what an inode of a directory keeps of its descriptor.
type dirFD struct {
	// num is the descriptor, or 0. It goes from a number to 0 only under FS.tree
	// held exclusively, or when nobody refers to the inode.
	num atomic.Int32
	// used since the last look for one to close.
	used atomic.Bool
}

// openDirLimit leaves half of what the process may open for files.
func openDirLimit() int {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return defaultOpenDirs
	}
	return int(min(defaultOpenDirs, max(r.Cur/2, 16)))
}

// dirfd gives an O_PATH descriptor of the directory n, valid while FS.tree is
// held. -1 says that n cannot be opened: system calls given it fail with EBADF,
// which errStatus translates.
func (fs *FS) dirfd(n *inode) int {
	if fd := n.dir.num.Load(); fd != 0 {
		if !n.dir.used.Load() {
			n.dir.used.Store(true)
		}
		return int(fd)
	}
	return fs.openDirectory(n)
}

func (fs *FS) openDirectory(n *inode) int {
	t := &fs.table
	t.mu.Lock()
	if n.typ != unix.S_IFDIR || len(n.names) == 0 {
		t.mu.Unlock()
		return -1
	}
	at := n.names[0]
	t.mu.Unlock()
	fd, err := unix.Openat(fs.dirfd(at.dir), at.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		if err == unix.EMFILE || err == unix.ENFILE {
			fs.log.Error("too many open files: raise the limit (LimitNOFILE= of the service, fs.file-max)", logErr(err))
			fs.janitor.wake()
		}
		return -1
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || keyOf(&st) != n.key {
		unix.Close(fd) // a standby's store changed underneath
		return -1
	}
	return t.keepDir(n, fd)
}

// keepDir gives n its descriptor, or closes it if n has one by now.
func (t *table) keepDir(n *inode, fd int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if have := n.dir.num.Load(); have != 0 {
		unix.Close(fd)
		return int(have)
	}
	n.dir.num.Store(int32(fd))
	n.dir.used.Store(true)
	t.dirs.open = append(t.dirs.open, n)
	t.dirs.count++
	t.dirs.compact()
	if t.dirs.count > t.dirs.limit {
		t.fs.janitor.wake()
	}
	return fd
}

// dropDir takes n's descriptor away, to be closed when no request can be using
// it. Needs t.mu.
func (t *table) dropDir(n *inode) (fd int, had bool) {
	fd = int(n.dir.num.Swap(0))
	if fd == 0 {
		return -1, false
	}
	t.dirs.count--
	return fd, true
}

// maxLooks bounds how long one eviction keeps requests waiting.
const maxLooks = 4096

// evict closes descriptors of directories that were not used lately. One that
// has lost its name stays: it could not be opened again. FS.tree is held
// exclusively. Call it again while tooManyDirs.
func (t *table) evict() {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := &t.dirs
	target := d.limit - d.limit/8
	looks := min(len(d.open), maxLooks)
	for _, n := range d.open[:looks] {
		switch {
		case n.dir.num.Load() == 0: // reaped
		case d.count <= target || len(n.names) == 0 || n.dir.used.Swap(false):
			d.open = append(d.open, n)
		default:
			if fd, ok := t.dropDir(n); ok {
				unix.Close(fd)
			}
		}
	}
	d.open = d.open[looks:]
}

func (t *table) tooManyDirs() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dirs.count > t.dirs.limit && !t.dirs.held
}

// holdDirs keeps directories open, or no longer.
func (t *table) holdDirs(on bool) {
	t.mu.Lock()
	t.dirs.held = on
	t.mu.Unlock()
}

// compact forgets the directories that were reaped. Needs table.mu.
func (d *dirFiles) compact() {
	if len(d.open) < 2*d.count+64 {
		return
	}
	d.open = slices.DeleteFunc(d.open, func(n *inode) bool { return n.dir.num.Load() == 0 })
}
