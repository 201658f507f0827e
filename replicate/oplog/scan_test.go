package oplog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/replfs/replfs/replicate/record"
)

// sparse is a file whose beginning and ring are given, and zeros elsewhere.
type sparse struct {
	header, ring []byte
	size         int64
}

func (s *sparse) ReadAt(b []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), s.size-off))
	clear(b[:n])
	if off < int64(len(s.header)) {
		copy(b[:n], s.header[off:])
	}
	if at := off - dataOffset; at >= 0 && at < int64(len(s.ring)) {
		copy(b[:n], s.ring[at:])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// FuzzScan reads a log with any header and records: what it gives is sound,
// and it ends.
func FuzzScan(f *testing.F) {
	path := ringPath(f)
	l, _ := openLog(f, path, MinSize)
	for range 3 {
		if _, err := l.Append(&record.Record{Op: record.OpWrite}, pattern(1, 100), nil); err != nil {
			f.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:512], b[dataOffset:dataOffset+600], int64(len(b)))
	moved := bytes.Clone(b[:512])
	binary.NativeEndian.PutUint64(moved[wordTail:], 147)
	f.Add(moved, b[dataOffset:dataOffset+600], int64(len(b)))
	f.Fuzz(func(t *testing.T, header, ring []byte, size int64) {
		records := 0
		err := scanLog(&sparse{header, ring, size}, size, func(off int64, b []byte) error {
			records++
			if h, err := record.Check(b); err != nil || h.Size != len(b) || off < dataOffset || off >= size {
				t.Fatalf("at %d of %d: %d bytes, %v", off, size, len(b), err)
			}
			return nil
		})
		var bad *ScanError
		if err != nil && !errors.As(err, &bad) && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if records > len(ring)/record.HeaderSize+1 {
			t.Fatalf("%d records in %d bytes", records, len(ring))
		}
	})
}

func TestScan(t *testing.T) {
	path := ringPath(t)
	l, _ := openLog(t, path, MinSize)
	for range 3 { // around the ring's end
		for range 30 {
			appendSized(t, l, 100<<10)
		}
		next := l.First()
		err := Scan(path, func(_ int64, b []byte) error {
			h, err := record.Check(b)
			if err != nil || h.LSN != next {
				t.Fatalf("LSN %d, want %d: %v", h.LSN, next, err)
			}
			next++
			return nil
		})
		if err != nil || next != l.Last()+1 {
			t.Fatalf("up to %d, the log ends at %d: %v", next-1, l.Last(), err)
		}
	}
}
