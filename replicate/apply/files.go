package apply

import (
	"fmt"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/beneath"
)

// fileFlags open a regular file for everything. O_NONBLOCK: should it be a
// FIFO after all, do not wait.
const fileFlags = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOATIME

// openFile is an open regular file.
type openFile struct {
	fd   int
	file inode
}

// fileCache keeps files open by the id that the primary gave them. The ids
// hold for one epoch.
type fileCache struct {
	lru   *simplelru.LRU[uint64, openFile]
	epoch uint64
}

func newFileCache(size int) (*fileCache, error) {
	c := &fileCache{}
	var err error
	// Closing reports nothing new: what must be durable is fsynced.
	c.lru, err = simplelru.NewLRU(size, func(_ uint64, f openFile) { _ = unix.Close(f.fd) })
	if err != nil {
		return nil, fmt.Errorf("cache of %d files: %w", size, err)
	}
	return c, nil
}

func (c *fileCache) useEpoch(epoch uint64) {
	if c.epoch != epoch {
		c.lru.Purge()
		c.epoch = epoch
	}
}

// handle is a file in use. A cached one stays open until two further files
// were opened.
type handle struct {
	openFile
	own bool
}

func (h handle) release() {
	if h.own {
		_ = unix.Close(h.fd)
	}
}

// file opens the regular file at path, or takes the one that is open as id,
// unless id is 0.
func (a *Applier) file(id uint64, path string) (handle, error) {
	if id != 0 {
		if f, ok := a.files.lru.Get(id); ok {
			if !a.syncing || linked(f.fd) {
				return handle{openFile: f}, nil
			}
			// While copying, names come and go in other ways than on the
			// primary: this is the file's former self.
			a.files.lru.Remove(id)
		}
	}
	l, err := a.root.At(path)
	if err != nil {
		return handle{}, err
	}
	defer l.Release()
	f, err := openRegular(l)
	if err != nil {
		return handle{}, err
	}
	return a.keep(id, f), nil
}

// keep caches an open file under id unless that is 0.
func (a *Applier) keep(id uint64, f openFile) handle {
	if id == 0 {
		return handle{openFile: f, own: true}
	}
	a.files.lru.Remove(id) // Add would not close a file it replaces
	a.files.lru.Add(id, f)
	return handle{openFile: f}
}

// openRegular looks before it opens: opening a device acts on it.
func openRegular(l beneath.Loc) (openFile, error) {
	var st unix.Stat_t
	if err := l.Stat(&st); err != nil {
		return openFile{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return openFile{}, diverged("%q is not a regular file", l.Name)
	}
	fd, err := l.Open(fileFlags, 0)
	if err != nil {
		return openFile{}, err
	}
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd)
		return openFile{}, diverged("%q is not a regular file: %v", l.Name, err)
	}
	return openFile{fd: fd, file: inodeOf(&st)}, nil
}

func inodeOf(st *unix.Stat_t) inode { return inode{dev: st.Dev, ino: st.Ino} }

func linked(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Nlink > 0
}
