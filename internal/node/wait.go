package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/replfs/replfs/internal/control"
	"github.com/replfs/replfs/replicate"
	"github.com/replfs/replfs/replicate/wire"
)

// waitRefusedError is a wait for what cannot come true as things are.
type waitRefusedError struct{ why string }

func (e *waitRefusedError) Error() string { return "refused: " + e.why }

// waitInterval is how often a standby looks whether it shows a position.
const waitInterval = 2 * time.Millisecond

// wait carries out a control.WaitRequest. It ends with ctx.
func (n *Node) wait(ctx context.Context, req control.WaitRequest) (*control.WaitResult, error) {
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, req.Timeout, &waitTimeoutError{req.Timeout})
		defer cancel()
	}
	begun := time.Now()
	res, err := n.waitAs(ctx, req)
	if err != nil {
		return nil, err
	}
	res.Seconds = time.Since(begun).Seconds()
	return res, nil
}

type waitTimeoutError struct{ after time.Duration }

func (e *waitTimeoutError) Error() string {
	return fmt.Sprintf("not within %s", e.after.Round(time.Millisecond))
}

func (n *Node) waitAs(ctx context.Context, req control.WaitRequest) (*control.WaitResult, error) {
	switch n.getRole() {
	case wire.Role_ROLE_PRIMARY:
	case wire.Role_ROLE_STANDBY:
		if req.What == control.WaitPosition {
			return n.waitShown(ctx, req.Position)
		}
		primary := "no node is known to be"
		if p := n.standby.Status().Primary; p != "" {
			primary = p + " is"
		}
		return nil, &waitRefusedError{fmt.Sprintf("%s is a standby; run it on the primary, which %s", n.view.Name, primary)}
	default:
		return nil, &waitRefusedError{n.view.Name + " is changing its role: ask again in a moment"}
	}
	set := req.Standbys // some of them may have left since
	if len(set) == 0 {
		set = n.insync.Set()
	}
	if len(set) == 0 {
		return nil, &waitRefusedError{"no standby is in sync: " + n.whyNotInSync()}
	}
	last := n.oplog.Last()
	var err error
	switch req.What {
	case control.WaitReady:
	case control.WaitAcked:
		err = n.insync.AwaitDurable(ctx, set, last)
	case control.WaitPosition:
		last = req.Position.LSN
		if err := n.checkPosition(req.Position, n.oplog.Last()); err != nil {
			return nil, err
		}
		if end := n.oplog.Last(); last > end {
			return nil, fmt.Errorf("position %s was not reached yet: the log ends at %d", req.Position, end)
		}
		err = n.insync.AwaitDurable(ctx, set, last)
	case control.WaitSync:
		last, err = n.waitSynced(ctx, set)
	default:
		return nil, fmt.Errorf("no such wait: %q", req.What)
	}
	if err != nil {
		return nil, n.explainWait(err, last)
	}
	epoch, _, _ := n.position(last)
	return &control.WaitResult{Position: control.Position{Epoch: epoch, LSN: last}, Standbys: set}, nil
}

// waitSynced makes all that the log has now durable, here and on the standbys,
// at the same time.
func (n *Node) waitSynced(ctx context.Context, set []string) (last uint64, err error) {
	own := make(chan error, 1) // a syncfs cannot be interrupted
	go func() { own <- n.syncStore() }()
	err = n.insync.AwaitSynced(ctx, set, func() (uint64, error) {
		var err error
		last, err = n.fs.AppendSync()
		return last, err
	})
	if err != nil {
		return last, err
	}
	select {
	case err = <-own:
	case <-ctx.Done():
		err = fmt.Errorf("this node's own store is still being synced: %w", context.Cause(ctx))
	}
	return last, err
}

// explainWait adds how far the standbys are.
func (n *Node) explainWait(err error, last uint64) error {
	var left *replicate.LeftError
	var late *waitTimeoutError
	switch {
	case errors.As(err, &left):
		return fmt.Errorf("%w: %s", err, n.whyNotInSync())
	case errors.As(err, &late):
		var far []string
		for _, s := range n.insync.Standings() {
			if s.InSync {
				far = append(far, s.String())
			}
		}
		return fmt.Errorf("%w: of %d records, %s", err, last, strings.Join(far, "; "))
	}
	return err
}

// whyNotInSync says of each standby that is not in sync why.
func (n *Node) whyNotInSync() string {
	n.mu.Lock()
	senders := append([]*sender(nil), n.senders...)
	n.mu.Unlock()
	if len(senders) == 0 {
		return "the config names no other data node"
	}
	var out []string
	for _, s := range senders {
		if n.insync.Has(s.peer.Name) {
			continue
		}
		st, why := s.Status(), "it is catching up"
		switch {
		case st.Trouble != "":
			why = st.Trouble
		case st.Copy != nil:
			why = "it is receiving a complete copy"
		case st.CatchUp != nil:
			why = "it is catching up, and far behind"
		case st.State == "connecting":
			why = "it has not answered yet"
		case st.State != "streaming":
			why = st.State + ": " + st.Error
		}
		out = append(out, s.peer.Name+": "+why)
	}
	return strings.Join(out, "; ")
}

// waitShown returns when this standby's store shows a position.
func (n *Node) waitShown(ctx context.Context, p control.Position) (*control.WaitResult, error) {
	tick := time.NewTicker(waitInterval)
	defer tick.Stop()
	for {
		st := n.standby.Status()
		if !replicate.Copying(st.State) && st.Applied >= p.LSN {
			if err := n.checkPosition(p, st.Applied); err != nil {
				return nil, err
			}
			return &control.WaitResult{Position: p}, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %s shows %d/%d", context.Cause(ctx), n.view.Name, st.Epoch, st.Applied)
		case <-tick.C:
		}
	}
}

// checkPosition tells whether a position that lies before last is one of this
// node's history.
func (n *Node) checkPosition(p control.Position, last uint64) error {
	if e, ok := toHistory(n.state.Get().History).At(p.LSN); p.LSN <= last && (!ok || e.Epoch != p.Epoch) {
		return fmt.Errorf("position %s is not in the history of %s: what was written there was lost when another node became primary", p, n.view.Name)
	}
	return nil
}

// position is the position of the record lsn, or with 0 of the last one that the
// store shows.
func (n *Node) position(lsn uint64) (epoch, at uint64, ok bool) {
	if n.getRole() != wire.Role_ROLE_PRIMARY {
		st := n.standby.Applier().State()
		return st.Epoch, st.Applied, st.Applied > 0 && !replicate.Copying(st)
	}
	if lsn == 0 {
		lsn = n.oplog.Last()
	}
	e, ok := toHistory(n.state.Get().History).At(lsn)
	return e.Epoch, lsn, ok
}

// logResumed says by which way a node goes on after a restart; the status
// repeats it.
func (n *Node) logResumed(how string) {
	n.mu.Lock()
	n.resumedAs = how
	n.mu.Unlock()
	n.log.Info("restart", zap.String("tier", how))
}
