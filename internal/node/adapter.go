package node

import (
	"context"

	"github.com/replfs/replfs/fs"
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

// newWalk is a copy of the store as the senders want it.
func (n *Node) newWalk(throttle func(context.Context) error, progress func(int, int64)) replicate.Walk {
	e := n.fs.NewEmission()
	e.Throttle, e.Progress = throttle, progress
	return e
}
