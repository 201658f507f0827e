package workload

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// renameWrite renames a file to and fro while writing to it.
func (w *writer) renameWrite() error {
	path, err := w.file()
	if err != nil {
		return err
	}
	return w.writeWhile(path, path, w.fresh())
}

// renameDirWrite renames a file's directory to and fro while writing to it.
func (w *writer) renameDirWrite() error {
	for range 4 {
		path, err := w.file()
		if err != nil {
			return err
		}
		if dir := w.note(parent(path)); dir != "." {
			return w.writeWhile(path, dir, w.freshDir())
		}
	}
	return fmt.Errorf("no file in a directory found: %w", errConflict)
}

// writeWhile writes blocks to the file path while another goroutine renames
// from to to, back, and to to again.
func (w *writer) writeWhile(path, from, to string) error {
	return w.withFile(path, unix.O_RDWR, func(fd int, size int64) error {
		var renaming error
		var wg sync.WaitGroup
		wg.Go(func() {
			a, b := from, to
			for range 3 {
				if renaming = w.renameTo(a, b, unix.RENAME_NOREPLACE); renaming != nil {
					return
				}
				a, b = b, a
			}
		})
		var writing error
		for range 6 {
			if writing = w.pwrite(fd, size, w.upTo(size), 1+w.upTo(4<<10)); writing != nil {
				break
			}
		}
		wg.Wait()
		return w.worse(renaming, writing)
	})
}

// worse returns the error that nothing explains, if either is one.
func (w *writer) worse(a, b error) error {
	for _, err := range []error{a, b} {
		var errno syscall.Errno
		if err != nil && !errors.Is(err, errConflict) && (!errors.As(err, &errno) || !isConflict(errno) && !w.allowed[errno]) {
			return err
		}
	}
	if a != nil {
		return a
	}
	return b
}

// isConflict lists what renames between writers end in.
func isConflict(errno syscall.Errno) bool {
	switch errno {
	case unix.ENOENT, unix.ENOTDIR, unix.EEXIST, unix.EINVAL, unix.ELOOP:
		return true
	}
	return false
}
