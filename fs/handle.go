package fs

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// handle is an open file or directory.
type handle struct {
	id    uint64
	inode *inode
	fd    int
	// writable tells handles that could carry a mutation.
	writable bool
	// direct says that writes do not pass the kernel's page cache.
	direct bool
	dir    *dirStream
}

type handleTable struct {
	mu   sync.RWMutex
	m    map[uint64]*handle
	next uint64
}

func (t *handleTable) init() { t.m = make(map[uint64]*handle); t.next = 1 }

func (t *handleTable) get(id uint64) *handle {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.m[id]
}

func (t *handleTable) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.m)
}

func (t *handleTable) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.m {
		unix.Close(h.fd)
	}
	clear(t.m)
}

// openHandle registers fd; the handle owns it.
func (fs *FS) openHandle(n *inode, fd int, writable bool) *handle {
	h := &handle{inode: n, fd: fd, writable: writable}
	fs.handles.mu.Lock()
	h.id = fs.handles.next
	fs.handles.next++
	fs.handles.m[h.id] = h
	fs.handles.mu.Unlock()
	fs.table.mu.Lock()
	n.handles = append(n.handles, h)
	fs.table.mu.Unlock()
	return h
}

func (fs *FS) closeHandle(id uint64) {
	fs.handles.mu.Lock()
	h := fs.handles.m[id]
	delete(fs.handles.m, id)
	fs.handles.mu.Unlock()
	if h == nil {
		return
	}
	fs.table.mu.Lock()
	if i := slices.Index(h.inode.handles, h); i >= 0 {
		h.inode.handles = slices.Delete(h.inode.handles, i, i+1)
	}
	shared := h.inode.shared
	fs.table.mu.Unlock()
	if shared {
		// A request without a handle of its own may be using this one.
		fs.janitor.closeLater(h.fd)
		return
	}
	unix.Close(h.fd)
}

// janitor closes descriptors that a request may still be using: it does so
// with the tree held exclusively, when there is none.
type janitor struct {
	mu   sync.Mutex
	fds  []int
	kick chan struct{}
	quit chan struct{}
	done chan struct{}
}

const (
	janitorBatch    = 64
	janitorInterval = time.Second
	// maxEvictions bounds one round: all may be in use.
	maxEvictions = 64
)

func (j *janitor) start(fs *FS) {
	j.kick = make(chan struct{}, 1)
	j.quit = make(chan struct{})
	j.done = make(chan struct{})
	go func() {
		defer close(j.done)
		tick := time.NewTicker(janitorInterval)
		defer tick.Stop()
		for {
			select {
			case <-j.quit:
				j.sweep(fs)
				return
			case <-tick.C:
			case <-j.kick:
			}
			j.sweep(fs)
			j.evict(fs)
			fs.table.shrink()
		}
	}()
}

func (j *janitor) stop() {
	close(j.quit)
	<-j.done
}

func (j *janitor) closeLater(fd int) {
	j.mu.Lock()
	j.fds = append(j.fds, fd)
	full := len(j.fds) >= janitorBatch
	j.mu.Unlock()
	if full {
		j.wake()
	}
}

// wake has the janitor look now.
func (j *janitor) wake() {
	select {
	case j.kick <- struct{}{}:
	default:
	}
}

// evict closes directories until there are few enough, and lets requests in
// now and then.
func (j *janitor) evict(fs *FS) {
	for range maxEvictions {
		if !fs.table.tooManyDirs() {
			return
		}
		fs.tree.Lock()
		fs.table.evict()
		fs.tree.Unlock()
	}
}

func (j *janitor) sweep(fs *FS) {
	j.mu.Lock()
	fds := j.fds
	j.fds = nil
	j.mu.Unlock()
	if len(fds) == 0 {
		return
	}
	fs.tree.Lock()
	defer fs.tree.Unlock()
	for _, fd := range fds {
		unix.Close(fd)
	}
}
