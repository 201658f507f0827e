package election

import (
	"fmt"
	"strings"
)

// Peer is what another data node said of itself, or why it said nothing.
type Peer struct {
	Name string
	// Err says why there is no answer; the rest is void then.
	Err       error
	Refused   bool // somebody is there, but does not talk to this node
	Starting  bool // it is changing its role
	Role      Role
	ClusterID string
	Epoch     uint64
	// Epoch and LSN of what it has received: what a promotion would begin with.
	ReceivedEpoch, ReceivedLSN uint64
	Promotable                 bool
}

// Start decides the role that a node begins with, and says why. It becomes
// primary only where it was, or where the cluster is new and it is named as
// the initial primary. In manual mode a peer that does not answer counts as
// being no primary.
func Start(st State, initial bool, peers []Peer) (Role, string) {
	for _, p := range peers {
		if p.Err != nil {
			continue
		}
		switch {
		case p.Role == Primary:
			return Standby, fmt.Sprintf("%s is primary in epoch %d", p.Name, p.Epoch)
		case p.Epoch > st.Epoch:
			return Standby, fmt.Sprintf("%s knows epoch %d, this node %d", p.Name, p.Epoch, st.Epoch)
		case !st.Joined() && p.ClusterID != "":
			return Standby, fmt.Sprintf("this node has no state, and %s has data of the cluster", p.Name)
		}
	}
	switch {
	case !MayLead(st, initial):
	case st.Joined():
		return Primary, fmt.Sprintf("it was primary in epoch %d", st.Epoch)
	default:
		return Primary, "it is the initial primary of a new cluster"
	}
	return Standby, "it was not primary"
}

// MayLead tells whether a node could become primary by itself when it starts.
func MayLead(st State, initial bool) bool {
	return st.Joined() && st.Role == Primary || !st.Joined() && initial
}

// Self is what a node knows of itself when it is asked to become primary.
type Self struct {
	State
	// InSync is what the primary last said.
	InSync  bool
	Copying bool
	Suspect string
	Trouble string
	// Epoch and LSN of what it has received.
	ReceivedEpoch, ReceivedLSN uint64
}

// Unsafe lists the reasons against promoting a node whose primary is not
// there to hand over. Empty means that nothing speaks against it; in manual
// mode an unreachable primary counts as dead on the operator's word.
func Unsafe(self Self, peers []Peer) []string {
	var why []string
	if !self.Joined() {
		why = append(why, "this node has never held data of the cluster")
	}
	if self.Copying {
		why = append(why, "a complete copy from the primary was under way: the store holds only a part of the data")
	} else if self.Suspect != "" {
		why = append(why, "the store is suspect: "+self.Suspect)
	}
	if self.Trouble != "" {
		why = append(why, "the store could not take what was received: "+self.Trouble)
	}
	if !self.InSync && self.Joined() && !self.Copying && self.Suspect == "" {
		why = append(why, "this node was not in sync when contact with the primary was lost: writes that were acknowledged may be missing here")
	}
	for _, p := range peers {
		if p.Refused {
			why = append(why, fmt.Sprintf("%s is there but does not talk to this node, so it may be primary: %v", p.Name, p.Err))
		}
		if p.Err != nil {
			continue
		}
		if p.Starting {
			why = append(why, fmt.Sprintf("%s is starting or changing its role: ask again in a moment", p.Name))
		} else if p.Role == Primary {
			why = append(why, fmt.Sprintf("%s is primary in epoch %d and does not hand over", p.Name, p.Epoch))
		} else if p.Promotable && (p.ReceivedEpoch > self.ReceivedEpoch || p.ReceivedEpoch == self.ReceivedEpoch && p.ReceivedLSN > self.ReceivedLSN) {
			why = append(why, fmt.Sprintf("%s has newer data (%d/%d, this node has %d/%d): promote it instead, with `replfs promote` there", p.Name, p.ReceivedEpoch, p.ReceivedLSN, self.ReceivedEpoch, self.ReceivedLSN))
		}
	}
	return why
}

// RefusedError is an operation that a node knows to be unsafe.
type RefusedError struct{ Reasons []string }

func (e *RefusedError) Error() string {
	return "refused as unsafe: " + strings.Join(e.Reasons, "; ")
}

// NextEpoch is the epoch that a new primary opens: above all that anyone
// reachable knows.
func NextEpoch(st State, peers []Peer) uint64 {
	next := st.Epoch
	for _, p := range peers {
		if p.Err == nil {
			next = max(next, p.Epoch)
		}
	}
	return next + 1
}
