package oplog

import (
	"context"
	"fmt"
)

// Reader reads the log from some LSN on. Read and Rewind are for one
// goroutine at a time; Hold, Release and Close may be called from others
// meanwhile. It must be closed.
type Reader struct {
	l    *Log
	wake chan struct{}

	// All under the log's lock.
	next, off uint64 // the next record and where it is
	released  uint64 // the last LSN not needed any more, below next
	hold      bool
	gone      bool // Reset or TruncateAfter took what it would read
	closed    bool
	sleeping  bool
	// While it copies, the records from pinLSN on cannot be overwritten;
	// it touches no byte from pinEnd on.
	pinned         bool
	pinLSN, pinEnd uint64
}

// NewReader makes a reader whose first record is from, which is in the log
// or the next one to come (Last()+1); else the error is ErrGone. It holds
// nothing.
func (l *Log) NewReader(from uint64) (*Reader, error) {
	r := &Reader{l: l, wake: make(chan struct{}, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	if err := r.seek(from); err != nil {
		return nil, err
	}
	r.released = from - 1
	l.readers = append(l.readers, r)
	return r, nil
}

func (r *Reader) seek(lsn uint64) error {
	first, last := r.l.first.Load(), r.l.last.Load()
	if lsn < first || lsn > last+1 {
		return fmt.Errorf("reading the log from LSN %d, it has %d to %d: %w", lsn, first, last, ErrGone)
	}
	r.next, r.off, r.gone = lsn, r.l.offset(lsn), false
	return nil
}

// Read waits for a record and then copies as many whole records into buf as
// its capacity allows, but at least one: a larger one is given in memory of
// its own. batch holds the encoded records first to last; it shares nothing
// with the log. The error is ErrGone when what comes next was overwritten or
// dropped, ErrClosed, or ctx.Err().
func (r *Reader) Read(ctx context.Context, buf []byte) (batch []byte, first, last uint64, err error) {
	l := r.l
	l.mu.Lock()
	if err := r.await(ctx); err != nil {
		l.mu.Unlock()
		return nil, 0, 0, err
	}
	first, last = r.next, l.last.Load()
	off, end := r.off, l.head
	r.pinned, r.pinLSN, r.pinEnd = true, first, end
	l.mu.Unlock()

	room := uint64(cap(buf))
	if end-off > room {
		n := l.m.recordSize(off)
		if n > room {
			buf = make([]byte, n)
			room = n
		}
		stop := end
		for last, end = first, off+n; end < stop; last++ {
			n := l.m.recordSize(end)
			if end+n-off > room {
				break
			}
			end += n
		}
	}
	batch = buf[:end-off]
	copy(batch, l.m.at(off, end-off))

	l.mu.Lock()
	r.pinned = false
	r.next, r.off = last+1, end
	if len(l.queue) > 0 {
		l.wakeAppender()
	}
	if l.exclusive || l.closed || r.closed {
		l.idle.Broadcast()
	}
	l.mu.Unlock()
	return batch, first, last, nil
}

// await waits, with the lock held but while sleeping, until there is a
// record to read.
func (r *Reader) await(ctx context.Context) error {
	l := r.l
	for {
		switch {
		case l.closed || r.closed:
			return ErrClosed
		case r.gone || r.next < l.first.Load():
			return fmt.Errorf("reading the log at LSN %d, it begins at %d: %w", r.next, l.first.Load(), ErrGone)
		case ctx.Err() != nil:
			return ctx.Err()
		case r.next <= l.last.Load() && !l.exclusive:
			return nil
		}
		if !r.sleeping {
			r.sleeping = true
			l.sleepers++
		}
		l.mu.Unlock()
		select {
		case <-r.wake:
		case <-ctx.Done():
		}
		l.mu.Lock()
		if r.sleeping {
			r.sleeping = false
			l.sleepers--
		}
	}
}

// wakeReaders wakes the readers that sleep. The lock is held.
func (l *Log) wakeReaders() {
	for _, r := range l.readers {
		if r.sleeping {
			r.notify()
		}
	}
}

func (r *Reader) notify() {
	if r.sleeping {
		r.sleeping = false
		r.l.sleepers--
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Hold makes appends wait, while on, rather than overwrite a record that
// this reader has not released. A reader that has been overrun holds nothing.
func (r *Reader) Hold(on bool) {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	r.hold = on
	r.l.wakeAppender()
}

// Release says that this reader no longer needs the records up to lsn, as
// far as it has read them.
func (r *Reader) Release(lsn uint64) {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	if lsn = min(lsn, r.next-1); lsn > r.released {
		r.released = lsn
		r.l.wakeAppender()
	}
}

// Released is the last LSN that this reader no longer needs.
func (r *Reader) Released() uint64 {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	return r.released
}

// Rewind makes the reader go on at lsn, back or forth, as NewReader would;
// if that fails with ErrGone nothing has changed. What was released from
// lsn on is needed again.
func (r *Reader) Rewind(lsn uint64) error {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	if r.l.closed || r.closed {
		return ErrClosed
	}
	if err := r.seek(lsn); err != nil {
		return err
	}
	r.released = min(r.released, lsn-1)
	return nil
}

// Close ends the reader; a Read that waits returns ErrClosed.
func (r *Reader) Close() {
	l := r.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.closed {
		return
	}
	r.closed, r.hold = true, false
	r.notify()
	// A Read that copies right now still counts.
	for r.pinned {
		l.idle.Wait()
	}
	for i, v := range l.readers {
		if v == r {
			l.readers = append(l.readers[:i], l.readers[i+1:]...)
			break
		}
	}
	l.wakeAppender()
}
