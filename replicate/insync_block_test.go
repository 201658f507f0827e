package replicate

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
)

// TestBlockKeepsTheLast: with on_standby_loss block no standby leaves the set
// that would leave too few, whatever it does, and what waits goes on waiting.
func TestBlockKeepsTheLast(t *testing.T) {
	r := newBlockingRig(t, 1, "b", "c")
	lsn, done := r.fsync()
	r.Ack("c", lsn, lsn, lsn)
	r.Check()
	r.clock.advance(ackTimeout)
	r.Check() // b goes: c is left
	r.released(done)
	r.wantSet("c")

	lsn, done = r.fsync()
	since := r.clock.now()
	r.Check()
	r.clock.advance(2 * ackTimeout)
	r.Check()
	if err := r.Trouble("c", "no space"); err != nil {
		t.Fatal(err)
	}
	if err := r.Drop("c", "test"); !errors.Is(err, ErrKept) {
		t.Errorf("the last one was let go of: %v", err)
	}
	r.Disconnected("c")
	r.waits(done)
	r.wantSet("c")
	if w := r.Waiting(); w.Count != 1 || !w.Since.Equal(since) || !w.Enough || !slices.Equal(w.Kept, []string{"c"}) {
		t.Errorf("waiting: %+v", w)
	}
	r.Connected("c")
	r.Ack("c", lsn, lsn, lsn)
	r.released(done)
	if w := r.Waiting(); w.Count != 0 || len(w.Kept) != 0 {
		t.Errorf("waiting: %+v", w)
	}

	// What it has is about to be deleted: it must not be in the set.
	if err := r.Reset("c"); err != nil {
		t.Fatal(err)
	}
	r.wantSet()
	_, done = r.fsync()
	r.waits(done)
}

// TestBlockBeginsEmpty: with nobody in sync nothing is acknowledged until
// somebody is, who has it by then.
func TestBlockBeginsEmpty(t *testing.T) {
	r := newBlockingRig(t, 2)
	lsn, done := r.fsync()
	r.waits(done)
	if w := r.Waiting(); w.Count != 1 || w.Enough || w.InSync != 0 {
		t.Errorf("waiting: %+v", w)
	}
	r.Connected("b")
	r.Ack("b", lsn, lsn, lsn)
	r.wantSet("b")
	r.waits(done)
	r.Connected("c")
	r.Ack("c", lsn, lsn, lsn)
	r.released(done)
	r.wantSet("b", "c")
	_, done = r.fsync()
	r.Stop()
	if err := <-done; !errors.Is(err, ErrNotPrimary) {
		t.Errorf("what waited at the end of the term got %v", err)
	}
}

// TestLevels: each level waits for what its name says.
func TestLevels(t *testing.T) {
	r := newInSyncRig(t, "b")
	const lsn = 5
	r.last.Store(lsn)
	var done [levels]chan error
	for l := range levels {
		done[l] = make(chan error, 1)
		go func() { done[l] <- r.Wait(t.Context(), l, lsn) }()
	}
	eventually(t, "all wait", func() bool { return r.Waiting().Count == int(levels) })
	for l, ack := range [][3]uint64{{lsn, 4, 4}, {lsn, lsn, 4}, {lsn, lsn, lsn}} {
		for _, later := range done[l:] {
			r.waits(later)
		}
		r.Ack("b", ack[0], ack[1], ack[2])
		r.released(done[l])
	}
	// One that gives up leaves nothing behind.
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := make(chan error, 1)
	go func() { gone <- r.Wait(ctx, Applied, lsn+1) }()
	eventually(t, "it waits", func() bool { return r.Waiting().Count == 1 })
	why := errors.New("enough")
	cancel(why)
	if err := <-gone; !errors.Is(err, why) || r.Waiting().Count != 0 {
		t.Errorf("gave up with %v, %+v", err, r.Waiting())
	}
}

// TestFarAway: a standby that has what there was when it came, but is far
// behind what came meanwhile, is not waited for yet.
func TestFarAway(t *testing.T) {
	r := newInSyncRig(t)
	var near atomic.Bool
	r.cfg.Near = func(string, uint64) bool { return near.Load() }
	r.last.Store(10)
	r.Connected("b")
	r.last.Store(1000)
	r.Ack("b", 10, 10, 10)
	_, done := r.fsync()
	r.released(done)
	near.Store(true)
	r.Ack("b", 11, 11, 11)
	lsn, done := r.fsync()
	r.waits(done)
	r.Ack("b", lsn, lsn, lsn)
	r.released(done)
	r.wantSet("b")
}

// TestStoppedWriters: a standby that has received all and applies nothing while
// writers are held up for it stands still.
func TestStoppedWriters(t *testing.T) {
	r := newInSyncRig(t, "b")
	var stopped atomic.Bool
	r.cfg.Stopped = stopped.Load
	r.last.Store(10)
	r.Ack("b", 10, 5, 5)
	check := func() {
		for range 3 {
			r.Check()
			r.clock.advance(ackTimeout)
		}
	}
	check()
	r.wantSet("b")
	stopped.Store(true)
	check()
	r.wantSet()
}

// TestGroupCommit: one acknowledgement lets go all whom it concerns, and nobody
// else.
func TestGroupCommit(t *testing.T) {
	r := newInSyncRig(t, "b", "c")
	const fsyncs = 200
	r.last.Store(fsyncs)
	done := make(chan uint64, fsyncs)
	for lsn := uint64(1); lsn <= fsyncs; lsn++ {
		go func() {
			if err := r.WaitDurable(lsn); err != nil {
				t.Error(err)
			}
			done <- lsn
		}()
	}
	eventually(t, "all wait", func() bool { return r.Waiting().Count == fsyncs })
	r.Ack("b", fsyncs, fsyncs, fsyncs)
	if n := r.Waiting().Count; n != fsyncs {
		t.Errorf("%d wait for the other standby, want all %d", n, fsyncs)
	}
	const half = fsyncs / 2
	r.Ack("c", fsyncs, fsyncs, half)
	for range half {
		if lsn := <-done; lsn > half {
			t.Errorf("the fsync at %d was acknowledged when %d was durable", lsn, half)
		}
	}
	if n := r.Waiting().Count; n != fsyncs-half {
		t.Errorf("%d wait, want %d", n, fsyncs-half)
	}
	r.Ack("c", fsyncs, fsyncs, fsyncs)
	for range fsyncs - half {
		<-done
	}
}
