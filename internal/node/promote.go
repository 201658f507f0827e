package node

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/replfs/replfs/election"
	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/internal/control"
	"github.com/replfs/replfs/replicate"
	"github.com/replfs/replfs/replicate/wire"
)

// promote makes this node primary. With the old primary alive it is a planned
// switchover; with it gone, this node opens at the prefix that it has. What
// is known to be unsafe is an *election.RefusedError, unless force.
func (n *Node) promote(ctx context.Context, force bool) (*control.RoleChange, error) {
	n.changing.Lock()
	defer n.changing.Unlock()
	begun := time.Now()
	if n.getRole() == wire.Role_ROLE_PRIMARY {
		return &control.RoleChange{Role: "primary", Epoch: n.state.Get().Epoch, What: "this node is primary already"}, nil
	}
	// Visible to a peer that starts just now: it waits for the outcome.
	n.setRole(wire.Role_ROLE_STARTING)
	peers := n.probe(ctx)
	planned, err := n.prepare(ctx, peers, force)
	if err != nil {
		n.setRole(wire.Role_ROLE_STANDBY)
		return nil, err
	}
	if err := n.becomePrimary(election.NextEpoch(n.state.Get(), peers), nil, nil); err != nil {
		n.markSuspect("promotion failed: " + err.Error())
		return nil, err
	}
	what := "promoted without the old primary"
	if planned {
		what = "taken over from the old primary"
	}
	return &control.RoleChange{Role: "primary", Epoch: n.state.Get().Epoch, What: what, Seconds: time.Since(begun).Seconds()}, nil
}

// prepare does what may still be refused.
func (n *Node) prepare(ctx context.Context, peers []election.Peer, force bool) (planned bool, err error) {
	if planned, err = n.askHandover(ctx, peers, force); err != nil {
		return false, err
	}
	if !planned {
		if why := election.Unsafe(n.electionSelf(), peers); len(why) > 0 {
			if !force {
				return false, &election.RefusedError{Reasons: why}
			}
			n.log.Warn("promotion forced", zap.Strings("against", why))
		}
	}
	return planned, n.takeOver(ctx, force)
}

// askHandover asks the primary, if one answers, to step down in our favour.
func (n *Node) askHandover(ctx context.Context, peers []election.Peer, force bool) (bool, error) {
	for i, p := range peers {
		if p.Err != nil || p.Role != election.Primary {
			continue
		}
		final, err := n.handover(ctx, n.view.Peers()[i])
		if err == nil {
			err = n.awaitApplied(ctx, final.GetApplied().GetLsn())
		}
		if err == nil {
			peers[i].Role = election.Standby
			return true, nil
		}
		if !force {
			return false, &election.RefusedError{Reasons: []string{fmt.Sprintf("%s is primary in epoch %d and cannot hand over: %v", p.Name, p.Epoch, err)}}
		}
		n.log.Warn("the primary does not hand over; promotion is forced", zap.String("peer", p.Name), zap.Error(err))
	}
	return false, nil
}

func (n *Node) handover(ctx context.Context, p config.Node) (*wire.NodeState, error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Replication.DrainTimeout.Std()+5*time.Second)
	defer cancel()
	conn, err := n.dial(p)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	reply, err := wire.NewReplicationClient(conn).Handover(ctx, &wire.HandoverRequest{Caller: n.self()})
	if err != nil {
		return nil, explain(err)
	}
	return reply.GetState(), nil
}

// awaitApplied waits until this standby shows all up to lsn.
func (n *Node) awaitApplied(ctx context.Context, lsn uint64) error {
	deadline := time.Now().Add(n.cfg.Replication.DrainTimeout.Std())
	for n.standby.Status().Applied < lsn {
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("this node has applied %d of %d", n.standby.Status().Applied, lsn)
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// takeOver ends following: what was received is applied, the log ends there.
func (n *Node) takeOver(ctx context.Context, force bool) error {
	n.standby.Stop()
	sb := n.standby.Status()
	if !replicate.Copying(sb.State) {
		if err := n.standby.Finish(ctx); err != nil {
			if !force {
				if serr := n.standby.Start(); serr != nil {
					n.log.Error("cannot follow again", zap.Error(serr))
				}
				return &election.RefusedError{Reasons: []string{err.Error()}}
			}
			n.log.Warn("what was received cannot be applied; promotion is forced", zap.Error(err))
		}
	}
	st := n.standby.Applier().State()
	if st.Pending != 0 {
		why := fmt.Sprintf("records %d to %d were being applied, and not all of them can be: the store may be between two records", st.Applied+1, st.Pending)
		if !force {
			if serr := n.standby.Start(); serr != nil {
				n.log.Error("cannot follow again", zap.Error(serr))
			}
			return &election.RefusedError{Reasons: []string{why}}
		}
		n.log.Warn("promotion forced", zap.String("against", why))
	}
	applied := st.Applied
	switch {
	case applied == n.oplog.Last():
	case applied >= n.oplog.First()-1 && applied < n.oplog.Last():
		if err := n.oplog.TruncateAfter(applied); err != nil {
			return fmt.Errorf("cut the log: %w", err)
		}
	default:
		if err := n.oplog.Reset(applied + 1); err != nil {
			return fmt.Errorf("reset the log: %w", err)
		}
	}
	n.standby.Applier().DropCaches()
	return nil
}

func (n *Node) electionSelf() election.Self {
	sb, me := n.standby.Status(), n.self()
	return election.Self{
		State: n.state.Get(), InSync: sb.InSync, Copying: replicate.Copying(sb.State),
		Suspect: me.GetSuspect(), Trouble: sb.Trouble,
		ReceivedEpoch: me.GetReceived().GetEpoch(), ReceivedLSN: me.GetReceived().GetLsn(),
	}
}

// demote makes this primary read-only and a standby of nobody yet.
func (n *Node) demote(context.Context) (*control.RoleChange, error) {
	n.changing.Lock()
	defer n.changing.Unlock()
	if n.getRole() != wire.Role_ROLE_PRIMARY {
		return &control.RoleChange{Role: "standby", Epoch: n.state.Get().Epoch, What: "this node is a standby already"}, nil
	}
	begun := time.Now()
	n.flushMapped()
	n.fs.SetReadOnly()
	n.endCopies()
	last := n.oplog.Last()
	for _, name := range n.insync.Set() {
		if err := n.insync.WaitApplied(name, last, n.cfg.Replication.DrainTimeout.Std()); err != nil {
			n.log.Warn("demoted before the standby has everything", zap.String("peer", name), zap.Error(err))
		}
	}
	if err := n.stepDown(); err != nil {
		n.markSuspect("cannot step down: " + err.Error())
		return nil, err
	}
	n.setNotice("demoted by an operator: no node is primary until one is promoted")
	return &control.RoleChange{Role: "standby", Epoch: n.state.Get().Epoch, What: "demoted", Seconds: time.Since(begun).Seconds()}, nil
}
