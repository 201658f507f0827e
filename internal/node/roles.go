package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/replfs/replfs/election"
	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/replicate"
	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
	"github.com/replfs/replfs/replicate/wire"
)

// floorStep is how far an epoch's LSNs are taken to reach at most, when the
// log that knew it is lost: 200 days at a million records a second.
const floorStep = 1 << 44

// start decides the role and takes it.
func (n *Node) start(ctx context.Context, rec oplog.Recovered) error {
	n.changing.Lock()
	defer n.changing.Unlock()
	st := n.state.Get()
	peers := n.startProbe(ctx, st)
	for _, p := range peers {
		if p.Err != nil {
			n.log.Info("peer does not answer", zap.String("peer", p.Name), zap.Error(p.Err))
		}
	}
	role, why := election.Start(st, n.cfg.Election.InitialPrimary == n.view.Name, peers)
	n.log.Info("role decided", zap.String("role", string(role)), zap.String("reason", why))
	wasPrimary := st.Role == election.Primary
	if role == election.Standby && !wasPrimary {
		n.logResumed(n.standbyTier(st, rec))
		return n.startStandby()
	}
	if !st.Joined() {
		rec.Intents = nil // of another life
	}
	n.restoreLog(st, rec)
	n.logResumed(n.primaryTier(st, rec))
	if role == election.Primary {
		return n.becomePrimary(election.NextEpoch(st, peers), st.InSync, rec.Intents)
	}
	// It was primary and is no longer: settle what was under way, so that
	// its position is exact, and say where its log ends.
	n.setNotice(why)
	if err := n.fs.Recover(rec.Intents); err != nil {
		return err
	}
	n.oplog.ClearIntents()
	if err := n.takePosition(); err != nil {
		return err
	}
	if n.unclean {
		if err := n.standby.Applier().MarkSuspect("it was primary when the machine crashed, and its log is lost: " + rec.Reason); err != nil {
			return err
		}
	}
	return n.startStandby()
}

// startProbe asks the peers. A node that may become primary waits for peers
// that are changing their role; one that will not decides at once, so that two
// that start together do not wait for each other.
func (n *Node) startProbe(ctx context.Context, st election.State) []election.Peer {
	if election.MayLead(st, n.cfg.Election.InitialPrimary == n.view.Name) {
		return n.probeSettled(ctx)
	}
	return n.probe(ctx)
}

// restoreLog continues a primary's log where it ended, or, when that is not
// known, behind everything it can have said: then every standby needs a copy.
func (n *Node) restoreLog(st election.State, rec oplog.Recovered) {
	switch {
	case !st.Joined():
		n.must(n.oplog.Reset(1))
	case rec.IntentsLost:
		n.unclean = true
		n.must(n.oplog.Reset(st.Floor))
	case !rec.Fresh:
		n.log.Info("the log survived", zap.Uint64("first", rec.First), zap.Uint64("last", rec.Last), zap.Int("interrupted", len(rec.Intents)))
		n.oplog.SetEpoch(st.Epoch)
	case st.Clean:
		n.must(n.oplog.Reset(st.CleanLSN + 1))
	default:
		n.log.Warn("the log did not survive: standbys get a complete copy", zap.String("reason", rec.Reason))
		n.unclean = true
		n.must(n.oplog.Reset(st.Floor))
	}
}

// must is for operations on the mapped log, which fail only when it is
// closed.
func (n *Node) must(err error) {
	if err != nil {
		n.log.Panic("log operation failed", zap.Error(err))
	}
}

// becomePrimary opens a new epoch and the mount. changing is held.
func (n *Node) becomePrimary(epoch uint64, inSync []string, intents []record.Record) error {
	begun := time.Now()
	begin := n.oplog.Next()
	before := n.state.Get()
	err := n.state.Update(func(s *election.State) {
		if s.ClusterID == "" {
			s.ClusterID = uuid.NewString()
		}
		s.Role, s.Epoch, s.Clean = election.Primary, epoch, false
		s.History = fromHistory(toHistory(s.History).With(replicate.Epoch{Epoch: epoch, Primary: n.view.Name, Begin: begin}))
		s.InSync, s.Floor = inSync, begin+floorStep
	})
	if err != nil {
		return err
	}
	if err := n.startSpiller(toHistory(before.History), !before.Joined() || n.unclean); err != nil {
		return err
	}
	n.oplog.SetEpoch(epoch)
	rec := &record.Record{
		Op: record.OpEpoch, Path: n.view.Name, Path2: n.state.Get().ClusterID,
		Fields: record.FieldPath | record.FieldPath2,
	}
	if _, err := n.oplog.Append(rec, nil, nil); err != nil {
		return fmt.Errorf("open epoch %d: %w", epoch, err)
	}
	if err := n.fs.Recover(intents); err != nil {
		return err
	}
	n.oplog.ClearIntents()
	n.insync.Start(inSync)
	n.pacer.Start()
	n.setRole(wire.Role_ROLE_PRIMARY)
	n.startSenders()
	if err := n.mount.SetWritableFlag(); err != nil {
		n.log.Warn("the kernel keeps the mount read-only", zap.Error(err))
	}
	n.fs.SetWritable()
	n.setNotice("")
	n.log.Info("primary", zap.Uint64("epoch", epoch), zap.Uint64("begin", begin), zap.Strings("in_sync", inSync), zap.Duration("took", time.Since(begun)))
	return nil
}

// startStandby applies and waits for a primary. changing is held.
func (n *Node) startStandby() error {
	if err := n.state.Update(func(s *election.State) {
		s.Role, s.Clean = election.Standby, false
	}); err != nil {
		return err
	}
	n.removeJournal()
	if n.resumed {
		n.resumed = false
		n.fs.SetReadOnly()
	}
	if err := n.standby.Start(); err != nil {
		return err
	}
	n.setRole(wire.Role_ROLE_STANDBY)
	n.mount.SetReadOnlyFlag(true)
	st := n.standby.Status()
	n.log.Info("standby", zap.Uint64("epoch", st.Epoch), zap.Uint64("applied", st.Applied), zap.String("suspect", st.Suspect))
	return nil
}

// flushMapped gets what programs have stored in shared mappings while it can
// still be recorded.
func (n *Node) flushMapped() {
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.Replication.DrainTimeout.Std())
	defer cancel()
	n.fs.FlushMapped(ctx)
}

// stepDown makes a primary a standby of whoever is primary next. Its gate
// closes first; the caller has drained it, or does not care. changing is held.
func (n *Node) stepDown() error {
	// Senders go first: a mutation may be waiting for them to make room.
	n.insync.Stop()
	n.stopSenders()
	n.endSpiller((*replicate.Spiller).Drop)
	n.fs.SetReadOnly()
	n.pacer.Stop()
	n.setRole(wire.Role_ROLE_STARTING)
	if err := n.takePosition(); err != nil {
		return err
	}
	return n.startStandby()
}

// takePosition says that the store is where the log ends.
func (n *Node) takePosition() error {
	last := n.oplog.Last()
	epoch := uint64(0)
	if e, ok := toHistory(n.state.Get().History).At(last); ok {
		epoch = e.Epoch
	}
	if err := n.standby.Applier().SetApplied(last, epoch); err != nil {
		return err
	}
	n.mu.Lock()
	suspect := n.suspect
	n.mu.Unlock()
	if suspect != "" {
		return n.standby.Applier().MarkSuspect(suspect)
	}
	return n.standby.Applier().ClearSuspect()
}

// startSenders starts those that do not run.
func (n *Node) startSenders() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.view.Peers() {
		if slices.ContainsFunc(n.senders, func(s *sender) bool { return s.peer.Name == p.Name }) {
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		s := &sender{peer: p, cancel: cancel, done: make(chan struct{})}
		s.Sender = replicate.NewSender(replicate.SenderConfig{
			Peer: p.Name, Dial: func() (*grpc.ClientConn, error) { return n.dial(p) },
			Log: n.oplog, Self: n.self, InSync: n.insync, Spiller: n.spiller,
			History: func() replicate.History { return toHistory(n.state.Get().History) },
			NewWalk: n.newWalk, Unclean: n.unclean, Superseded: n.superseded,
			Logger: n.log,
			Compress: n.cfg.Replication.Compression == config.CompressionZstd,
		})
		n.senders = append(n.senders, s)
		go func() {
			defer close(s.done)
			s.Run(ctx)
		}()
	}
}

func (n *Node) stopSenders() { n.stopSendersIf(func(*sender) bool { return true }) }

// endCopies ends complete copies of a primary that is about to stop being one:
// they would go on filling the log.
func (n *Node) endCopies() {
	n.stopSendersIf(func(s *sender) bool { return s.Status().Copy != nil })
}

// stopSendersIf stops some.
func (n *Node) stopSendersIf(which func(*sender) bool) {
	n.mu.Lock()
	var senders []*sender
	n.senders = slices.DeleteFunc(n.senders, func(s *sender) bool {
		if !which(s) {
			return false
		}
		senders = append(senders, s)
		return true
	})
	n.mu.Unlock()
	for _, s := range senders {
		s.cancel()
	}
	for _, s := range senders {
		<-s.done
	}
}

// superseded is called when a peer knows a higher epoch: this node must not
// write any more. The caller may be a sender, which stepping down waits for.
func (n *Node) superseded(peer *wire.NodeState) {
	go func() {
		n.changing.Lock()
		defer n.changing.Unlock()
		if n.getRole() != wire.Role_ROLE_PRIMARY || peer.GetEpoch() <= n.state.Get().Epoch {
			return
		}
		name := peer.GetIdentity().GetNode()
		n.log.Warn("a higher epoch exists: this node turns read-only", zap.String("peer", name), zap.Uint64("epoch", peer.GetEpoch()))
		n.setNotice(fmt.Sprintf("%s knows epoch %d: this node stopped being primary", name, peer.GetEpoch()))
		if err := n.stepDown(); err != nil {
			n.markSuspect("cannot step down: " + err.Error())
			return
		}
		n.learnEpoch(peer.GetEpoch())
	}()
}

func (n *Node) learnEpoch(epoch uint64) {
	if epoch <= n.state.Get().Epoch {
		return
	}
	if err := n.state.Update(func(s *election.State) { s.Epoch = max(s.Epoch, epoch) }); err != nil {
		n.log.Error("cannot note the epoch", zap.Error(err))
	}
}

func (n *Node) setRole(r wire.Role) {
	n.mu.Lock()
	n.role = r
	n.mu.Unlock()
}

func (n *Node) getRole() wire.Role {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.role
}

func (n *Node) setNotice(s string) {
	n.mu.Lock()
	n.notice = s
	n.mu.Unlock()
}

func toHistory(in []election.Epoch) replicate.History {
	out := make(replicate.History, 0, len(in))
	for _, e := range in {
		out = append(out, replicate.Epoch(e))
	}
	return out
}

func fromHistory(in replicate.History) []election.Epoch {
	out := make([]election.Epoch, 0, len(in))
	for _, e := range in {
		out = append(out, election.Epoch(e))
	}
	return out
}
