package oplog

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/replfs/replfs/replicate/record"
)

// rawChunk bounds what AppendRaw copies under one hold of the lock, but for
// a single record that is larger.
const rawChunk = 256 << 10

// fieldBuffers holds *[]byte for encoded fields. They cannot live on the
// stack: the checksum's implementation is called through a variable.
var fieldBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, 512)
	return &b
}}

// Append gives r the next LSN, the epoch and the time, and publishes it with
// data, which it copies once (nil is a record without data; r.Data counts
// for nothing, and FieldData is set or cleared accordingly). When it
// returns, the record survives the process. A slot that is not nil is marked
// in the same step as done with this LSN; it must still be ended.
//
// It waits while the ring is full of what readers hold, returns ErrClosed
// after Close, and fails otherwise only for a record larger than the format
// allows, before anything is changed.
func (l *Log) Append(r *record.Record, data []byte, slot *Slot) (uint64, error) {
	if err := checkLimits(r, data); err != nil {
		return 0, err
	}
	buf := fieldBuffers.Get().(*[]byte)
	fields := r.AppendFields((*buf)[:0])
	*buf = fields
	defer putFields(buf)
	body := len(fields) + len(data)
	if record.HeaderSize+body > record.MaxSize {
		return 0, fmt.Errorf("appending a %s record of %d bytes: the limit is %d", r.Op, record.HeaderSize+body, record.MaxSize)
	}
	crc := record.BodyCRC(fields, data)
	n := uint64(record.HeaderSize + body)

	l.mu.Lock()
	if err := l.acquire(context.Background(), n); err != nil {
		l.mu.Unlock()
		return 0, err
	}
	r.LSN, r.Epoch, r.Time = l.last.Load()+1, l.epoch.Load(), l.clock().UnixNano()
	r.Fields &^= record.FieldData
	if data != nil {
		r.Fields |= record.FieldData
	}
	lsn := r.LSN
	dst := l.m.at(l.head, n)
	r.PutHeader(dst, body, crc)
	copy(dst[record.HeaderSize:], fields)
	copy(dst[record.HeaderSize+len(fields):], data)
	if slot != nil {
		slot.lsn.Store(lsn)
	}
	l.index.add(lsn, l.head)
	l.publish(n, lsn, r.Epoch)
	l.mu.Unlock()
	return lsn, nil
}

func putFields(b *[]byte) {
	// A rare giant (a list of names) is not worth keeping.
	if cap(*b) <= 64<<10 {
		fieldBuffers.Put(b)
	}
}

// checkLimits refuses what the decoder on the other side would: such a
// record would stop every standby.
func checkLimits(r *record.Record, data []byte) error {
	const maxList, maxName, maxValue = 1 << 16, 255, 1 << 16
	bad := ""
	switch f := r.Fields; {
	case len(data) > record.MaxData:
		bad = "data"
	case f&record.FieldPath != 0 && len(r.Path) > record.MaxPath,
		f&record.FieldPath2 != 0 && len(r.Path2) > record.MaxPath:
		bad = "path"
	case f&record.FieldName != 0 && len(r.Name) > maxName:
		bad = "attribute name"
	case f&record.FieldXattrs != 0 && len(r.Xattrs) > maxList:
		bad = "list of attributes"
	case f&record.FieldNames != 0 && len(r.Names) > maxList:
		bad = "list of names"
	}
	if r.Fields&record.FieldXattrs != 0 {
		for _, x := range r.Xattrs {
			if len(x.Name) > maxName || len(x.Value) > maxValue {
				bad = "attribute"
			}
		}
	}
	if r.Fields&record.FieldNames != 0 {
		for _, n := range r.Names {
			if len(n) > record.MaxPath {
				bad = "name"
			}
		}
	}
	if bad != "" {
		return fmt.Errorf("appending a %s record: %s too long", r.Op, bad)
	}
	return nil
}

// AppendRaw appends whole encoded records as a Reader gave them, keeping
// their LSNs, epochs and times. It checks that each is sound (else
// ErrCorrupt) and continues the log (else ErrOrder); those before a bad one
// are appended. It waits for room as Append does, until ctx ends. last is
// the log's last LSN when it returns, with an error too.
func (l *Log) AppendRaw(ctx context.Context, encoded []byte) (last uint64, err error) {
	for len(encoded) > 0 {
		n, first, lastHeader, bad := checkChunk(encoded)
		if n > 0 {
			if err := l.appendChunk(ctx, encoded[:n], first, lastHeader); err != nil {
				return l.Last(), err
			}
		}
		if bad != nil {
			return l.Last(), bad
		}
		encoded = encoded[n:]
	}
	return l.Last(), nil
}

// checkChunk checks records at b's start, for one hold of the lock. n is the
// size of the sound ones, which have consecutive LSNs.
func checkChunk(b []byte) (n int, first uint64, last record.Header, err error) {
	for n < len(b) {
		if n > 0 && n+record.HeaderSize > rawChunk {
			break
		}
		h, err := record.Check(b[n:])
		if err != nil {
			return n, first, last, fmt.Errorf("%w: after LSN %d: %w", ErrCorrupt, last.LSN, err)
		}
		if n > 0 && n+h.Size > rawChunk {
			break
		}
		if n > 0 && h.LSN != last.LSN+1 || h.LSN == 0 || h.LSN > maxLSN {
			return n, first, last, fmt.Errorf("%w: LSN %d follows %d", ErrOrder, h.LSN, last.LSN)
		}
		if n == 0 {
			first = h.LSN
		}
		n, last = n+h.Size, h
	}
	return n, first, last, nil
}

func (l *Log) appendChunk(ctx context.Context, b []byte, first uint64, last record.Header) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := uint64(len(b))
	// Before, so that nothing is dropped for records that do not fit, and
	// after, since others may append during the wait.
	if err := l.continues(first); err != nil {
		return err
	}
	if err := l.acquire(ctx, n); err != nil {
		return err
	}
	if err := l.continues(first); err != nil {
		return err
	}
	copy(l.m.at(l.head, n), b)
	for lsn, off := first, uint64(0); off < n; lsn++ {
		l.index.add(lsn, l.head+off)
		off += uint64(binary.LittleEndian.Uint32(b[off:]))
	}
	l.publish(n, last.LSN, last.Epoch)
	return nil
}

func (l *Log) continues(first uint64) error {
	if next := l.last.Load() + 1; first != next {
		return fmt.Errorf("%w: LSN %d came, %d is next", ErrOrder, first, next)
	}
	return nil
}

// publish makes the n bytes at the head part of the log. The store of the
// head is what counts for recovery; the words after it follow from the
// records. The lock is held.
func (l *Log) publish(n, last, lastEpoch uint64) {
	l.head += n
	l.m.head.Store(l.head)
	l.m.last.Store(last)
	if l.fresh {
		l.fresh = false
		l.m.flags.Store(0)
	}
	l.last.Store(last)
	if l.lastEpoch.Load() != lastEpoch {
		l.lastEpoch.Store(lastEpoch)
	}
	if l.sleepers > 0 {
		l.wakeReaders()
	}
	if len(l.queue) > 0 {
		l.wakeAppender()
	}
	if l.head > l.alarmAt {
		l.ring()
	}
}

// waiter is an append that waits for room.
type waiter struct {
	ready chan struct{}
	since time.Time
}

func (w *waiter) wake() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// acquire waits until n bytes can be written at the head. Appends get room
// in the order they came, lest small ones starve a large one. The lock is
// held, and released while waiting.
func (l *Log) acquire(ctx context.Context, n uint64) error {
	if !l.closed && !l.exclusive && len(l.queue) == 0 && l.room(n) {
		return nil
	}
	w := &waiter{ready: make(chan struct{}, 1), since: l.clock()}
	l.queue = append(l.queue, w)
	l.ring()
	for {
		var err error
		switch {
		case l.closed:
			err = ErrClosed
		case ctx.Err() != nil:
			err = fmt.Errorf("waiting for room in the log: %w", ctx.Err())
		case l.queue[0] == w && !l.exclusive && l.room(n):
		default:
			l.mu.Unlock()
			select {
			case <-w.ready:
			case <-ctx.Done():
			}
			l.mu.Lock()
			continue
		}
		l.leave(w)
		return err
	}
}

func (l *Log) leave(w *waiter) {
	for i, v := range l.queue {
		if v == w {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			break
		}
	}
	// Its turn may have been consumed by one that gave up.
	l.wakeAppender()
}

func (l *Log) wakeAppender() {
	if len(l.queue) > 0 {
		l.queue[0].wake()
	}
}

// room moves the tail so that n bytes fit, unless a reader needs the records
// there. The lock is held.
func (l *Log) room(n uint64) bool {
	if l.head+n <= l.tail+l.m.size {
		return true
	}
	want := l.head + n - l.m.size
	keep := l.keep()
	before, after, okBefore, okAfter := l.index.around(want)
	if okAfter && after.lsn <= keep {
		// Dropping a little more than needed costs no walk.
		l.moveTail(after)
		return true
	}
	e := entry{l.first.Load(), l.tail}
	if okBefore && before.off > e.off {
		e = before
	}
	for e.off < want {
		if e.lsn >= keep {
			return false
		}
		e = entry{e.lsn + 1, e.off + l.m.recordSize(e.off)}
	}
	if e.lsn > keep {
		return false
	}
	l.moveTail(e)
	return true
}

// moveTail drops the records before e. The bytes may be overwritten only
// after this: the tail in the mapping must never point to half a record.
func (l *Log) moveTail(e entry) {
	l.tail = e.off
	l.m.tail.Store(e.off)
	l.m.first.Store(e.lsn)
	l.first.Store(e.lsn)
	l.index.dropBefore(e.lsn)
}

// keep is the first LSN that a reader needs kept.
func (l *Log) keep() uint64 {
	keep, first := uint64(1<<64-1), l.first.Load()
	for _, r := range l.readers {
		if r.pinned {
			keep = min(keep, r.pinLSN)
		}
		// One that was overrun has nothing left to hold.
		if r.hold && !r.gone && r.next >= first {
			keep = min(keep, r.released+1)
		}
	}
	for _, h := range l.holds {
		if h.from >= first {
			keep = min(keep, h.from)
		}
	}
	return keep
}

// Waiting is the number of appends that wait for room now.
func (l *Log) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// BlockedSince says since when the append that waits longest has waited for
// room; false if none does.
func (l *Log) BlockedSince() (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return time.Time{}, false
	}
	return l.queue[0].since, true
}
