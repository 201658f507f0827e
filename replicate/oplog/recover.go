package oplog

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/replfs/replfs/replicate/record"
)

// Open maps the log at path, creating it when it is missing, of another
// size, of another boot, or damaged; Recovered says what was kept. An error
// is something that the operator must see to: no space, no permission, or
// another process that has the log open.
func Open(path string, o Options) (*Log, Recovered, error) {
	if o.Size < MinSize {
		return nil, Recovered{}, fmt.Errorf("a log of %d bytes: it needs at least %d", o.Size, MinSize)
	}
	if o.Size > 1<<40 {
		return nil, Recovered{}, fmt.Errorf("a log of %d bytes: too large", o.Size)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.BootID == "" {
		var err error
		if o.BootID, err = MachineBootID(); err != nil {
			return nil, Recovered{}, err
		}
	}
	if len(o.BootID) > bootIDSize {
		return nil, Recovered{}, fmt.Errorf("boot id %q: longer than %d bytes", o.BootID, bootIDSize)
	}
	size := (uint64(o.Size) + sectionAlign - 1) &^ (sectionAlign - 1)
	m, reason, err := openFile(path, size)
	if err != nil {
		return nil, Recovered{}, err
	}
	l := &Log{clock: o.Clock, m: m, index: newIndex(size), alarmAt: none}
	l.idle = sync.NewCond(&l.mu)
	if reason == "" {
		if err := l.load(o.BootID); err != nil {
			reason = err.Error()
		}
	}
	rec := Recovered{Reason: reason, Fresh: reason != ""}
	if rec.Fresh {
		m.format(o.BootID)
		l.head, l.tail, l.fresh = 0, 0, true
		l.first.Store(1)
		l.last.Store(0)
		l.lastEpoch.Store(0)
		l.index.clear()
	} else if l.fresh {
		rec.Fresh, rec.Reason = true, "not used since it was made"
	}
	l.epoch.Store(l.lastEpoch.Load())
	intents, lost := l.slots.open(l)
	if !rec.Fresh {
		rec.First, rec.Last, rec.LastEpoch = l.First(), l.Last(), l.LastEpoch()
		rec.Intents, rec.IntentsLost = intents, lost
	}
	return l, rec, nil
}

var errOtherBoot = errors.New("another boot")

func damaged(format string, args ...any) error {
	return fmt.Errorf("corrupt: "+format, args...)
}

// load takes over what the mapped file says, after checking all of it.
func (l *Log) load(bootID string) error {
	m := l.m
	if v := m.magic.Load(); v != magic {
		return damaged("not a log (%#x)", v)
	}
	if v := m.version.Load(); v != formatVersion {
		return damaged("format version %d, this replfs knows %d", v, formatVersion)
	}
	if v := m.ringSize.Load(); v != m.size {
		return damaged("ring of %d bytes in a file for %d", v, m.size)
	}
	if !bytes.Equal(bytes.TrimRight(m.bootID, "\x00"), []byte(bootID)) {
		return errOtherBoot
	}
	l.head, l.tail = m.head.Load(), m.tail.Load()
	if l.head > maxOffset || l.tail > l.head || l.head-l.tail > m.size {
		return damaged("head %d, tail %d", l.head, l.tail)
	}
	if next := m.resetTo.Load(); next != 0 {
		if next > maxLSN {
			return damaged("reset to LSN %d", next)
		}
		l.applyReset(next)
		m.resetTo.Store(0)
	}
	first := m.first.Load()
	if first == 0 || first > maxLSN {
		return damaged("first LSN %d", first)
	}
	lsn, epoch, err := l.scan(first)
	if err != nil {
		return err
	}
	l.lastEpoch.Store(epoch)
	l.fresh = l.head == l.tail && m.flags.Load()&flagFresh != 0
	// A kill between a move of the head or tail and that of the LSN that
	// goes with it leaves the latter behind.
	m.first.Store(l.first.Load())
	m.last.Store(lsn)
	l.last.Store(lsn)
	return nil
}

// scan checks the records from tail to head and indexes them. It returns the
// last one's LSN and epoch. The header's first LSN counts only when there is
// no record.
func (l *Log) scan(first uint64) (lsn, epoch uint64, err error) {
	l.first.Store(first)
	l.index.clear()
	lsn = first - 1
	for off := l.tail; off < l.head; {
		h, err := record.Check(l.m.at(off, min(l.head-off, record.MaxSize)))
		switch {
		case err != nil:
			return 0, 0, damaged("record at %d: %w", off, err)
		case off == l.tail && h.LSN >= first && h.LSN <= maxLSN:
			l.first.Store(h.LSN)
		case h.LSN != lsn+1:
			return 0, 0, damaged("LSN %d follows %d", h.LSN, lsn)
		}
		l.index.add(h.LSN, off)
		lsn, epoch = h.LSN, h.Epoch
		off += uint64(h.Size)
	}
	return lsn, epoch, nil
}
