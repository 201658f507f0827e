package replicate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/replfs/replfs/replicate/apply"
	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
	"github.com/replfs/replfs/replicate/wire"
)

// StandbyConfig is what a Standby needs.
type StandbyConfig struct {
	Node  string
	Store string
	// Salvage is where a store is moved whose content may exist nowhere else.
	Salvage  string
	Excluded func(path string) bool
	Log      *oplog.Log
	// Applier options; Need and SyncDone are the standby's.
	Applier apply.Config
	// Self describes this node.
	Self func() *wire.NodeState
	// Greeted is called with a primary's state before anything of it is
	// believed; an error refuses it.
	Greeted func(primary *wire.NodeState) error
	// Epoch is called when an epoch begins in the log, before it is applied,
	// with the cluster's id.
	Epoch func(e Epoch, clusterID string) error
	// Begin is called before a copy, with the history it starts from.
	Begin func(history History, clusterID string) error
	// Busy, if not nil, is called for every batch of records received.
	Busy   func()
	Logger *zap.Logger
}

// Standby receives the log of a primary and applies it to the store. Receiver
// and applier are joined by this node's own log: what was received survives
// the process, and a promotion finishes applying it.
type Standby struct {
	cfg     StandbyConfig
	log     *zap.Logger
	applier *apply.Applier

	// applyMu is held while a record is applied, and by who must not have
	// records applied.
	applyMu sync.Mutex
	// gen grows, under applyMu, whenever records of the log become void: what
	// was read before must not be applied.
	gen uint64
	rec record.Record // that is being decoded, under applyMu
	// recvMu is held while a message of the primary changes the log.
	recvMu sync.Mutex

	mu       sync.Mutex
	trouble  string
	diverged bool
	primary  string
	appended uint64
	contact  time.Time
	inSync   bool
	link     *link
	stopped  bool
	copy     *CopyStatus

	kick   chan struct{}
	cancel context.CancelFunc
	done   chan struct{}
}

// link is the connection of a primary.
type link struct {
	peer   string
	epoch  uint64
	cancel context.CancelCauseFunc
	done   chan struct{}
	begun  chan struct{}
	wake   chan struct{}

	mu      sync.Mutex
	out     []*wire.Up
	lastAck wire.Ack
}

// NewStandby opens the store's position.
func NewStandby(cfg StandbyConfig) (*Standby, error) {
	s := &Standby{cfg: cfg, log: cfg.Logger, kick: make(chan struct{}, 1)}
	ac := cfg.Applier
	ac.Store, ac.Node, ac.Excluded = cfg.Store, cfg.Node, cfg.Excluded
	ac.Need = s.need
	ac.SyncDone = s.copyResult
	var err error
	if s.applier, err = apply.Open(ac); err != nil {
		return nil, err
	}
	s.inSync = s.applier.State().InSync
	return s, nil
}

// Applier is the store's applier; while Start runs, records are applied by it.
func (s *Standby) Applier() *apply.Applier { return s.applier }

// Start applies what the log holds and will hold, until Stop.
func (s *Standby) Start() error {
	st := s.applier.State()
	if st.Applied > s.cfg.Log.Last() || st.Applied+1 < s.cfg.Log.First() {
		// The log is that of another life; go on behind the store.
		if err := s.cfg.Log.Reset(st.Applied + 1); err != nil {
			return fmt.Errorf("reset the log: %w", err)
		}
	}
	s.mu.Lock()
	s.inSync, s.stopped = st.InSync, false
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, make(chan struct{})
	go s.run(ctx)
	return nil
}

// Stop ends applying and cuts the primary's stream off. What is received but
// not applied stays in the log.
func (s *Standby) Stop() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.disconnect(errors.New("this node is no longer a standby"))
	if s.cancel != nil {
		s.cancel()
		<-s.done
		s.cancel = nil
	}
}

func (s *Standby) disconnect(why error) {
	s.mu.Lock()
	l := s.link
	s.mu.Unlock()
	if l != nil {
		l.cancel(why)
		<-l.done
	}
}

// StandbyStatus is how it goes.
type StandbyStatus struct {
	apply.State
	Primary     string
	Connected   bool
	Appended    uint64
	LastContact time.Time
	Trouble     string
	Diverged    bool
	Copy        *CopyStatus
}

// Status says how it goes. InSync is what the primary last said.
func (s *Standby) Status() StandbyStatus {
	position := s.applier.State()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := StandbyStatus{
		State: position, Primary: s.primary, Connected: s.link != nil, Appended: s.appended,
		LastContact: s.contact, Trouble: s.trouble, Diverged: s.diverged,
	}
	st.InSync = s.inSync
	if s.copy != nil {
		c := *s.copy
		st.Copy = &c
	}
	return st
}

// run applies records in their order. A record that cannot be applied is tried
// again; none is ever skipped.
func (s *Standby) run(ctx context.Context) {
	defer close(s.done)
	for ctx.Err() == nil {
		s.applyMu.Lock()
		gen, from := s.gen, s.applier.State().Applied+1
		reader, err := s.cfg.Log.NewReader(from)
		s.applyMu.Unlock()
		if err == nil {
			err = s.follow(ctx, reader, gen)
			reader.Close()
		} else if errors.Is(err, oplog.ErrGone) {
			err = fmt.Errorf("%w: record %d, the log begins at %d", errLost, from, s.cfg.Log.First())
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, oplog.ErrGone) {
			s.stuck(err)
			s.pause(ctx)
		}
	}
}

// errLost: what was received and not applied is no longer there.
var errLost = errors.New("the records behind the store's position are gone from this node's log")

func (s *Standby) pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-s.kick:
	case <-time.After(time.Second):
	}
}

// follow applies what reader gives, until the log it read is void (ErrGone).
// While a record cannot be applied, the reader keeps it and what follows in
// the log.
func (s *Standby) follow(ctx context.Context, reader *oplog.Reader, gen uint64) error {
	reader.Hold(true)
	buf := make([]byte, 0, batchSize)
	for {
		batch, _, last, err := reader.Read(ctx, buf[:0])
		if err != nil {
			return err
		}
		buf = batch
		if err := s.applyBatch(ctx, batch, gen); err == nil {
			reader.Release(last)
			continue
		} else if errors.Is(err, oplog.ErrGone) || ctx.Err() != nil {
			return err
		} else {
			s.stuck(err)
		}
		s.pause(ctx)
		s.applyMu.Lock()
		applied, current := s.applier.State().Applied, gen == s.gen
		s.applyMu.Unlock()
		if !current {
			return oplog.ErrGone
		}
		if err := reader.Rewind(applied + 1); err != nil {
			return err
		}
	}
}

// applyBatch applies the records of a batch: as many at a time as do not
// conflict, one run within one hold of applyMu, so that nobody who has it ever
// sees the store within a run.
func (s *Standby) applyBatch(ctx context.Context, batch []byte, gen uint64) error {
	for len(batch) > 0 {
		n, err := s.applySome(ctx, batch, gen)
		if err != nil {
			return err
		}
		batch = batch[n:]
	}
	s.wakeLink()
	return nil
}

// applySome applies a run at the batch's start, and the record behind it.
func (s *Standby) applySome(ctx context.Context, batch []byte, gen uint64) (n int, err error) {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if gen != s.gen {
		return 0, oplog.ErrGone // a copy began meanwhile, or the log was cut
	}
	rec, fsyncs := &s.rec, false
	for n < len(batch) {
		// The log has checked every record that came into it.
		size, err := record.DecodeChecked(batch[n:], rec)
		if err != nil {
			return 0, errors.Join(s.applier.ApplyQueued(), err)
		}
		n += size
		if !s.applier.Queue(rec) {
			break
		}
		fsyncs = fsyncs || rec.Op == record.OpFsync
		rec.LSN = 0 // in the queue
	}
	queued := s.applier.Queued() > 0
	if err := s.applier.ApplyQueued(); err != nil {
		return 0, err
	}
	if queued {
		s.untrouble()
	}
	if fsyncs {
		s.wakeLink()
	}
	if rec.LSN != 0 {
		err = s.apply1(rec)
	}
	return n, err
}

func (s *Standby) apply1(rec *record.Record) error {
	if rec.Op == record.OpEpoch {
		if err := s.cfg.Epoch(Epoch{Epoch: rec.Epoch, Primary: rec.Path, Begin: rec.LSN}, rec.Path2); err != nil {
			return err
		}
	}
	if err := s.applier.Apply(rec); err != nil {
		return err
	}
	s.untrouble()
	if rec.Op == record.OpFsync || rec.Op.SyncOnly() {
		s.wakeLink()
	}
	s.count(rec)
	return nil
}

// untrouble says that the standby does not stand still any more, if it did.
func (s *Standby) untrouble() {
	s.mu.Lock()
	troubled := s.trouble != ""
	s.mu.Unlock()
	if troubled {
		s.setTrouble("", false)
	}
}

func (s *Standby) count(rec *record.Record) {
	if !rec.Op.SyncOnly() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case rec.Op == record.OpSyncBegin && rec.Path == s.cfg.Node:
		s.copy = &CopyStatus{Started: time.Now()}
	case s.copy != nil && rec.Op == record.OpState:
		s.copy.Files++
	case s.copy != nil:
		s.copy.Bytes += uint64(len(rec.Data))
	}
}

// stuck notes why nothing is applied. A store that differs from the
// primary's is suspect: only a complete copy helps.
func (s *Standby) stuck(err error) {
	var ae *apply.Error
	diverged := errors.As(err, &ae) && ae.Divergence
	s.mu.Lock()
	news := s.trouble != err.Error()
	s.mu.Unlock()
	if news {
		s.log.Error("cannot apply the log", zap.Bool("diverged", diverged), zap.Error(err))
	}
	s.setTrouble(err.Error(), diverged)
	if diverged || errors.Is(err, record.ErrCorrupt) || errors.Is(err, apply.ErrCopyInterrupted) || errors.Is(err, errLost) {
		if err := s.applier.MarkSuspect(err.Error()); err != nil {
			s.log.Error("cannot mark the store suspect", zap.Error(err))
		}
		// The primary learns it from the next greeting, and copies.
		go s.disconnect(errors.New("the store differs from the primary's: a complete copy is needed"))
	}
}

func (s *Standby) setTrouble(what string, diverged bool) {
	s.mu.Lock()
	changed := s.trouble != what
	s.trouble, s.diverged = what, diverged
	if what != "" {
		s.inSync = false
	}
	l := s.link
	s.mu.Unlock()
	if changed && l != nil {
		l.push(&wire.Up{Kind: &wire.Up_Trouble{Trouble: &wire.Trouble{What: what}}})
	}
}

func (s *Standby) need(path string, contents bool) {
	s.toLink(&wire.Up{Kind: &wire.Up_Need{Need: &wire.Need{Path: []byte(path), Contents: contents}}})
}

func (s *Standby) copyResult(id string, complete bool) {
	if complete {
		s.mu.Lock()
		if s.copy != nil {
			s.log.Info("copy complete", zap.Uint64("files", s.copy.Files), zap.Uint64("bytes", s.copy.Bytes), zap.Duration("took", time.Since(s.copy.Started)))
		}
		s.copy = nil
		s.mu.Unlock()
	}
	s.toLink(&wire.Up{Kind: &wire.Up_CopyResult{CopyResult: &wire.CopyResult{CopyId: id, Complete: complete}}})
}

// toLink queues a message. Without a link it is lost, and so is the copy it
// belongs to: a new one begins with the next connection.
func (s *Standby) toLink(up *wire.Up) {
	s.mu.Lock()
	l := s.link
	s.mu.Unlock()
	if l != nil {
		l.push(up)
	}
}

func (s *Standby) wakeLink() {
	s.mu.Lock()
	l := s.link
	s.mu.Unlock()
	if l != nil {
		l.signal()
	}
}

// Finish applies all that was received and waits for its fsyncs: the first
// step of a promotion. Start must not be running.
func (s *Standby) Finish(ctx context.Context) error {
	last := s.cfg.Log.Last()
	for s.applier.State().Applied < last {
		reader, err := s.cfg.Log.NewReader(s.applier.State().Applied + 1)
		if err != nil {
			return fmt.Errorf("read what was received: %w", err)
		}
		batch, _, _, err := reader.Read(ctx, nil)
		reader.Close()
		if err == nil {
			err = s.applyBatch(ctx, batch, s.gen)
		}
		if err != nil {
			return fmt.Errorf("apply what was received: %w", err)
		}
	}
	return s.applier.Flush(ctx)
}

// Close makes the position durable.
func (s *Standby) Close() error {
	s.Stop()
	return s.applier.Close()
}

// prepareCopy empties the store for a complete copy.
func (s *Standby) prepareCopy(start *wire.Start, primary *wire.NodeState) error {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	s.gen++
	// Suspect first: with the primary's history, the old position would mean
	// something else.
	diverged := start.GetDiverged()
	// It is the reason of the next attempt if this one fails.
	why := strings.TrimPrefix(start.GetReason(), asideReason)
	reason := copyReason + why
	if diverged {
		reason = asideReason + why
	}
	if err := s.applier.MarkSuspect(reason); err != nil {
		return err
	}
	history := HistoryFromWire(primary.GetHistory())
	if err := s.cfg.Begin(history, primary.GetIdentity().GetClusterId()); err != nil {
		return err
	}
	// Until the copy is complete, this store is nothing.
	if diverged {
		if err := s.moveAside(why); err != nil {
			return err
		}
		if err := s.applier.MarkSuspect(copyReason + why); err != nil {
			return err
		}
	}
	if err := apply.Wipe(s.cfg.Store, s.cfg.Excluded); err != nil {
		return err
	}
	if err := s.cfg.Log.Reset(start.GetFrom()); err != nil {
		return err
	}
	epoch := uint64(0)
	if e, ok := history.At(start.GetFrom()); ok {
		epoch = e.Epoch
	}
	return s.applier.BeginFresh(start.GetFrom()-1, epoch)
}

// copyReason begins the reason of a suspect store whose content came from the
// primary or is on its way: nothing of it is worth keeping.
const copyReason = "complete copy: "

// asideReason begins that of one which is not empty yet.
const asideReason = "divergent data is being moved aside: "

// Copying tells whether a store is in the middle of a complete copy.
func Copying(st apply.State) bool {
	return st.Syncing || strings.HasPrefix(st.Suspect, copyReason)
}

// moveAside keeps what may exist nowhere else (invariant I7). If it is
// interrupted, the state says that it was not finished, and it is continued.
func (s *Standby) moveAside(reason string) error {
	dir := filepath.Join(s.cfg.Salvage, fmt.Sprintf("%d-%s", s.applier.State().Epoch, time.Now().UTC().Format("20060102T150405.000")))
	moved, err := apply.EmptyStore(s.cfg.Store, dir, s.cfg.Excluded)
	if err != nil {
		return err
	}
	if moved > 0 {
		s.log.Warn("the store's earlier content was moved aside", zap.String("salvage", dir), zap.Int("entries", moved), zap.String("reason", reason))
		return nil
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the empty %s: %w", dir, err)
	}
	return nil
}

// resume makes the log end where the primary goes on.
func (s *Standby) resume(from uint64) error {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	if applied := s.applier.State().Applied; from <= applied || from > s.cfg.Log.Next() {
		return status.Errorf(codes.InvalidArgument, "the primary would go on at %d, this node has applied %d and received %d", from, applied, s.cfg.Log.Last())
	}
	if s.cfg.Log.Last() >= from {
		s.gen++
		return s.cfg.Log.TruncateAfter(from - 1)
	}
	return nil
}
