package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/replfs/replfs/replicate/record"
)

// Reader reads the journal from some LSN on, for one goroutine at a time. It
// must be closed.
type Reader struct {
	j    *Journal
	next uint64
	seg  *segment
	f    File
	off  int64
}

// NewReader makes a reader whose first record is from, which is in the
// journal or the next one to come; else the error is ErrGone.
func (j *Journal) NewReader(from uint64) (*Reader, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.segs) == 0 || from < j.segs[0].first || from > j.last+1 {
		return nil, fmt.Errorf("reading the journal from LSN %d: %w", from, ErrGone)
	}
	return &Reader{j: j, next: from}, nil
}

// Next is the LSN of the record that Read gives next.
func (r *Reader) Next() uint64 { return r.next }

// Read copies as many whole records into buf as its capacity allows, but at
// least one: a larger one is given in memory of its own. batch holds the
// encoded records first to last, each of which was checked. The error is
// io.EOF at the end of what has been appended so far, ErrGone, *DamageError
// or *IOError.
func (r *Reader) Read(buf []byte) (batch []byte, first, last uint64, err error) {
	size, err := r.seek()
	if err != nil {
		return nil, 0, 0, err
	}
	b := buf[:min(int64(cap(buf)), size-r.off)]
	if len(b) < record.HeaderSize {
		b = make([]byte, min(record.MaxSize, size-r.off))
	}
	if err := r.readAt(b, r.off); err != nil {
		return nil, 0, 0, err
	}
	if n := int(binary.LittleEndian.Uint32(b)); n > len(b) && n <= record.MaxSize && int64(n) <= size-r.off {
		b = make([]byte, n)
		if err := r.readAt(b, r.off); err != nil {
			return nil, 0, 0, err
		}
	}
	n := 0
	first = r.next
	for n < len(b) {
		h, err := record.Check(b[n:])
		if errors.Is(err, record.ErrShort) && n > 0 {
			break // whether it is whole is seen when it comes first
		}
		if err == nil && h.LSN != r.next {
			err = fmt.Errorf("LSN %d where %d should be", h.LSN, r.next)
		}
		if err != nil {
			if n > 0 {
				break // said by the next Read
			}
			return nil, 0, 0, &DamageError{r.seg.path, r.off, r.next, err}
		}
		n += h.Size
		r.next++
		r.off += int64(h.Size)
	}
	return b[:n], first, r.next - 1, nil
}

func (r *Reader) readAt(b []byte, off int64) error {
	n, err := r.f.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case errors.Is(err, io.EOF):
		return &DamageError{r.seg.path, off, r.next, errors.New("the file ends before it should")}
	}
	return ioError(err, "read %s", r.seg.path)
}

// seek opens the segment of the next record and finds it there. size is how
// much of the segment may be read.
func (r *Reader) seek() (size int64, err error) {
	j := r.j
	for {
		j.mu.Lock()
		s, known := r.seg, place{}
		if s == nil {
			if s = j.find(r.next); s != nil {
				known = s.before(r.next)
			}
		}
		if s == nil || s.gone {
			last := j.last
			j.mu.Unlock()
			if s == nil && last != 0 && r.next == last+1 {
				return 0, io.EOF
			}
			return 0, fmt.Errorf("reading the journal at LSN %d: %w", r.next, ErrGone)
		}
		size, done := s.size, r.next > s.last
		isLast := s == j.segs[len(j.segs)-1]
		j.mu.Unlock()
		switch {
		case done && isLast:
			return 0, io.EOF
		case done && r.off != 0 && r.off != size:
			return 0, &DamageError{s.path, r.off, r.next, errors.New("more follows than the next segment says")}
		case done:
			r.leave()
			continue
		case r.seg == s:
			if r.off >= size {
				return 0, &DamageError{s.path, r.off, r.next, errors.New("less is here than the next segment says")}
			}
			return size, nil
		}
		f, err := j.os.Open(s.path, false)
		if errors.Is(err, errNotExist) {
			j.mu.Lock()
			gone := s.gone
			j.mu.Unlock()
			if gone {
				return 0, fmt.Errorf("reading the journal at LSN %d: %w", r.next, ErrGone)
			}
			return 0, &DamageError{s.path, 0, r.next, err}
		}
		if err != nil {
			return 0, ioError(err, "open %s", s.path)
		}
		r.seg, r.f = s, f
		if err := r.walk(known, size); err != nil {
			return 0, err
		}
	}
}

// find gives the segment that holds lsn. The lock is held.
func (j *Journal) find(lsn uint64) *segment {
	lo, hi := 0, len(j.segs)
	for lo < hi {
		if mid := (lo + hi) / 2; j.segs[mid].first <= lsn {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 || lsn > j.segs[lo-1].last {
		return nil
	}
	return j.segs[lo-1]
}

// walk goes from a place that is known to that of the next record, by the
// records' lengths.
func (r *Reader) walk(at place, size int64) error {
	buf := make([]byte, 64<<10)
	for at.lsn < r.next {
		b := buf[:min(int64(len(buf)), size-at.off)]
		if len(b) < record.HeaderSize {
			return &DamageError{r.seg.path, at.off, at.lsn, record.ErrShort}
		}
		if err := r.readAt(b, at.off); err != nil {
			return err
		}
		for base := at.off; at.lsn < r.next && at.off-base+record.HeaderSize <= int64(len(b)); {
			h, err := record.PeekHeader(b[at.off-base:])
			if err == nil && h.LSN != at.lsn {
				err = fmt.Errorf("LSN %d where %d should be", h.LSN, at.lsn)
			}
			if err != nil {
				return &DamageError{r.seg.path, at.off, at.lsn, err}
			}
			at = place{at.lsn + 1, at.off + int64(h.Size)}
		}
	}
	r.off = at.off
	return nil
}

func (r *Reader) leave() {
	if r.f != nil {
		// It was only read.
		_ = r.f.Close()
	}
	r.seg, r.f, r.off = nil, nil, 0
}

// Close ends the reader.
func (r *Reader) Close() { r.leave() }

// Header gives the header of the record lsn.
func (j *Journal) Header(lsn uint64) (record.Header, bool) {
	r, err := j.NewReader(lsn)
	if err != nil {
		return record.Header{}, false
	}
	defer r.Close()
	if _, err := r.seek(); err != nil {
		return record.Header{}, false
	}
	b := make([]byte, record.HeaderSize)
	if err := r.readAt(b, r.off); err != nil {
		return record.Header{}, false
	}
	h, err := record.PeekHeader(b)
	return h, err == nil && h.LSN == lsn
}
