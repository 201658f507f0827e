// Package journal keeps a range of the replication log on disk, in a bounded
// directory of segment files, for standbys that are too far behind for the
// ring in memory. It holds encoded records as the ring has them, with dense
// LSNs. What is appended survives the death of the process; what Seal was
// called for survives that of the machine.
package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/replfs/replfs/replicate/record"
)

var (
	// ErrFull says that the records do not fit within the journal's bound.
	ErrFull = errors.New("the journal has reached its bound")
	// ErrGone says that the LSN asked for is not in the journal: trimmed,
	// dropped, or not yet appended.
	ErrGone = errors.New("not in the journal")
	// ErrOrder says that records given to Append do not continue the journal.
	ErrOrder = errors.New("records do not continue the journal")
)

// IOError is a failure of the file system below the journal.
type IOError struct {
	Doing string
	Err   error
}

func (e *IOError) Error() string { return fmt.Sprintf("journal: %s: %v", e.Doing, e.Err) }

// Unwrap gives the system's error.
func (e *IOError) Unwrap() error { return e.Err }

func ioError(err error, format string, args ...any) error {
	return &IOError{fmt.Sprintf(format, args...), err}
}

// DamageError says that what stands in a segment is not what was written.
type DamageError struct {
	Path   string
	Offset int64
	LSN    uint64
	Err    error
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("journal segment %s is damaged at byte %d, LSN %d: %v", e.Path, e.Offset, e.LSN, e.Err)
}

// Unwrap gives what is wrong.
func (e *DamageError) Unwrap() error { return e.Err }

// MinBytes is the smallest bound: some segments of some of the largest
// records.
const MinBytes = 16 << 20

const (
	// A segment is the unit in which space is given back.
	minSegment = 2 * record.MaxSize
	maxSegment = 1 << 30
	// writeback is how much is appended before the kernel is asked to write
	// it, so that a sync of others does not find gigabytes to write.
	writeback = 4 << 20
	// indexEntries bounds the index of one segment.
	indexEntries = 256
)

// Options say how to open a journal.
type Options struct {
	// Cluster is the cluster's id: segments of another one are refused.
	Cluster string
	// BootID tells boots of the machine apart.
	BootID string
	// MaxBytes bounds the sum of the segments' sizes; at least MinBytes.
	MaxBytes int64
	// OS is the operating system; nil is the real one.
	OS OS

	// segment is the size of a segment if a test wants another; then MaxBytes
	// may be any.
	segment int64
}

// Journal is an open journal. Append, TrimBefore, Drop, Seal and Close are
// for one goroutine at a time, everything else for any.
type Journal struct {
	dir         string
	o           Options
	os          OS
	segmentSize int64

	// cur is the last segment's file; dirty is where what was not yet handed
	// to the disk begins. One goroutine's.
	cur   File
	dirty int64
	// stale: a file may exist that is none of segs.
	stale bool

	mu    sync.Mutex
	segs  []*segment
	total int64
	last  uint64
}

// segment is a file of the journal. Only the last one grows.
type segment struct {
	path        string
	first, last uint64
	size        int64
	index       []place
	gone        bool
}

// place is where a record stands.
type place struct {
	lsn uint64
	off int64
}

func newJournal(dir string, o Options) (*Journal, error) {
	if o.MaxBytes < MinBytes && o.segment == 0 {
		return nil, fmt.Errorf("a journal of %d bytes: it needs at least %d", o.MaxBytes, MinBytes)
	}
	if len(o.BootID) == 0 || len(o.BootID) > idSize || len(o.Cluster) > idSize {
		return nil, fmt.Errorf("journal: boot id %q or cluster id %q has no valid length", o.BootID, o.Cluster)
	}
	j := &Journal{dir: dir, o: o, os: o.OS}
	if j.os == nil {
		j.os = realOS{}
	}
	j.segmentSize = min(max(o.MaxBytes/128, minSegment), maxSegment)
	if o.segment > 0 {
		j.segmentSize = o.segment
	}
	return j, nil
}

// Empty reports whether the journal holds no record.
func (j *Journal) Empty() bool { return j.Last() == 0 }

// First is the LSN of the oldest record, 0 if there is none.
func (j *Journal) First() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.segs) == 0 {
		return 0
	}
	return j.segs[0].first
}

// Last is the LSN of the newest record, 0 if there is none.
func (j *Journal) Last() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// Size is the size of all segments in bytes, MaxBytes its bound.
func (j *Journal) Size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.total
}

// MaxBytes is the bound of Size.
func (j *Journal) MaxBytes() int64 { return j.o.MaxBytes }

// BytesAfter is about the size of the records after lsn, all of them if lsn
// is before the first: exact but for the distance of two index entries.
func (j *Journal) BytesAfter(lsn uint64) int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	var sum int64
	for i := len(j.segs) - 1; i >= 0; i-- {
		s := j.segs[i]
		if s.first > lsn {
			sum += s.size - headerSize
			continue
		}
		if s.last > lsn {
			sum += s.size - s.before(lsn+1).off
		}
		break
	}
	return sum
}

// before is a place at or before lsn, which is in the segment.
func (s *segment) before(lsn uint64) place {
	p := place{s.first, headerSize}
	lo, hi := 0, len(s.index)
	for lo < hi {
		if mid := (lo + hi) / 2; s.index[mid].lsn <= lsn {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo > 0 {
		p = s.index[lo-1]
	}
	return p
}

// Append adds whole, sound encoded records with the LSNs first to last,
// which must continue the journal (else ErrOrder); an empty one begins
// anywhere. After ErrFull nothing has changed and less may still fit; after
// an *IOError the journal must be dropped.
func (j *Journal) Append(batch []byte, first, last uint64) error {
	if have := j.Last(); first == 0 || last < first || last > maxLSN || have != 0 && first != have+1 {
		return fmt.Errorf("%w: LSN %d to %d after %d", ErrOrder, first, last, have)
	}
	if j.stale && j.Empty() {
		// What could not be removed must not be taken for part of this one.
		if err := j.Drop(); err != nil {
			return err
		}
	}
	s, err := j.room(int64(len(batch)), first)
	if err != nil {
		return err
	}
	at := s.size
	if _, err := j.cur.WriteAt(batch, at); err != nil {
		return ioError(err, "append %d bytes to %s", len(batch), s.path)
	}
	end := at + int64(len(batch))
	if end-j.dirty >= writeback {
		j.cur.StartWriteback(j.dirty, end-j.dirty)
		j.dirty = end
	}
	j.mu.Lock()
	j.note(s, batch, first, at)
	s.size, s.last = end, last
	j.total += int64(len(batch))
	j.last = last
	j.mu.Unlock()
	return nil
}

// note indexes the records of a batch. The lock is held.
func (j *Journal) note(s *segment, batch []byte, lsn uint64, off int64) {
	step := j.segmentSize / indexEntries
	for len(batch) > 0 {
		if n := len(s.index); n < indexEntries && (n == 0 || off-s.index[n-1].off >= step) {
			s.index = append(s.index, place{lsn, off})
		}
		n := min(len(batch), int(binary.LittleEndian.Uint32(batch)))
		if n < record.HeaderSize {
			return
		}
		batch, off, lsn = batch[n:], off+int64(n), lsn+1
	}
}

// room gives the segment that takes n more bytes.
func (j *Journal) room(n int64, first uint64) (*segment, error) {
	j.mu.Lock()
	var s *segment
	if len(j.segs) > 0 {
		s = j.segs[len(j.segs)-1]
	}
	total := j.total
	j.mu.Unlock()
	if s != nil && s.size+n <= j.segmentSize {
		if total+n > j.o.MaxBytes {
			return nil, fmt.Errorf("%w of %d bytes", ErrFull, j.o.MaxBytes)
		}
		return s, nil
	}
	if total+n+headerSize > j.o.MaxBytes {
		return nil, fmt.Errorf("%w of %d bytes", ErrFull, j.o.MaxBytes)
	}
	return j.roll(s, first)
}

// roll begins a segment.
func (j *Journal) roll(prev *segment, first uint64) (*segment, error) {
	h := header{first: first, boot: j.o.BootID, cluster: j.o.Cluster}
	if prev != nil {
		h.prevFirst, h.prevSize = prev.first, prev.size
	}
	path := filepath.Join(j.dir, segmentName(first))
	f, err := j.os.Create(path)
	if err != nil {
		j.stale = true
		return nil, ioError(err, "make %s", path)
	}
	if _, err := f.WriteAt(h.encode(), 0); err != nil {
		j.stale = true
		return nil, errors.Join(ioError(err, "begin %s", path), f.Close())
	}
	if j.cur != nil {
		old := j.cur
		if prev != nil && prev.size > j.dirty {
			old.StartWriteback(j.dirty, prev.size-j.dirty)
		}
		if err := old.Close(); err != nil {
			j.cur, j.stale = f, true
			return nil, ioError(err, "close %s", prev.path)
		}
	}
	j.cur, j.dirty = f, 0
	s := &segment{path: path, first: first, last: first - 1, size: headerSize}
	j.mu.Lock()
	j.segs = append(j.segs, s)
	j.total += headerSize
	j.mu.Unlock()
	return s, nil
}

// Trimmable reports whether TrimBefore would give anything back.
func (j *Journal) Trimmable(lsn uint64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.segs) > 1 && j.segs[0].last < lsn
}

// TrimBefore gives back the segments that hold only records before lsn; the
// last one stays.
func (j *Journal) TrimBefore(lsn uint64) error {
	j.mu.Lock()
	n := 0
	for n < len(j.segs)-1 && j.segs[n].last < lsn {
		n++
	}
	old := j.segs[:n:n]
	j.segs = append([]*segment(nil), j.segs[n:]...)
	for _, s := range old {
		s.gone = true
		j.total -= s.size
	}
	j.mu.Unlock()
	return j.remove(old)
}

func (j *Journal) remove(segs []*segment) error {
	var errs []error
	for _, s := range segs {
		if err := j.os.Remove(s.path); err != nil && !errors.Is(err, errNotExist) {
			j.stale = true
			errs = append(errs, ioError(err, "remove %s", s.path))
		}
	}
	return errors.Join(errs...)
}

// Drop empties the journal; readers get ErrGone at once. With an error, files
// may be left behind: they are removed before anything is appended again.
func (j *Journal) Drop() error {
	j.mu.Lock()
	old := j.segs
	for _, s := range old {
		s.gone = true
	}
	j.segs, j.total, j.last = nil, 0, 0
	j.mu.Unlock()
	var errs []error
	if j.cur != nil {
		// Its contents do not matter any more.
		_ = j.cur.Close()
		j.cur = nil
	}
	if j.stale {
		j.stale = false
		errs = append(errs, j.removeAll())
	} else {
		errs = append(errs, j.remove(old))
	}
	return errors.Join(errs...)
}

// removeAll removes every file that is a journal's.
func (j *Journal) removeAll() error {
	if err := removeFiles(j.os, j.dir); err != nil {
		j.stale = true
		return err
	}
	return nil
}

// Remove removes the journal in dir, which is not open.
func Remove(dir string) error { return removeFiles(realOS{}, dir) }

func removeFiles(o OS, dir string) error {
	names, err := o.List(dir)
	if errors.Is(err, errNotExist) {
		return nil
	}
	if err != nil {
		return ioError(err, "list %s", dir)
	}
	var errs []error
	for _, name := range names {
		if _, ok := parseName(name); !ok && name != sealName {
			continue
		}
		path := filepath.Join(dir, name)
		if err := o.Remove(path); err != nil && !errors.Is(err, errNotExist) {
			errs = append(errs, ioError(err, "remove %s", path))
		}
	}
	return errors.Join(errs...)
}

// Close lets go of the journal. Readers may be used and closed after it.
func (j *Journal) Close() error {
	if j.cur == nil {
		return nil
	}
	err := j.cur.Close()
	j.cur = nil
	if err != nil {
		return ioError(err, "close")
	}
	return nil
}
