package oplog

import (
	"bytes"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/replfs/replfs/replicate/record"
)

const (
	slotFree     = 0
	slotActive   = 1
	slotOverflow = 2

	slotWordLSN = 8
	slotBytes   = 64 // where the record begins
)

// Slot notes one operation that is under way. A nil Slot is valid and does
// nothing.
type Slot struct {
	l     *Log
	state *atomic.Uint64
	// lsn is 0 until Append gives the operation's record its LSN.
	lsn  *atomic.Uint64
	buf  []byte
	used bool // under slots.mu
}

// slots are the places for operations under way.
type slots struct {
	mu      sync.Mutex
	freed   *sync.Cond
	m       *mapping
	all     [slotCount]Slot
	free    []*Slot // those to be had; the last one used is the first one taken
	pending []*Slot // those that an earlier process left
	inUse   int
	closed  bool
}

// open sorts the slots of the mapped file, by what the records kept say,
// into free ones and ones that an earlier process left unfinished.
func (s *slots) open(l *Log) (intents []record.Record, lost bool) {
	s.m = l.m
	s.freed = sync.NewCond(&s.mu)
	s.free = make([]*Slot, 0, slotCount)
	for i := range s.all {
		b := l.m.slots[i*slotSize : (i+1)*slotSize : (i+1)*slotSize]
		p := &s.all[i]
		*p = Slot{
			l:     l,
			state: (*atomic.Uint64)(unsafe.Pointer(&b[0])),
			lsn:   (*atomic.Uint64)(unsafe.Pointer(&b[slotWordLSN])),
			buf:   b[slotBytes:],
		}
		lsn := p.lsn.Load()
		if p.state.Load() == slotFree || lsn != 0 && lsn <= l.Last() {
			p.state.Store(slotFree)
			s.free = append(s.free, p)
			continue
		}
		// Its LSN was not published and will be another record's.
		p.lsn.Store(0)
		s.pending = append(s.pending, p)
		r, ok := p.intent()
		if !ok {
			lost = true
			continue
		}
		intents = append(intents, r)
	}
	return intents, lost
}

// intent decodes a slot that an earlier process left.
func (s *Slot) intent() (record.Record, bool) {
	var r record.Record
	if s.state.Load() != slotActive {
		return r, false
	}
	n := min(uint64(len(s.buf)), uint64(binary.LittleEndian.Uint32(s.buf)))
	if _, err := record.Decode(bytes.Clone(s.buf[:n]), &r); err != nil {
		return r, false
	}
	return r, true
}

// Begin notes the operation that r describes (its operation, flags and
// fields; data and times of the log are left out), before the system call
// that carries it out. It waits while all 128 slots are in use, those from
// before Open included until ClearIntents. After Close it returns nil.
func (l *Log) Begin(r *record.Record) *Slot {
	s := l.slots.take()
	if s == nil {
		return nil
	}
	// Capacity ends with the slot: what is longer lands elsewhere.
	b := r.AppendFields(s.buf[record.HeaderSize:record.HeaderSize])
	s.lsn.Store(0)
	if len(b) > len(s.buf)-record.HeaderSize {
		s.state.Store(slotOverflow)
		return s
	}
	h := record.Record{Epoch: l.epoch.Load(), Op: r.Op, Flags: r.Flags, Fields: r.Fields &^ record.FieldData}
	h.PutHeader(s.buf, len(b), record.BodyCRC(b, nil))
	s.state.Store(slotActive)
	return s
}

// End says that the operation is over: its record is in the log, or it
// failed and changed nothing. The slot must not be used after it.
func (s *Slot) End() {
	if s == nil {
		return
	}
	s.l.slots.give(s)
}

func (s *slots) take() *Slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.free) == 0 && !s.closed {
		s.freed.Wait()
	}
	if s.closed {
		return nil
	}
	p := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	p.used = true
	s.inUse++
	return p
}

func (s *slots) give(p *Slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !p.used {
		return
	}
	p.used = false
	p.state.Store(slotFree)
	s.free = append(s.free, p)
	s.inUse--
	s.freed.Signal()
	if s.closed && s.inUse == 0 {
		// Nobody is left to tell of a failure, which only a bad address
		// could cause.
		_ = s.m.close()
	}
}

// close unmaps the file as soon as no slot is in use.
func (s *slots) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.freed.Broadcast()
	if s.inUse > 0 {
		return nil
	}
	return s.m.close()
}

// ClearIntents forgets the operations that Open returned as Intents, once
// what they may have changed has been dealt with.
func (l *Log) ClearIntents() {
	s := &l.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for _, p := range s.pending {
		p.state.Store(slotFree)
	}
	s.free = append(s.free, s.pending...)
	s.pending = nil
	s.freed.Broadcast()
}
