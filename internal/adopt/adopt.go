// Package adopt turns an existing data directory into a store with a mount
// point in its place, and back. Both are one atomic exchange of two names, so
// that a crash leaves the data under one of them, whole.
package adopt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Dirs are the two places: where applications look for the data, and where
// replfs keeps it.
type Dirs struct {
	Mount, Store string
}

// RefusedError says why nothing was done.
type RefusedError struct {
	Reasons []string
}

func (e *RefusedError) Error() string { return strings.Join(e.Reasons, "\n") }

func refused(format string, args ...any) *RefusedError {
	return &RefusedError{Reasons: []string{fmt.Sprintf(format, args...)}}
}

// Check says whether Adopt would do it: nil, or a *RefusedError with all that
// is in the way, or what kept it from looking.
func Check(d Dirs) error {
	m, err := directory(d.Mount)
	if err != nil {
		return err
	}
	if err := vacant(d.Store); err != nil {
		if empty, eerr := isEmpty(d.Mount); eerr == nil && empty && isRefused(err) {
			return refused("%s is empty and %s is not: it seems to be adopted already", d.Mount, d.Store)
		}
		return err
	}
	if err := sameFilesystem(m, d.Mount, d.Store); err != nil {
		return err
	}
	return inUse(d.Mount)
}

// Adopt makes the directory at Mount the store, and an empty directory that
// only root may enter the mount point. It refuses, with a *RefusedError, when
// anything uses the directory, also when that shows only after the exchange,
// which is taken back then.
func Adopt(d Dirs) error {
	if err := Check(d); err != nil {
		return err
	}
	return swap(d)
}

// swap is Adopt after the look.
func swap(d Dirs) error {
	if err := os.Mkdir(d.Store, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make the store: %w", err)
	}
	// One that was there already becomes the mount point, too.
	if err := os.Chmod(d.Store, 0o700); err != nil { //nolint:gosec // a directory
		return fmt.Errorf("protect the mount point: %w", err)
	}
	if err := exchange(d); err != nil {
		return errors.Join(err, removeEmpty(d.Store))
	}
	// What opened the directory between the look and the exchange has its
	// files under the other name now.
	if err := inUse(d.Store); err != nil {
		return errors.Join(err, exchange(d), removeEmpty(d.Store))
	}
	return nil
}

// CheckUndo says whether Undo would do it, as Check does for Adopt.
func CheckUndo(d Dirs) error {
	s, err := directory(d.Store)
	if err != nil {
		return err
	}
	if err := vacant(d.Mount); err != nil {
		return err
	}
	if err := sameFilesystem(s, d.Store, d.Mount); err != nil {
		return err
	}
	return inUse(d.Store)
}

// Undo brings the data back to where it was: Store no longer exists after it.
func Undo(d Dirs) error {
	if err := CheckUndo(d); err != nil {
		return err
	}
	if err := os.Mkdir(d.Mount, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make the directory: %w", err)
	}
	if err := exchange(d); err != nil {
		return err
	}
	return removeEmpty(d.Store)
}

// exchange swaps the two names, durably.
func exchange(d Dirs) error {
	if err := unix.Renameat2(unix.AT_FDCWD, d.Mount, unix.AT_FDCWD, d.Store, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("exchange %s and %s: %w", d.Mount, d.Store, err)
	}
	return errors.Join(syncDir(filepath.Dir(d.Mount)), syncDir(filepath.Dir(d.Store)))
}

// removeEmpty takes the directory at path away if there is nothing in it.
func removeEmpty(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the empty directory: %w", err)
	}
	return nil
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the directory: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("make %s durable: %w", path, err)
	}
	return nil
}

func isRefused(err error) bool {
	var r *RefusedError
	return errors.As(err, &r)
}
