package wire

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// pieces cuts b in buffers of n bytes, as a connection gives them.
func pieces(b []byte, n int) (s mem.BufferSlice) {
	for len(b) > 0 {
		n := min(n, len(b))
		s = append(s, mem.SliceBuffer(b[:n]))
		b = b[n:]
	}
	return s
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// What the codec sends is what protobuf would, and the other way around.
func TestBatchIsProtobuf(t *testing.T) {
	for _, n := range []int{0, 1, 100, copyLimit, BatchSize, BatchSize + 1, MaxBatch} {
		want := &Down{Kind: &Down_Batch{Batch: &Batch{
			Epoch: 3, First: 1 << 40, Last: 1<<40 + 7, Records: randomBytes(n), Compression: Compression_COMPRESSION_ZSTD, Size: 77,
		}}}
		b := want.GetBatch()
		sent, err := newCodec().Marshal(&Outgoing{
			Epoch: b.Epoch, First: b.First, Last: b.Last, Records: mem.SliceBuffer(b.Records), Compression: b.Compression, Size: b.Size,
		})
		if err != nil {
			t.Fatal(err)
		}
		var plain Down
		if err := proto.Unmarshal(sent.Materialize(), &plain); err != nil || !proto.Equal(&plain, want) {
			t.Fatalf("%d bytes: protobuf reads %v, %v", n, err, plain.GetBatch().GetLast())
		}
		encoded, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var in Incoming
		for name, data := range map[string]mem.BufferSlice{"the codec's": sent, "protobuf's": pieces(encoded, 16<<10)} {
			if err := newCodec().Unmarshal(data, &in); err != nil || !proto.Equal(&in.Down, want) {
				t.Fatalf("%d bytes, %s: %v", n, name, err)
			}
			if in.buf == nil {
				t.Errorf("%d bytes, %s: copied more than once", n, name)
			}
		}
		in.Free()
		if in.Down.GetBatch() != nil {
			t.Error("a batch is left after Free")
		}
	}
}

func TestOtherMessagesAreProtobuf(t *testing.T) {
	want := &Down{Kind: &Down_Standing{Standing: &Standing{InSync: true, Appended: 9}}}
	sent, err := newCodec().Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var in Incoming
	var down Down
	for _, v := range []any{&in, &down} {
		if err := newCodec().Unmarshal(sent, v); err != nil {
			t.Fatal(err)
		}
	}
	if !proto.Equal(&in.Down, want) || !proto.Equal(&down, want) {
		t.Errorf("got %v and %v", &in.Down, &down)
	}
	if err := newCodec().Unmarshal(pieces([]byte{0xff}, 1), &in); err == nil {
		t.Error("garbage passes for a message")
	}
}

// The memory of a batch is used again when it is not needed any more, and not
// before.
func TestBuffersAreReturnedOnce(t *testing.T) {
	buf := NewBuffer()
	b := append(buf.Space(), randomBytes(copyLimit)...)
	want := bytes.Clone(b)
	out, taken := buf.Batch(b)
	if !taken {
		t.Fatal("copied")
	}
	sent, err := newCodec().Marshal(&Outgoing{Records: out})
	if err != nil {
		t.Fatal(err)
	}
	out.Free() // as the sender does
	for range 10 {
		other := NewBuffer()
		clear(append(other.Space(), make([]byte, copyLimit)...))
	}
	if !bytes.HasSuffix(sent.Materialize(), want) {
		t.Error("the memory was used again before it was sent")
	}
	sent.Free()
	small := NewBuffer()
	if out, taken := small.Batch(append(small.Space(), 1, 2, 3)); taken || !bytes.Equal(out.ReadOnlyData(), []byte{1, 2, 3}) {
		t.Error("a few bytes keep a whole buffer busy")
	}
	large := randomBytes(BatchSize + 1)
	if out, taken := small.Batch(large); taken || out.Len() != len(large) {
		t.Error("a record in memory of its own")
	}
}

// FuzzIncoming decodes as protobuf does, whatever comes.
func FuzzIncoming(f *testing.F) {
	batch := &Batch{Epoch: 1, First: 2, Last: 3, Records: []byte("records"), Compression: 1, Size: 5}
	for _, d := range []*Down{
		{},
		{Kind: &Down_Batch{Batch: batch}},
		{Kind: &Down_Batch{Batch: &Batch{}}},
		{Kind: &Down_Start{Start: &Start{From: 7, Copy: true, CopyId: "x"}}},
		{Kind: &Down_Hello{Hello: &NodeState{Identity: &Identity{Node: "a"}, Accepts: Accepted(), History: []*EpochStart{{Epoch: 1}}}}},
		{Kind: &Down_Standing{Standing: &Standing{InSync: true}}},
	} {
		b, err := proto.Marshal(d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint16(3))
		f.Add(append(b, b...), uint16(1000))
		f.Add(b[:len(b)/2], uint16(1))
	}
	f.Add([]byte{0x1a, 4, 8, 1, 8, 2}, uint16(9))          // a field twice
	f.Add([]byte{0x9a, 0, 2, 0x22, 0}, uint16(9))          // a long tag
	f.Add([]byte{0x1a, 3, 0x28, 0xff, 0xff}, uint16(9))    // cut
	f.Add([]byte{0x1a, 4, 0x38, 1, 0x22, 0}, uint16(9))    // an unknown field
	f.Add([]byte{0x1a, 5, 0x20, 1, 0x2a, 1, 0}, uint16(9)) // wrong types
	f.Fuzz(func(t *testing.T, b []byte, n uint16) {
		var want Down
		wantErr := proto.Unmarshal(b, &want)
		var in Incoming
		err := newCodec().Unmarshal(pieces(b, int(n)+1), &in)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, protobuf says %v", err, wantErr)
		}
		if err == nil && !proto.Equal(&in.Down, &want) {
			t.Fatalf("got %v, protobuf %v", &in.Down, &want)
		}
		in.Free()
	})
}

func BenchmarkSend(b *testing.B) {
	for name, send := range map[string]func(buf *Buffer) error{
		"codec": func(buf *Buffer) error {
			out, taken := buf.Batch(buf.Space()[:BatchSize])
			if taken {
				*buf = NewBuffer()
			}
			data, err := newCodec().Marshal(&Outgoing{Epoch: 1, First: 2, Last: 3, Records: out})
			out.Free()
			data.Free()
			return err
		},
		"protobuf": func(buf *Buffer) error {
			data, err := newCodec().CodecV2.Marshal(&Down{Kind: &Down_Batch{Batch: &Batch{
				Epoch: 1, First: 2, Last: 3, Records: buf.Space()[:BatchSize],
			}}})
			data.Free()
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(BatchSize)
			buf := NewBuffer()
			for b.Loop() {
				if err := send(&buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkReceive(b *testing.B) {
	encoded, err := proto.Marshal(&Down{Kind: &Down_Batch{Batch: &Batch{Epoch: 1, First: 2, Last: 3, Records: randomBytes(BatchSize)}}})
	if err != nil {
		b.Fatal(err)
	}
	data := pieces(encoded, 16<<10)
	var in Incoming
	for name, v := range map[string]any{"codec": &in, "protobuf": &Down{}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(BatchSize)
			for b.Loop() {
				if err := newCodec().Unmarshal(data, v); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
