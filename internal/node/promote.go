package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
// is known to be unsafe is an *election.RefusedError, unless force. It returns when
// the service is ready or has failed; on a primary whose service has failed it
// tries that part again.
func (n *Node) promote(ctx context.Context, force bool) (*control.RoleChange, error) {
	begun := time.Now()
	t, up, what, err := n.promoteRole(ctx, force)
	if err != nil {
		return nil, err
	}
	out := &control.RoleChange{Role: "primary", Epoch: n.state.Get().Epoch, What: what}
	if up != nil {
		// Not under the lock: another change of roles cuts it short.
		<-up.done
		if up.err != nil {
			out.Problem = up.err.Error()
		}
		out.Steps, out.Seconds = t.status().Steps, time.Since(begun).Seconds()
	}
	return out, nil
}

// promoteRole does what has to be done under the lock.
func (n *Node) promoteRole(ctx context.Context, force bool) (*transition, *job, string, error) {
	n.changing.Lock()
	defer n.changing.Unlock()
	o := occasion{role: election.Primary, reason: "promoted by an operator"}
	if n.getRole() == wire.Role_ROLE_PRIMARY {
		if !n.service.failed() {
			return nil, nil, "this node is primary already", nil
		}
		n.service.halt()
		t := n.begin("promote", "the service had failed, an operator tries again")
		return t, n.service.bringUp(t, o, false), "this node was primary, its service was started again", nil
	}
	if force {
		o.reason = "promoted by an operator, by force"
	}
	t := n.begin("promote", o.reason)
	// Visible to a peer that starts just now: it waits for the outcome.
	n.setRole(wire.Role_ROLE_STARTING)
	var peers []election.Peer
	var planned bool
	o.peer = n.standby.Status().Primary
	err := t.run(ctx,
		step{name: "ask the peers", run: do(func() error {
			peers = n.probe(ctx)
			return nil
		})},
		step{name: "hand over", run: func(ctx context.Context) (detail string, err error) {
			planned, detail, err = n.mayTakeOver(ctx, peers, force)
			return detail, err
		}},
		step{name: "apply what was received", run: do(func() error { return n.takeOver(ctx, force) })},
	)
	if err != nil {
		n.setRole(wire.Role_ROLE_STANDBY)
		return nil, nil, "", t.end(err)
	}
	steps := append(n.service.earlySteps(), step{name: "open read-write", run: func(context.Context) (string, error) {
		epoch := election.NextEpoch(n.state.Get(), peers)
		return fmt.Sprintf("epoch %d", epoch), n.becomePrimary(epoch, nil, nil)
	}})
	if err := t.run(ctx, steps...); err != nil {
		n.markSuspect("promotion failed: " + err.Error())
		err = errors.Join(err, n.service.keeper.drop())
		return nil, nil, "", t.end(err)
	}
	what := "promoted without the old primary"
	if planned {
		what = "taken over from the old primary"
	}
	return t, n.service.bringUp(t, o, false), what, nil
}

// mayTakeOver has the old primary hand over, or finds out whether it is safe to
// do without.
func (n *Node) mayTakeOver(ctx context.Context, peers []election.Peer, force bool) (planned bool, detail string, err error) {
	if planned, err = n.askHandover(ctx, peers, force); err != nil {
		return false, "", err
	}
	if planned {
		return true, "the old primary is a standby", nil
	}
	if why := election.Unsafe(n.electionSelf(), peers); len(why) > 0 {
		if !force {
			return false, "", &election.RefusedError{Reasons: why}
		}
		n.log.Warn("promotion forced", zap.Strings("against", why))
		return false, "forced, against: " + strings.Join(why, "; "), nil
	}
	return false, "no primary answers", nil
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
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Replication.DrainTimeout.Std()+n.service.demoteLimit())
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

// demote makes this primary read-only and a standby of nobody yet. With
// ifReplaceable it refuses where no standby in sync could take over.
func (n *Node) demote(_ context.Context, ifReplaceable bool) (*control.RoleChange, error) {
	n.changing.Lock()
	defer n.changing.Unlock()
	if n.getRole() != wire.Role_ROLE_PRIMARY {
		return &control.RoleChange{Role: "standby", Epoch: n.state.Get().Epoch, What: "this node is a standby already"}, nil
	}
	if ifReplaceable && len(n.insync.Set()) == 0 {
		return nil, &election.RefusedError{Reasons: []string{"no standby is in sync: nobody could take over, and nobody could write"}}
	}
	o := occasion{role: election.Standby, reason: "demoted by an operator"}
	t := n.begin("demote", o.reason)
	begun := time.Now()
	steps := append(n.service.downSteps(o), n.drainSteps()...)
	err := t.run(context.Background(), append(steps, step{name: "step down", run: do(func() error { return n.stepDown(true) })})...)
	if err != nil {
		n.markSuspect("cannot step down: " + err.Error())
		return nil, t.end(err)
	}
	n.setNotice("demoted by an operator: no node is primary until one is promoted")
	out := &control.RoleChange{Role: "standby", Epoch: n.state.Get().Epoch, What: "demoted", Seconds: time.Since(begun).Seconds()}
	if err := t.end(nil); err != nil {
		out.Problem = err.Error()
		n.service.tell("demoted", o, err)
	} else {
		n.service.tell("demoted", o, nil)
	}
	out.Steps = t.status().Steps
	return out, nil
}

// drainSteps end the writing and give the standbys in sync what they lack.
func (n *Node) drainSteps() []step {
	return []step{
		{name: "flush mapped files", run: do(func() error {
			n.flushMapped()
			return nil
		})},
		{name: "turn read-only", run: do(func() error {
			n.fs.SetReadOnly()
			n.endCopies()
			return nil
		})},
		{name: "drain", optional: true, run: do(func() error {
			last := n.oplog.Last()
			var errs []error
			for _, name := range n.insync.Set() {
				if err := n.insync.WaitApplied(name, last, n.cfg.Replication.DrainTimeout.Std()); err != nil {
					errs = append(errs, fmt.Errorf("going on before %s has everything: %w", name, err))
				}
			}
			return errors.Join(errs...)
		})},
	}
}

// outrun tells whether another node is known to be ahead in epochs.
func (n *Node) outrun(ctx context.Context) bool {
	own := n.state.Get().Epoch
	for _, p := range n.probe(ctx) {
		if p.Err == nil && p.Epoch > own {
			return true
		}
	}
	return false
}
