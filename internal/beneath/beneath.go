// Package beneath gives access to the tree below one directory that cannot
// leave it: no path component may be a symbolic link, "..", or absolute, so
// that paths from an untrusted peer reach nothing outside.
package beneath

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// pathMax is PATH_MAX less its NUL: what one system call takes.
	pathMax = 4095
	nameMax = 255
	// maxAgain bounds how often a lookup is repeated that concurrent renames
	// anywhere in the system made inconclusive.
	maxAgain = 128

	resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
)

// ErrPath is wrapped by the error for a path that no confined access may use:
// absolute, with an empty, "." or ".." component, an overlong one, or a NUL.
var ErrPath = errors.New("path not allowed")

// CheckPath returns an error that wraps ErrPath unless p is a relative path
// of proper names; "" is the root.
func CheckPath(p string) error {
	if p == "" {
		return nil
	}
	for rest, more := p, true; more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		if err := checkName(name); err != nil {
			return fmt.Errorf("%w: %q", ErrPath, p)
		}
	}
	return nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > nameMax ||
		strings.IndexByte(name, 0) >= 0 || strings.IndexByte(name, '/') >= 0 {
		return fmt.Errorf("%w: name %q", ErrPath, name)
	}
	return nil
}

// Loc is a name in an open directory, the form in which the *at system calls
// take a path. With AT_SYMLINK_NOFOLLOW (or O_NOFOLLOW) they stay beneath the
// root, since Name is a single component. The root itself is "." in itself.
type Loc struct {
	// FD is the directory's; it may be used until Release.
	FD   int
	Name string
	dir  *Dir
}

// IsRoot reports whether the location is the root itself.
func (l Loc) IsRoot() bool { return l.Name == "." }

// Release ends the use of FD.
func (l Loc) Release() {
	if l.dir != nil {
		l.dir.Release()
	}
}

// At resolves all of path but its last component. The errors wrap ErrPath or
// the errno: ENOENT if the parent is missing, ENOTDIR or ELOOP if a component
// is a file or a symbolic link.
func (r *Root) At(path string) (Loc, error) {
	if path == "" {
		return Loc{FD: r.top.fd, Name: ".", dir: r.top}, nil
	}
	parent, name := Split(path)
	// An absolute path would otherwise look like a name in the root.
	if err := checkName(name); err != nil || path[0] == '/' {
		return Loc{}, fmt.Errorf("%w: %q", ErrPath, path)
	}
	dir, err := r.Dir(parent)
	if err != nil {
		return Loc{}, err
	}
	return Loc{FD: dir.fd, Name: name, dir: dir}, nil
}

// Split cuts path into its parent's path and its last name.
func Split(path string) (parent, name string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// Open opens what is at path, which must exist and not be a symbolic link
// (ELOOP) unless flags say O_PATH. O_NOFOLLOW and O_CLOEXEC are added.
// Opening a FIFO blocks without O_NONBLOCK and opening a device acts on it:
// look at the type first. The caller closes the descriptor.
func (r *Root) Open(path string, flags int) (int, error) {
	l, err := r.At(path)
	if err != nil {
		return -1, err
	}
	defer l.Release()
	return l.Open(flags, 0)
}

// Open opens or, with O_CREAT and mode, creates the location, as Root.Open.
func (l Loc) Open(flags int, mode uint32) (int, error) {
	return openat2(l.FD, l.Name, flags|unix.O_NOFOLLOW, mode, resolve)
}

// Stat is lstat(2) of the location.
func (l Loc) Stat(st *unix.Stat_t) error {
	for {
		err := unix.Fstatat(l.FD, l.Name, st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case err == nil:
			return nil
		case err != unix.EINTR:
			return &os.PathError{Op: "stat", Path: l.Name, Err: err}
		}
	}
}

// Stat is lstat(2) of what is at path.
func (r *Root) Stat(path string, st *unix.Stat_t) error {
	l, err := r.At(path)
	if err != nil {
		return err
	}
	defer l.Release()
	return l.Stat(st)
}

// openDir opens the directory at path relative to fd, however long path is.
func openDir(fd int, path string, flags int, how uint64) (int, error) {
	at := fd
	for {
		step, rest := path, ""
		if len(path) > pathMax {
			i := strings.LastIndexByte(path[:pathMax+1], '/')
			if i < 0 {
				return -1, fmt.Errorf("%w: component longer than a path", ErrPath)
			}
			step, rest = path[:i], path[i+1:]
		}
		f := flags
		if rest != "" {
			f = unix.O_PATH
		}
		next, err := openat2(at, step, f|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0, how)
		if at != fd {
			_ = unix.Close(at) // O_PATH: nothing to lose
		}
		if err != nil || rest == "" {
			return next, err
		}
		at, path = next, rest
	}
}

func openat2(dirfd int, path string, flags int, mode uint32, how uint64) (int, error) {
	h := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: how}
	for again := 0; ; {
		fd, err := unix.Openat2(dirfd, path, &h)
		switch {
		case err == nil:
			return fd, nil
		case err == unix.EINTR:
		case err == unix.EAGAIN && again < maxAgain:
			again++
			runtime.Gosched()
		default:
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}
