package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
	"github.com/replfs/replfs/replicate/wire"
)

// Walk appends the state of the store, or of a part of it, to the log.
type Walk interface {
	Tree(ctx context.Context) error
	Path(ctx context.Context, path string, contents bool) error
	Close()
}

// SenderConfig is what a Sender needs.
type SenderConfig struct {
	// Peer is the standby's name.
	Peer string
	// Dial connects to it.
	Dial func() (*grpc.ClientConn, error)
	Log  *oplog.Log
	// Self describes this node, History is its own.
	Self    func() *wire.NodeState
	History func() History
	InSync  *InSync
	// Spiller keeps what this standby has not received.
	Spiller *Spiller
	// NewWalk starts a copy. throttle is called between pieces, progress
	// counts.
	NewWalk func(throttle func(context.Context) error, progress func(files int, bytes int64)) Walk
	// Compress asks for batches to be compressed with zstd.
	Compress bool
	// Unclean says that this node may have lost records that a standby has.
	Unclean bool
	// Superseded is called when the peer knows a higher epoch.
	Superseded func(peer *wire.NodeState)
	Logger     *zap.Logger
}

// Sender keeps one standby supplied for as long as this node is primary.
type Sender struct {
	cfg SenderConfig
	log *zap.Logger

	mu     sync.Mutex
	status SenderStatus
}

// SenderStatus is how it goes.
type SenderStatus struct {
	// State is "connecting", "unreachable", "refused", "syncing", "catching up"
	// or "streaming".
	State       string
	Error       string
	Sent        uint64
	LastContact time.Time
	Copy        *CopyStatus
	// CatchUp is set while it is far behind and has no complete copy under way.
	CatchUp *CatchUpStatus
	Trouble string
	// Resumed says how the present stream, or the last one, began: behind which
	// record, or with a complete copy and why.
	Resumed string
}

// CopyStatus is the progress of a complete copy.
type CopyStatus struct {
	Started time.Time
	Files   uint64
	Bytes   uint64
}

// NewSender makes a sender; Run runs it.
func NewSender(cfg SenderConfig) *Sender {
	return &Sender{cfg: cfg, log: cfg.Logger.With(zap.String("peer", cfg.Peer)), status: SenderStatus{State: "connecting"}}
}

// Status says how it goes.
func (s *Sender) Status() SenderStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	if st.Copy != nil {
		c := *st.Copy
		st.Copy = &c
	}
	if st.CatchUp != nil {
		c := *st.CatchUp
		st.CatchUp = &c
	}
	return st
}

func (s *Sender) set(f func(*SenderStatus)) {
	s.mu.Lock()
	f(&s.status)
	s.mu.Unlock()
}

// States of a sender.
const (
	stateStreaming  = "streaming"
	stateSyncing    = "syncing"
	stateCatchingUp = "catching up"
)

const (
	retryMin = 100 * time.Millisecond
	retryMax = 2 * time.Second
	// handshakeTimeout bounds the wait for each answer before streaming.
	handshakeTimeout = 10 * time.Second
	standingInterval = 100 * time.Millisecond
	batchSize        = wire.BatchSize
)

// Run connects, and again whenever the stream breaks, until ctx ends.
func (s *Sender) Run(ctx context.Context) {
	delay := retryMin
	for ctx.Err() == nil {
		err := s.session(ctx)
		s.cfg.InSync.Disconnected(s.cfg.Peer)
		if ctx.Err() != nil {
			return
		}
		if s.failed(err) {
			delay = retryMin
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
		delay = min(2*delay, retryMax)
	}
}

// failed notes why a session ended, and tells whether it had streamed.
func (s *Sender) failed(err error) (streamed bool) {
	state := "unreachable"
	switch status.Code(err) {
	case codes.PermissionDenied, codes.FailedPrecondition, codes.Unauthenticated, codes.InvalidArgument:
		state = "refused"
	}
	text := status.Convert(err).Message()
	if text == "" {
		text = "connection closed"
	}
	s.mu.Lock()
	streamed = s.status.State == stateStreaming || s.status.State == stateCatchingUp || s.status.State == stateSyncing && state != "refused"
	news := s.status.State != state || s.status.Error != text
	s.status.State, s.status.Error, s.status.Copy, s.status.CatchUp = state, text, nil, nil
	s.mu.Unlock()
	if news {
		s.log.Warn("not streaming to the standby", zap.String("state", state), zap.String("reason", text))
	}
	return streamed
}

// session is one connection.
type session struct {
	*Sender
	ctx    context.Context
	cancel context.CancelCauseFunc
	stream wire.Replication_StreamClient
	sendMu sync.Mutex
	source *source
	// begun is the first record of the session.
	begun uint64

	// copyID names the copy under way; copying ends before it is forgotten.
	copyID  string
	copying atomic.Bool
	result  chan bool

	needMu sync.Mutex
	needs  []need
	needed chan struct{}

	ackMu sync.Mutex
	last  wire.Ack // as far as positions go
}

type need struct {
	path     string
	contents bool
}

func (s *Sender) session(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	conn, err := s.cfg.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := wire.NewReplicationClient(conn).Stream(ctx)
	if err != nil {
		return err
	}
	ses := &session{Sender: s, ctx: ctx, cancel: cancel, stream: stream, needed: make(chan struct{}, 1), result: make(chan bool, 1)}
	peer, err := ses.hello()
	if err != nil {
		return err
	}
	out, err := s.newOutbox(peer)
	if err != nil {
		return err
	}
	if err := ses.start(peer); err != nil {
		return err
	}
	var wg sync.WaitGroup
	run := func(f func() error) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := f(); err != nil {
				cancel(err)
			}
		}()
	}
	run(ses.receive)
	run(ses.beat)
	run(ses.measure)
	if ses.copying.Load() {
		run(ses.copy)
	}
	err = ses.send(out)
	cancel(err)
	// The copy may be waiting for room in a log that is held for this session.
	s.cfg.Spiller.detach(s.cfg.Peer)
	wg.Wait()
	ses.source.Close()
	if cause := context.Cause(ctx); cause != nil && parent.Err() == nil {
		return cause
	}
	return err
}

// hello exchanges states and refuses what must not be streamed to.
func (s *session) hello() (*wire.NodeState, error) {
	timer := time.AfterFunc(handshakeTimeout, func() { s.cancel(errors.New("no answer to the greeting")) })
	defer timer.Stop()
	if err := s.stream.Send(&wire.Down{Kind: &wire.Down_Hello{Hello: s.cfg.Self()}}); err != nil {
		return nil, s.streamError(err)
	}
	up, err := s.stream.Recv()
	if err != nil {
		return nil, s.streamError(err)
	}
	peer := up.GetHello()
	if peer == nil {
		return nil, status.Error(codes.InvalidArgument, "the peer did not greet")
	}
	self := s.cfg.Self()
	if err := CheckIdentity(self.GetIdentity(), peer.GetIdentity(), s.cfg.Peer); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	if peer.GetEpoch() > self.GetEpoch() {
		s.cfg.Superseded(peer)
		return nil, status.Errorf(codes.FailedPrecondition, "%s knows epoch %d, this node is in %d: not the primary any more", s.cfg.Peer, peer.GetEpoch(), self.GetEpoch())
	}
	if peer.GetRole() == wire.Role_ROLE_STARTING {
		// It does not know yet how far its store is.
		return nil, status.Errorf(codes.Unavailable, "%s is starting or changing its role", s.cfg.Peer)
	}
	if peer.GetRole() == wire.Role_ROLE_PRIMARY {
		return nil, status.Errorf(codes.FailedPrecondition,
			"%s is primary in epoch %d as well: run `replfs demote` on the node whose data shall give way", s.cfg.Peer, peer.GetEpoch())
	}
	s.set(func(st *SenderStatus) { st.LastContact = time.Now() })
	return peer, nil
}

// sendFailed gets the error behind a Send that failed while the stream runs.
// Two Recvs at a time are not allowed (one of them may never return), so the
// status behind an EOF is left to receive, which ends the session with it.
func (s *session) sendFailed(err error) error {
	if errors.Is(err, io.EOF) {
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-time.After(handshakeTimeout):
		}
	}
	return err
}

// streamError gets the status behind an EOF of Send, before receive runs.
func (s *session) streamError(err error) error {
	if cause := context.Cause(s.ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	if _, rerr := s.stream.Recv(); rerr != nil && status.Code(rerr) != codes.Unknown {
		return rerr
	}
	return err
}

// start decides between going on and a complete copy.
func (s *session) start(peer *wire.NodeState) error {
	plan := Decide(peer, s.cfg.History(), s.cfg.Log.Last())
	if !plan.Copy {
		err := s.attach(plan.From)
		if err == nil {
			s.log.Info("standby goes on", zap.Uint64("from", plan.From), zap.Uint64("bytes_behind", s.cfg.Spiller.BytesAfter(plan.From-1)))
			if err := s.sendDown(&wire.Down{Kind: &wire.Down_Start{Start: &wire.Start{From: plan.From}}}); err != nil {
				s.detach()
				return err
			}
			s.cfg.InSync.Connected(s.cfg.Peer)
			s.set(func(st *SenderStatus) {
				st.State, st.Error, st.Trouble = stateStreaming, "", ""
				st.Resumed = fmt.Sprintf("went on behind record %d", plan.From-1)
			})
			return nil
		}
		if !errors.Is(err, oplog.ErrGone) {
			return err
		}
		plan.Copy, plan.Reason = true, "its position is no longer in the primary's log"
		plan.Diverged = s.cfg.Unclean
		if s.cfg.Unclean {
			plan.Reason = "the primary's log was lost, as in a crash of its machine, and with it what this standby lacks"
		}
	}
	return s.startCopy(plan)
}

// attach has what comes from lsn on kept and read for this session.
func (s *session) attach(lsn uint64) error {
	src, err := s.cfg.Spiller.attach(s.cfg.Peer, lsn, s.cancel)
	if err != nil {
		return err
	}
	s.source, s.begun = src, lsn
	return nil
}

func (s *session) detach() {
	s.cfg.Spiller.detach(s.cfg.Peer)
	s.source.Close()
}

func (s *session) startCopy(plan Plan) error {
	// It must not count as in sync, even from before, while it has nothing.
	if err := s.cfg.InSync.Reset(s.cfg.Peer); err != nil {
		return err
	}
	s.cfg.Spiller.forget(s.cfg.Peer)
	s.copyID = uuid.NewString()
	s.copying.Store(true)
	rec := &record.Record{
		Op: record.OpSyncBegin, Path: s.cfg.Peer, Path2: s.copyID,
		Fields: record.FieldPath | record.FieldPath2,
	}
	lsn, err := s.cfg.Log.Append(rec, nil, nil)
	if err != nil {
		return fmt.Errorf("begin a copy: %w", err)
	}
	if err := s.attach(lsn); err != nil {
		return fmt.Errorf("begin a copy: %w", err)
	}
	s.log.Info("standby gets a complete copy", zap.String("reason", plan.Reason), zap.Bool("diverged", plan.Diverged), zap.Uint64("from", lsn))
	s.set(func(st *SenderStatus) {
		st.State, st.Error, st.Trouble = stateSyncing, "", ""
		st.Copy = &CopyStatus{Started: time.Now()}
		st.Resumed = "complete copy: " + plan.Reason
	})
	err = s.sendDown(&wire.Down{Kind: &wire.Down_Start{Start: &wire.Start{
		From: lsn, Copy: true, CopyId: s.copyID, Diverged: plan.Diverged, Reason: plan.Reason,
	}}})
	if err != nil {
		s.detach()
	}
	return err
}

func (s *session) sendDown(d *wire.Down) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	return s.stream.Send(d)
}

// send streams records until the session ends.
func (s *session) send(out *outbox) error {
	for {
		batch, first, last, err := s.source.Read(s.ctx, out.space())
		if errors.Is(err, oplog.ErrGone) {
			return status.Error(codes.Aborted, "the standby was too slow: the log has moved past its position")
		}
		if err != nil {
			return err
		}
		s.set(func(st *SenderStatus) { st.Sent = last })
		if err := s.sendBatch(out, batch, first, last); err != nil {
			return s.sendFailed(err)
		}
	}
}

// receive takes the standby's answers.
func (s *session) receive() error {
	for {
		up, err := s.stream.Recv()
		if err != nil {
			return err
		}
		s.set(func(st *SenderStatus) { st.LastContact = time.Now() })
		switch k := up.GetKind().(type) {
		case *wire.Up_Ack:
			if err := s.ack(k.Ack); err != nil {
				return err
			}
		case *wire.Up_Need:
			if !s.copying.Load() {
				return status.Error(codes.InvalidArgument, "the standby asks for files outside of a copy")
			}
			s.note(need{string(k.Need.GetPath()), k.Need.GetContents()})
		case *wire.Up_CopyResult:
			if k.CopyResult.GetCopyId() == s.copyID {
				select {
				case s.result <- k.CopyResult.GetComplete():
				case <-s.ctx.Done():
					return s.ctx.Err()
				}
			}
		case *wire.Up_Trouble:
			what := k.Trouble.GetWhat()
			s.set(func(st *SenderStatus) { st.Trouble = what })
			if what != "" {
				s.log.Warn("the standby stands still", zap.String("reason", what))
			}
			if err := s.cfg.InSync.Trouble(s.cfg.Peer, what); err != nil {
				return err
			}
		}
	}
}

func (s *session) ack(a *wire.Ack) error {
	// Nothing beyond the log can have been received: a liar would be waited
	// for in vain, or release what it does not have.
	if last := s.cfg.Log.Last(); a.GetReceived() > last || a.GetApplied() > a.GetReceived() || a.GetDurable() > a.GetApplied() || a.GetSynced() > a.GetApplied() {
		return status.Errorf(codes.InvalidArgument, "impossible acknowledgement %d/%d/%d, the log ends at %d", a.GetReceived(), a.GetApplied(), a.GetDurable(), last)
	}
	s.ackMu.Lock()
	s.last.Received, s.last.Applied, s.last.Durable = a.GetReceived(), a.GetApplied(), a.GetDurable()
	s.ackMu.Unlock()
	s.cfg.Spiller.ack(s.cfg.Peer, a.GetReceived())
	if !s.copying.Load() {
		s.cfg.InSync.Ack(s.cfg.Peer, a.GetReceived(), a.GetApplied(), a.GetDurable())
		s.cfg.InSync.Synced(s.cfg.Peer, a.GetSynced())
	}
	return nil
}

// beat tells the standby its standing.
func (s *session) beat() error {
	tick := time.NewTicker(standingInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return nil
		case <-tick.C:
		}
		err := s.sendDown(&wire.Down{Kind: &wire.Down_Standing{Standing: &wire.Standing{
			InSync: s.cfg.InSync.Has(s.cfg.Peer), Appended: s.cfg.Log.Last(),
		}}})
		if err != nil {
			return s.sendFailed(err)
		}
	}
}

// copy walks the store, then answers the standby's needs until there are
// none.
func (s *session) copy() error {
	walk := s.cfg.NewWalk(s.throttle, func(files int, bytes int64) {
		s.set(func(st *SenderStatus) {
			if st.Copy != nil {
				st.Copy.Files += uint64(files)
				st.Copy.Bytes += uint64(bytes)
			}
		})
	})
	defer walk.Close()
	begun := time.Now()
	if err := walk.Tree(s.ctx); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	for {
		if err := s.answerNeeds(walk); err != nil {
			return err
		}
		rec := &record.Record{
			Op: record.OpSyncEnd, Path: s.cfg.Peer, Path2: s.copyID,
			Fields: record.FieldPath | record.FieldPath2,
		}
		if _, err := s.cfg.Log.Append(rec, nil, nil); err != nil {
			return fmt.Errorf("end a copy: %w", err)
		}
		complete, err := s.awaitResult(walk)
		if err != nil {
			return err
		}
		if complete {
			break
		}
	}
	s.copying.Store(false)
	s.cfg.InSync.Connected(s.cfg.Peer)
	s.ackMu.Lock()
	received, applied, durable := s.last.Received, s.last.Applied, s.last.Durable
	s.ackMu.Unlock()
	s.cfg.InSync.Ack(s.cfg.Peer, received, applied, durable)
	var files, bytes uint64
	s.set(func(st *SenderStatus) {
		if st.Copy != nil {
			files, bytes = st.Copy.Files, st.Copy.Bytes
		}
		st.State, st.Copy = stateStreaming, nil
	})
	s.log.Info("copy complete", zap.Uint64("files", files), zap.Uint64("bytes", bytes), zap.Duration("took", time.Since(begun)))
	return nil
}

// note queues a need. It must not block: the acknowledgements behind it make
// room in the log for what answers it.
func (s *session) note(n need) {
	s.needMu.Lock()
	s.needs = append(s.needs, n)
	s.needMu.Unlock()
	select {
	case s.needed <- struct{}{}:
	default:
	}
}

func (s *session) answerNeeds(walk Walk) error {
	s.needMu.Lock()
	needs := s.needs
	s.needs = nil
	s.needMu.Unlock()
	done := make(map[need]struct{})
	for _, n := range needs {
		if _, again := done[n]; again {
			continue
		}
		done[n] = struct{}{}
		if err := walk.Path(s.ctx, n.path, n.contents); err != nil {
			return fmt.Errorf("copy %q: %w", n.path, err)
		}
	}
	return nil
}

func (s *session) awaitResult(walk Walk) (bool, error) {
	for {
		select {
		case done := <-s.result:
			return done, nil
		case <-s.needed:
			if err := s.answerNeeds(walk); err != nil {
				return false, err
			}
		case <-s.ctx.Done():
			return false, s.ctx.Err()
		}
	}
}

// throttle keeps a copy from filling the log, where live writes would have to
// wait behind it.
func (s *session) throttle(ctx context.Context) error {
	for ctx.Err() == nil {
		s.ackMu.Lock()
		// It says nothing while it empties its store.
		received := max(s.last.Received, s.begun)
		s.ackMu.Unlock()
		if s.cfg.Log.BytesAfter(received) < copyWindow {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
	}
	return ctx.Err()
}

// copyWindow is how much of a copy may be on its way.
const copyWindow = 2 << 20
