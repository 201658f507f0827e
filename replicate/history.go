// Package replicate carries the log from a primary to its standbys: the
// sender and its decisions, the receiver, the set of standbys in sync. It
// knows nothing of FUSE; what it needs of the store comes through Walker.
package replicate

import (
	"slices"

	"github.com/replfs/replfs/replicate/wire"
)

// Position is a place in the cluster's log.
type Position struct {
	Epoch uint64 `json:"epoch"`
	LSN   uint64 `json:"lsn"`
}

// Epoch is where a term of a primary began.
type Epoch struct {
	Epoch   uint64 `json:"epoch"`
	Primary string `json:"primary"`
	// Begin is the LSN of its first record.
	Begin uint64 `json:"begin"`
}

// History lists epochs, oldest first. Two nodes whose histories agree up to a
// position had equal stores there.
type History []Epoch

// maxHistory bounds what is kept; older positions count as diverged.
const maxHistory = 1024

// With returns the history with one more epoch. Epochs that begin at or
// after it never happened for its primary.
func (h History) With(e Epoch) History {
	out := slices.Clone(h)
	for len(out) > 0 && (out[len(out)-1].Begin >= e.Begin || out[len(out)-1].Epoch >= e.Epoch) {
		out = out[:len(out)-1]
	}
	out = append(out, e)
	if len(out) > maxHistory {
		out = out[len(out)-maxHistory:]
	}
	return out
}

// At returns the epoch that the record at lsn belongs to.
func (h History) At(lsn uint64) (Epoch, bool) {
	for i := len(h) - 1; i >= 0; i-- {
		if lsn >= h[i].Begin {
			return h[i], true
		}
	}
	return Epoch{}, false
}

// Holds tells whether a node at pos, with history peer, holds a prefix of
// this log, whose last record is last.
func (h History) Holds(peer History, pos Position, last uint64) bool {
	if pos.LSN > last {
		return false
	}
	mine, ok := h.At(pos.LSN)
	if !ok || mine.Epoch != pos.Epoch {
		return false
	}
	theirs, ok := peer.At(pos.LSN)
	return ok && theirs == mine
}

func (h History) toWire() []*wire.EpochStart {
	out := make([]*wire.EpochStart, 0, len(h))
	for _, e := range h {
		out = append(out, &wire.EpochStart{Epoch: e.Epoch, Primary: e.Primary, Begin: e.Begin})
	}
	return out
}

// HistoryFromWire converts what a peer said. It is bounded and in order, or
// empty: an empty history holds nothing.
func HistoryFromWire(in []*wire.EpochStart) History {
	if len(in) > maxHistory {
		return nil
	}
	var out History
	for i, e := range in {
		if i > 0 && (e.GetEpoch() <= in[i-1].GetEpoch() || e.GetBegin() <= in[i-1].GetBegin()) {
			return nil
		}
		out = append(out, Epoch{Epoch: e.GetEpoch(), Primary: e.GetPrimary(), Begin: e.GetBegin()})
	}
	return out
}
