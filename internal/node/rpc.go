package node

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/replfs/replfs/election"
	"github.com/replfs/replfs/replicate"
	"github.com/replfs/replfs/replicate/wire"
)

func (n *Node) identity() *wire.Identity {
	return &wire.Identity{
		Cluster: n.view.Cluster, Node: n.view.Name,
		ClusterId: n.state.Get().ClusterID, Protocol: replicate.Protocol,
	}
}

// self is this node's state as peers see it.
func (n *Node) self() *wire.NodeState {
	st := n.state.Get()
	out := &wire.NodeState{Identity: n.identity(), Role: n.getRole(), Epoch: st.Epoch, Accepts: wire.Accepted()}
	for _, e := range st.History {
		out.History = append(out.History, &wire.EpochStart{Epoch: e.Epoch, Primary: e.Primary, Begin: e.Begin})
	}
	if out.Role == wire.Role_ROLE_PRIMARY {
		pos := &wire.Position{Epoch: st.Epoch, Lsn: n.oplog.Last()}
		out.Applied, out.Received, out.InSync = pos, pos, true
		return out
	}
	sb := n.standby.Status()
	out.Applied = &wire.Position{Epoch: sb.Epoch, Lsn: sb.Applied}
	out.Received = out.Applied
	if last := n.oplog.Last(); last > sb.Applied {
		if e, ok := n.oplog.EpochOf(last); ok {
			out.Received = &wire.Position{Epoch: e, Lsn: last}
		}
	}
	out.InSync, out.Suspect = sb.InSync, sb.Suspect
	out.Copying = replicate.Copying(sb.State)
	n.mu.Lock()
	if out.Suspect == "" {
		out.Suspect = n.suspect
	}
	n.mu.Unlock()
	return out
}

// checkCaller checks certificate, config and identity of who asks.
func (n *Node) checkCaller(ctx context.Context, id *wire.Identity) (string, error) {
	name, err := n.caller(ctx, id)
	if err == nil {
		if cerr := replicate.CheckIdentity(n.identity(), id, name); cerr != nil {
			err = status.Error(codes.PermissionDenied, cerr.Error())
		}
	}
	if err != nil {
		n.log.Warn("refused a peer", zap.String("peer", id.GetNode()), zap.Error(err))
	}
	return name, err
}

// State answers who this node is and how far it has come.
func (n *Node) State(ctx context.Context, in *wire.StateRequest) (*wire.NodeState, error) {
	if _, err := n.checkCaller(ctx, in.GetCaller().GetIdentity()); err != nil {
		return nil, err
	}
	return n.self(), nil
}

// Stream takes a primary's log if this node is a standby.
func (n *Node) Stream(stream wire.Replication_StreamServer) error {
	return n.standby.Serve(stream, n.streamCaller(stream.Context()))
}

// streamCaller gives Serve the check of a greeting's identity.
func (n *Node) streamCaller(ctx context.Context) func(*wire.Identity) error {
	return func(id *wire.Identity) error {
		_, err := n.checkCaller(ctx, id)
		return err
	}
}

// greeted decides whether to follow a primary that passed all checks.
func (n *Node) greeted(primary *wire.NodeState) error {
	switch n.getRole() {
	case wire.Role_ROLE_STANDBY:
	case wire.Role_ROLE_PRIMARY:
		if primary.GetEpoch() > n.state.Get().Epoch {
			n.superseded(primary)
			return errors.New("this node was primary and steps down now")
		}
		return fmt.Errorf("%s is primary in epoch %d as well: run `replfs demote` on the node whose data shall give way", n.view.Name, n.state.Get().Epoch)
	default:
		return errors.New("this node is changing its role")
	}
	n.learnEpoch(primary.GetEpoch())
	n.setNotice("")
	return nil
}

// epochBegan notes an epoch that the log of the primary brought.
func (n *Node) epochBegan(e replicate.Epoch, clusterID string) error {
	st := n.state.Get()
	if st.ClusterID != "" && st.ClusterID != clusterID {
		return fmt.Errorf("the log is that of cluster id %s, this node belongs to %s", clusterID, st.ClusterID)
	}
	return n.state.Update(func(s *election.State) {
		s.ClusterID, s.Epoch = clusterID, max(s.Epoch, e.Epoch)
		s.History = fromHistory(toHistory(s.History).With(e))
	})
}

// copyBegins takes over the primary's history: what this node had is void.
func (n *Node) copyBegins(h replicate.History, clusterID string) error {
	if len(h) == 0 || clusterID == "" {
		return errors.New("the primary sent no history")
	}
	return n.state.Update(func(s *election.State) {
		s.ClusterID, s.Epoch = clusterID, max(s.Epoch, h[len(h)-1].Epoch)
		s.History = fromHistory(h)
	})
}

// Handover makes this primary a standby of the caller: writers wait, the
// caller gets everything durably, this node steps down. If that cannot be
// done in time, writers go on and nothing has changed.
func (n *Node) Handover(ctx context.Context, in *wire.HandoverRequest) (*wire.HandoverReply, error) {
	name, err := n.checkCaller(ctx, in.GetCaller().GetIdentity())
	if err != nil {
		return nil, err
	}
	if !n.changing.TryLock() {
		return nil, status.Error(codes.Unavailable, "this node is changing its role")
	}
	defer n.changing.Unlock()
	n.mu.Lock()
	role, quitting, suspect := n.role, n.quitting, n.suspect
	n.mu.Unlock()
	switch {
	case quitting:
		return nil, status.Error(codes.Unavailable, "this node is stopping")
	case role != wire.Role_ROLE_PRIMARY:
		// The answer to an earlier call may have been lost.
		return &wire.HandoverReply{State: n.self()}, nil
	case suspect != "":
		return nil, status.Errorf(codes.FailedPrecondition, "its store is suspect (%s)", suspect)
	case !n.insync.Has(name):
		return nil, status.Errorf(codes.FailedPrecondition, "%s is not in sync: wait until `replfs status` says it is", name)
	}
	n.log.Info("handing over", zap.String("peer", name))
	n.flushMapped()
	last, err := n.drain(name)
	if err != nil {
		n.fs.Thaw()
		n.startSenders()
		n.log.Warn("not handed over: writers go on", zap.Error(err))
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	if err := n.stepDown(); err != nil {
		n.markSuspect("cannot step down: " + err.Error())
		return nil, status.Error(codes.Internal, err.Error())
	}
	n.setNotice(fmt.Sprintf("handed over to %s", name))
	n.log.Info("handed over", zap.String("peer", name), zap.Uint64("lsn", last))
	return &wire.HandoverReply{State: n.self()}, nil
}

// drain freezes the mount and returns when name has everything that the log will
// ever have in this term, and that is its last record. The other standbys in sync
// have it as well: an fsync may be waiting for one of them.
func (n *Node) drain(name string) (last uint64, err error) {
	timeout := n.cfg.Replication.DrainTimeout.Std()
	n.endCopies()
	n.fs.Freeze()
	last = n.oplog.Last()
	for _, other := range n.insync.Set() {
		if err := n.insync.WaitApplied(other, last, timeout); err != nil && n.insync.Has(other) {
			return 0, err
		}
	}
	// One may have begun meanwhile.
	n.stopSendersIf(func(s *sender) bool { return s.peer.Name != name })
	last = n.oplog.Last()
	return last, n.insync.WaitApplied(name, last, timeout)
}
