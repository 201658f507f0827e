package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// dirStream reads a directory of the store. Its offsets are the store's own,
// which stay meaningful while entries come and go (telldir, seekdir).
type dirStream struct {
	mu  sync.Mutex
	buf []byte
	// rest is what of buf was not handed out; pos the offset it starts at.
	rest []byte
	pos  int64
	eof  bool
}

const dirBuf = 32 << 10

// OpenDir opens a directory for reading.
func (fs *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	n := fs.table.get(in.NodeId)
	if n == nil || !n.isDir() {
		return fuse.Status(unix.ESTALE)
	}
	fd, err := unix.Openat(fs.dirfd(n), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errStatus(err)
	}
	h := fs.openHandle(n, fd, false)
	h.dir = &dirStream{}
	out.Fh = h.id
	if fs.cacheTime() > 0 {
		out.OpenFlags = fuse.FOPEN_CACHE_DIR
		if fs.keepsPages(n) {
			out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
		}
	}
	return fuse.OK
}

// ReleaseDir closes it.
func (fs *FS) ReleaseDir(in *fuse.ReleaseIn) { fs.closeHandle(in.Fh) }

// next gives the entry at off, reading on as needed; ok is false at the end.
func (d *dirStream) next(fd int, off int64, e *fuse.DirEntry) (size int, ok bool, err error) {
	if off != d.pos {
		if _, err := unix.Seek(fd, off, 0); err != nil {
			return 0, false, err
		}
		d.pos, d.rest, d.eof = off, nil, false
	}
	if len(d.rest) == 0 && !d.eof {
		if d.buf == nil {
			d.buf = make([]byte, dirBuf)
		}
		k, err := unix.Getdents(fd, d.buf)
		if err != nil {
			return 0, false, err
		}
		d.rest, d.eof = d.buf[:k], k == 0
	}
	if len(d.rest) == 0 {
		return 0, false, nil
	}
	return e.Parse(d.rest), true, nil
}

// took moves on behind an entry that was handed out.
func (d *dirStream) took(size int, e *fuse.DirEntry) {
	d.rest = d.rest[size:]
	d.pos = int64(e.Off)
}

// ReadDir lists names.
func (fs *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.readDir(in, func(h *handle, e *fuse.DirEntry) bool { return out.AddDirEntry(*e) })
}

// ReadDirPlus lists names with their attributes: each is a lookup as well.
func (fs *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	return fs.readDir(in, func(h *handle, e *fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(*e)
		if entry == nil {
			return false
		}
		if e.Name == "." || e.Name == ".." {
			return true
		}
		var st unix.Stat_t
		n, err := fs.table.lookup(h.inode, e.Name, &st, refKernel)
		if err != nil {
			return true // gone since; without a node id it is a name only
		}
		fs.fillEntry(entry, n, &st)
		out.FixMode(st.Mode)
		return true
	})
}

func (fs *FS) readDir(in *fuse.ReadIn, add func(*handle, *fuse.DirEntry) bool) fuse.Status {
	h := fs.handles.get(in.Fh)
	if h == nil || h.dir == nil {
		return fuse.EBADF
	}
	h.dir.mu.Lock()
	defer h.dir.mu.Unlock()
	off := int64(in.Offset)
	var e fuse.DirEntry
	for {
		size, ok, err := h.dir.next(h.fd, off, &e)
		if err != nil {
			return errStatus(err)
		}
		if !ok || !add(h, &e) {
			return fuse.OK
		}
		h.dir.took(size, &e)
		off = int64(e.Off)
	}
}

// FsyncDir makes a directory's entries durable, here and on the standbys.
func (fs *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	return fs.sync(h.inode, h, h.fd, in.FsyncFlags&1 != 0)
}
