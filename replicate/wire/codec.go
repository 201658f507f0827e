package wire

import (
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// The numbers of the fields, as in replicate.proto.
const (
	downBatch = 3

	batchEpoch       = 1
	batchFirst       = 2
	batchLast        = 3
	batchRecords     = 4
	batchCompression = 5
	batchSize        = 6
)

// Dial makes a connection's messages go through the codec, which [Outgoing]
// needs. What is sent is protobuf all the same: the peer need not have it.
func Dial() grpc.DialOption {
	return grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec()))
}

// Serve makes a server's messages go through the codec, which [Incoming] needs.
func Serve() grpc.ServerOption { return grpc.ForceServerCodecV2(newCodec()) }

// codec is gRPC's own for protobuf, but for the messages of a stream that may
// hold a batch.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name)} }

// Outgoing is a batch to be sent, as a message of a stream's client. It is a
// [Down] on the wire.
type Outgoing struct {
	Epoch, First, Last uint64
	// Records are not copied. The sender keeps its reference.
	Records mem.Buffer
	// Compression is how Records are compressed, Size what they are without.
	Compression Compression
	Size        uint32
}

// Incoming is what a stream's server receives. A batch's records are valid
// until the next message, or Free. It may be used again, but not copied.
type Incoming struct {
	Down Down

	kind  Down_Batch
	batch Batch
	buf   mem.Buffer
}

// Free gives back the memory of a batch.
func (in *Incoming) Free() {
	if in.buf != nil {
		in.batch.Records = nil
		in.Down.Kind = nil
		in.buf.Free()
		in.buf = nil
	}
}

// Marshal implements [encoding.CodecV2].
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	out, ok := v.(*Outgoing)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	n := out.Records.Len()
	// The records come last, so that all else is one piece before them.
	fields := make([]byte, 0, envelope)
	number := func(field protowire.Number, v uint64) {
		if v != 0 {
			fields = protowire.AppendTag(fields, field, protowire.VarintType)
			fields = protowire.AppendVarint(fields, v)
		}
	}
	number(batchEpoch, out.Epoch)
	number(batchFirst, out.First)
	number(batchLast, out.Last)
	number(batchCompression, uint64(out.Compression))
	number(batchSize, uint64(out.Size))
	fields = protowire.AppendTag(fields, batchRecords, protowire.BytesType)
	fields = protowire.AppendVarint(fields, uint64(n))

	head := make([]byte, 0, len(fields)+16)
	head = protowire.AppendTag(head, downBatch, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(fields)+n))
	head = append(head, fields...)
	out.Records.Ref()
	return mem.BufferSlice{mem.SliceBuffer(head), out.Records}, nil
}

// Unmarshal implements [encoding.CodecV2].
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*Incoming)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	in.Free()
	buf := data.MaterializeToBuffer(&buffers)
	if in.parse(buf.ReadOnlyData()) {
		in.buf = buf
		in.kind.Batch = &in.batch
		in.Down.Kind = &in.kind
		return nil
	}
	defer buf.Free()
	if err := proto.Unmarshal(buf.ReadOnlyData(), &in.Down); err != nil {
		return fmt.Errorf("decode a message of the stream: %w", err)
	}
	return nil
}

// parse takes b apart if it is nothing but a batch of which each field comes
// at most once, as everybody sends it. All else is left to protobuf.
func (in *Incoming) parse(b []byte) bool {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 || num != downBatch || typ != protowire.BytesType {
		return false
	}
	b, rest := consumeBytes(b[n:])
	if b == nil || rest != 0 {
		return false
	}
	var (
		seen    uint
		numbers [batchSize + 1]uint64
		records []byte
	)
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 || num > batchSize || seen&(1<<num) != 0 {
			return false
		}
		seen |= 1 << num
		b = b[n:]
		switch {
		case num == batchRecords && typ == protowire.BytesType:
			v, rest := consumeBytes(b)
			if v == nil {
				return false
			}
			records, b = v, b[len(b)-rest:]
		case num != batchRecords && typ == protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return false
			}
			numbers[num], b = v, b[n:]
		default:
			return false
		}
	}
	in.batch.Reset()
	in.batch.Epoch, in.batch.First, in.batch.Last = numbers[batchEpoch], numbers[batchFirst], numbers[batchLast]
	in.batch.Compression, in.batch.Size = Compression(int32(numbers[batchCompression])), uint32(numbers[batchSize])
	in.batch.Records = records
	in.Down.Reset()
	return true
}

// consumeBytes returns a length-delimited value, not nil, and how much follows.
func consumeBytes(b []byte) (v []byte, rest int) {
	v, n := protowire.ConsumeBytes(b)
	if n < 0 {
		return nil, 0
	}
	return v, len(b) - n
}
