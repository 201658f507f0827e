package replicate

import (
	"errors"
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
