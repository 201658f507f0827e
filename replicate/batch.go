package replicate

import (
	"slices"

	"github.com/replfs/replfs/replicate/wire"
)

// outbox turns what a reader gave into messages: one batch each, compressed
// when that was asked for, the standby can undo it and it makes it smaller.
type outbox struct {
	buf  wire.Buffer
	comp *wire.Compressor // nil: as they are
}

// newOutbox makes one for a stream to peer.
func (s *Sender) newOutbox(peer *wire.NodeState) (*outbox, error) {
	o := &outbox{buf: wire.NewBuffer()}
	const zstd = wire.Compression_COMPRESSION_ZSTD
	if !s.cfg.Compress {
		return o, nil
	}
	if !slices.Contains(peer.GetAccepts(), zstd) {
		s.log.Warn("not compressing: the standby's version of replfs cannot undo it")
		return o, nil
	}
	var err error
	o.comp, err = wire.NewCompressor()
	return o, err
}

// space is where to read the next batch to.
func (o *outbox) space() []byte { return o.buf.Space() }

// sendBatch sends the records first to last, which were read to o's space or to
// memory of their own.
func (s *session) sendBatch(o *outbox, records []byte, first, last uint64) error {
	out := &wire.Outgoing{Epoch: s.cfg.Log.LastEpoch(), First: first, Last: last}
	if o.comp != nil {
		if out.Records = o.comp.Compress(records); out.Records != nil {
			out.Compression, out.Size = wire.Compression_COMPRESSION_ZSTD, uint32(len(records))
		}
	}
	if out.Records == nil {
		var taken bool
		if out.Records, taken = o.buf.Batch(records); taken {
			o.buf = wire.NewBuffer()
		}
	}
	defer out.Records.Free()
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	return s.stream.SendMsg(out)
}

// inbox is what a stream's standby needs to take batches.
type inbox struct {
	in   wire.Incoming
	undo wire.Decompressor
}

func (b *inbox) close() {
	b.in.Free()
	b.undo.Close()
}

// records takes the records out of a batch and checks that they are what it
// says, and of no earlier epoch than that. They are valid until the next message.
func (b *inbox) records(batch *wire.Batch, epoch uint64) ([]byte, error) {
	records, err := b.undo.Records(batch)
	if err == nil {
		err = batch.Check(records, epoch)
	}
	return records, err
}
