package node

import (
	"context"
	"fmt"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/dustin/go-humanize"

	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/internal/control"
	"github.com/replfs/replfs/replicate"
	"github.com/replfs/replfs/replicate/journal"
	"github.com/replfs/replfs/replicate/oplog"
)

// RingPath is the file of a node's log ring.
func RingPath(v *config.NodeView) string {
	return filepath.Join(filepath.Dir(v.Control), fmt.Sprintf("%s-%s.ring", v.Cluster, v.Name))
}

// JournalDir is where a node keeps the log for standbys that are far behind.
func JournalDir(v *config.NodeView) string { return filepath.Join(v.State, "journal") }

// startSpiller begins to keep what the standbys need; history is that of
// before the new epoch. With fresh, no standby can go on from what is there.
func (n *Node) startSpiller(history replicate.History, fresh bool) error {
	boot, err := oplog.MachineBootID()
	if err != nil {
		return err
	}
	cfg := replicate.SpillerConfig{
		Log: n.oplog, MaxBytes: int64(n.cfg.Replication.Journal.MaxBytes),
		Cluster: n.state.Get().ClusterID, BootID: boot, InSync: n.insync,
		AckTimeout: n.cfg.Replication.AckTimeout.Std(), Logger: n.log,
	}
	if cfg.MaxBytes > 0 {
		cfg.Dir = JournalDir(n.view)
	} else {
		n.removeJournal()
	}
	for _, p := range n.view.Peers() {
		cfg.Peers = append(cfg.Peers, p.Name)
	}
	s := replicate.StartSpiller(cfg, history, fresh)
	n.mu.Lock()
	n.spiller = s
	n.mu.Unlock()
	return nil
}

// bytesAfter is what ring and journal hold of the log after lsn.
func (n *Node) bytesAfter(lsn uint64) uint64 {
	n.mu.Lock()
	s := n.spiller
	n.mu.Unlock()
	if s == nil {
		return n.oplog.BytesAfter(lsn)
	}
	return s.BytesAfter(lsn)
}

// endSpiller ends it in one of its ways, if there is one.
func (n *Node) endSpiller(end func(*replicate.Spiller)) {
	n.mu.Lock()
	s := n.spiller
	n.spiller = nil
	n.mu.Unlock()
	if s != nil {
		end(s)
	}
}

// parkJournal keeps what standbys need over a restart of the machine.
func (n *Node) parkJournal() {
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.Replication.DrainTimeout.Std())
	defer cancel()
	n.endSpiller(func(s *replicate.Spiller) { s.Park(ctx) })
}

// removeJournal removes what an earlier life as primary left: a standby's log
// is another one's.
func (n *Node) removeJournal() {
	if err := journal.Remove(JournalDir(n.view)); err != nil {
		n.log.Warn("cannot remove an old journal", zap.Error(err))
	}
}

func (n *Node) journalStatus(out *control.Status, s *replicate.Spiller) {
	if s == nil {
		return
	}
	st := s.Status()
	if st.Enabled {
		out.Journal = &control.Journal{
			Active: st.Active, Bytes: st.Bytes, MaxBytes: st.MaxBytes, First: st.First, Last: st.Last, Error: st.Failure,
		}
	}
	dir := JournalDir(n.view)
	switch {
	case st.Failure != "":
		out.Problems = append(out.Problems, control.Problem{
			What: "the journal cannot be used: " + st.Failure,
			Do:   fmt.Sprintf("make room or mend the file system of %s; it is tried again by itself. Until then a standby that is away for longer than the ring reaches gets a complete copy", dir),
		})
	case st.Lost != "":
		out.Problems = append(out.Problems, control.Problem{
			What: "a standby was too far behind and needs a complete copy: " + st.Lost,
			Do: fmt.Sprintf("it begins by itself when the standby is connected. If this happens often, raise replication.journal.max_bytes (now %s), as %s has room",
				humanize.IBytes(uint64(st.MaxBytes)), dir),
		})
	}
}

// catchUp is how a standby that is far behind comes closer, as the status
// shows it.
func catchUp(c *replicate.CatchUpStatus) *control.CatchUp {
	if c == nil {
		return nil
	}
	out := &control.CatchUp{Started: c.Started, Bytes: c.Remaining, Rate: c.Rate}
	if left, ok := c.Left(); ok {
		s := left.Seconds()
		out.SecondsLeft = &s
	}
	return out
}
