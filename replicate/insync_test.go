package replicate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
)

// clock is a time that tests move.
type clock struct{ ns atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(1000, c.ns.Load()) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

const ackTimeout = 3 * time.Second

// inSyncRig is an InSync with a store of truth and a log that tests see into.
type inSyncRig struct {
	*InSync
	t     *testing.T
	clock clock
	last  atomic.Uint64

	mu        sync.Mutex
	persisted []string
	writes    int
	fail      error
	onPersist func(set []string)
}

func newInSyncRig(t *testing.T, set ...string) *inSyncRig {
	t.Helper()
	return newBlockingRig(t, 0, set...)
}

// newBlockingRig is one that wants a number of standbys in sync.
func newBlockingRig(t *testing.T, minInSync int, set ...string) *inSyncRig {
	t.Helper()
	quiet := goleak.IgnoreCurrent()
	r := &inSyncRig{t: t, persisted: set}
	r.InSync = NewInSync(InSyncConfig{
		AckTimeout: ackTimeout, MinInSync: minInSync, Last: r.last.Load, Now: r.clock.now, Log: zap.NewNop(), Persist: r.persist,
	})
	r.Start(set)
	t.Cleanup(func() {
		r.Stop()
		goleak.VerifyNone(t, quiet)
	})
	return r
}

func (r *inSyncRig) persist(set []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes++
	if r.onPersist != nil {
		r.onPersist(set)
	}
	if r.fail != nil {
		return r.fail
	}
	r.persisted = slices.Clone(set)
	return nil
}

func (r *inSyncRig) failing(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

func (r *inSyncRig) stored() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.persisted)
}

func (r *inSyncRig) wantSet(want ...string) {
	r.t.Helper()
	if got := r.Set(); !slices.Equal(got, want) {
		r.t.Errorf("in sync: %v, want %v", got, want)
	}
	if got := r.stored(); !slices.Equal(got, want) {
		r.t.Errorf("the store of truth has %v, want %v", got, want)
	}
}

// fsync appends one fsync and waits for it in the background.
func (r *inSyncRig) fsync() (lsn uint64, done <-chan error) {
	lsn = r.last.Add(1)
	c := make(chan error, 1)
	go func() { c <- r.WaitDurable(lsn) }()
	// So that it counts as waiting in what follows.
	for deadline := time.Now().Add(time.Minute); ; {
		r.InSync.mu.Lock()
		wanted := r.wanted[Durable]
		r.InSync.mu.Unlock()
		if wanted >= lsn || len(c) > 0 || !time.Now().Before(deadline) {
			return lsn, c
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func (r *inSyncRig) released(done <-chan error) {
	r.t.Helper()
	select {
	case err := <-done:
		if err != nil {
			r.t.Fatalf("fsync failed: %v", err)
		}
	case <-time.After(time.Minute):
		r.t.Fatal("fsync still waits")
	}
}

func (r *inSyncRig) waits(done <-chan error) {
	r.t.Helper()
	select {
	case err := <-done:
		r.t.Fatalf("fsync was acknowledged too early (%v)", err)
	case <-time.After(5 * time.Millisecond):
	}
}

func TestFsyncWaitsForEveryMember(t *testing.T) {
	r := newInSyncRig(t, "b", "c")
	lsn, done := r.fsync()
	r.waits(done)
	r.Ack("b", lsn, lsn, lsn)
	r.waits(done)
	r.Ack("c", lsn, lsn, lsn-1) // received and applied is not durable
	r.waits(done)
	r.Ack("c", lsn, lsn, lsn)
	r.released(done)
	r.wantSet("b", "c")
}

func TestFsyncDoesNotWaitForOthers(t *testing.T) {
	r := newInSyncRig(t)
	_, done := r.fsync()
	r.released(done) // nobody is in sync
	r.last.Add(1)
	r.Connected("b") // catches up
	_, done = r.fsync()
	r.released(done)
	r.wantSet()
}

func TestAcksNeverGoBack(t *testing.T) {
	r := newInSyncRig(t, "b")
	lsn, _ := r.fsync()
	r.Ack("b", lsn, lsn, lsn)
	r.Ack("b", 0, 0, 0)
	if err := r.WaitDurable(lsn); err != nil {
		t.Fatal(err)
	}
	if rec, app, dur := r.Progress("b"); rec != lsn || app != lsn || dur != lsn {
		t.Errorf("progress %d/%d/%d, want %d", rec, app, dur, lsn)
	}
}

func TestDropPersistsBeforeWaitersAreReleased(t *testing.T) {
	drops := map[string]func(r *inSyncRig) error{
		"Drop":    func(r *inSyncRig) error { return r.Drop("b", "test") },
		"Trouble": func(r *inSyncRig) error { return r.Trouble("b", "no space") },
		"Reset":   func(r *inSyncRig) error { return r.Reset("b") },
		"timeout": func(r *inSyncRig) error {
			r.Check()
			r.clock.advance(ackTimeout)
			r.Check()
			return nil
		},
	}
	for name, drop := range drops {
		t.Run(name, func(t *testing.T) {
			r := newInSyncRig(t, "b")
			_, done := r.fsync()
			r.onPersist = func(set []string) {
				// The write takes its time: nobody may be released in it.
				time.Sleep(10 * time.Millisecond)
				if len(done) != 0 {
					t.Error("an fsync was acknowledged before the store of truth knew")
				}
				if len(set) != 0 {
					t.Errorf("persists %v", set)
				}
			}
			if err := drop(r); err != nil {
				t.Fatal(err)
			}
			r.released(done)
			r.wantSet()
		})
	}
}

func TestFailedPersistReleasesNobody(t *testing.T) {
	drops := map[string]func(r *inSyncRig) error{
		"Drop":    func(r *inSyncRig) error { return r.Drop("b", "test") },
		"Trouble": func(r *inSyncRig) error { return r.Trouble("b", "no space") },
		"Reset":   func(r *inSyncRig) error { return r.Reset("b") },
	}
	for name, drop := range drops {
		t.Run(name, func(t *testing.T) {
			r := newInSyncRig(t, "b")
			_, done := r.fsync()
			broken := errors.New("etcd is away")
			r.failing(broken)
			if err := drop(r); !errors.Is(err, broken) {
				t.Fatalf("error %v", err)
			}
			r.waits(done)
			r.wantSet("b")
			r.failing(nil)
			if err := drop(r); err != nil {
				t.Fatal(err)
			}
			r.released(done)
			r.wantSet()
		})
	}
	t.Run("timeout", func(t *testing.T) {
		r := newInSyncRig(t, "b")
		_, done := r.fsync()
		r.failing(errors.New("etcd is away"))
		r.Check()
		r.clock.advance(ackTimeout)
		r.Check()
		r.waits(done)
		r.wantSet("b")
		r.failing(nil)
		r.Check() // tried again
		r.released(done)
		r.wantSet()
	})
}

func TestTimeoutCountsFromTheLastProgress(t *testing.T) {
	r := newInSyncRig(t, "b")
	r.Ack("b", 0, 0, 0)
	// Idle for long is not standing still.
	r.Check()
	r.clock.advance(10 * ackTimeout)
	r.Check()
	r.wantSet("b")

	lsn, done := r.fsync()
	r.Check()
	r.clock.advance(ackTimeout - 1)
	r.Check()
	r.wantSet("b")
	r.Ack("b", lsn, 0, 0) // it lives
	r.clock.advance(1)
	r.Check()
	r.wantSet("b")
	r.clock.advance(ackTimeout - 1)
	r.Check()
	r.wantSet("b")
	r.waits(done)
	r.clock.advance(1)
	r.Check()
	r.released(done)
	r.wantSet()
}

func TestAnAckOfNothingNewIsNoProgress(t *testing.T) {
	r := newInSyncRig(t, "b")
	_, done := r.fsync()
	r.Check()
	r.clock.advance(ackTimeout)
	r.Ack("b", 0, 0, 0)
	r.Check()
	r.released(done)
	r.wantSet()
}

// A standby whose disk hangs in fsync still receives and applies: that is no
// progress for who waits for the fsync.
func TestAStandbyThatOnlyReceivesIsDropped(t *testing.T) {
	r := newInSyncRig(t, "b")
	_, done := r.fsync()
	for range 20 {
		lsn := r.last.Add(1)
		r.Ack("b", lsn, lsn, 0)
		r.Check()
		r.clock.advance(ackTimeout / 4)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatalf("an fsync has waited for %v of a standby whose durable position stands still", 5*ackTimeout)
	}
	r.wantSet()
}

func TestDisconnectedMemberLeavesWhenSomethingIsWritten(t *testing.T) {
	r := newInSyncRig(t, "b")
	r.Connected("b")
	r.Ack("b", 0, 0, 0)
	r.Disconnected("b")
	r.Check()
	r.clock.advance(10 * ackTimeout)
	r.Check()
	r.wantSet("b") // nothing was acknowledged without it

	r.last.Add(1) // no fsync: what is lost on a failover must be bounded too
	r.Check()
	r.clock.advance(ackTimeout)
	r.Check()
	r.wantSet()
}

func TestJoinInTwoSteps(t *testing.T) {
	r := newInSyncRig(t)
	for range 10 {
		_, done := r.fsync()
		r.released(done)
	}
	r.Connected("b")
	_, done := r.fsync() // 11, without b
	r.released(done)
	r.Ack("b", 10, 10, 9)
	r.wantSet()
	// It has what there was when it connected, but 11 was acknowledged since.
	r.Ack("b", 11, 11, 10)
	r.wantSet()
	lsn, done := r.fsync() // 12: from now on fsyncs wait for it
	r.waits(done)
	r.Ack("b", 11, 11, 11)
	r.wantSet("b")
	r.waits(done)
	r.Ack("b", lsn, lsn, lsn)
	r.released(done)
}

func TestJoinNeedsAppliedAndDurable(t *testing.T) {
	r := newInSyncRig(t)
	r.last.Store(10)
	r.Connected("b")
	r.Ack("b", 10, 10, 9)
	r.wantSet()
	r.Ack("b", 10, 10, 10)
	r.wantSet("b")
}

func TestAckWithoutConnectionDoesNotJoin(t *testing.T) {
	r := newInSyncRig(t)
	r.last.Store(10)
	r.Ack("b", 10, 10, 10)
	r.wantSet()
	r.Connected("b")
	r.Disconnected("b")
	r.Ack("b", 10, 10, 10)
	r.wantSet()
}

func TestDisconnectedWhileJoiningReleasesWaiters(t *testing.T) {
	r := newInSyncRig(t)
	r.last.Store(10)
	r.Connected("b")
	r.last.Store(11)
	r.Ack("b", 10, 10, 10) // joining: fsyncs wait, the store of truth is unchanged
	_, done := r.fsync()
	r.waits(done)
	r.Disconnected("b")
	r.released(done)
	if r.writes != 0 {
		t.Errorf("the set was written %d times", r.writes)
	}
}

func TestFailedPersistJoinsNobody(t *testing.T) {
	r := newInSyncRig(t)
	r.last.Store(10)
	r.failing(errors.New("etcd is away"))
	r.Connected("b")
	r.Ack("b", 10, 10, 10)
	r.wantSet()
	if r.Has("b") {
		t.Error("in sync, though the store of truth does not say so")
	}
	r.failing(nil)
	r.Ack("b", 10, 10, 10)
	r.wantSet("b")
}

// A write whose error is a timeout may have been made all the same.
func TestDropAfterAJoinOfUnknownOutcomePersists(t *testing.T) {
	r := newInSyncRig(t)
	r.last.Store(10)
	r.Connected("b")
	r.onPersist = func(set []string) { r.persisted = slices.Clone(set) } // it is made
	r.failing(errors.New("request timed out"))
	r.Ack("b", 10, 10, 10)
	r.onPersist = nil
	r.failing(nil)
	if err := r.Drop("b", "test"); err != nil {
		t.Fatal(err)
	}
	_, done := r.fsync()
	r.released(done)
	if got := r.stored(); len(got) != 0 {
		t.Errorf("an fsync was acknowledged without %v, which the store of truth has in sync", got)
	}
}

func TestTrouble(t *testing.T) {
	r := newInSyncRig(t, "b")
	r.Connected("b")
	lsn, done := r.fsync()
	if err := r.Trouble("b", "no space left"); err != nil {
		t.Fatal(err)
	}
	r.released(done)
	r.wantSet()
	r.Ack("b", lsn, lsn, lsn) // while it is in trouble it stays out
	r.wantSet()
	r.last.Add(5)
	if err := r.Trouble("b", ""); err != nil {
		t.Fatal(err)
	}
	r.Ack("b", lsn+1, lsn+1, lsn+1) // behind what was acknowledged meanwhile
	r.wantSet()
	r.Ack("b", lsn+5, lsn+5, lsn+5)
	r.wantSet("b")
}

// The acknowledgement may overtake the news that the trouble is over; on a
// quiet primary no other follows.
func TestTroubleOverAfterTheLastAck(t *testing.T) {
	r := newInSyncRig(t, "b")
	r.Connected("b")
	r.last.Store(10)
	if err := r.Trouble("b", "no space left"); err != nil {
		t.Fatal(err)
	}
	r.Ack("b", 10, 10, 10)
	if err := r.Trouble("b", ""); err != nil {
		t.Fatal(err)
	}
	r.Check()
	r.wantSet("b")
}

func TestAFailedJoinIsTriedAgainWithoutNews(t *testing.T) {
	r := newInSyncRig(t)
	r.last.Store(10)
	r.Connected("b")
	r.failing(errors.New("etcd is away"))
	r.Ack("b", 10, 10, 10)
	r.failing(nil)
	r.Check()
	r.wantSet("b")
}

func TestResetForgetsProgress(t *testing.T) {
	r := newInSyncRig(t, "b")
	r.last.Store(10)
	r.Connected("b")
	r.Ack("b", 10, 10, 10)
	if err := r.Reset("b"); err != nil {
		t.Fatal(err)
	}
	r.wantSet()
	if rec, app, dur := r.Progress("b"); rec+app+dur != 0 {
		t.Errorf("progress %d/%d/%d of an emptied store", rec, app, dur)
	}
	r.last.Store(20)
	r.Connected("b")
	r.Ack("b", 20, 15, 15)
	r.wantSet()
	r.Ack("b", 20, 20, 20)
	r.wantSet("b")
}

func TestStopTellsEveryWaiter(t *testing.T) {
	r := newInSyncRig(t, "b")
	var waiting []<-chan error
	for range 5 {
		_, done := r.fsync()
		waiting = append(waiting, done)
	}
	r.Stop()
	for _, done := range waiting {
		select {
		case err := <-done:
			if !errors.Is(err, ErrNotPrimary) {
				t.Errorf("error %v, want ErrNotPrimary", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("still waits after Stop")
		}
	}
	if err := r.WaitDurable(r.last.Load()); !errors.Is(err, ErrNotPrimary) {
		t.Errorf("after Stop: %v", err)
	}
	if err := r.WaitApplied("b", 1, time.Hour); !errors.Is(err, ErrNotPrimary) {
		t.Errorf("WaitApplied after Stop: %v", err)
	}
	r.Stop() // twice is fine
	if got := r.stored(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("Stop left %v in sync", got)
	}
}

// What happens after the term belongs to the next primary's set.
func TestNothingIsPersistedAfterStop(t *testing.T) {
	r := newInSyncRig(t, "b")
	r.last.Store(10)
	r.Connected("c")
	r.Stop()
	r.Ack("c", 10, 10, 10)
	_ = r.Drop("b", "late")
	r.clock.advance(10 * ackTimeout)
	r.Check()
	if r.writes != 0 {
		t.Errorf("the set was written %d times, now %v", r.writes, r.stored())
	}
}

func TestANewTermBeginsWithTheStoredSet(t *testing.T) {
	r := newInSyncRig(t, "b")
	r.last.Store(10)
	r.Ack("b", 10, 10, 10)
	r.Stop()
	r.Start([]string{"c"})
	r.wantSetMemory("c")
	lsn, done := r.fsync()
	r.waits(done)
	r.Ack("c", lsn, lsn, lsn)
	r.released(done)
}

func (r *inSyncRig) wantSetMemory(want ...string) {
	r.t.Helper()
	if got := r.Set(); !slices.Equal(got, want) {
		r.t.Errorf("in sync: %v, want %v", got, want)
	}
}

func TestWaitApplied(t *testing.T) {
	r := newInSyncRig(t, "b")
	r.last.Store(10)
	r.Ack("b", 10, 10, 9)
	done := make(chan error, 1)
	go func() { done <- r.WaitApplied("b", 10, ackTimeout) }()
	r.waits(done)
	r.Ack("b", 10, 10, 10)
	r.released(done)
	go func() { done <- r.WaitApplied("b", 11, ackTimeout) }()
	r.waits(done)
	r.clock.advance(ackTimeout)
	select {
	case err := <-done:
		if err == nil || errors.Is(err, ErrNotPrimary) {
			t.Errorf("error %v, want a timeout", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("waits past its time")
	}
}

// TestInvariantI5 runs writers, standbys that come and go, and an unreliable
// store of truth at once: at no moment does the stored set name a standby
// that lacks an acknowledged fsync.
func TestInvariantI5(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { runI5(t, seed) })
	}
}

// i5Standby is a standby of the model; durable is the truth, of which acks
// tell with delay.
type i5Standby struct {
	name    string
	durable atomic.Uint64
}

func runI5(t *testing.T, seed uint64) {
	standbys := []*i5Standby{{name: "b"}, {name: "c"}}
	r := newInSyncRig(t, "b")
	var acked uint64 // under r.mu
	var joins int
	rng := rand.New(rand.NewPCG(seed, 7))
	check := func(set []string, when string) {
		for _, s := range standbys {
			if slices.Contains(set, s.name) && s.durable.Load() < acked {
				t.Errorf("%s: %s is in the stored set %v with %d durable, but %d was acknowledged", when, s.name, set, s.durable.Load(), acked)
			}
		}
	}
	r.onPersist = func(set []string) { // under r.mu
		r.fail = nil
		if rng.IntN(4) == 0 {
			r.fail = errors.New("etcd is away")
			return
		}
		if len(set) > len(r.persisted) {
			joins++
			check(set, "join")
		}
	}
	stop := make(chan struct{})
	var writers, others sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				lsn := r.last.Add(1)
				if err := r.WaitDurable(lsn); err != nil {
					if !errors.Is(err, ErrNotPrimary) {
						t.Error(err)
					}
					return
				}
				r.mu.Lock()
				acked = max(acked, lsn)
				check(r.persisted, "ack")
				r.mu.Unlock()
			}
		})
	}
	for i, s := range standbys {
		others.Go(func() { s.run(r, rand.New(rand.NewPCG(seed, uint64(i))), stop) })
	}
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			r.clock.advance(ackTimeout / 3)
			r.Check()
			time.Sleep(200 * time.Microsecond)
		}
	})
	time.Sleep(150 * time.Millisecond)
	close(stop)
	others.Wait()
	r.Stop()
	writers.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if acked == 0 || joins == 0 {
		t.Errorf("%d acknowledged, %d joins: nothing was tested", acked, joins)
	}
	r.onPersist = nil
}

func (s *i5Standby) run(r *inSyncRig, rng *rand.Rand, stop <-chan struct{}) {
	for connected := false; ; {
		select {
		case <-stop:
			return
		default:
		}
		switch n := rng.IntN(200); {
		case n == 0:
			r.Disconnected(s.name)
			connected = false
		case n == 1:
			_ = r.Drop(s.name, "test")
		case n == 2:
			if r.Trouble(s.name, "test") == nil && rng.IntN(2) == 0 {
				_ = r.Trouble(s.name, "")
			}
		case n == 3 && r.Reset(s.name) == nil:
			// Emptied, and copied up to some LSN.
			s.durable.Store(0)
			connected = false
			s.durable.Store(rng.Uint64N(r.last.Load() + 1))
		case !connected && n < 20:
			r.Connected(s.name)
			connected = true
		case connected:
			now, last := s.durable.Load(), r.last.Load()
			if last > now {
				now += 1 + rng.Uint64N(last-now)
				s.durable.Store(now)
			}
			if rng.IntN(3) > 0 {
				r.Ack(s.name, last, now, now-rng.Uint64N(min(now+1, 3)))
			}
		}
	}
}

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
