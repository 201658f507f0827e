package treediff

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	chunkSize = 256 << 10
	// Files up to this size are read whole. In larger ones holes are skipped,
	// which trusts the filesystem's answer to SEEK_DATA.
	wholeReadMax = 64 << 20
)

// contents compares two regular files byte by byte.
func (c *comparison) contents(path string, a, b *entry) error {
	if a.st.Size != b.st.Size {
		return c.report(path, Size, fmt.Sprint(a.st.Size), fmt.Sprint(b.st.Size))
	}
	if a.st.Size == 0 {
		return nil
	}
	if c.bufA == nil {
		c.bufA, c.bufB = make([]byte, chunkSize), make([]byte, chunkSize)
	}
	fa, err := a.reopen()
	if err != nil {
		return wrap("open", a, path, err)
	}
	defer closeReader(fa)
	fb, err := b.reopen()
	if err != nil {
		return wrap("open", b, path, err)
	}
	defer closeReader(fb)

	for off, size := int64(0), a.st.Size; off < size; {
		if size > wholeReadMax {
			off, err = skipHole(fa, fb, off, size)
			if err != nil {
				return wrap("seek", a, path, err)
			}
			if off >= size {
				break
			}
		}
		n := int(min(chunkSize, size-off))
		if err := readFull(fa, c.bufA[:n], off); err != nil {
			return wrap("read", a, path, err)
		}
		if err := readFull(fb, c.bufB[:n], off); err != nil {
			return wrap("read", b, path, err)
		}
		if !bytes.Equal(c.bufA[:n], c.bufB[:n]) {
			i := firstMismatch(c.bufA[:n], c.bufB[:n])
			return c.report(path, Content, around(c.bufA[:n], i, off), around(c.bufB[:n], i, off))
		}
		off += int64(n)
	}
	return nil
}

// reopen opens the very inode that the entry holds, for reading.
func (e *entry) reopen() (*os.File, error) {
	fd, err := open(unix.AT_FDCWD, e.procPath(), unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), e.procPath()), nil
}

// closeReader closes a file that was only read: nothing can be lost.
func closeReader(f *os.File) { _ = f.Close() }

func readFull(f *os.File, buf []byte, off int64) error {
	n, err := f.ReadAt(buf, off)
	if errors.Is(err, io.EOF) && n < len(buf) {
		return fmt.Errorf("file ended at %d while it was read: %w", off+int64(n), io.ErrUnexpectedEOF)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// skipHole returns the first offset from off on at which either file has data.
func skipHole(a, b *os.File, off, size int64) (int64, error) {
	da, err := nextData(a, off, size)
	if err != nil || da == off {
		return off, err
	}
	db, err := nextData(b, off, size)
	if err != nil {
		return off, err
	}
	return min(da, db), nil
}

func nextData(f *os.File, off, size int64) (int64, error) {
	next, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return off, nil // not supported here: everything may be data
	case err != nil:
		return off, err
	}
	return next, nil
}

func firstMismatch(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// around shows the bytes from the first mismatch on, and where they are.
func around(buf []byte, i int, off int64) string {
	return fmt.Sprintf("%x at offset %d", buf[i:min(i+16, len(buf))], off+int64(i))
}
