package node

import (
	"context"
	"fmt"
	"time"

	"github.com/replfs/replfs/fs"
	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/internal/exclude"
	"github.com/replfs/replfs/replicate"
	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
)

// logAdapter is the log as fs wants it.
type logAdapter struct {
	log    *oplog.Log
	insync *replicate.InSync
}

func (a logAdapter) Begin(r *record.Record) fs.Intent { return a.log.Begin(r) }

func (a logAdapter) Append(r *record.Record, data []byte, in fs.Intent) (uint64, error) {
	slot, _ := in.(*oplog.Slot)
	return a.log.Append(r, data, slot)
}

func (a logAdapter) WaitDurable(lsn uint64) error { return a.insync.WaitDurable(lsn) }

func (a logAdapter) WaitReceived(lsn uint64) error {
	return a.insync.Wait(context.Background(), replicate.Received, lsn)
}

func (a logAdapter) WaitApplied() error {
	return a.insync.Wait(context.Background(), replicate.Applied, a.log.Last())
}

// durabilities are the config's as fs wants them.
func durabilities(r *config.Replication) (fs.Durability, []fs.PathDurability, error) {
	modes := map[config.Durability]fs.Durability{
		config.DurabilityAsync: fs.Async, config.DurabilityReceived: fs.Received,
		config.DurabilityFsync: fs.Fsync, config.DurabilitySync: fs.Sync,
	}
	var paths []fs.PathDurability
	for _, rule := range r.Paths {
		// What a pattern means is the same here as in replication.exclude.
		set, err := exclude.New([]string{rule.Match})
		if err != nil {
			return 0, nil, fmt.Errorf("replication.paths: %w", err)
		}
		all := rule.Match == "**" || rule.Match == "**/"
		paths = append(paths, fs.PathDurability{
			Match:      func(path string) bool { return all || set.Excluded(path) },
			Durability: modes[rule.Durability],
		})
	}
	return modes[r.Durability], paths, nil
}

// minInSync is how many standbys nothing is acknowledged without.
func minInSync(r *config.Replication) int {
	if r.OnStandbyLoss == config.LossBlock {
		return r.MinInSync
	}
	return 0
}

// newPacer holds this node's writers to what the standbys can follow.
func (n *Node) newPacer() *replicate.Pacer {
	r := &n.cfg.Replication
	return replicate.NewPacer(replicate.PacerConfig{
		MaxLagBytes: uint64(r.MaxLagBytes), MaxLag: r.MaxLag.Std(), AckTimeout: r.AckTimeout.Std(),
		Position: n.oplog.Position, BytesAfter: n.bytesAfter,
		Members: func(out []replicate.Member) []replicate.Member { return n.insync.AppendMembers(out) },
		Limit:   func(rate float64, room int64) { n.fs.Throttle(rate, room) },
	})
}

// heldBack is how often a copy looks whether writers may go on.
const heldBack = 10 * time.Millisecond

// newWalk is a copy of the store as the senders want it. What it appends
// counts for the lag of the other standbys.
func (n *Node) newWalk(throttle func(context.Context) error, progress func(int, int64)) replicate.Walk {
	e := n.fs.NewEmission()
	e.Progress = progress
	e.Throttle = func(ctx context.Context) error {
		for n.pacer.Stopped() && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(heldBack):
			}
		}
		return throttle(ctx)
	}
	return e
}
