package wire

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/mem"

	"github.com/replfs/replfs/replicate/record"
)

// ErrBatch is wrapped by the errors for a batch that is not what it says.
var ErrBatch = errors.New("bad batch")

// Buffer is memory for the records of one batch to be sent. One that was handed
// over with Send must not be used again.
type Buffer struct{ b *[]byte }

// NewBuffer takes a buffer of BatchSize bytes from the pool.
func NewBuffer() Buffer { return Buffer{buffers.Get(BatchSize)} }

// Space is the memory, empty, with its capacity.
func (b Buffer) Space() []byte { return (*b.b)[:0:BatchSize] }

// Batch makes records, which are in Space or in memory of their own, a buffer to
// send. Without copying it has taken b, which must then be replaced (taken).
func (b Buffer) Batch(records []byte) (out mem.Buffer, taken bool) {
	if len(records) < copyLimit {
		return mem.Copy(records, mem.DefaultBufferPool()), false
	}
	if cap(records) != BatchSize || &records[0] != &(*b.b)[:1][0] {
		return mem.SliceBuffer(records), false
	}
	*b.b = (*b.b)[:len(records)]
	return mem.NewBuffer(b.b, &buffers), true
}

// Check says whether the batch holds what it says: whole records from First to
// Last, no more than MaxBatch bytes, with epochs that never fall, from epoch to
// the batch's. records are its records, compression undone. The records'
// checksums and fields are not looked at.
func (b *Batch) Check(records []byte, epoch uint64) error {
	if len(records) == 0 {
		return fmt.Errorf("%w: no records", ErrBatch)
	}
	if len(records) > MaxBatch {
		return fmt.Errorf("%w: %d bytes of records, the limit is %d", ErrBatch, len(records), MaxBatch)
	}
	next := b.GetFirst()
	for len(records) > 0 {
		h, err := record.PeekHeader(records)
		switch {
		case err != nil:
			return fmt.Errorf("%w: where record %d should be: %w", ErrBatch, next, err)
		case h.Size > len(records):
			return fmt.Errorf("%w: record %d: %w", ErrBatch, next, record.ErrShort)
		case h.LSN != next:
			return fmt.Errorf("%w: LSN %d where %d should be", ErrBatch, h.LSN, next)
		case h.Epoch < epoch:
			return fmt.Errorf("%w: record %d is of epoch %d, after one of epoch %d", ErrBatch, h.LSN, h.Epoch, epoch)
		case h.Epoch > b.GetEpoch():
			return fmt.Errorf("%w: record %d is of epoch %d, the batch of epoch %d", ErrBatch, h.LSN, h.Epoch, b.GetEpoch())
		}
		next++
		epoch = h.Epoch
		records = records[h.Size:]
	}
	if next-1 != b.GetLast() {
		return fmt.Errorf("%w: it ends at LSN %d and says %d", ErrBatch, next-1, b.GetLast())
	}
	return nil
}
