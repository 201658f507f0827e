package wire

import (
	"sync"

	"google.golang.org/grpc/mem"

	"github.com/replfs/replfs/replicate/record"
)

const (
	// BatchSize is up to how many bytes of records a sender puts in a batch, but
	// for a single record that is larger. The largest write(2) fits, so that no
	// memory has to be made for it.
	BatchSize = record.MaxData + 64<<10
	// MaxBatch bounds the records of a batch, compression undone.
	MaxBatch = record.MaxSize

	// envelope is room for what stands around the records of a batch.
	envelope = 256
	// copyLimit: what is smaller is copied rather than keep a whole buffer busy
	// until it is sent.
	copyLimit = 32 << 10
)

// buffers holds buffers for a batch. Unlike those of gRPC, which clears a
// buffer whenever it is used again, they come as they are.
var buffers = batchPool{sync.Pool{New: func() any {
	b := make([]byte, BatchSize+envelope)
	return &b
}}}

type batchPool struct{ pool sync.Pool }

// Get implements [mem.BufferPool].
func (p *batchPool) Get(n int) *[]byte {
	if n > BatchSize+envelope {
		b := make([]byte, n)
		return &b
	}
	b := p.pool.Get().(*[]byte)
	*b = (*b)[:n]
	return b
}

// Put implements [mem.BufferPool].
func (p *batchPool) Put(b *[]byte) {
	if cap(*b) == BatchSize+envelope {
		p.pool.Put(b)
	}
}

var _ mem.BufferPool = (*batchPool)(nil)
