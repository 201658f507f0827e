package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// writer is one goroutine of a Run.
type writer struct {
	*runner
	id    int
	rng   *rand.Rand
	stats Stats
	step  int
	paths []string // that the current step took
	held  int      // descriptor kept over several steps, or -1
	abs   string   // prefix for calls that take no directory descriptor
}

func newWriter(r *runner, id int) *writer {
	return &writer{
		runner: r,
		id:     id,
		rng:    rand.New(rand.NewPCG(r.opts.Seed, uint64(id)+1)),
		stats:  newStats(),
		held:   -1,
		abs:    strings.TrimSuffix(r.dir, "/") + "/",
	}
}

// work does steps until there are no more, ctx is done, or one fails.
func (w *writer) work(ctx context.Context) (err error) {
	defer func() {
		if cerr := w.release(); cerr != nil && err == nil && !w.tolerated(&spec{}, cerr) {
			err = w.failure(OpWriteHeld, fmt.Errorf("close: %w", cerr))
		}
	}()
	// A store to a mapping faults if another writer truncates the file.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for ctx.Err() == nil {
		n, more := w.nextStep()
		if !more {
			return nil
		}
		w.step = n
		if err := w.one(ctx); err != nil {
			return err
		}
		if w.opts.Pause > 0 {
			sleep(ctx, w.opts.Pause)
		}
	}
	return nil
}

// one does one step.
func (w *writer) one(ctx context.Context) error {
	world := &w.budget.world
	world.RLock()
	for w.budget.spent() {
		world.RUnlock()
		if err := w.rebalance(ctx, w); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		world.RLock()
	}
	defer world.RUnlock()

	s := w.choose()
	w.paths = w.paths[:0]
	err := s.run(w)
	w.stats.count(s.op, err == nil)
	if err == nil {
		return nil
	}
	if !w.tolerated(s, err) {
		return w.failure(s.op, err)
	}
	if errors.Is(err, unix.ENOENT) {
		w.forgetMissing()
	}
	return nil
}

func (w *writer) choose() *spec {
	i := w.rng.IntN(w.total)
	for _, s := range w.specs {
		if i < s.weight {
			return s
		}
		i -= s.weight
	}
	panic("the weights' sum is wrong") // IntN is below the sum
}

func (w *writer) failure(op Op, err error) error {
	return &Error{Op: op, Paths: slices.Clone(w.paths), Seed: w.opts.Seed, Writer: w.id, Step: w.step, Err: err}
}

// forgetMissing takes the step's paths that are gone out of the namespace.
func (w *writer) forgetMissing() {
	for _, p := range w.paths {
		var st unix.Stat_t
		if err := unix.Fstatat(w.root, p, &st, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, unix.ENOENT) {
			w.names.drop(p)
		}
	}
}

// note remembers a path that the step takes, for its error message.
func (w *writer) note(path string) string {
	w.paths = append(w.paths, path)
	return path
}

func (w *writer) oneIn(n int) bool { return w.rng.IntN(n) == 0 }

// upTo is a random number in [0, n].
func (w *writer) upTo(n int64) int64 { return w.rng.Int64N(max(n, 0) + 1) }

// some is n random bytes.
func (w *writer) some(n int64) []byte {
	off := w.rng.IntN(len(w.data) - int(n) + 1)
	return w.data[off : off+int(n)]
}

// existing chooses a name of one of the kinds, seldom something else.
func (w *writer) existing(among ...kind) (string, error) {
	if w.oneIn(32) {
		return w.fresh(), nil
	}
	if w.oneIn(32) {
		among = []kind{regular, link, special, directory}
	}
	path, ok := w.names.pick(w.rng, among...)
	if !ok {
		return "", fmt.Errorf("nothing there yet: %w", errConflict)
	}
	return w.note(path), nil
}

// file chooses what should be a regular file.
func (w *writer) file() (string, error) { return w.existing(regular) }

// fresh chooses a name that may or may not be taken.
func (w *writer) fresh() string {
	return w.note(join(w.dirAbove(maxDepth), fileNames[w.rng.IntN(len(fileNames))]))
}

// freshDir is fresh for directories.
func (w *writer) freshDir() string {
	return w.note(join(w.dirAbove(maxDepth-1), dirNames[w.rng.IntN(len(dirNames))]))
}

// dirAbove chooses a directory that lies less deep than limit.
func (w *writer) dirAbove(limit int) string {
	if w.oneIn(8) {
		return "."
	}
	for range 4 {
		if dir, ok := w.names.pick(w.rng, directory); ok && depth(dir) < limit {
			return dir
		}
	}
	return "."
}

// made notes what a step made.
func (w *writer) made(path string, k kind) {
	w.budget.files.Add(1)
	w.budget.bytes.Add(8 << 10)
	w.names.put(path, k)
}

// madeSome is made for what only a look can tell the kind of.
func (w *writer) madeSome(path string) {
	var st unix.Stat_t
	k := regular
	if unix.Fstatat(w.root, path, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		k = kindOf(st.Mode)
	}
	w.made(path, k)
}

// takes notes bytes that a step may be about to add to the tree.
func (w *writer) takes(n int64) { w.budget.bytes.Add(n + 8<<10) }

// withFile opens path with flags, hands the descriptor to use if it is a
// regular file, and closes it.
func (w *writer) withFile(path string, flags int, use func(fd int, size int64) error) (err error) {
	// Non-blocking because it may have become a fifo.
	fd, err := w.open(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := unix.Close(fd); cerr != nil && err == nil {
			err = fmt.Errorf("close: %w", cerr)
		}
	}()
	size, err := regularSize(fd)
	if err != nil {
		return err
	}
	return use(fd, size)
}

// withSome is withFile on a file that should exist, open for reading and writing.
func (w *writer) withSome(flags int, use func(fd int, size int64) error) error {
	path, err := w.file()
	if err != nil {
		return err
	}
	return w.withFile(path, flags|unix.O_RDWR, use)
}

// open opens what should be a regular file.
func (w *writer) open(path string, flags int, mode uint32) (int, error) {
	fd, err := unix.Openat(w.root, path, flags|unix.O_CLOEXEC, mode)
	if errors.Is(err, unix.EACCES) && w.nodev {
		err = errors.Join(err, errConflict) // it has become a device
	}
	if err != nil {
		return -1, fmt.Errorf("open with flags %#x: %w", flags, err)
	}
	return fd, nil
}

func regularSize(fd int) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("fstat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, fmt.Errorf("not a regular file: %w", errConflict)
	}
	return st.Size, nil
}

// pwrite writes n random bytes at off to a file of the given size.
func (w *writer) pwrite(fd int, size, off, n int64) error {
	return w.pwriteData(fd, size, off, w.some(n))
}

func (w *writer) pwriteData(fd int, size, off int64, data []byte) error {
	w.takes(max(0, off+int64(len(data))-size))
	err := w.writeAll(data, func(done int) (int, error) { return unix.Pwrite(fd, data[done:], off+int64(done)) })
	if err != nil {
		return fmt.Errorf("pwrite of %d at %d: %w", len(data), off, err)
	}
	return nil
}

// writeAll calls write until all is written. A short write is an error of its
// own, unless the error that cut it short shows when it is continued: nothing
// but a full disk explains one.
func (w *writer) writeAll(data []byte, write func(done int) (int, error)) error {
	for done := 0; done < len(data); {
		n, err := write(done)
		if err != nil {
			return err
		}
		if n == 0 || done > 0 && !w.allowed[unix.ENOSPC] {
			return fmt.Errorf("%d bytes written at first: %w", done+n, io.ErrShortWrite)
		}
		done += n
	}
	return nil
}

// release closes the descriptor that is held, if there is one.
func (w *writer) release() error {
	if w.held < 0 {
		return nil
	}
	fd := w.held
	w.held = -1
	return unix.Close(fd)
}
