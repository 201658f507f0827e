package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
)

// What replication is compared with: a stream of messages over gRPC, set up as
// the nodes do, whose receiver writes them to a file. No log, no checksums, no
// protobuf, no copy but gRPC's own.

// rawCodec sends buffers as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "raw" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*rawMessage)
	if !ok {
		return nil, fmt.Errorf("not to be sent: %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b.data)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*rawMessage)
	if !ok {
		return fmt.Errorf("not to be received: %T", v)
	}
	b.data = b.room[:data.Len()]
	data.CopyTo(b.data)
	return nil
}

type rawMessage struct{ data, room []byte }

const (
	rawBatch  = 512 << 10
	rawWindow = 8 << 20
	rawBuffer = 256 << 10
)

func rawStream(ctx context.Context, path string, size int64) (speed float64, err error) {
	f, err := fresh(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("listen: %w", err)
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}),
		grpc.InitialWindowSize(rawWindow), grpc.InitialConnWindowSize(rawWindow),
		grpc.WriteBufferSize(rawBuffer), grpc.ReadBufferSize(rawBuffer))
	desc := grpc.StreamDesc{StreamName: "Write", ClientStreams: true, ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		return rawReceive(s, f)
	}}
	server.RegisterService(&grpc.ServiceDesc{ServiceName: "bench.Raw", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{desc}}, nil)
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	defer func() {
		server.Stop()
		<-served //nolint:errcheck // it was stopped
	}()
	conn, err := grpc.NewClient("passthrough:///"+lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})), grpc.WithNoProxy(),
		grpc.WithInitialWindowSize(rawWindow), grpc.WithInitialConnWindowSize(rawWindow),
		grpc.WithWriteBufferSize(rawBuffer), grpc.WithReadBufferSize(rawBuffer))
	if err != nil {
		return 0, fmt.Errorf("dial: %w", err)
	}
	defer conn.Close()
	stream, err := conn.NewStream(ctx, &desc, "/bench.Raw/Write")
	if err != nil {
		return 0, fmt.Errorf("open a stream: %w", err)
	}
	buf := incompressible(rawBatch)
	begun := time.Now()
	for off := int64(0); off < size; off += rawBatch {
		if err := stream.SendMsg(&rawMessage{data: buf}); err != nil {
			return 0, fmt.Errorf("send: %w", err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	if err := stream.RecvMsg(&rawMessage{room: make([]byte, 1)}); err != nil {
		return 0, fmt.Errorf("receive the answer: %w", err)
	}
	return rate(size, time.Since(begun)), nil
}

// rawReceive writes what comes, and answers when all is written.
func rawReceive(s grpc.ServerStream, f *os.File) error {
	m := &rawMessage{room: make([]byte, rawBatch)}
	for off := int64(0); ; {
		err := s.RecvMsg(m)
		if errors.Is(err, io.EOF) {
			return s.SendMsg(&rawMessage{data: []byte{0}})
		}
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(m.data, off); err != nil {
			return err
		}
		off += int64(len(m.data))
	}
}

// incompressible is data that nothing makes smaller, the same each time.
func incompressible(n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{1})
	_, _ = src.Read(b) // it never fails
	return b
}
