package fs

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"
)

// Stores to a shared mapping reach the daemon when the kernel writes the pages
// back. A node that stops being primary asks for that while it still can; what
// comes later is refused, and told.

// FlushMapped has the kernel write back what programs have stored in shared
// mappings of the mount, and returns when it has, or when ctx ends. What they
// store meanwhile may stay behind. It must not be called from a request handler
// or with the gate frozen: the kernel writes through requests of its own.
func (fs *FS) FlushMapped(ctx context.Context) {
	srv := fs.srv.Load()
	if srv == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, id := range fs.mappable() {
			if ctx.Err() != nil {
				return
			}
			// Dropping an inode's pages writes the dirty ones back first
			// (invalidate_inode_pages2_range in mm/truncate.c).
			if s := srv.InodeNotify(id, 0, 0); !s.Ok() && s != fuse.ENOENT {
				fs.log.Debug("flush mapped pages", zap.Uint64("node", id), zap.Stringer("status", s))
			}
		}
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// mappable are the node ids of files that may have dirty pages: a mapping keeps
// the handle open that it was made with.
func (fs *FS) mappable() []uint64 {
	fs.handles.mu.RLock()
	defer fs.handles.mu.RUnlock()
	ids := map[uint64]struct{}{}
	for _, h := range fs.handles.m {
		if h.writable && !h.direct {
			ids[h.inode.id] = struct{}{}
		}
	}
	return slices.Collect(maps.Keys(ids))
}

// lostPages are writes of mapped pages that came behind a closed gate.
type lostPages struct {
	mu    sync.Mutex
	bytes uint64
	files map[string]struct{}
}

// maxLostFiles bounds how many files are remembered by name.
const maxLostFiles = 100

func (l *lostPages) reset() {
	l.mu.Lock()
	l.bytes, l.files = 0, nil
	l.mu.Unlock()
}

// refuse notes a write of mapped pages that was refused. Nothing is locked.
func (fs *FS) refuse(h *handle, size int) {
	fs.tree.RLock()
	h.inode.mu.Lock()
	path, _ := fs.table.path(h.inode)
	h.inode.mu.Unlock()
	fs.tree.RUnlock()
	l := &fs.lost
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes += uint64(size)
	if _, known := l.files[path]; known || len(l.files) >= maxLostFiles {
		return
	}
	if l.files == nil {
		l.files = map[string]struct{}{}
	}
	l.files[path] = struct{}{}
	fs.log.Warn("mapped pages came too late to be written: this node is no longer primary", logPath(path))
}

// LostPages says how much was stored in shared mappings before this node
// stopped being primary and came to be written back after it, when it was
// refused, and of which files, of the first hundred or so. The programs got
// EIO from msync, fsync or close.
func (fs *FS) LostPages() (bytes uint64, files []string) {
	l := &fs.lost
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes, slices.Sorted(maps.Keys(l.files))
}
