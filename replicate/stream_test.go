package replicate

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/replfs/replfs/internal/treediff"
	"github.com/replfs/replfs/internal/treediff/treetest"
	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
	"github.com/replfs/replfs/replicate/wire"
)

// populate makes some files with contents of several chunks.
func populate(p *primary, seed uint64, n int) {
	rng := rand.New(rand.NewPCG(seed, 2))
	p.must(p.mkdir("big"))
	for i := range n {
		file := fmt.Sprintf("big/%d", i)
		data := make([]byte, rng.IntN(60<<10))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		p.must(p.create(file))
		p.must(p.write(file, 0, data))
	}
	for range 300 {
		p.random(rng)
	}
}

// writing changes things until the returned function is called.
func writing(p *primary, seed uint64) (stop func()) {
	rng := rand.New(rand.NewPCG(seed, 3))
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-time.After(100 * time.Microsecond):
				p.random(rng)
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

func TestFirstContactCopiesWhileTheTreeChanges(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			c := newPair(t)
			populate(c.p, seed, 20)
			c.p.during = func() { time.Sleep(50 * time.Microsecond) }
			stop := writing(c.p, seed)
			c.run()
			eventually(t, "the copy is complete", func() bool {
				return c.s.applied() > 0 && !Copying(c.s.Applier().State())
			})
			stop()
			c.same()
			c.joined()
			if n := c.p.walks.Load(); n != 1 {
				t.Errorf("%d copies were made, want 1", n)
			}
			if files := c.s.salvaged(); len(files) != 0 {
				t.Errorf("an empty store was moved aside as %v", files)
			}
			st := c.sender.Status()
			if st.State != "streaming" || st.Copy != nil || st.Error != "" {
				t.Errorf("status %+v", st)
			}
		})
	}
}

func TestFirstContactKeepsWhatTheStoreHeld(t *testing.T) {
	c := newPair(t)
	if err := os.WriteFile(filepath.Join(c.s.store, "precious"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.run()
	c.same()
	if files := c.s.salvaged(); len(files) != 1 || filepath.Base(files[0]) != "precious" {
		t.Errorf("moved aside: %v, want precious", files)
	}
}

func TestGoesOnAfterReconnect(t *testing.T) {
	c := newPair(t)
	populate(c.p, 1, 3)
	c.run()
	c.joined()
	rng := rand.New(rand.NewPCG(1, 1))
	for range 3 {
		c.net.cut(true)
		for range 200 {
			c.p.random(rng)
		}
		c.net.mend()
		c.same()
	}
	if n := c.p.walks.Load(); n != 1 {
		t.Errorf("%d copies were made, want 1", n)
	}
	eventually(t, "in sync again", func() bool { return c.inSync.Has("b") && c.s.Status().InSync })
}

func TestRestartedStandbyGoesOn(t *testing.T) {
	c := newPair(t)
	populate(c.p, 1, 3)
	c.run()
	c.joined()
	eventually(t, "the standby knows that it is in sync", func() bool { return c.s.Applier().State().InSync })
	rng := rand.New(rand.NewPCG(1, 1))
	for range 3 {
		stop := writing(c.p, rng.Uint64())
		c.s.reopen()
		if !c.s.Status().InSync {
			t.Error("forgot that it was in sync")
		}
		stop()
		c.same()
	}
	if n := c.p.walks.Load(); n != 1 {
		t.Errorf("%d copies were made, want 1", n)
	}
}

func TestRestartedStandbyWithoutItsRingGoesOn(t *testing.T) {
	c := newPair(t)
	populate(c.p, 1, 3)
	c.run()
	c.joined()
	c.s.close()
	// As after a clean restart of the machine.
	if err := os.Remove(filepath.Join(c.s.base, "ring")); err != nil {
		t.Fatal(err)
	}
	c.p.must(c.p.create("new"))
	c.s.open()
	c.same()
	if n := c.p.walks.Load(); n != 1 {
		t.Errorf("%d copies were made, want 1", n)
	}
}

func TestInterruptedCopyStartsAgain(t *testing.T) {
	c := newPair(t)
	populate(c.p, 1, 20)
	middle, goOn := make(chan struct{}), make(chan struct{})
	var pieces int
	var once sync.Once
	c.p.during = func() {
		if pieces++; pieces == 30 {
			once.Do(func() {
				close(middle)
				<-goOn
			})
		}
	}
	c.run()
	<-middle
	eventually(t, "some of the copy has arrived", func() bool {
		entries, err := os.ReadDir(c.s.store)
		return err == nil && len(entries) > 0
	})
	if err := c.s.Applier().SetInSync(false); err != nil {
		t.Fatal(err)
	}
	c.s.reopen()
	if !Copying(c.s.Applier().State()) {
		t.Error("a part of a copy passes for a whole one")
	}
	if c.inSync.Has("b") {
		t.Error("in sync in the middle of a copy")
	}
	close(goOn)
	c.same()
	if n := c.p.walks.Load(); n != 2 {
		t.Errorf("%d copies were made, want 2", n)
	}
	if files := c.s.salvaged(); len(files) != 0 {
		t.Errorf("what a copy left was moved aside as %v", files)
	}
}

func TestDivergentStandbyIsMovedAside(t *testing.T) {
	c := newPair(t)
	populate(c.p, 1, 3)
	c.run()
	c.joined()
	c.same()
	// The standby took over where it was, as b, and wrote.
	c.stop()
	c.s.Stop()
	b := &record.Record{Op: record.OpEpoch, Path: "b", Path2: clusterID, Fields: record.FieldPath | record.FieldPath2}
	c.s.ring.SetEpoch(2)
	if _, err := c.s.ring.Append(b, nil, nil); err != nil {
		t.Fatal(err)
	}
	mine := &record.Record{Op: record.OpCreate, Path: "only on b", Mode: unix.S_IFREG | 0o644, Fields: record.FieldPath | record.FieldMode}
	if _, err := c.s.ring.Append(mine, nil, nil); err != nil {
		t.Fatal(err)
	}
	c.s.start()
	eventually(t, "b has its own records", func() bool { return c.s.applied() == c.s.ring.Last() })
	// The old primary goes on in an epoch after it, without them.
	c.p.begin(3)
	c.p.must(c.p.create("only on a"))
	c.stored = nil
	c.run()
	c.same()
	found := false
	for _, f := range c.s.salvaged() {
		found = found || filepath.Base(f) == "only on b"
	}
	if !found {
		t.Errorf("moved aside: %v, without what only b had", c.s.salvaged())
	}
	if n := c.p.walks.Load(); n != 2 {
		t.Errorf("%d copies were made, want 2", n)
	}
}

// TestCopyRefused: a standby that cannot move its content aside refuses the copy
// until it can; its reason stays what it was, and its content where it is.
func TestCopyRefused(t *testing.T) {
	c := newPair(t)
	precious := filepath.Join(c.s.store, "precious")
	if err := os.WriteFile(precious, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	inTheWay := filepath.Join(c.s.base, "salvage")
	if err := os.WriteFile(inTheWay, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.run()
	for range 3 {
		eventually(t, "it is refused", func() bool { return c.sender.Status().State == "refused" })
		eventually(t, "it is tried again", func() bool { return c.sender.Status().State != "refused" })
	}
	if got := c.s.Applier().State().Suspect; strings.Count(got, asideReason) != 1 {
		t.Errorf("the reason is %q", got)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	c.joined()
	c.same()
	if files := c.s.salvaged(); len(files) != 1 || filepath.Base(files[0]) != "precious" {
		t.Errorf("moved aside: %v", files)
	}
}

// What is received but not applied is no data yet: it is dropped, not
// salvaged, and no copy is needed.
func TestDivergentReceivedTailIsCut(t *testing.T) {
	c := newPair(t)
	populate(c.p, 1, 3)
	c.run()
	c.joined()
	c.same()
	c.stop()
	onlyReceive(c.s.Standby) // what comes is not applied any more
	shared := c.s.applied()
	old := c.s.ring
	old.SetEpoch(1)
	for range 50 {
		r := &record.Record{Op: record.OpCreate, Path: fmt.Sprintf("lost %d", old.Next()), Mode: unix.S_IFREG | 0o644, Fields: record.FieldPath | record.FieldMode}
		if _, err := old.Append(r, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	c.p.begin(2)
	c.p.must(c.p.create("kept"))
	c.run()
	eventually(t, "the standby received what the primary has", func() bool { return c.s.ring.LastEpoch() == 2 })
	if got := c.s.applied(); got != shared {
		t.Fatalf("applied %d while stopped at %d", got, shared)
	}
	c.s.start()
	c.same()
	if n := c.p.walks.Load(); n != 1 {
		t.Errorf("%d copies were made, want 1", n)
	}
}

func TestRingOverrunCausesACopy(t *testing.T) {
	for _, unclean := range []bool{false, true} {
		t.Run(fmt.Sprintf("unclean %v", unclean), func(t *testing.T) {
			c := newPair(t)
			c.unclean = unclean
			populate(c.p, 1, 3)
			c.run()
			c.joined()
			c.same()
			c.net.cut(true)
			have := c.s.applied()
			c.p.must(c.p.create("huge"))
			data := make([]byte, 512<<10)
			for i := range 10 {
				data[0] = byte(i)
				c.p.must(c.p.write("huge", int64(i)*int64(len(data)), data))
			}
			if first := c.p.log.First(); first <= have+1 {
				t.Fatalf("the log still begins at %d, the standby has %d", first, have)
			}
			c.net.mend()
			c.same()
			if n := c.p.walks.Load(); n != 2 {
				t.Errorf("%d copies were made, want 2", n)
			}
			// After a crash the primary may lack what the standby has.
			if kept := len(c.s.salvaged()) > 0; kept != unclean {
				t.Errorf("moved aside: %v", c.s.salvaged())
			}
			c.joined()
		})
	}
}

func TestFsyncReturnsWhenDurableOnTheStandby(t *testing.T) {
	c := newPair(t)
	c.p.must(c.p.create("f"))
	c.run()
	c.joined()
	for i := range 50 {
		c.p.must(c.p.write("f", int64(i), []byte{byte(i)}))
		lsn := c.p.must(c.p.fsyncRecord("f"))
		if err := c.inSync.WaitDurable(lsn); err != nil {
			t.Fatal(err)
		}
		if d := c.s.Applier().Durable(); d < lsn {
			t.Fatalf("fsync %d was acknowledged with %d durable on the standby", lsn, d)
		}
	}
	if !c.inSync.Has("b") {
		t.Error("it fell out of sync")
	}
}

func TestFsyncGoesOnWithoutALostStandby(t *testing.T) {
	c := newPair(t)
	c.timeout = 100 * time.Millisecond
	c.p.must(c.p.create("f"))
	c.run()
	c.joined()
	c.net.cut(true)
	lsn := c.p.must(c.p.fsyncRecord("f"))
	if err := c.inSync.WaitDurable(lsn); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	if len(c.stored) != 0 {
		t.Errorf("acknowledged with %v in sync", c.stored)
	}
	c.mu.Unlock()
	c.net.mend()
	c.joined()
}

// A walk ends before the last words of the standby are read; on a quiet
// primary no more follow.
func TestStandbyJoinsAfterACopyOfAQuietPrimary(t *testing.T) {
	for range 20 {
		t.Run("", func(t *testing.T) {
			c := newPair(t)
			populate(c.p, 1, 1)
			c.run()
			c.caughtUp()
			for deadline := time.Now().Add(patience); !c.inSync.Has("b"); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("not in sync though it has applied all: %+v", c.sender.Status())
				}
			}
		})
	}
}

// cutter cuts the network after a number of records, within a batch.
type cutter struct {
	net  *server
	mu   sync.Mutex
	left int  // records until the cut, negative: none
	wait bool // until they were received
	got  func() uint64
}

func (c *cutter) arm(records int, wait bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left, c.wait = records, wait
}

func (c *cutter) armed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left >= 0
}

type cutStream struct {
	grpc.ClientStream
	c *cutter
}

func (c *cutter) intercept(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, m string, s grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
	st, err := s(ctx, d, cc, m, o...)
	return &cutStream{st, c}, err
}

func (s *cutStream) SendMsg(m any) error {
	b, ok := m.(*wire.Outgoing)
	if !ok {
		return s.ClientStream.SendMsg(m)
	}
	c, records := s.c, b.Records.ReadOnlyData()
	c.mu.Lock()
	defer c.mu.Unlock()
	off, last, cut := 0, uint64(0), false
	for off < len(records) && c.left >= 0 && !cut {
		h, err := record.PeekHeader(records[off:])
		if err != nil {
			return err
		}
		if c.left == 0 {
			cut = true
			break
		}
		c.left--
		off, last = off+h.Size, h.LSN
	}
	if !cut {
		return s.ClientStream.SendMsg(m)
	}
	c.left = -1
	if off > 0 {
		short := &wire.Outgoing{Epoch: b.Epoch, First: b.First, Last: last, Records: mem.SliceBuffer(records[:off])}
		if err := s.ClientStream.SendMsg(short); err != nil {
			return err
		}
		for deadline := time.Now().Add(time.Second); c.wait && c.got() < last && time.Now().Before(deadline); {
			time.Sleep(100 * time.Microsecond)
		}
	}
	c.net.cut(true)
	return io.EOF // as a stream says that has ended
}

// TestInvariantI3 cuts the stream at random records. After every cut the
// standby's store is the primary's as of the LSN it says, by a replay that
// shares no code with the applier.
func TestInvariantI3(t *testing.T) {
	const seed = 20240607
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 4))
	c := newPair(t)
	cut := &cutter{net: c.net, left: -1, got: func() uint64 { return c.s.ring.Last() }}
	c.dialing = []grpc.DialOption{grpc.WithChainStreamInterceptor(cut.intercept)}
	for range 50 {
		c.p.random(rng)
	}
	c.run()
	c.joined()
	m := newModel(t)
	cuts := 40
	if testing.Short() {
		cuts = 10
	}
	for i := range cuts {
		n := 5 + rng.IntN(60)
		cut.arm(rng.IntN(n), rng.IntN(2) == 0)
		for range 8 * n { // not every change can be made
			c.p.random(rng)
		}
		eventually(t, "the stream is cut", func() bool {
			if cut.armed() && c.s.ring.Last() == c.p.log.Last() {
				c.p.random(rng) // too few could be made
			}
			return !cut.armed()
		})
		if rng.IntN(2) == 0 { // some of what was received is left for later
			eventually(t, "all is applied", func() bool { return c.s.applied() == c.s.ring.Last() })
		}
		c.s.Stop()
		st := c.s.Applier().State()
		if st.Suspect != "" || st.Syncing || st.Pending != 0 {
			t.Fatalf("cut %d: state %+v", i, st)
		}
		m.replay(t, c.p, st.Applied)
		if !treetest.Equal(t, m.dir, c.s.store, treediff.Options{}) {
			t.Fatalf("cut %d: the store is not the primary's at LSN %d", i, st.Applied)
		}
		if rng.IntN(2) == 0 {
			c.s.reopen()
		} else {
			c.s.start()
		}
		c.net.mend()
		c.stop() // a new sender does not wait before it connects
		c.run()
	}
	c.same()
	m.replay(t, c.p, c.p.log.Last())
	treetest.Equal(t, m.dir, c.p.dir, treediff.Options{})
	if n := c.p.walks.Load(); n != 1 {
		t.Errorf("%d copies were made, want 1", n)
	}
}

// smallStore puts the standby's store on a tmpfs of its own.
func smallStore(t *testing.T, s *standby, size string) {
	t.Helper()
	s.close()
	if err := unix.Mount("tmpfs", s.store, "tmpfs", 0, "mode=755,size="+size); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		s.close()
		if err := unix.Unmount(s.store, 0); err != nil {
			t.Error(err)
		}
	})
	// Another store than the one of the state.
	if err := os.Remove(filepath.Join(s.base, "state")); err != nil {
		t.Fatal(err)
	}
	s.open()
}

func resizeStore(t *testing.T, s *standby, size string) {
	t.Helper()
	if err := unix.Mount("", s.store, "", unix.MS_REMOUNT, "mode=755,size="+size); err != nil {
		t.Fatal(err)
	}
}

func TestStandbyOutOfSpace(t *testing.T) {
	c := newPair(t)
	c.timeout = time.Minute // so that it is the trouble that takes it out
	smallStore(t, c.s, "512k")
	c.p.must(c.p.create("f"))
	c.run()
	c.joined()
	c.same()
	c.p.must(c.p.write("f", 0, make([]byte, 400<<10)))
	c.p.must(c.p.create("g"))
	full := c.p.must(c.p.write("g", 0, make([]byte, 400<<10)))
	lsn := c.p.must(c.p.fsyncRecord("g"))
	if err := c.inSync.WaitDurable(lsn); err != nil {
		t.Fatal(err)
	}
	if c.inSync.Has("b") {
		t.Error("an fsync was acknowledged with a standby in sync that cannot have it")
	}
	eventually(t, "both sides say why", func() bool {
		return !c.s.Status().InSync && strings.Contains(c.sender.Status().Trouble, "space") && strings.Contains(c.s.Status().Trouble, "space")
	})
	if st := c.s.Status(); st.Applied != full-1 || st.Diverged || st.Suspect != "" {
		t.Errorf("stands at %d (diverged %v, suspect %q), want at %d", st.Applied, st.Diverged, st.Suspect, full-1)
	}
	// A new connection finds it as it was.
	c.net.cut(false)
	eventually(t, "the trouble is told again", func() bool {
		return c.sender.Status().State == "streaming" && strings.Contains(c.sender.Status().Trouble, "space")
	})
	resizeStore(t, c.s, "4m")
	c.same()
	c.joined()
	eventually(t, "the trouble is over", func() bool { return c.sender.Status().Trouble == "" && c.s.Status().Trouble == "" })
	if n := c.p.walks.Load(); n != 1 {
		t.Errorf("%d copies were made, want 1", n)
	}
}

// A standby that fell out of the set must not take itself for a member after
// a restart (I5).
func TestStandbyInTroubleForgetsToBeInSync(t *testing.T) {
	c := newPair(t)
	smallStore(t, c.s, "512k")
	c.p.must(c.p.create("f"))
	c.run()
	c.joined()
	eventually(t, "it stored that it is in sync", func() bool { return c.s.Applier().State().InSync })
	c.p.must(c.p.write("f", 0, make([]byte, 800<<10)))
	eventually(t, "it left the set", func() bool { return !c.inSync.Has("b") })
	time.Sleep(3 * standingInterval)
	c.stop()
	c.s.reopen()
	if c.s.Status().InSync {
		t.Error("after a restart it takes itself for a member of the set that it left")
	}
}

// While it stands still, its own log must keep what is not applied.
func TestStandbyOutOfSpaceForLong(t *testing.T) {
	c := newPair(t)
	c.timeout = 500 * time.Millisecond
	smallStore(t, c.s, "512k")
	c.p.must(c.p.create("f"))
	c.run()
	c.joined()
	c.p.must(c.p.write("f", 0, make([]byte, 400<<10)))
	c.p.must(c.p.create("g"))
	full := c.p.must(c.p.write("g", 0, make([]byte, 400<<10)))
	eventually(t, "it stands still", func() bool { return c.s.Status().Trouble != "" })
	// More than both rings hold, though little of it is kept.
	for i := range 2 * oplog.MinSize / (128 << 10) {
		c.p.must(c.p.write("g", 0, slices.Repeat([]byte{byte(i)}, 128<<10)))
	}
	if first := c.s.ring.First(); first > full {
		t.Errorf("the standby's log begins at %d, though %d is not applied", first, full)
	}
	resizeStore(t, c.s, "16m")
	c.same()
}

// hangs is a standby that says it is at the primary's position, and takes
// nothing.
func (c *pair) hangs() *server {
	return newServer(c.t, func(st wire.Replication_StreamServer) error {
		if _, err := st.Recv(); err != nil {
			return err
		}
		s := c.p.state()
		s.Identity.Node, s.Role = "b", wire.Role_ROLE_STANDBY
		if err := st.Send(&wire.Up{Kind: &wire.Up_Hello{Hello: s}}); err != nil {
			return err
		}
		<-st.Context().Done()
		return nil
	})
}

// A standby that takes nothing any more must not stop the primary's writers
// for longer than the timeout.
func TestAStandbyThatReadsNoMoreDoesNotStopWriters(t *testing.T) {
	leakCheck(t)
	c := &pair{t: t, p: newPrimary(t, "a"), timeout: 200 * time.Millisecond}
	c.net = c.hangs()
	c.p.must(c.p.create("f"))
	c.run()
	eventually(t, "it streams", func() bool { return c.sender.Status().State == "streaming" })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 2 * oplog.MinSize / (128 << 10) {
			c.p.must(c.p.write("f", 0, slices.Repeat([]byte{byte(i)}, 128<<10)))
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
		since, blocked := c.p.log.BlockedSince()
		t.Errorf("writers have been blocked for %v (%v)", time.Since(since), blocked)
		c.net.cut(true)
		c.stop()
		<-done
	}
}
