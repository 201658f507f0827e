package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/replfs/replfs/replicate/journal"
	"github.com/replfs/replfs/replicate/oplog"
)

// source reads the log for a standby, from the journal where the ring does
// not reach back, without gap or repetition. It is for one goroutine at a
// time.
type source struct {
	spiller *Spiller
	log     *oplog.Log
	next    uint64

	ring *oplog.Reader
	disk *journal.Reader
	from *journal.Journal // disk's
}

// Read is oplog.Reader's.
func (r *source) Read(ctx context.Context, buf []byte) (batch []byte, first, last uint64, err error) {
	// What leaves the ring has come into the journal before, and the ring goes
	// on where the journal ends: one turn to each finds it. A second one is
	// for a journal that was begun anew in between.
	for range 4 {
		batch, first, last, err = r.fromRing(ctx, buf)
		if errors.Is(err, oplog.ErrGone) {
			batch, first, last, err = r.fromJournal(buf)
		}
		switch {
		case err == nil:
			r.next = last + 1
			return batch, first, last, nil
		case !errors.Is(err, io.EOF) && !errors.Is(err, journal.ErrGone):
			return nil, 0, 0, err
		}
	}
	return nil, 0, 0, fmt.Errorf("reading the log at LSN %d: %w", r.next, oplog.ErrGone)
}

func (r *source) fromRing(ctx context.Context, buf []byte) (batch []byte, first, last uint64, err error) {
	if r.next < r.log.First() {
		r.closeRing()
		return nil, 0, 0, oplog.ErrGone
	}
	if r.ring == nil {
		if r.ring, err = r.log.NewReader(r.next); err != nil {
			return nil, 0, 0, err
		}
	}
	batch, first, last, err = r.ring.Read(ctx, buf)
	if errors.Is(err, oplog.ErrGone) {
		r.closeRing()
	}
	return batch, first, last, err
}

func (r *source) closeRing() {
	if r.ring != nil {
		r.ring.Close()
		r.ring = nil
	}
}

func (r *source) fromJournal(buf []byte) (batch []byte, first, last uint64, err error) {
	j := r.spiller.journal()
	if j == nil {
		return nil, 0, 0, journal.ErrGone
	}
	if r.disk != nil && (r.from != j || r.disk.Next() != r.next) {
		r.disk.Close()
		r.disk = nil
	}
	if r.disk == nil {
		if r.disk, err = j.NewReader(r.next); err != nil {
			return nil, 0, 0, err
		}
		r.from = j
	}
	batch, first, last, err = r.disk.Read(buf)
	if err != nil && !errors.Is(err, io.EOF) {
		r.disk.Close()
		r.disk = nil
		if !errors.Is(err, journal.ErrGone) {
			r.spiller.unreadable(j, err)
		}
	}
	return batch, first, last, err
}

// Close ends the source. No Read is under way.
func (r *source) Close() {
	r.closeRing()
	if r.disk != nil {
		r.disk.Close()
		r.disk = nil
	}
}
