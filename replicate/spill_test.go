package replicate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/treediff"
	"github.com/replfs/replfs/internal/treediff/treetest"
	"github.com/replfs/replfs/replicate/journal"
	"github.com/replfs/replfs/replicate/oplog"
)

// newSpillingPair is a pair whose primary has a journal.
func newSpillingPair(t *testing.T) *pair {
	t.Helper()
	c := newPair(t)
	c.spill.Dir, c.spill.MaxBytes = filepath.Join(shm(t), "journal"), 64<<20
	return c
}

// away has the pair in sync, with some content, and cuts the standby off.
func (c *pair) away() {
	c.t.Helper()
	populate(c.p, 1, 3)
	c.run()
	c.joined()
	c.same()
	c.net.cut(true)
}

// churn writes n MiB, in records of 100 KiB with other changes in between.
func (c *pair) churn(seed uint64, n int) {
	rng := rand.New(rand.NewPCG(seed, 9))
	file := fmt.Sprintf("churn-%d", seed)
	c.p.must(c.p.create(file))
	data := make([]byte, 100<<10)
	for i := range n * 10 {
		data[0], data[len(data)-1] = byte(i), byte(i>>8)
		c.p.must(c.p.write(file, rng.Int64N(8)*int64(len(data)), data))
		for range 3 {
			c.p.random(rng)
		}
	}
}

// standStill keeps the standby from applying until the returned function is
// called, or the test ends.
func (c *pair) standStill() (resume func()) {
	c.s.applyMu.Lock()
	resume = sync.OnceFunc(c.s.applyMu.Unlock)
	c.t.Cleanup(resume)
	return resume
}

func (c *pair) copies(want int64) {
	c.t.Helper()
	if n := c.p.walks.Load(); n != want {
		c.t.Errorf("%d copies were made, want %d", n, want)
	}
}

// givenBack waits until nothing is left in the journal.
func (c *pair) givenBack() {
	c.t.Helper()
	eventually(c.t, "the journal is given back", func() bool {
		left, err := filepath.Glob(filepath.Join(c.spill.Dir, "*"))
		return err == nil && len(left) == 0 && !c.spiller.Status().Active
	})
}

// restart is a primary's process that ends, and the next one. end is how the
// term ended; lost says that the ring is a new one.
func (c *pair) restart(lost bool) {
	c.t.Helper()
	c.stop()
	last := c.p.log.Last()
	if err := c.p.log.Close(); err != nil {
		c.t.Fatal(err)
	}
	ring := filepath.Join(filepath.Dir(c.p.dir), "ring")
	if lost {
		if err := os.Remove(ring); err != nil {
			c.t.Fatal(err)
		}
	}
	c.p.log = openRing(c.t, ring)
	if lost {
		if err := c.p.log.Reset(last + 1); err != nil {
			c.t.Fatal(err)
		}
	}
	c.run()
	c.p.begin(c.p.epoch + 1)
}

func TestAStandbyThatWasAwayCatchesUpFromTheJournal(t *testing.T) {
	c := newSpillingPair(t)
	c.away()
	c.churn(1, 24) // six rings
	st := c.spiller.Status()
	if !st.Active || st.First == 0 || st.Bytes < 12<<20 || st.Bytes > st.MaxBytes {
		t.Errorf("status %+v", st)
	}
	have := c.s.applied()
	if first := c.p.log.First(); first <= have+1 {
		t.Fatalf("the ring still begins at %d, the standby has %d", first, have)
	}
	if b := c.spiller.BytesAfter(have); b < 23<<20 || b > 30<<20 {
		t.Errorf("%d bytes after what the standby has", b)
	}
	if at, ok := c.spiller.TimeOf(have + 1); !ok || time.Since(at) > time.Hour || time.Since(at) < 0 {
		t.Errorf("the time of what it needs: %v %v", at, ok)
	}
	c.net.mend()
	stop := writing(c.p, 4)
	time.Sleep(100 * time.Millisecond)
	stop()
	c.same()
	c.copies(1)
	c.joined()
	c.givenBack()
	if n := len(c.s.salvaged()); n != 0 {
		t.Errorf("%d entries were moved aside", n)
	}
}

// TestCatchingUpIsAtAPrefix cuts the standby off again and again while it
// catches up: its store is the primary's at some record each time (I3).
func TestCatchingUpIsAtAPrefix(t *testing.T) {
	c := newSpillingPair(t)
	c.away()
	c.churn(1, 12)
	m := newModel(t)
	seen := map[string]bool{}
	for round := 0; c.s.applied() < c.p.log.Last() && round < 200; round++ {
		c.net.mend()
		c.stop() // a new sender does not wait before it connects
		c.run()
		have := c.s.applied()
		eventually(t, "it comes further", func() bool {
			seen[c.sender.Status().State] = true
			return c.s.applied() > have || have == c.p.log.Last()
		})
		c.net.cut(true)
		c.s.Stop()
		st := c.s.Applier().State()
		if st.Suspect != "" || st.Syncing || st.Pending != 0 {
			t.Fatalf("state %+v", st)
		}
		m.replay(t, c.p, st.Applied)
		if !treetest.Equal(t, m.dir, c.s.store, treediff.Options{}) {
			t.Fatalf("the store is not the primary's at LSN %d", st.Applied)
		}
		c.s.start()
		if round < 3 {
			c.churn(uint64(10+round), 2)
		}
	}
	c.net.mend()
	c.same()
	c.copies(1)
	c.joined()
}

func TestASlowStandbyDoesNotMakeWritersWait(t *testing.T) {
	c := newSpillingPair(t)
	c.timeout = 2 * patience // nobody is let go
	populate(c.p, 1, 3)
	c.run()
	c.joined()
	resume := c.standStill() // it receives what its ring takes
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.churn(1, 30)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("writers wait")
	}
	eventually(t, "it is said to catch up", func() bool {
		st := c.sender.Status()
		return st.State == "catching up" && st.CatchUp != nil && st.CatchUp.Remaining > 20<<20
	})
	resume()
	<-done
	c.same()
	c.copies(1)
	eventually(t, "it is said to stream", func() bool {
		st := c.sender.Status()
		return st.State == "streaming" && st.CatchUp == nil
	})
	c.givenBack()
}

// TestFallingBehindAgainAndAgain goes over between ring and journal often.
func TestFallingBehindAgainAndAgain(t *testing.T) {
	c := newSpillingPair(t)
	populate(c.p, 1, 3)
	c.run()
	c.joined()
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range rounds {
		resume := c.standStill()
		c.churn(uint64(100+i), 1+rng.IntN(9))
		resume()
		if i%3 == 0 {
			c.net.cut(false)
		}
		time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
	}
	c.same()
	c.copies(1)
	c.givenBack()
}

func TestTheJournalsBoundCausesACopy(t *testing.T) {
	c := newSpillingPair(t)
	c.spill.MaxBytes = journal.MinBytes
	c.away()
	if !c.inSync.Has("b") {
		t.Fatal("not in sync before")
	}
	c.churn(1, 30)
	eventually(t, "the standby is out of the set", func() bool { return !c.inSync.Has("b") })
	eventually(t, "the loss is said", func() bool {
		return strings.Contains(c.spiller.Status().Lost, "bound")
	})
	c.net.mend()
	c.same()
	c.copies(2)
	c.joined()
	c.givenBack()
	if lost := c.spiller.Status().Lost; lost != "" {
		t.Errorf("still said to be lost: %s", lost)
	}
	// And the journal is as good as new.
	c.net.cut(true)
	c.churn(2, 8)
	c.net.mend()
	c.same()
	c.copies(2)
}

// failing is an operating system that fails every write to a segment, or
// makes it wait, as long as told to.
type failing struct {
	journal.OS
	mu    sync.Mutex
	err   error
	stuck chan struct{}
}

func (o *failing) set(err error, stuck chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err, o.stuck = err, stuck
}

func (o *failing) Create(path string) (journal.File, error) {
	f, err := o.OS.Create(path)
	if err != nil {
		return nil, err
	}
	return &failingFile{f, o}, nil
}

type failingFile struct {
	journal.File
	os *failing
}

func (f *failingFile) WriteAt(b []byte, off int64) (int, error) {
	f.os.mu.Lock()
	err, stuck := f.os.err, f.os.stuck
	f.os.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	if err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, off)
}

func TestTheJournalsDiskIsFull(t *testing.T) {
	c := newSpillingPair(t)
	os := &failing{OS: journal.System(), err: unix.ENOSPC}
	c.spill.OS = os
	c.away()
	c.churn(1, 12) // writers go on
	st := c.spiller.Status()
	if st.Active || !strings.Contains(st.Failure, unix.ENOSPC.Error()) {
		t.Errorf("status %+v", st)
	}
	eventually(t, "the standby is out of the set", func() bool { return !c.inSync.Has("b") })
	c.net.mend()
	c.same()
	c.copies(2)
	c.joined()
	// Without a journal a connected standby is waited for.
	stop := writing(c.p, 8)
	c.churn(2, 8)
	stop()
	c.same()
	c.copies(2)
	// It is used again as soon as there is room.
	os.set(nil, nil)
	c.spiller.mu.Lock()
	c.spiller.retry = time.Now()
	c.spiller.mu.Unlock()
	eventually(t, "the journal is tried again", func() bool { return c.spiller.Status().Failure == "" })
	c.net.cut(true)
	c.churn(3, 8)
	c.net.mend()
	c.same()
	c.copies(2)
}

func TestTheJournalsDiskHangs(t *testing.T) {
	c := newSpillingPair(t)
	stuck := make(chan struct{})
	os := &failing{OS: journal.System(), stuck: stuck}
	c.spill.OS, c.spill.StallLimit = os, 200*time.Millisecond
	c.away()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.churn(1, 12)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("writers wait for a disk that hangs")
	}
	if st := c.spiller.Status(); st.Active || !strings.Contains(st.Failure, "takes nothing") {
		t.Errorf("status %+v", st)
	}
	os.set(nil, nil)
	close(stuck)
	<-done
	c.net.mend()
	c.same()
	c.copies(2)
	c.givenBack()
}

// TestTheSetCannotBeWritten: a standby keeps its place until the store of
// truth knows that it is not waited for any more.
func TestTheSetCannotBeWritten(t *testing.T) {
	c := newSpillingPair(t)
	c.spill.MaxBytes = journal.MinBytes
	c.away()
	c.mu.Lock()
	c.refuse = errors.New("no disk")
	c.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.churn(1, 30)
	}()
	eventually(t, "writers wait", func() bool { return c.p.log.Waiting() > 0 })
	time.Sleep(3 * spillTick)
	select {
	case <-done:
		t.Error("writers went on, and the set still names the standby")
	default:
	}
	// What fills the disk may be the journal itself: it goes first.
	eventually(t, "the journal is removed", func() bool {
		left, err := filepath.Glob(filepath.Join(c.spill.Dir, "*"))
		return err == nil && len(left) == 0
	})
	c.mu.Lock()
	c.refuse = nil
	c.mu.Unlock()
	<-done
	c.net.mend()
	c.same()
	c.copies(2)
}

// TestACopyWhileWritersAreFaster: a standby in a complete copy has a place too.
func TestACopyWhileWritersAreFaster(t *testing.T) {
	c := newSpillingPair(t)
	populate(c.p, 1, 20)
	c.p.during = func() { time.Sleep(200 * time.Microsecond) }
	c.s.onBegin = func() { time.Sleep(200 * time.Millisecond) } // it empties a large store
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.churn(1, 20)
	}()
	c.run()
	<-done
	c.same()
	c.copies(1)
	c.joined()
	c.givenBack()
}

// TestTheStandbyComesBackWithLess: it had acknowledged what it lost since.
func TestTheStandbyComesBackWithLess(t *testing.T) {
	c := newSpillingPair(t)
	populate(c.p, 1, 3)
	c.run()
	c.joined()
	c.same()
	resume := c.standStill()
	have := c.s.applied()
	c.churn(1, 1)
	eventually(t, "all is received", func() bool { return c.s.ring.Last() == c.p.log.Last() })
	c.net.cut(true)
	resume()
	c.s.Stop()
	if have == c.p.log.Last() {
		t.Fatal("nothing was left to be applied")
	}
	c.s.start()
	c.churn(2, 3)
	c.net.mend()
	c.same()
	c.copies(1)
}

// TestAttach says where a standby may go on, without one.
func TestAttach(t *testing.T) {
	c := newSpillingPair(t)
	c.away()
	c.churn(1, 12)
	sp := c.spiller
	st := sp.Status()
	for _, tt := range []struct {
		from uint64
		ok   bool
	}{
		{0, false}, {1, false}, {st.First - 1, false}, {st.First, true}, {st.Last, true}, {st.Last + 1, true},
		{c.p.log.Last(), true}, {c.p.log.Last() + 1, true}, {c.p.log.Last() + 2, false},
	} {
		src, err := sp.attach("x", tt.from, nil)
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, oplog.ErrGone) {
			t.Errorf("from %d: %v", tt.from, err)
		}
		if err != nil {
			continue
		}
		for next := tt.from; next <= c.p.log.Last(); {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			_, first, last, err := src.Read(ctx, make([]byte, 0, 300<<10))
			cancel()
			if err != nil || first != next || last < first {
				t.Fatalf("from %d: %d to %d at %d: %v", tt.from, first, last, next, err)
			}
			next = last + 1
		}
		src.Close()
		sp.detach("x")
		sp.forget("x")
	}
	c.net.mend()
	c.same()
	c.copies(1)
}

// TestTheNearestOfSeveralStandbysDoesNotDecide has one that keeps up and one
// that is away; both go on.
func TestTheNearestOfSeveralStandbysDoesNotDecide(t *testing.T) {
	c := newSpillingPair(t)
	c.spill.Peers = []string{"far"}
	c.away()
	c.net.mend()
	c.same()
	far := c.p.log.First()
	c.churn(1, 12)
	c.same()
	c.copies(1)
	if st := c.spiller.Status(); !st.Active || st.First > far {
		t.Fatalf("what the far one needs from %d on is not kept: %+v", far, st)
	}
	c.spiller.forget("far")
	c.givenBack()
	c.same()
}

// TestADropEndsEverything is a primary that steps down.
func TestADropEndsEverything(t *testing.T) {
	c := newSpillingPair(t)
	c.away()
	c.churn(1, 12)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.churn(2, 12)
	}()
	c.inSync.Stop()
	c.spiller.Drop()
	<-done
	if left, _ := filepath.Glob(filepath.Join(c.spill.Dir, "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := c.spiller.attach("b", 1, nil); !errors.Is(err, ErrNotPrimary) {
		t.Errorf("attached after the end: %v", err)
	}
}

// TestAStandbyThatHangsDoesNotStopWritersWithAJournal: nobody has to be let go.
func TestAStandbyThatHangsDoesNotStopWritersWithAJournal(t *testing.T) {
	leakCheck(t)
	c := &pair{t: t, p: newPrimary(t, "a"), timeout: 2 * patience}
	c.spill.Dir, c.spill.MaxBytes = filepath.Join(shm(t), "journal"), 64<<20
	c.net = c.hangs()
	c.p.must(c.p.create("f"))
	c.run()
	eventually(t, "it streams", func() bool { return c.sender.Status().State == "streaming" })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 5 * oplog.MinSize / (128 << 10) {
			c.p.must(c.p.write("f", 0, slices.Repeat([]byte{byte(i)}, 128<<10)))
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("writers wait")
		c.spiller.Drop()
		<-done
	}
	if st := c.spiller.Status(); !st.Active || st.Lost != "" {
		t.Errorf("%+v", st)
	}
}
