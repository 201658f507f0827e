package treediff

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// entry is one inode of a tree, held by an O_PATH descriptor: that opens
// anything, devices and fifos too, without side effects.
type entry struct {
	root string // of the tree, for messages
	fd   int
	st   unix.Stat_t
}

// openEntry opens name below dirfd. flags say how a symlink is treated.
func openEntry(root string, dirfd int, name string, flags int) (*entry, error) {
	fd, err := open(dirfd, name, unix.O_PATH|flags)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: strconv.Quote(name), Err: err}
	}
	e := &entry{root: root, fd: fd}
	if err := retry(func() error { return unix.Fstat(fd, &e.st) }); err != nil {
		e.close()
		return nil, &os.PathError{Op: "fstat", Path: strconv.Quote(name), Err: err}
	}
	return e, nil
}

func open(dirfd int, name string, flags int) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// retry repeats a call that a signal cut short: the Go runtime uses signals,
// and network and FUSE filesystems let them interrupt calls.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// close lets go of the inode. Nothing was written, so nothing can fail.
func (e *entry) close() { _ = unix.Close(e.fd) }

func (e *entry) format() uint32 { return e.st.Mode & unix.S_IFMT }
func (e *entry) isDir() bool    { return e.format() == unix.S_IFDIR }

// procPath is a path that leads to exactly this inode. The calls that follow
// symlinks stop at the inode even if it is one itself, whereas those that do
// not follow would see procfs's own link.
func (e *entry) procPath() string { return "/proc/self/fd/" + strconv.Itoa(e.fd) }

// names lists a directory in byte order.
func (e *entry) names() ([]string, error) {
	fd, err := open(e.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("opening for reading: %w", err)
	}
	dir := os.NewFile(uintptr(fd), ".")
	names, err := dir.Readdirnames(-1)
	if err := errors.Join(err, dir.Close()); err != nil {
		return nil, fmt.Errorf("listing: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

// target reads a symlink.
func (e *entry) target() (string, error) {
	return grow(func(buf []byte) (int, error) {
		n, err := unix.Readlinkat(e.fd, "", buf)
		if err == nil && n == len(buf) {
			return 0, unix.ERANGE // readlink cuts off silently
		}
		return n, err
	})
}

// grow calls read with ever larger buffers while it answers ERANGE.
func grow(read func([]byte) (int, error)) (string, error) {
	const enough = 1 << 20 // the kernel's limits are 64 KiB and less
	for size := 256; ; size *= 4 {
		buf, n := make([]byte, size), 0
		err := retry(func() (err error) { n, err = read(buf); return err })
		if errors.Is(err, unix.ERANGE) && size < enough {
			continue
		}
		if err != nil {
			return "", err
		}
		return string(buf[:n]), nil
	}
}

// typeName names a file type for people.
func (e *entry) typeName() string {
	switch e.format() {
	case unix.S_IFREG:
		return "regular file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	default:
		return fmt.Sprintf("type %#o", e.format())
	}
}
