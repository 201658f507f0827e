package replicate

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/replfs/replfs/replicate/record"
	"github.com/replfs/replfs/replicate/wire"
)

// sent counts what a sender sends as batches.
type sent struct{ batches, compressed, payload, bytes atomic.Int64 }

type sentStream struct {
	grpc.ClientStream
	n *sent
}

func (n *sent) intercept(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, m string, s grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
	st, err := s(ctx, d, cc, m, o...)
	return &sentStream{st, n}, err
}

func (s *sentStream) SendMsg(m any) error {
	if b, ok := m.(*wire.Outgoing); ok {
		s.n.batches.Add(1)
		s.n.bytes.Add(int64(b.Records.Len()))
		if b.Compression == wire.Compression_COMPRESSION_ZSTD {
			s.n.compressed.Add(1)
			s.n.payload.Add(int64(b.Size))
		}
	}
	return s.ClientStream.SendMsg(m)
}

// Nodes whose configs differ understand each other: who receives takes either.
func TestCompressionIsTheSenders(t *testing.T) {
	tests := map[string]struct {
		compress, accepts bool
	}{
		"none": {}, "zstd": {true, true}, "zstd for a version that cannot undo it": {true, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := newPair(t)
			var n sent
			c.compress, c.s.mute = tt.compress, !tt.accepts
			c.dialing = []grpc.DialOption{grpc.WithStreamInterceptor(n.intercept)}
			c.p.must(c.p.create("text"))
			for i := range int64(50) {
				c.p.must(c.p.write("text", i<<14, bytes.Repeat(fmt.Appendf(nil, "line %d\n", i), 1000)))
			}
			c.run()
			c.joined()
			c.same()
			want := tt.compress && tt.accepts
			if got := n.compressed.Load() > 0; got != want {
				t.Errorf("%d of %d batches were compressed", n.compressed.Load(), n.batches.Load())
			}
			if want && n.bytes.Load() > n.payload.Load()/2 {
				t.Errorf("%d bytes for %d of text", n.bytes.Load(), n.payload.Load())
			}
		})
	}
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

// FuzzServe plays a primary that greets well and then sends what it likes. The
// standby must refuse or take it, be at an LSN that its log has, and follow a
// sound primary afterwards.
func FuzzServe(f *testing.F) {
	seed := func(msgs ...*wire.Down) {
		var b []byte
		for _, m := range msgs {
			b = appendMessage(b, m)
		}
		f.Add(b)
	}
	start := func(s *wire.Start) *wire.Down { return &wire.Down{Kind: &wire.Down_Start{Start: s}} }
	standing := &wire.Down{Kind: &wire.Down_Standing{Standing: &wire.Standing{InSync: true, Appended: 99}}}
	seed(start(&wire.Start{From: 1}), down(batchOf(1, files(1, 5, 1))), standing)
	seed(start(&wire.Start{From: 1}), down(batchOf(1, files(1, 5, 1))), down(batchOf(1, files(6, 5, 1))))
	seed(start(&wire.Start{From: 1}), down(batchOf(1, files(2, 5, 1))))
	seed(start(&wire.Start{From: 9, Copy: true, CopyId: "x", Diverged: true}), down(batchOf(1, files(9, 2, 1))))
	seed(standing, start(&wire.Start{From: 1 << 62, Copy: true}))
	seed(down(batchOf(1, files(1, 5, 1))), standing, &wire.Down{})
	mixed := record.Record{
		LSN: 1, Epoch: 1, Op: record.OpRename, Path: "a", Path2: "b",
		Fields: record.FieldPath | record.FieldPath2,
	}
	seed(start(&wire.Start{From: 1}), down(batchOf(1, mixed.Append(nil))))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newStandby(t, "b")
		net := newServer(t, s.handle)
		c := dial(t, net, greeting("a", 1, History{{1, "a", 1}}))
		for range 20 {
			var m *wire.Down
			if m, b = nextMessage(b); m == nil {
				break
			}
			c.send(m)
		}
		if err := c.stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		_ = c.ends()
		st := s.Applier().State()
		if last := s.ring.Last(); st.Applied > last {
			t.Fatalf("applied %d, the log ends at %d", st.Applied, last)
		}
		// A copy mends whatever came.
		first := uint64(1000)
		begin := record.Record{
			LSN: first, Epoch: 2, Op: record.OpSyncBegin, Path: "b", Path2: "copy",
			Fields: record.FieldPath | record.FieldPath2,
		}
		end := begin
		end.LSN, end.Op = first+1, record.OpSyncEnd
		c = dial(t, net, greeting("a", 2, History{{2, "a", first}}))
		c.start(&wire.Start{From: first, Copy: true, CopyId: "copy"})
		c.batch(2, end.Append(begin.Append(nil)))
		eventually(t, "the copy is complete", func() bool {
			st := s.Applier().State()
			return st.Applied == first+1 && st.SyncID == "copy" && !st.Syncing
		})
	})
}
