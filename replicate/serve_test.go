package replicate

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
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
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

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

// appendMessage puts a message behind its length.
func appendMessage(b []byte, m *wire.Down) []byte {
	p, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append(protowire.AppendVarint(b, uint64(len(p))), p...)
}

// nextMessage takes one off; nil when what is there is none. Checksums of
// records are put right, so that a fuzzer gets past them.
func nextMessage(b []byte) (*wire.Down, []byte) {
	p, n := protowire.ConsumeBytes(b)
	if n < 0 {
		return nil, nil
	}
	m := &wire.Down{}
	if proto.Unmarshal(p, m) != nil {
		return nil, nil
	}
	if r := m.GetBatch().GetRecords(); r != nil {
		for len(r) >= record.HeaderSize {
			n := int(binary.LittleEndian.Uint32(r))
			if n < record.HeaderSize || n > len(r) {
				break
			}
			castagnoli := crc32.MakeTable(crc32.Castagnoli)
			crc := crc32.Update(crc32.Checksum(r[record.HeaderSize:n], castagnoli), castagnoli, r[8:record.HeaderSize])
			binary.LittleEndian.PutUint32(r[4:], crc)
			r = r[n:]
		}
	}
	return m, b[n:]
}

// squeezed is the batch compressed.
func squeezed(t testing.TB, b *wire.Batch) *wire.Batch {
	t.Helper()
	c, err := wire.NewCompressor()
	if err != nil {
		t.Fatal(err)
	}
	z := c.Compress(b.Records)
	if z == nil {
		t.Fatal("does not become smaller")
	}
	defer z.Free()
	return &wire.Batch{
		Epoch: b.Epoch, First: b.First, Last: b.Last, Size: uint32(len(b.Records)),
		Records: bytes.Clone(z.ReadOnlyData()), Compression: wire.Compression_COMPRESSION_ZSTD,
	}
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

func TestServeRefuses(t *testing.T) {
	history := History{{1, "a", 1}}
	damaged := files(11, 3, 1)
	damaged[len(damaged)-1] ^= 1
	cut := files(11, 3, 1)
	cut = cut[:len(cut)-1]
	tests := []struct {
		name     string
		do       func(c *client)
		code     codes.Code
		want     string
		received uint64
	}{
		{"a batch with a damaged record", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.batch(1, damaged)
		}, codes.DataLoss, "checksum", 12}, // the sound ones before it stay
		{"half a record", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.batch(1, cut)
		}, codes.DataLoss, "truncated", 10},
		{"garbage", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.batch(1, []byte(strings.Repeat("garbage", 20)))
		}, codes.DataLoss, "corrupt", 10},
		{"a record left out", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.batch(1, files(12, 1, 1))
		}, codes.DataLoss, "12 came, 11 is next", 10},
		{"a record left out in the middle", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.batch(1, append(files(11, 1, 1), files(13, 1, 1)...))
		}, codes.DataLoss, "LSN 13 where 12 should be", 10},
		{"records before those it says", func(c *client) {
			c.start(&wire.Start{From: 11})
			b := batchOf(1, files(11, 3, 1))
			b.First++
			c.send(down(b))
		}, codes.DataLoss, "LSN 11 where 12 should be", 10},
		{"fewer records than it says", func(c *client) {
			c.start(&wire.Start{From: 11})
			b := batchOf(1, files(11, 3, 1))
			b.Last++
			c.send(down(b))
		}, codes.DataLoss, "ends at LSN 13 and says 14", 10},
		{"more records than it says", func(c *client) {
			c.start(&wire.Start{From: 11})
			b := batchOf(1, files(11, 3, 1))
			b.Last--
			c.send(down(b))
		}, codes.DataLoss, "ends at LSN 13 and says 12", 10},
		{"a batch without records", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.send(down(&wire.Batch{Epoch: 1, First: 11, Last: 11}))
		}, codes.DataLoss, "no records", 10},
		{"a record of a later epoch than its batch", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.batch(1, files(11, 1, 2))
		}, codes.DataLoss, "of epoch 2, the batch of epoch 1", 10},
		{"a record of an earlier epoch than the log", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.batch(1, files(11, 1, 0))
		}, codes.DataLoss, "of epoch 0, after one of epoch 1", 10},
		{"a batch that is too large", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.batch(1, files(11, wire.MaxBatch/40, 1))
		}, codes.DataLoss, "the limit is", 10},
		{"a message that is too large", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.send(down(&wire.Batch{Epoch: 1, Records: make([]byte, 5<<20)}))
		}, codes.ResourceExhausted, "larger than max", 10},
		{"an unknown compression", func(c *client) {
			c.start(&wire.Start{From: 11})
			b := batchOf(1, files(11, 3, 1))
			b.Compression = 7
			c.send(down(b))
		}, codes.DataLoss, "unknown to this version", 10},
		{"a compressed batch that is none", func(c *client) {
			c.start(&wire.Start{From: 11})
			b := batchOf(1, files(11, 3, 1))
			b.Compression, b.Size = wire.Compression_COMPRESSION_ZSTD, 1000
			c.send(down(b))
		}, codes.DataLoss, "decompress", 10},
		{"a compressed batch larger than it says", func(c *client) {
			c.start(&wire.Start{From: 11})
			b := squeezed(c.t, batchOf(1, files(11, 30, 1)))
			b.Size--
			c.send(down(b))
		}, codes.DataLoss, "decompress", 10},
		{"a compressed batch smaller than it says", func(c *client) {
			c.start(&wire.Start{From: 11})
			b := squeezed(c.t, batchOf(1, files(11, 30, 1)))
			b.Size++
			c.send(down(b))
		}, codes.DataLoss, "it says", 10},
		{"a compressed batch that says too much", func(c *client) {
			c.start(&wire.Start{From: 11})
			b := squeezed(c.t, batchOf(1, files(11, 30, 1)))
			b.Size = 1<<32 - 1
			c.send(down(b))
		}, codes.DataLoss, "the limit is", 10},
		{"a record twice", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.batch(1, append(files(11, 1, 1), files(11, 1, 1)...))
		}, codes.DataLoss, "LSN 11 where 12 should be", 10},
		{"records that it has", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.batch(1, files(5, 1, 1))
		}, codes.DataLoss, "5 came, 11 is next", 10},
		{"a batch of a higher epoch", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.batch(2, files(11, 1, 2))
		}, codes.InvalidArgument, "a batch of epoch 2 in a stream of epoch 1", 10},
		{"records before the start", func(c *client) { c.batch(1, files(11, 1, 1)) }, codes.InvalidArgument, "before the start", 10},
		{"two starts", func(c *client) {
			c.start(&wire.Start{From: 11})
			c.start(&wire.Start{From: 11})
		}, codes.InvalidArgument, "two starts", 10},
		{"a start at 0", func(c *client) { c.start(&wire.Start{}) }, codes.InvalidArgument, "begins at 1", 10},
		{"a copy from 0", func(c *client) { c.start(&wire.Start{Copy: true}) }, codes.InvalidArgument, "begins at 1", 10},
		{"a start in what is applied", func(c *client) { c.start(&wire.Start{From: 10}) }, codes.InvalidArgument, "has applied 10", 10},
		{"a start past the end", func(c *client) { c.start(&wire.Start{From: 12}) }, codes.InvalidArgument, "go on at 12", 10},
		{"a second greeting", func(c *client) {
			c.send(&wire.Down{Kind: &wire.Down_Hello{Hello: greeting("a", 1, history)}})
		}, codes.InvalidArgument, "unknown message", 10},
		{"an empty message", func(c *client) { c.send(&wire.Down{}) }, codes.InvalidArgument, "unknown message", 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, net := served(t)
			c := dial(t, net, greeting("a", 1, history))
			tt.do(c)
			err := c.ends()
			if status.Code(err) != tt.code || !strings.Contains(status.Convert(err).Message(), tt.want) {
				t.Errorf("error %v, want %v with %q", err, tt.code, tt.want)
			}
			eventually(t, "the stream is over and all is applied", func() bool {
				return !s.Status().Connected && s.applied() == s.ring.Last()
			})
			if got := s.ring.Last(); got != tt.received {
				t.Errorf("the log ends at %d, want %d", got, tt.received)
			}
			st := s.Status()
			if st.Suspect != "" || st.Trouble != "" {
				t.Errorf("what was refused harmed the store: suspect %q, trouble %q", st.Suspect, st.Trouble)
			}
			// A sound primary goes on.
			next := tt.received + 1
			c = dial(t, net, greeting("a", 1, history))
			c.start(&wire.Start{From: next})
			c.batch(1, files(next, 1, 1))
			c.acked(next)
		})
	}
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
