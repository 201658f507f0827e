// Package workload makes trouble for a filesystem: a randomized, seeded mix of
// every kind of mutation by several writers that get in each other's way, for
// tests that then compare what came out of it.
package workload

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Defaults for Options.
const (
	DefaultWriters  = 4
	DefaultMaxBytes = 256 << 20
	DefaultMaxFiles = 5000
)

// Options say what Run does. Zero values mean the defaults.
type Options struct {
	// Seed makes the choices. With one writer, equal seeds on equal empty
	// directories of the same kind of filesystem give equal trees, times aside.
	Seed uint64
	// Writers is how many goroutines work at the same time.
	Writers int
	// Steps is how many operations they do together; 0 is until ctx is done.
	Steps int
	// MaxBytes bounds what the tree may take, by size or by blocks, whichever
	// is more of each file.
	MaxBytes int64
	// MaxFiles bounds the number of names in the tree, directories included.
	MaxFiles int
	// Weights replace the relative frequency of operations; 0 leaves one out.
	Weights map[Op]int
	// Only, if not empty, leaves out all operations that it does not list.
	Only []Op
	// Pause is the time that each writer waits between two operations.
	Pause time.Duration
	// TolerateEROFS lets operations fail with EROFS, as they do on a standby.
	TolerateEROFS bool
	// Tolerate lists more errors that any operation may fail with.
	Tolerate []syscall.Errno
}

// Error is a failure that no conflict between writers explains.
type Error struct {
	Op     Op
	Paths  []string // relative to the workload's directory, as the operation took them
	Seed   uint64
	Writer int
	Step   int
	Err    error
}

// Error says what failed and how to do it again.
func (e *Error) Error() string {
	return fmt.Sprintf("%s on %q: %v (seed %d, writer %d, step %d)", e.Op, e.Paths, e.Err, e.Seed, e.Writer, e.Step)
}

// Unwrap gives the cause, usually with an errno in its chain.
func (e *Error) Unwrap() error { return e.Err }

// Run does random operations below the directory dir, which it may find empty
// or as an earlier Run left it, but not with symlinks that lead out of it. It
// returns when Steps are done, when ctx is done (no error: Stats tell how many
// steps there were), or, with an *Error, when an operation fails as no conflict
// with another writer can make it. It leaves no descriptor or mapping behind.
func Run(ctx context.Context, dir string, opts Options) (Stats, error) {
	r, err := newRunner(dir, opts)
	if err != nil {
		return Stats{}, fmt.Errorf("workload in %s: %w", dir, err)
	}
	// Read-only and O_PATH, so that it does not stand in a remount's way.
	r.root, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Stats{}, fmt.Errorf("workload: opening %s: %w", dir, err)
	}
	defer closeQuietly(r.root)
	if err := r.start(); err != nil {
		return Stats{}, fmt.Errorf("workload in %s: %w", dir, err)
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	writers := make([]*writer, r.opts.Writers)
	errs := make([]error, len(writers))
	var wg sync.WaitGroup
	for i := range writers {
		w := newWriter(r, i)
		writers[i] = w
		wg.Go(func() {
			if errs[i] = w.work(ctx); errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	stats := newStats()
	for _, w := range writers {
		stats.add(w.stats)
	}
	if err := errors.Join(errs...); err != nil {
		return stats, fmt.Errorf("workload in %s: %w", dir, err)
	}
	return stats, nil
}

// runner is what the writers of one Run share.
type runner struct {
	dir     string
	root    int // O_PATH descriptor of dir
	opts    Options
	specs   []*spec
	total   int // sum of the weights
	names   *namespace
	data    []byte // random bytes to write
	onFUSE  bool
	nodev   bool  // opening a device fails with EACCES
	block   int64 // what COLLAPSE_RANGE and INSERT_RANGE want to be aligned to
	steps   atomic.Int64
	budget  budget
	allowed map[syscall.Errno]bool
}

func newRunner(dir string, opts Options) (*runner, error) {
	if opts.Writers == 0 {
		opts.Writers = DefaultWriters
	}
	if opts.MaxBytes == 0 {
		opts.MaxBytes = DefaultMaxBytes
	}
	if opts.MaxFiles == 0 {
		opts.MaxFiles = DefaultMaxFiles
	}
	if opts.Writers < 0 || opts.Steps < 0 {
		return nil, fmt.Errorf("negative number of writers (%d) or steps (%d)", opts.Writers, opts.Steps)
	}
	r := &runner{dir: dir, opts: opts, names: newNamespace(), allowed: map[syscall.Errno]bool{}}
	for _, errno := range opts.Tolerate {
		r.allowed[errno] = true
	}
	if opts.TolerateEROFS {
		r.allowed[unix.EROFS] = true
	}
	if err := r.budget.init(opts); err != nil {
		return nil, err
	}
	if err := r.chooseSpecs(); err != nil {
		return nil, err
	}
	r.data = make([]byte, largeWrite+largeWrite/4)
	fill(r.data, rand.NewPCG(opts.Seed, 0))
	return r, nil
}

// start looks at the filesystem and at what the directory holds already.
func (r *runner) start() error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(r.root, &fs); err != nil {
		return fmt.Errorf("statfs: %w", err)
	}
	r.onFUSE = fs.Type == unix.FUSE_SUPER_MAGIC
	r.nodev = fs.Flags&unix.ST_NODEV != 0
	r.block = 4096
	if fs.Bsize > r.block && fs.Bsize <= 64<<10 {
		r.block = fs.Bsize
	}
	tree, err := r.measure()
	if err != nil {
		return err
	}
	if err := r.checkConfined(tree); err != nil {
		return err
	}
	r.adopt(tree)
	return nil
}

// nextStep takes a number for one more step, or says that there are no more.
func (r *runner) nextStep() (int, bool) {
	n := int(r.steps.Add(1))
	return n, r.opts.Steps == 0 || n <= r.opts.Steps
}

// tolerated says whether a conflict with another writer, or what the options
// allow, explains err.
func (r *runner) tolerated(s *spec, err error) bool {
	if errors.Is(err, errConflict) {
		return true
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	return s.allows(errno) || r.allowed[errno]
}

func fill(buf []byte, src rand.Source) {
	for i := 0; i+8 <= len(buf); i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], src.Uint64())
	}
}

// closeQuietly closes a descriptor through which nothing was written.
func closeQuietly(fd int) { _ = unix.Close(fd) }
