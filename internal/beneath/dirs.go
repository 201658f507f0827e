package beneath

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sys/unix"
)

// DefaultDirs is how many directories a Root keeps open by default.
const DefaultDirs = 512

// Root is a directory and what lies beneath it. It keeps directories open by
// path, so whoever renames or removes a directory below it by other means
// than this Root's user must say so with Forget or ForgetAll.
//
// All methods may be used concurrently. A Forget ends the use of the path for
// lookups that start later; directories handed out before stay usable.
type Root struct {
	top *Dir

	mu   sync.Mutex
	dirs *simplelru.LRU[string, *Dir]
	// below counts the cached paths at or below each path, so that Forget of
	// a plain file, by far the most common, need not look at all of them.
	below map[string]int
	// gen grows with each Forget: a directory that was opened meanwhile may
	// have had its path taken away and must not be cached.
	gen    uint64
	closed bool
}

// Dir is an open directory (O_RDONLY), shared by its users.
type Dir struct {
	root *Root
	fd   int
	refs int // guarded by root.mu
}

// FD is the directory's descriptor, to be used until Release.
func (d *Dir) FD() int { return d.fd }

// Release ends one use of the directory.
func (d *Dir) Release() {
	r := d.root
	if d == r.top {
		return // lives as long as the root
	}
	r.mu.Lock()
	d.unref()
	r.mu.Unlock()
}

// unref needs root.mu.
func (d *Dir) unref() {
	if d.refs--; d.refs == 0 {
		_ = unix.Close(d.fd) // nothing was written through it
	}
}

// Open opens the directory at path, which may itself be reached through
// symbolic links, as a root that keeps up to maxDirs directories open (0
// means DefaultDirs).
func Open(path string, maxDirs int) (*Root, error) {
	if maxDirs <= 0 {
		maxDirs = DefaultDirs
	}
	var fd int
	for {
		var err error
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
	r := &Root{below: map[string]int{}}
	r.top = &Dir{root: r, fd: fd}
	dirs, err := simplelru.NewLRU(maxDirs, r.evicted)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cache of %d directories: %w", maxDirs, err), unix.Close(fd))
	}
	r.dirs = dirs
	return r, nil
}

// FD is the root directory's descriptor, valid until Close.
func (r *Root) FD() int { return r.top.fd }

// Close closes the root and the directories that are not in use.
func (r *Root) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	r.gen++
	r.dirs.Purge()
	if err := unix.Close(r.top.fd); err != nil {
		return fmt.Errorf("closing the root directory: %w", err)
	}
	return nil
}

// Dir opens the directory at path, "" being the root, or hands out the one
// that is open. The errors are At's. The caller releases it.
func (r *Root) Dir(path string) (*Dir, error) {
	if path == "" {
		return r.top, nil
	}
	r.mu.Lock()
	if d, ok := r.dirs.Get(path); ok {
		d.refs++
		r.mu.Unlock()
		return d, nil
	}
	r.mu.Unlock()
	// Only paths that passed are ever cached.
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	base, rest, gen := r.nearest(path)
	fd, err := openDir(base.fd, rest, unix.O_RDONLY, resolve)
	base.Release()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d := &Dir{root: r, fd: fd, refs: 1}
	if r.gen != gen || r.dirs.Contains(path) {
		return d, nil
	}
	d.refs++
	r.count(path, 1)
	r.dirs.Add(path, d)
	return d, nil
}

// nearest finds the deepest open directory on the way to path.
func (r *Root) nearest(path string) (base *Dir, rest string, gen uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(path); ; {
		if i = strings.LastIndexByte(path[:i], '/'); i < 0 {
			return r.top, path, r.gen
		}
		if d, ok := r.dirs.Get(path[:i]); ok {
			d.refs++
			return d, path[i+1:], r.gen
		}
	}
}

// evicted is the cache's callback; it needs mu.
func (r *Root) evicted(path string, d *Dir) {
	r.count(path, -1)
	d.unref()
}

// count notes that path was added to (1) or left (-1) the cache.
func (r *Root) count(path string, n int) {
	for {
		if r.below[path] += n; r.below[path] == 0 {
			delete(r.below, path)
		}
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			return
		}
		path = path[:i]
	}
}

// Forget drops path and all below it from the cache: to be called when path
// was renamed or removed, or replaced by a rename. Cheap for what is not a
// directory.
func (r *Root) Forget(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gen++
	n := r.below[path]
	if n == 0 {
		return
	}
	for _, p := range r.dirs.Keys() {
		if strings.HasPrefix(p, path) && (len(p) == len(path) || p[len(path)] == '/') {
			r.dirs.Remove(p)
		}
	}
}

// ForgetAll empties the cache.
func (r *Root) ForgetAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gen++
	r.dirs.Purge()
}
