package apply

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// ErrOrder is wrapped by the error for a record that is not the next one. It
// changed nothing.
var ErrOrder = errors.New("record out of order")

// ErrCopyInterrupted is wrapped by the error for a record that would go on
// with a complete copy which an earlier process was receiving. What that knew
// is lost: the copy has to start again, with an empty store.
var ErrCopyInterrupted = errors.New("complete copy was interrupted, it must start again")

// errDiverged is wrapped by what shows that the store is not what the record
// was made for, when no errno says so.
var errDiverged = errors.New("the store is not as the record expects")

// Error says that a record could not be applied. The applied LSN is still that
// of the record before.
type Error struct {
	LSN  uint64
	Op   record.Op
	Path string
	Err  error
	// Divergence says that the store is not the primary's at this LSN: trying
	// again cannot help, a reconcile or copy must. Otherwise the store cannot
	// take the record now (full, read-only, I/O error, lacking a feature):
	// the same record may be applied again once that is mended.
	Divergence bool
}

func (e *Error) Error() string {
	s := fmt.Sprintf("apply record %d (%s %q): %v", e.LSN, e.Op, e.Path, e.Err)
	if e.Divergence {
		s += " (the store differs from the primary's)"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// diverging are the errors that a store in the right state cannot give for a
// record that the primary's store took.
var diverging = []error{
	errDiverged,
	unix.ENOENT, unix.EEXIST, unix.ENOTDIR, unix.EISDIR, unix.ENOTEMPTY, unix.ENODATA,
	unix.ELOOP, unix.EINVAL, unix.EXDEV, unix.EMLINK, unix.ENAMETOOLONG, unix.EBADF,
}

func divergence(err error) bool {
	for _, d := range diverging {
		if errors.Is(err, d) {
			return true
		}
	}
	return false
}

// diverged makes an error that counts as divergence.
func diverged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errDiverged, fmt.Sprintf(format, args...))
}

// errno is the plain errno within err, for calls compared with ==.
func errno(err error) error {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}

// hint adds what to do about an error that needs an administrator.
func hint(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w; make space on the standby's store, then it goes on by itself", err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w; the standby's store is read-only: see the kernel log, repair and remount it", err)
	case errors.Is(err, unix.EIO):
		return fmt.Errorf("%w; see the kernel log for the standby's disk", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w; replfs must run as root, and the file must not be immutable (lsattr)", err)
	}
	return err
}
