package replicate

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/replfs/replfs/replicate/wire"
)

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
			eventually(t, "the refusal is logged", func() bool {
				said := s.said.FilterMessage("refused what the primary sent").All()
				return len(said) == 1 && strings.Contains(fmt.Sprint(said[0].ContextMap()), tt.want)
			})
			// A sound primary goes on.
			next := tt.received + 1
			c = dial(t, net, greeting("a", 1, history))
			c.start(&wire.Start{From: next})
			c.batch(1, files(next, 1, 1))
			c.acked(next)
		})
	}
}
