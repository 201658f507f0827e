package wire

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/mem"
)

const (
	// minCompress: what is smaller is not worth the time.
	minCompress = 512
	// maxSkip is how many batches are sent as they are after some that would
	// not become smaller, before another is tried.
	maxSkip = 64
)

// Accepted are the compressions that this version can undo.
func Accepted() []Compression { return []Compression{Compression_COMPRESSION_ZSTD} }

// A Compressor makes batches smaller. It is for one goroutine at a time.
type Compressor struct {
	enc        *zstd.Encoder
	skip, wait int
}

// NewCompressor makes one for zstd.
func NewCompressor() (*Compressor, error) {
	// Records have checksums of their own.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(1<<20), zstd.WithSingleSegment(true))
	if err != nil {
		return nil, fmt.Errorf("make a compressor: %w", err)
	}
	return &Compressor{enc: enc}, nil
}

// Compress returns the records compressed; nil if that makes them not smaller,
// or if it was not tried because the batches before did not become smaller.
func (c *Compressor) Compress(records []byte) mem.Buffer {
	if len(records) < minCompress || len(records) > MaxBatch {
		return nil
	}
	if c.wait > 0 {
		c.wait--
		return nil
	}
	b := buffers.Get(len(records))
	out := c.enc.EncodeAll(records, (*b)[:0])
	// A sixteenth is about what the effort is worth.
	if len(out) > len(records)-len(records)/16 {
		c.skip = min(2*c.skip+1, maxSkip)
		c.wait = c.skip
	} else {
		c.skip = 0
	}
	if len(out) >= len(records) {
		buffers.Put(b)
		return nil
	}
	if len(out) >= copyLimit && &out[0] == &(*b)[0] {
		*b = (*b)[:len(out)]
		return mem.NewBuffer(b, &buffers)
	}
	small := mem.Copy(out, mem.DefaultBufferPool())
	buffers.Put(b)
	return small
}

// A Decompressor undoes what a peer's Compressor did. It is for one goroutine
// at a time.
type Decompressor struct {
	dec *zstd.Decoder
	buf []byte
}

// Records returns the records of a batch, compression undone; they alias the
// batch, or memory that the next call uses again. It takes no more memory than
// MaxBatch and a window, whatever the batch says. Every error wraps ErrBatch.
func (d *Decompressor) Records(b *Batch) ([]byte, error) {
	switch b.GetCompression() {
	case Compression_COMPRESSION_NONE:
		return b.GetRecords(), nil
	case Compression_COMPRESSION_ZSTD:
	default:
		return nil, fmt.Errorf("%w: compression %d is unknown to this version of replfs; install the same version on every node", ErrBatch, b.GetCompression())
	}
	size := b.GetSize()
	if size == 0 || size > MaxBatch {
		return nil, fmt.Errorf("%w: %d bytes when decompressed, the limit is %d", ErrBatch, size, MaxBatch)
	}
	if d.dec == nil {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(MaxBatch), zstd.WithDecoderMaxWindow(MaxBatch), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return nil, fmt.Errorf("make a decompressor: %w", err)
		}
		d.dec = dec
	}
	if cap(d.buf) < int(size) {
		d.buf = make([]byte, 0, max(int(size), BatchSize))
	}
	// The capacity is the limit.
	out, err := d.dec.DecodeAll(b.GetRecords(), d.buf[:0:size])
	if err != nil {
		return nil, fmt.Errorf("%w: decompress: %w", ErrBatch, err)
	}
	if len(out) != int(size) {
		return nil, fmt.Errorf("%w: %d bytes when decompressed, it says %d", ErrBatch, len(out), size)
	}
	return out, nil
}

// Close frees what the decompressor holds.
func (d *Decompressor) Close() {
	if d.dec != nil {
		d.dec.Close()
		d.dec = nil
	}
	d.buf = nil
}
