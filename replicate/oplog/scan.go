package oplog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/replfs/replfs/replicate/record"
)

// IsLog reports whether a file that begins with b, of 8 bytes at least, is a log's.
func IsLog(b []byte) bool {
	return len(b) >= 8 && binary.NativeEndian.Uint64(b) == magic
}

// ScanError says where in a log's file something is not sound.
type ScanError struct {
	Offset int64
	Err    error
}

func (e *ScanError) Error() string { return fmt.Sprintf("byte %d: %v", e.Offset, e.Err) }

// Unwrap gives what is wrong.
func (e *ScanError) Unwrap() error { return e.Err }

// Scan calls f with the encoded records in the log's file at path, oldest
// first, and where in the file they begin. It only reads, and a process may
// have the log open and append to it: records that are overwritten meanwhile
// are left out. encoded is valid during the call. A *ScanError says that the
// file is damaged.
func Scan(path string, f func(offset int64, encoded []byte) error) error {
	file, err := os.Open(path) //nolint:gosec // the caller names the file
	if err != nil {
		return err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	return scanLog(file, st.Size(), f)
}

// bounds is what a log's header says of its records.
type bounds struct{ size, head, tail uint64 }

func readBounds(r io.ReaderAt, fileSize int64) (b bounds, err error) {
	h := make([]byte, wordResetTo+8)
	if _, err := r.ReadAt(h, 0); err != nil {
		if errors.Is(err, io.EOF) {
			err = &ScanError{0, errors.New("shorter than a log's header")}
		}
		return b, err
	}
	word := func(off int) uint64 { return binary.NativeEndian.Uint64(h[off:]) }
	if word(wordMagic) != magic {
		return b, &ScanError{wordMagic, errors.New("not a log")}
	}
	if v := word(wordVersion); v != formatVersion {
		return b, &ScanError{wordVersion, fmt.Errorf("format version %d, this replfs knows %d", v, formatVersion)}
	}
	b = bounds{size: word(wordSize), head: word(wordHead), tail: word(wordTail)}
	if b.size == 0 || b.size > 1<<40 || fileSize != int64(dataOffset+b.size) {
		return b, &ScanError{wordSize, fmt.Errorf("a ring of %d bytes in a file of %d", b.size, fileSize)}
	}
	// The two words are not read at once: the tail may be the newer one.
	if b.head > maxOffset || b.tail > maxOffset || b.head > b.tail && b.head-b.tail > b.size {
		return b, &ScanError{wordHead, fmt.Errorf("head %d, tail %d", b.head, b.tail)}
	}
	return b, nil
}

func scanLog(r io.ReaderAt, fileSize int64, f func(offset int64, encoded []byte) error) error {
	b, err := readBounds(r, fileSize)
	if err != nil {
		return err
	}
	buf := make([]byte, min(record.MaxSize, b.size))
	next := uint64(0)
	// What was there at the beginning is shown, not what comes meanwhile: the
	// end is reached even if records come faster than they are read.
	for off := b.tail; off < b.head; {
		n := min(uint64(len(buf)), b.head-off)
		part := min(n, b.size-off%b.size)
		_, err := r.ReadAt(buf[:part], dataOffset+int64(off%b.size))
		if err == nil && part < n {
			_, err = r.ReadAt(buf[part:n], dataOffset)
		}
		if err != nil {
			return fmt.Errorf("reading the log: %w", err)
		}
		// The tail moves before what it leaves is overwritten.
		now, err := readBounds(r, fileSize)
		switch {
		case err != nil:
			return err
		case now.tail > off:
			off, next = now.tail, 0
			continue
		}
		b.head = min(b.head, now.head) // it may have been cut
		for used := uint64(0); used < n && off < b.head; {
			at := dataOffset + int64(off%b.size)
			h, err := record.Check(buf[used:n])
			if errors.Is(err, record.ErrShort) && used > 0 && n == uint64(len(buf)) {
				break
			}
			if err == nil && next != 0 && h.LSN != next {
				err = fmt.Errorf("LSN %d where %d should be", h.LSN, next)
			}
			if err != nil {
				return &ScanError{at, err}
			}
			if err := f(at, buf[used:used+uint64(h.Size)]); err != nil {
				return err
			}
			used, off, next = used+uint64(h.Size), off+uint64(h.Size), h.LSN+1
		}
	}
	return nil
}
