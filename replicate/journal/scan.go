package journal

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/replfs/replfs/replicate/record"
)

// IsSegment reports whether a file that begins with b, of 8 bytes at least,
// is a journal's segment.
func IsSegment(b []byte) bool {
	return len(b) >= 8 && binary.LittleEndian.Uint64(b) == segmentMagic
}

// Segments lists the segments in a journal's directory, oldest first. A
// directory that is missing has none.
func Segments(dir string) ([]string, error) {
	names, err := realOS{}.List(dir)
	if errors.Is(err, errNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range names {
		if _, ok := parseName(name); ok {
			out = append(out, filepath.Join(dir, name))
		}
	}
	return out, nil
}

const (
	// A segment that a process appends to may be seen with half a record at
	// its end.
	tailRetries = 10
	tailPause   = 20 * time.Millisecond
)

// Scan calls f with the encoded records in a segment's file, and where in
// the file they begin. It only reads, and a process may be appending. encoded
// is valid during the call. A *DamageError says that the file is damaged.
func Scan(path string, f func(offset int64, encoded []byte) error) error {
	file, err := realOS{}.Open(path, false)
	if err != nil {
		return err
	}
	defer file.Close()
	h, err := readHeader(file)
	if err != nil {
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			return err
		}
		return &DamageError{Path: path, Err: err}
	}
	off, next := int64(headerSize), h.first
	for retry := 0; ; retry++ {
		size, err := file.Size()
		if err != nil {
			return err
		}
		begin := off
		stopped, damage, err := scan(file, off, size, next, func(at int64, h record.Header, encoded []byte) error {
			next = h.LSN + 1
			return f(at, encoded)
		})
		off = stopped
		switch {
		case err != nil:
			return err
		case damage == nil:
			return nil
		case off > begin:
			retry = 0
		case retry >= tailRetries:
			return &DamageError{path, off, next, damage}
		}
		time.Sleep(tailPause)
	}
}
