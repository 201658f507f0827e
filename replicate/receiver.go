package replicate

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/replfs/replfs/replicate/wire"
)

func (l *link) push(up *wire.Up) {
	l.mu.Lock()
	l.out = append(l.out, up)
	l.mu.Unlock()
	l.signal()
}

func (l *link) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Serve handles the stream of a primary. check decides whether its identity
// is believed (certificate, config, cluster). It returns when the stream ends.
func (s *Standby) Serve(stream wire.Replication_StreamServer, check func(*wire.Identity) error) error {
	down, err := stream.Recv()
	if err != nil {
		return err
	}
	primary := down.GetHello()
	if primary == nil {
		return status.Error(codes.InvalidArgument, "a stream begins with a greeting")
	}
	if err := check(primary.GetIdentity()); err != nil {
		s.log.Warn("refused a primary", zap.String("peer", primary.GetIdentity().GetNode()),
			zap.String("cluster", primary.GetIdentity().GetCluster()), zap.Error(err))
		return err
	}
	self := s.cfg.Self()
	// The answer goes first: a primary of an old epoch learns from it that
	// it is one.
	if err := stream.Send(&wire.Up{Kind: &wire.Up_Hello{Hello: self}}); err != nil {
		return err
	}
	if primary.GetEpoch() < self.GetEpoch() {
		s.log.Warn("refused a primary of an old epoch", zap.String("peer", primary.GetIdentity().GetNode()), zap.Uint64("its_epoch", primary.GetEpoch()), zap.Uint64("epoch", self.GetEpoch()))
		return status.Errorf(codes.FailedPrecondition, "epoch %d is over, this node knows %d", primary.GetEpoch(), self.GetEpoch())
	}
	if err := s.cfg.Greeted(primary); err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	l := &link{
		peer: primary.GetIdentity().GetNode(), epoch: primary.GetEpoch(),
		cancel: cancel, done: make(chan struct{}), begun: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	if err := s.attach(l); err != nil {
		return err
	}
	defer s.detach(l)
	return s.session(ctx, stream, l, primary)
}

// attach makes l the one link. A primary that connects again takes over its
// own old connection.
func (s *Standby) attach(l *link) error {
	for {
		s.mu.Lock()
		if s.stopped {
			s.mu.Unlock()
			return status.Error(codes.FailedPrecondition, "this node is no longer a standby")
		}
		old := s.link
		if old == nil {
			s.link, s.primary, s.contact = l, l.peer, time.Now()
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		if old.epoch > l.epoch || old.epoch == l.epoch && old.peer != l.peer {
			return status.Errorf(codes.FailedPrecondition, "this node follows %s in epoch %d", old.peer, old.epoch)
		}
		old.cancel(errors.New("replaced by a newer connection"))
		<-old.done
	}
}

func (s *Standby) detach(l *link) {
	// The receiving goroutine may be in the middle of a message.
	l.cancel(errors.New("the stream ended"))
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	s.mu.Lock()
	if s.link == l {
		s.link = nil
		s.contact = time.Now()
	}
	s.mu.Unlock()
	close(l.done)
	s.log.Info("stream of the primary ended", zap.String("peer", l.peer))
}

func (s *Standby) session(ctx context.Context, stream wire.Replication_StreamServer, l *link, primary *wire.NodeState) error {
	// Receiving cannot be interrupted but by returning: a goroutine does it.
	errs := make(chan error, 2)
	go func() {
		err := s.receive(ctx, stream, l, primary)
		if refusal(err) {
			s.log.Error("refused what the primary sent", zap.String("peer", l.peer), zap.Uint64("epoch", l.epoch), zap.Error(err))
		}
		errs <- err
	}()
	go func() { errs <- s.answer(ctx, stream, l) }()
	select {
	case err := <-errs:
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			return status.Error(codes.Unavailable, cause.Error())
		}
		return err
	case <-ctx.Done():
		return status.Error(codes.Unavailable, context.Cause(ctx).Error())
	}
}

// refusal tells what was wrong with a message from what ended the stream
// otherwise.
func refusal(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.DataLoss, codes.FailedPrecondition,
		codes.ResourceExhausted, codes.Internal: // too large, not to be decoded
		return true
	}
	return false
}

func (s *Standby) receive(ctx context.Context, stream wire.Replication_StreamServer, l *link, primary *wire.NodeState) error {
	started := false
	var box inbox
	defer box.close()
	for {
		if err := stream.RecvMsg(&box.in); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch k := box.in.Down.GetKind().(type) {
		case *wire.Down_Start:
			if started {
				return status.Error(codes.InvalidArgument, "two starts in one stream")
			}
			started = true
			if err := s.whileLinked(l, func() error { return s.begin(k.Start, primary) }); err != nil {
				return err
			}
			close(l.begun)
		case *wire.Down_Batch:
			if !started {
				return status.Error(codes.InvalidArgument, "records before the start")
			}
			if err := s.whileLinked(l, func() error { return s.batch(ctx, k.Batch, l, &box) }); err != nil {
				return err
			}
		case *wire.Down_Standing:
			if err := s.standing(k.Standing); err != nil {
				return err
			}
		default:
			return status.Error(codes.InvalidArgument, "unknown message")
		}
	}
}

// whileLinked does f unless l was replaced: what an old stream still holds
// must not reach the log of the next one.
func (s *Standby) whileLinked(l *link, f func() error) error {
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	s.mu.Lock()
	current := s.link == l
	s.mu.Unlock()
	if !current {
		return status.Error(codes.Unavailable, "the stream ended")
	}
	return f()
}

func (s *Standby) begin(start *wire.Start, primary *wire.NodeState) error {
	if start.GetFrom() == 0 {
		return status.Error(codes.InvalidArgument, "a log begins at 1")
	}
	if !start.GetCopy() {
		return s.resume(start.GetFrom())
	}
	s.log.Info("receiving a complete copy", zap.String("reason", start.GetReason()), zap.Uint64("from", start.GetFrom()))
	if err := s.prepareCopy(start, primary); err != nil {
		s.setTrouble(err.Error(), false)
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	s.setTrouble("", false)
	select {
	case s.kick <- struct{}{}:
	default:
	}
	return nil
}

func (s *Standby) batch(ctx context.Context, b *wire.Batch, l *link, box *inbox) error {
	if b.GetEpoch() > l.epoch {
		return status.Errorf(codes.InvalidArgument, "a batch of epoch %d in a stream of epoch %d", b.GetEpoch(), l.epoch)
	}
	if s.cfg.Busy != nil {
		s.cfg.Busy()
	}
	records, err := box.records(b, max(s.cfg.Log.LastEpoch(), s.applier.State().Epoch))
	if err != nil {
		return status.Error(codes.DataLoss, err.Error())
	}
	last, err := s.cfg.Log.AppendRaw(ctx, records)
	if err != nil {
		return status.Error(codes.DataLoss, err.Error())
	}
	s.mu.Lock()
	s.contact = time.Now()
	s.appended = max(s.appended, last)
	s.mu.Unlock()
	l.signal()
	return nil
}

// standing stores what a promotion will ask: did the primary count on us?
func (s *Standby) standing(st *wire.Standing) error {
	s.mu.Lock()
	s.contact, s.appended = time.Now(), max(st.GetAppended(), s.cfg.Log.Last())
	s.inSync = st.GetInSync()
	s.mu.Unlock()
	// What is stored counts: it may be behind what is in memory.
	if s.applier.State().InSync == st.GetInSync() {
		return nil
	}
	s.log.Info("standing changed", zap.Bool("in_sync", st.GetInSync()))
	return s.applier.SetInSync(st.GetInSync())
}

// answer sends acknowledgements, as many as there is news, and what else is
// queued.
func (s *Standby) answer(ctx context.Context, stream wire.Replication_StreamServer, l *link) error {
	// Positions mean something to the primary once both agreed on a start.
	select {
	case <-l.begun:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.mu.Lock()
	trouble := s.trouble
	s.mu.Unlock()
	if trouble != "" {
		l.push(&wire.Up{Kind: &wire.Up_Trouble{Trouble: &wire.Trouble{What: trouble}}})
	}
	durable := s.applier.DurableChanged()
	for {
		if err := s.answerOnce(stream, l); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.wake:
		case <-durable:
		}
	}
}

func (s *Standby) answerOnce(stream wire.Replication_StreamServer, l *link) error {
	l.mu.Lock()
	out := l.out
	l.out = nil
	l.mu.Unlock()
	st := s.applier.State()
	if st.Suspect != "" && !Copying(st) {
		// An fsync failed, of which the kernel forgets what it could not write:
		// only a copy helps. The primary learns that from the next greeting.
		return status.Errorf(codes.Aborted, "the store of %s is suspect: %s", s.cfg.Node, st.Suspect)
	}
	received := max(s.cfg.Log.Last(), st.Applied)
	ack := &wire.Ack{Received: received, Applied: min(st.Applied, received), Durable: min(st.Durable, st.Applied)}
	for _, up := range out {
		if err := stream.Send(up); err != nil {
			return err
		}
	}
	ack.Synced = min(s.applier.Synced(), ack.Applied) // it may have moved on since
	if ack.Received == l.lastAck.Received && ack.Applied == l.lastAck.Applied && ack.Durable == l.lastAck.Durable && ack.Synced == l.lastAck.Synced {
		return nil
	}
	l.lastAck.Received, l.lastAck.Applied, l.lastAck.Durable, l.lastAck.Synced = ack.Received, ack.Applied, ack.Durable, ack.Synced
	return stream.Send(&wire.Up{Kind: &wire.Up_Ack{Ack: ack}})
}
