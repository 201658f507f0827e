package journal

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OS is what the journal asks of the operating system, one system call a
// method. Tests put one in front of the real one that fails a chosen call.
type OS interface {
	// Create makes a file that must not exist, Open opens one that does.
	Create(path string) (File, error)
	Open(path string, write bool) (File, error)
	Remove(path string) error
	// List gives the names in a directory, in order.
	List(dir string) ([]string, error)
	MakeDir(dir string) error
	// SyncDir makes the names in a directory durable.
	SyncDir(dir string) error
}

// File is an open file.
type File interface {
	ReadAt(b []byte, off int64) (int, error)
	WriteAt(b []byte, off int64) (int, error)
	Truncate(size int64) error
	Size() (int64, error)
	// StartWriteback has the kernel begin to write a range, and waits for
	// nothing.
	StartWriteback(off, n int64)
	// Sync makes the contents durable.
	Sync() error
	Close() error
}

type realOS struct{}

// System is the real operating system.
func System() OS { return realOS{} }

func (realOS) Create(path string) (File, error) {
	return openFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (realOS) Open(path string, write bool) (File, error) {
	if write {
		return openFile(path, os.O_RDWR)
	}
	return openFile(path, os.O_RDONLY)
}

func openFile(path string, flags int) (File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return realFile{f}, nil
}

func (realOS) Remove(path string) error { return os.Remove(path) }

func (realOS) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

func (realOS) MakeDir(dir string) error { return os.MkdirAll(dir, 0o700) }

func (realOS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

type realFile struct{ *os.File }

func (f realFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f realFile) StartWriteback(off, n int64) {
	// A hint: what goes wrong shows in Sync, or in a checksum.
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}
