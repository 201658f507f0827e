package replicate

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
	"github.com/replfs/replfs/replicate/wire"
)

func TestRefusedOnTheStandby(t *testing.T) {
	tests := []struct {
		name string
		set  func(c *pair)
		want []string
	}{
		{"another cluster", func(c *pair) { c.p.cluster = "forge" }, []string{"forge", "gitlab"}},
		{"another life of the cluster", func(c *pair) {
			c.s.mu.Lock()
			defer c.s.mu.Unlock()
			c.s.clusterID = "life-2"
		}, []string{"two different clusters", "a", "b"}},
		{"a certificate of another node", func(c *pair) { c.s.certificate = "z" }, []string{"expected node z", "a answers"}},
		{"another protocol", func(c *pair) { c.p.protocol = Protocol + 1 }, []string{"protocol 2", "same version"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newPair(t)
			tt.set(c)
			c.run()
			c.refused(tt.want...)
			if c.s.applied() != 0 || c.s.ring.Last() != 0 || c.p.walks.Load() != 0 {
				t.Error("something was sent all the same")
			}
			if c.s.said.FilterMessage("refused a primary").Len() == 0 {
				t.Errorf("logged %v", c.s.said.All())
			}
		})
	}
}

// refused waits for the primary's status to say so and why.
func (c *pair) refused(want ...string) {
	c.t.Helper()
	eventually(c.t, "the primary says that it is refused", func() bool { return c.sender.Status().State == "refused" })
	for _, w := range want {
		if text := c.sender.Status().Error; !strings.Contains(text, w) {
			c.t.Errorf("error %q does not say %q", text, w)
		}
	}
	if got := c.inSync.Set(); len(got) != 0 {
		c.t.Errorf("in sync: %v", got)
	}
}

// fakePair is a primary with a peer that does as it likes.
func fakePair(t *testing.T, hello func(*wire.NodeState), then func(wire.Replication_StreamServer) error) *pair {
	t.Helper()
	leakCheck(t)
	c := &pair{t: t, p: newPrimary(t, "a"), timeout: 10 * time.Second}
	c.net = newServer(t, func(st wire.Replication_StreamServer) error {
		if _, err := st.Recv(); err != nil {
			return err
		}
		s := c.p.state()
		s.Identity.Node, s.Role = "b", wire.Role_ROLE_STANDBY
		if hello != nil {
			hello(s)
		}
		if err := st.Send(&wire.Up{Kind: &wire.Up_Hello{Hello: s}}); err != nil {
			return err
		}
		return then(st)
	})
	c.p.must(c.p.create("f"))
	return c
}

// read takes what comes until the stream ends.
func read(st wire.Replication_StreamServer) error {
	for {
		if _, err := st.Recv(); err != nil {
			return nil
		}
	}
}

func TestRefusedOnThePrimary(t *testing.T) {
	tests := []struct {
		name  string
		hello func(s *wire.NodeState)
		want  []string
	}{
		{"another cluster", func(s *wire.NodeState) { s.Identity.Cluster = "forge" }, []string{"forge", "gitlab"}},
		{"another life of the cluster", func(s *wire.NodeState) { s.Identity.ClusterId = "life-2" }, []string{"two different clusters"}},
		{"another node", func(s *wire.NodeState) { s.Identity.Node = "z" }, []string{"expected node b", "z answers"}},
		{"another protocol", func(s *wire.NodeState) { s.Identity.Protocol = 7 }, []string{"protocol 7", "same version"}},
		{"a second primary", func(s *wire.NodeState) { s.Role = wire.Role_ROLE_PRIMARY }, []string{"is primary in epoch 1 as well", "replfs demote"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := fakePair(t, tt.hello, read)
			last := c.p.log.Last()
			c.run()
			c.refused(tt.want...)
			if c.p.log.Last() != last || len(c.superseded) != 0 {
				t.Error("it was believed")
			}
		})
	}
}

// TestStartingPeer: what a node that is starting says of its store counts for
// nothing: it is asked again.
func TestStartingPeer(t *testing.T) {
	var greetings atomic.Int64
	c := fakePair(t, func(s *wire.NodeState) {
		if greetings.Add(1) < 3 {
			s.Role, s.Applied = wire.Role_ROLE_STARTING, nil
		}
	}, read)
	last := c.p.log.Last()
	c.run()
	eventually(t, "it streams", func() bool { return c.sender.Status().State == "streaming" })
	if now := c.p.log.Last(); now != last {
		t.Errorf("%d records came, such as the beginning of a copy", now-last)
	}
}

func TestLowerEpochIsRefused(t *testing.T) {
	c := newPair(t)
	c.s.mu.Lock()
	c.s.epoch = 7
	c.s.mu.Unlock()
	c.run()
	c.refused("knows epoch 7", "in 1", "not the primary any more")
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.superseded) == 0 || c.superseded[0] != 7 {
		t.Errorf("Superseded was called with %v, want 7", c.superseded)
	}
	if c.s.ring.Last() != 0 || c.s.Applier().State().Suspect != "" {
		t.Error("the standby took something of a primary that is over")
	}
}

func TestImpossibleAcksAreRefused(t *testing.T) {
	acks := map[string]func(last uint64) *wire.Ack{
		"received what was never sent":       func(l uint64) *wire.Ack { return &wire.Ack{Received: l + 1} },
		"received everything there can be":   func(uint64) *wire.Ack { return &wire.Ack{Received: 1<<64 - 1} },
		"applied what was not received":      func(l uint64) *wire.Ack { return &wire.Ack{Received: l - 1, Applied: l} },
		"durable before it is applied":       func(l uint64) *wire.Ack { return &wire.Ack{Received: l, Applied: l - 1, Durable: l} },
		"all of them far beyond the log end": func(l uint64) *wire.Ack { return &wire.Ack{Received: l << 20, Applied: l << 20, Durable: l << 20} },
	}
	for name, ack := range acks {
		t.Run(name, func(t *testing.T) {
			var c *pair
			c = fakePair(t, nil, func(st wire.Replication_StreamServer) error {
				if _, err := st.Recv(); err != nil { // the start
					return err
				}
				if err := st.Send(&wire.Up{Kind: &wire.Up_Ack{Ack: ack(c.p.log.Last())}}); err != nil {
					return err
				}
				return read(st)
			})
			c.run()
			c.refused("impossible acknowledgement")
			if r, a, d := c.inSync.Progress("b"); r+a+d != 0 {
				t.Errorf("progress %d/%d/%d was believed", r, a, d)
			}
		})
	}
}

func TestNeedsOutsideOfACopyAreRefused(t *testing.T) {
	c := fakePair(t, nil, func(st wire.Replication_StreamServer) error {
		if err := st.Send(&wire.Up{Kind: &wire.Up_Need{Need: &wire.Need{Path: []byte("f"), Contents: true}}}); err != nil {
			return err
		}
		return read(st)
	})
	c.run()
	c.refused("outside of a copy")
}

func TestAPeerThatDoesNotGreetIsRefused(t *testing.T) {
	leakCheck(t)
	c := &pair{t: t, p: newPrimary(t, "a"), timeout: 10 * time.Second}
	c.net = newServer(t, func(st wire.Replication_StreamServer) error {
		if err := st.Send(&wire.Up{Kind: &wire.Up_Ack{Ack: &wire.Ack{}}}); err != nil {
			return err
		}
		return read(st)
	})
	c.run()
	c.refused("did not greet")
}

// client is a primary made by hand.
type client struct {
	t      testing.TB
	stream wire.Replication_StreamClient
	hello  *wire.NodeState // the standby's
}

func dial(t testing.TB, net *server, greeting *wire.NodeState) *client {
	t.Helper()
	conn, err := net.dial()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(func() {
		cancel()
		_ = conn.Close()
	})
	stream, err := wire.NewReplicationClient(conn).Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cl := &client{t: t, stream: stream}
	if greeting != nil {
		cl.send(&wire.Down{Kind: &wire.Down_Hello{Hello: greeting}})
		if up, err := stream.Recv(); err == nil {
			cl.hello = up.GetHello()
		}
	}
	return cl
}

func (c *client) send(d *wire.Down) {
	c.t.Helper()
	if err := c.stream.Send(d); err != nil && err != io.EOF {
		c.t.Fatal(err)
	}
}

func (c *client) start(s *wire.Start) { c.send(&wire.Down{Kind: &wire.Down_Start{Start: s}}) }

// batch sends records as a batch that says what is in it.
func (c *client) batch(epoch uint64, records []byte) { c.send(down(batchOf(epoch, records))) }

func down(b *wire.Batch) *wire.Down { return &wire.Down{Kind: &wire.Down_Batch{Batch: b}} }

// batchOf reads first and last off the records, as far as these are sound.
func batchOf(epoch uint64, records []byte) *wire.Batch {
	b := &wire.Batch{Epoch: epoch, Records: records}
	for len(records) > 0 {
		h, err := record.PeekHeader(records)
		if err != nil {
			break
		}
		if b.First == 0 {
			b.First = h.LSN
		}
		b.Last = h.LSN
		records = records[min(h.Size, len(records)):]
	}
	return b
}

// ends waits for the standby to end the stream, and returns why.
func (c *client) ends() error {
	c.t.Helper()
	for {
		if _, err := c.stream.Recv(); err != nil {
			return err
		}
	}
}

// acked waits until the standby says that it has applied lsn.
func (c *client) acked(lsn uint64) {
	c.t.Helper()
	for {
		up, err := c.stream.Recv()
		if err != nil {
			c.t.Fatal(err)
		}
		if up.GetAck().GetApplied() >= lsn {
			return
		}
	}
}

func greeting(node string, epoch uint64, h History) *wire.NodeState {
	return &wire.NodeState{
		Identity: &wire.Identity{Cluster: "gitlab", Node: node, ClusterId: clusterID, Protocol: Protocol},
		Role:     wire.Role_ROLE_PRIMARY, Epoch: epoch, History: h.toWire(),
	}
}

// run of records: the LSNs from first on, in one epoch, each a new file.
func files(first uint64, n int, epoch uint64) (b []byte) {
	for i := range uint64(n) {
		r := record.Record{LSN: first + i, Epoch: epoch, Op: record.OpCreate, Path: fmt.Sprintf("f%d", first+i), Mode: unix.S_IFREG | 0o644, Fields: record.FieldPath | record.FieldMode}
		if r.LSN == 1 {
			r.Op, r.Path, r.Path2, r.Fields = record.OpEpoch, "a", clusterID, record.FieldPath|record.FieldPath2
		}
		b = r.Append(b)
	}
	return b
}

// served is a standby that has applied the records 1 to 10 of epoch 1 of a.
func served(t *testing.T) (*standby, *server) {
	t.Helper()
	leakCheck(t)
	s := newStandby(t, "b")
	if _, err := s.ring.AppendRaw(t.Context(), files(1, 10, 1)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ten records are applied", func() bool { return s.applied() == 10 })
	return s, newServer(t, s.handle)
}

func TestServeWantsAGreetingFirst(t *testing.T) {
	_, net := served(t)
	c := dial(t, net, nil)
	c.start(&wire.Start{From: 11})
	if err := c.ends(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "greeting") {
		t.Errorf("error %v", err)
	}
}

func TestServeTellsAnOldPrimaryTheEpoch(t *testing.T) {
	s, net := served(t)
	s.mu.Lock()
	s.epoch = 5
	s.mu.Unlock()
	c := dial(t, net, greeting("a", 4, nil))
	if c.hello.GetEpoch() != 5 {
		t.Errorf("answered with epoch %d, want 5", c.hello.GetEpoch())
	}
	if err := c.ends(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "epoch 4 is over") {
		t.Errorf("error %v", err)
	}
}

func TestServeFollowsOnePrimary(t *testing.T) {
	s, net := served(t)
	first := dial(t, net, greeting("a", 1, nil))
	first.start(&wire.Start{From: 11})
	eventually(t, "it follows a", func() bool { return s.Status().Connected })

	// Two primaries of one epoch: it keeps to the one it has.
	c := dial(t, net, greeting("c", 1, nil))
	if err := c.ends(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "follows a in epoch 1") {
		t.Errorf("error %v", err)
	}
	// The same one again, as after a cut that this side did not see yet.
	again := dial(t, net, greeting("a", 1, nil))
	again.start(&wire.Start{From: 11})
	if err := first.ends(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "replaced") {
		t.Errorf("error %v", err)
	}
	again.batch(1, files(11, 1, 1))
	again.acked(11)
	// One of a later epoch takes over.
	c = dial(t, net, greeting("c", 2, nil))
	c.start(&wire.Start{From: 12})
	if err := again.ends(); status.Code(err) != codes.Unavailable {
		t.Errorf("error %v", err)
	}
	r := record.Record{LSN: 12, Epoch: 2, Op: record.OpEpoch, Path: "c", Path2: clusterID, Fields: record.FieldPath | record.FieldPath2}
	c.batch(2, r.Append(nil))
	c.acked(12)
	if st := s.Status(); st.Primary != "c" || st.Epoch != 2 {
		t.Errorf("follows %s in epoch %d, want c in 2", st.Primary, st.Epoch)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if want := (History{{1, "a", 1}, {2, "c", 12}}); !slices.Equal(s.history, want) {
		t.Errorf("history %v, want %v", s.history, want)
	}
}

func TestStopEndsTheStream(t *testing.T) {
	s, net := served(t)
	c := dial(t, net, greeting("a", 1, nil))
	c.start(&wire.Start{From: 11})
	eventually(t, "it follows a", func() bool { return s.Status().Connected })
	s.Stop()
	if err := c.ends(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no longer a standby") {
		t.Errorf("error %v", err)
	}
	if s.Status().Connected {
		t.Error("still connected after Stop")
	}
}

func TestFinishAppliesWhatWasReceived(t *testing.T) {
	s, net := served(t)
	onlyReceive(s.Standby)
	c := dial(t, net, greeting("a", 1, nil))
	c.start(&wire.Start{From: 11})
	c.batch(1, files(11, 500, 1))
	eventually(t, "all is received", func() bool { return s.ring.Last() == 510 })
	s.Stop()
	if err := s.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Applier().State(); st.Applied != 510 || st.Durable != 510 {
		t.Errorf("applied %d, durable %d, want 510", st.Applied, st.Durable)
	}
	if _, err := os.Stat(filepath.Join(s.store, "f510")); err != nil {
		t.Error(err)
	}
}

// What the new primary declares void must not be applied any more, even if
// it was read from the log before.
func TestRecordsThatWereCutAreNotApplied(t *testing.T) {
	s, net := served(t)
	started := make(chan struct{})
	s.mu.Lock()
	s.onEpoch = func(Epoch) {
		<-started
		time.Sleep(50 * time.Millisecond) // so that the start waits for this record
	}
	s.mu.Unlock()
	// An epoch of c, in one batch, of which a later primary d shares a part. It is
	// said twice: a mutex is only handed to who waits at the second chance.
	var batch []byte
	for _, lsn := range []uint64{11, 12} {
		r := record.Record{LSN: lsn, Epoch: 2, Op: record.OpEpoch, Path: "c", Path2: clusterID, Fields: record.FieldPath | record.FieldPath2}
		batch = r.Append(batch)
	}
	if _, err := s.ring.AppendRaw(t.Context(), append(batch, files(13, 299, 2)...)); err != nil {
		t.Fatal(err)
	}
	c := dial(t, net, greeting("d", 3, History{{1, "a", 1}, {2, "c", 11}, {3, "d", 200}}))
	c.start(&wire.Start{From: 200})
	eventually(t, "the start is being taken", func() bool {
		if s.recvMu.TryLock() {
			s.recvMu.Unlock()
			return false
		}
		return true
	})
	close(started)
	eventually(t, "the log was cut", func() bool { return s.ring.Last() == 199 })
	time.Sleep(50 * time.Millisecond)
	if got := s.applied(); got > 199 {
		t.Errorf("applied %d, though the log was cut after 199", got)
	}
}

// The history of the new primary in the state of a store that is still the
// old one would make it pass for a prefix.
func TestStoreIsSuspectBeforeItTakesAnotherHistory(t *testing.T) {
	s, net := served(t)
	suspect := make(chan string, 1)
	s.mu.Lock()
	s.onBegin = func() { suspect <- s.Applier().State().Suspect }
	s.mu.Unlock()
	c := dial(t, net, greeting("c", 1, History{{1, "c", 1}}))
	c.start(&wire.Start{From: 50, Copy: true, CopyId: "x", Diverged: true, Reason: "test"})
	select {
	case got := <-suspect:
		if got == "" {
			t.Error("the store passes for sound while it takes another history")
		}
	case <-time.After(patience):
		t.Fatal("no copy begins")
	}
}

// Stop must not return while a copy's beginning still empties the store.
func TestStopWaitsForTheBeginningOfACopy(t *testing.T) {
	s, net := served(t)
	inside, goOn := make(chan struct{}), make(chan struct{})
	s.mu.Lock()
	s.onBegin = func() {
		close(inside)
		<-goOn
	}
	s.mu.Unlock()
	c := dial(t, net, greeting("a", 1, nil))
	c.start(&wire.Start{From: 50, Copy: true, CopyId: "x", Reason: "test"})
	<-inside
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.Stop()
	}()
	select {
	case <-stopped:
		t.Error("stopped while the store is about to be emptied")
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	select {
	case <-stopped:
	case <-time.After(patience):
		t.Fatal("Stop does not return")
	}
	if !Copying(s.Applier().State()) {
		t.Error("an emptied store passes for a whole one")
	}
}

func TestANewCopyWhileTheRingIsFull(t *testing.T) {
	s, net := served(t)
	onlyReceive(s.Standby) // the ring only fills
	c := dial(t, net, greeting("a", 1, History{{1, "a", 1}}))
	c.start(&wire.Start{From: 11})
	lsn := uint64(11)
	for sent := 0; sent < oplog.MinSize/2; lsn++ {
		r := record.Record{LSN: lsn, Epoch: 1, Op: record.OpWrite, Path: "f2", Data: make([]byte, 256<<10), Fields: record.FieldPath | record.FieldOffset | record.FieldData}
		b := r.Append(nil)
		c.batch(1, b)
		sent += len(b)
	}
	eventually(t, "all is received", func() bool { return s.ring.Last() == lsn-1 })
	c = dial(t, net, greeting("a", 1, History{{1, "a", 1}}))
	c.start(&wire.Start{From: 1000, Copy: true, CopyId: "x", Reason: "test"})
	eventually(t, "the log begins anew", func() bool { return s.ring.Next() == 1000 })
	entries, err := os.ReadDir(s.store)
	if err != nil || len(entries) != 0 {
		t.Errorf("left in the store: %v, %v", entries, err)
	}
	eventually(t, "the store is where the copy begins", func() bool { return s.applied() == 999 })
}

// onlyReceive stops the applying but not the receiving: as if the applier
// were slow.
func onlyReceive(s *Standby) {
	s.Stop()
	s.mu.Lock()
	s.stopped = false
	s.mu.Unlock()
}
