// Package oplog is the replication log: a ring of encoded records in a
// memory-mapped file. It belongs on a tmpfs: what was appended survives the
// death of the process at any instruction, but not that of the machine.
//
// A primary appends its mutations with Append, a standby what it received
// with AppendRaw; both read through Readers. Beside the records the file
// keeps the operations that are under way (Begin, Slot), so that the next
// process knows which files a killed one may have changed without a record.
package oplog

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/replfs/replfs/replicate/record"
)

var (
	// ErrGone says that the LSN asked for is not in the log: overwritten,
	// dropped by Reset or TruncateAfter, or never given out.
	ErrGone = errors.New("no longer in the log")
	// ErrClosed says that the log or the reader was closed.
	ErrClosed = errors.New("log closed")
	// ErrCorrupt says that bytes given to AppendRaw are not whole, sound records.
	ErrCorrupt = errors.New("corrupt log records")
	// ErrOrder says that records given to AppendRaw do not continue the log.
	ErrOrder = errors.New("records do not continue the log")
)

// MinSize is the smallest ring, so that two of the largest records fit.
const MinSize = 2 * record.MaxSize

// Options say how to open a log.
type Options struct {
	// Size is the ring's size in bytes, at least MinSize; it is rounded up
	// to a multiple of 64 KiB.
	Size int64
	// BootID tells boots of the machine apart: a log that an earlier boot
	// wrote is not trusted. "" reads the kernel's.
	BootID string
	// Clock gives appended records their time; nil is time.Now.
	Clock func() time.Time
}

// Recovered says what Open found.
type Recovered struct {
	// Fresh says that nothing could be kept, and Reason why. It is said
	// again by every Open until a record is appended or Reset is called.
	Fresh  bool
	Reason string
	// First and Last bound the records kept; Last is First-1 when there are
	// none. LastEpoch is Last's epoch, 0 when there is none.
	First, Last uint64
	LastEpoch   uint64
	// Intents are the operations that were under way and of which no record
	// was kept, in no particular order. The log goes on keeping them until
	// ClearIntents.
	Intents []record.Record
	// IntentsLost says that an operation was under way whose description was
	// too long or cannot be read: anything may have changed.
	IntentsLost bool
}

// Log is a ring of records. All methods may be called concurrently.
type Log struct {
	clock func() time.Time
	epoch atomic.Uint64

	// Copies of what the mapping says, to be had without the lock and after
	// Close. They change under mu only.
	first, last, lastEpoch atomic.Uint64

	mu         sync.Mutex
	m          *mapping
	head, tail uint64 // byte offsets, ever growing; their remainder by the ring's size is the place
	fresh      bool
	closed     bool
	exclusive  bool       // a Reset or TruncateAfter waits for readers to finish copying
	idle       *sync.Cond // a reader finished copying, or exclusive ended
	index      index
	readers    []*Reader
	sleepers   int       // readers that wait for a record
	queue      []*waiter // appends that wait for room, oldest first
	holds      []*Hold
	alarmAt    uint64 // the head at which alarm is signalled
	alarm      chan<- struct{}

	slots slots
}

// First is the LSN of the oldest record in the log, or that the next one
// will get if there is none.
func (l *Log) First() uint64 { return l.first.Load() }

// Last is the LSN of the newest record, First()-1 if there is none.
func (l *Log) Last() uint64 { return l.last.Load() }

// Next is the LSN that the next record will get.
func (l *Log) Next() uint64 { return l.last.Load() + 1 }

// Position is Last with the place where the log ends, in bytes: the difference
// of two is what was appended in between, unless TruncateAfter was called.
func (l *Log) Position() (last, bytes uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last.Load(), l.head
}

// LastEpoch is the epoch of the newest record, 0 if there is none.
func (l *Log) LastEpoch() uint64 { return l.lastEpoch.Load() }

// SetEpoch sets the epoch of the records that Append makes from now on; at
// first it is LastEpoch().
func (l *Log) SetEpoch(e uint64) { l.epoch.Store(e) }

// EpochOf gives the epoch of the record lsn if it is still in the log.
func (l *Log) EpochOf(lsn uint64) (uint64, bool) {
	h, ok := l.header(lsn)
	return h.Epoch, ok
}

// TimeOf gives the time of the record lsn if it is still in the log.
func (l *Log) TimeOf(lsn uint64) (time.Time, bool) {
	h, ok := l.header(lsn)
	if !ok {
		return time.Time{}, false
	}
	return time.Unix(0, h.Time), true
}

func (l *Log) header(lsn uint64) (record.Header, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || lsn < l.first.Load() || lsn > l.last.Load() {
		return record.Header{}, false
	}
	h, err := record.PeekHeader(l.m.at(l.offset(lsn), record.HeaderSize))
	return h, err == nil
}

// BytesAfter is the exact size of the records after lsn that are in the log,
// which is less than was ever appended after lsn when some were overwritten.
func (l *Log) BytesAfter(lsn uint64) uint64 {
	if lsn >= l.last.Load() {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed || lsn >= l.last.Load():
		return 0
	case lsn < l.first.Load():
		return l.head - l.tail
	}
	return l.head - l.offset(lsn+1)
}

// offset finds the byte offset of the record lsn, which is in the log or the
// next one. The lock is held.
func (l *Log) offset(lsn uint64) uint64 {
	if lsn == l.last.Load()+1 {
		return l.head
	}
	off, at := l.tail, l.first.Load()
	if e, ok := l.index.byLSN(lsn); ok {
		off, at = e.off, e.lsn
	}
	for ; at < lsn; at++ {
		off += l.m.recordSize(off)
	}
	return off
}

// Reset drops every record; the next one gets the LSN next (at least 1).
// Readers get ErrGone until they are rewound. Intents are kept.
func (l *Log) Reset(next uint64) error {
	if next == 0 || next > maxLSN {
		return fmt.Errorf("resetting the log to LSN %d: out of range", next)
	}
	return l.exclusively(func() error {
		l.waitPins(0)
		for _, r := range l.readers {
			r.gone = true
		}
		for _, h := range l.holds {
			h.from = none
		}
		// resetTo makes the change atomic: recovery does it again.
		l.m.resetTo.Store(next)
		l.applyReset(next)
		l.m.resetTo.Store(0)
		return nil
	})
}

func (l *Log) applyReset(next uint64) {
	l.tail = l.head
	l.m.tail.Store(l.tail)
	l.m.first.Store(next)
	l.m.last.Store(next - 1)
	l.m.flags.Store(0)
	l.fresh = false
	l.first.Store(next)
	l.last.Store(next - 1)
	l.lastEpoch.Store(0)
	l.index.clear()
}

// TruncateAfter forgets the records after lsn; their LSNs will be given
// again. Readers that have read any of them get ErrGone until they are
// rewound. ErrGone says that lsn itself is too old to be known.
func (l *Log) TruncateAfter(lsn uint64) error {
	return l.exclusively(func() error {
		first := l.first.Load()
		switch {
		case lsn >= l.last.Load():
			return nil
		case lsn+1 < first:
			return fmt.Errorf("truncating the log after LSN %d, it begins at %d: %w", lsn, first, ErrGone)
		}
		head, epoch := l.offset(lsn+1), uint64(0)
		if lsn >= first {
			h, err := record.PeekHeader(l.m.at(l.offset(lsn), record.HeaderSize))
			if err != nil {
				return fmt.Errorf("truncating the log after LSN %d: %w", lsn, err)
			}
			epoch = h.Epoch
		}
		l.waitPins(head)
		for _, r := range l.readers {
			r.gone = r.gone || r.off > head
			r.released = min(r.released, lsn)
		}
		for _, h := range l.holds {
			if h.from != none {
				h.from = min(h.from, lsn+1)
			}
		}
		l.head = head
		l.m.head.Store(head)
		l.m.last.Store(lsn)
		l.last.Store(lsn)
		l.lastEpoch.Store(epoch)
		l.index.dropAfter(lsn)
		return nil
	})
}

// exclusively runs f with the lock held while no append and no new read can
// begin, even while f waits.
func (l *Log) exclusively(f func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.exclusive && !l.closed {
		l.idle.Wait()
	}
	if l.closed {
		return ErrClosed
	}
	l.exclusive = true
	err := f()
	l.exclusive = false
	l.idle.Broadcast()
	l.wakeReaders()
	l.wakeAppender()
	return err
}

// waitPins waits until no reader copies bytes at or after off. The lock is
// held, and released while waiting.
func (l *Log) waitPins(off uint64) {
	for l.pinsAfter(off) {
		l.idle.Wait()
	}
}

func (l *Log) pinsAfter(off uint64) bool {
	for _, r := range l.readers {
		if r.pinned && r.pinEnd > off {
			return true
		}
	}
	return false
}

// Close ends every wait with ErrClosed and lets go of the file. Slots that
// are in use must still be ended; the last one unmaps the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	l.idle.Broadcast()
	l.wakeReaders()
	for _, w := range l.queue {
		w.wake()
	}
	// Whoever is exclusive still uses the mapping.
	for l.exclusive || l.pinsAfter(0) {
		l.idle.Wait()
	}
	return l.slots.close()
}

// MachineBootID is the kernel's name for this boot of the machine.
func MachineBootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
