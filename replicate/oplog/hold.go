package oplog

import "fmt"

// none is a hold's LSN that holds nothing, an alarm's head that is never reached.
const none = 1<<64 - 1

// Hold makes appends wait rather than overwrite records from some LSN on,
// for whoever reads them in another way or later. All methods may be called
// concurrently. It must be closed.
type Hold struct {
	l    *Log
	from uint64 // under the log's lock
}

// NewHold makes a hold that holds nothing yet.
func (l *Log) NewHold() *Hold {
	h := &Hold{l: l, from: none}
	l.mu.Lock()
	l.holds = append(l.holds, h)
	l.mu.Unlock()
	return h
}

// Move makes the hold begin at lsn, back or forth. If the record lsn is not
// in the log any more and not the next one either, the error is ErrGone and
// the hold stays as it was.
func (h *Hold) Move(lsn uint64) error {
	l := h.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if first, last := l.first.Load(), l.last.Load(); lsn < first || lsn > last+1 {
		return fmt.Errorf("holding the log from LSN %d, it has %d to %d: %w", lsn, first, last, ErrGone)
	}
	forward := lsn > h.from
	h.from = lsn
	if forward {
		l.wakeAppender()
	}
	return nil
}

// Release lets the log overwrite everything.
func (h *Hold) Release() {
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	h.from = none
	h.l.wakeAppender()
}

// Close ends the hold.
func (h *Hold) Close() {
	l := h.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, v := range l.holds {
		if v == h {
			l.holds = append(l.holds[:i], l.holds[i+1:]...)
			break
		}
	}
	l.wakeAppender()
}

// Alarm has c signalled, without waiting, once when more than n bytes follow
// the record lsn, which is in the log or was, and whenever an append begins
// to wait for room. There is one alarm: a new one replaces it.
func (l *Log) Alarm(lsn, n uint64, c chan<- struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.alarm, l.alarmAt = c, none
	if l.closed {
		return
	}
	off := l.tail
	if lsn+1 >= l.first.Load() {
		off = l.offset(min(lsn, l.last.Load()) + 1)
	}
	l.alarmAt = off + n
	if l.head > l.alarmAt || len(l.queue) > 0 {
		l.ring()
	}
}

// NoAlarm takes the alarm away.
func (l *Log) NoAlarm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.alarm, l.alarmAt = nil, none
}

// ring signals the alarm. The lock is held.
func (l *Log) ring() {
	l.alarmAt = none
	select {
	case l.alarm <- struct{}{}:
	default:
	}
}

// Size is the size of the ring in bytes.
func (l *Log) Size() uint64 { return l.m.size }
