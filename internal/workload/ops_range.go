package workload

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const allocMax = 64 << 10

func (w *writer) fallocate() error {
	return w.allocate(0, func(size int64) (int64, int64) { return w.upTo(size), 1 + w.upTo(allocMax) })
}

func (w *writer) fallocateKeep() error {
	return w.allocate(unix.FALLOC_FL_KEEP_SIZE, func(size int64) (int64, int64) {
		return w.upTo(size), 1 + w.upTo(allocMax)
	})
}

func (w *writer) punchHole() error {
	return w.allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, w.within)
}

func (w *writer) zeroRange() error {
	return w.allocate(unix.FALLOC_FL_ZERO_RANGE, w.within)
}

func (w *writer) zeroRangeKeep() error {
	return w.allocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, w.within)
}

// within is any range that begins within the file.
func (w *writer) within(size int64) (int64, int64) {
	return w.upTo(size - 1), 1 + w.upTo(allocMax)
}

func (w *writer) collapseRange() error {
	return w.allocate(unix.FALLOC_FL_COLLAPSE_RANGE, w.blocksWithin)
}

func (w *writer) insertRange() error {
	return w.allocate(unix.FALLOC_FL_INSERT_RANGE, w.blocksWithin)
}

// blocksWithin is a range of whole blocks that ends before the file does.
func (w *writer) blocksWithin(size int64) (int64, int64) {
	blocks := (size - 1) / w.block
	off := w.upTo(blocks - 1)
	return off * w.block, w.block * (1 + w.upTo(min(blocks-off-1, allocMax/w.block)))
}

// allocate calls fallocate on a file that has at least a few blocks.
func (w *writer) allocate(mode uint32, span func(size int64) (off, n int64)) error {
	return w.withSome(0, func(fd int, size int64) error {
		if least := 2*w.block + 1; size < least {
			if err := w.pwrite(fd, size, 0, least); err != nil {
				return err
			}
			size = least
		}
		off, n := span(size)
		// What grows by the range, or has blocks allocated, at most.
		if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_COLLAPSE_RANGE) == 0 {
			w.takes(n)
		}
		for {
			err := unix.Fallocate(fd, mode, off, n)
			if errors.Is(err, unix.EINTR) && !w.onFUSE {
				continue // tmpfs may; a mount must not
			}
			if err != nil {
				return fmt.Errorf("fallocate mode %#x of %d at %d: %w", mode, n, off, err)
			}
			return nil
		}
	})
}

func (w *writer) copyRange() error {
	return w.withSome(0, func(in int, size int64) error {
		if size == 0 {
			return fmt.Errorf("nothing to copy: %w", errConflict)
		}
		return w.withSome(0, func(out int, outSize int64) error {
			n := 1 + w.upTo(min(size-1, 256<<10))
			return w.copyWithin(in, w.upTo(size-n), out, outSize, w.upTo(outSize), n)
		})
	})
}

// copyRangeSelf copies from a file's first half to behind it: the ranges must
// not overlap.
func (w *writer) copyRangeSelf() error {
	return w.withSome(0, func(fd int, size int64) error {
		if size < 2 {
			return fmt.Errorf("too small to copy from: %w", errConflict)
		}
		n := 1 + w.upTo(min(size/2, 256<<10)-1)
		from := w.upTo(size/2 - n)
		return w.copyWithin(fd, from, fd, size, from+n+w.upTo(size-from-n), n)
	})
}

func (w *writer) copyWithin(in int, from int64, out int, outSize, to, n int64) error {
	w.takes(max(0, to+n-outSize))
	off, outOff := from, to
	done, err := unix.CopyFileRange(in, &off, out, &outOff, int(n), 0)
	if err != nil {
		return fmt.Errorf("copy_file_range of %d from %d to %d: %w", n, from, to, err)
	}
	if done == 0 {
		return fmt.Errorf("source was truncated: %w", errConflict)
	}
	return nil
}

// mmap stores into shared mappings, which reaches the file without any call.
func (w *writer) mmap() error {
	return w.withSome(0, func(fd int, size int64) error {
		if size == 0 {
			size = 1 + w.upTo(16<<10)
			w.takes(size)
			if err := unix.Ftruncate(fd, size); err != nil {
				return fmt.Errorf("ftruncate: %w", err)
			}
		}
		start := w.upTo((size-1)/pageSize) * pageSize
		length := min(size-start, 64<<10)
		m, err := unix.Mmap(fd, start, int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("mmap of %d at %d: %w", length, start, err)
		}
		err = w.storeAndSync(fd, m, start)
		if uerr := unix.Munmap(m); uerr != nil {
			err = errors.Join(err, fmt.Errorf("munmap: %w", uerr))
		}
		return err
	})
}

func (w *writer) storeAndSync(fd int, m []byte, start int64) error {
	for range 1 + w.upTo(3) {
		off := w.upTo(int64(len(m)) - 1)
		data := w.some(1 + w.upTo(int64(len(m))-off-1))
		if err := w.store(fd, m[off:], data, start+off+int64(len(data))); err != nil {
			return err
		}
	}
	flags := unix.MS_SYNC
	if w.oneIn(2) {
		flags = unix.MS_ASYNC
	}
	// Dirty pages reach the file in any case, later.
	if err := unix.Msync(m, flags); err != nil {
		return fmt.Errorf("msync: %w", err)
	}
	return nil
}

// store copies data to m, which maps the file up to end at least. A fault is a
// conflict if the file is found shorter than that, and an I/O error otherwise.
func (w *writer) store(fd int, m, data []byte, end int64) error {
	var fault error
	// Another writer may truncate, then let the file grow again. On FUSE fstat
	// tells the new size a moment before the kernel lets mappings have it.
	for try := range 200 {
		if try > 4 {
			time.Sleep(time.Millisecond)
		}
		if fault = tryCopy(m, data); fault == nil {
			return nil
		}
		size, err := regularSize(fd)
		if err != nil {
			return err
		}
		if size < end {
			return fmt.Errorf("truncated under the mapping: %w", errConflict)
		}
	}
	return fmt.Errorf("storing %d bytes into a mapping that ends at %d: %w: %w", len(data), end, fault, unix.EIO)
}

// tryCopy copies to memory that may not be there: the writer's goroutine has
// faults turned into panics.
func tryCopy(m, data []byte) (err error) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		fault, ok := v.(interface {
			runtime.Error
			Addr() uintptr
		})
		if !ok {
			panic(v)
		}
		err = fault
	}()
	copy(m, data)
	return nil
}
