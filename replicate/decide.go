package replicate

import (
	"fmt"

	"github.com/replfs/replfs/replicate/wire"
)

// Protocol is the version of the wire protocol.
const Protocol = 1

// CheckIdentity checks who a peer says it is against who it has to be. name
// "" takes any.
func CheckIdentity(self, peer *wire.Identity, name string) error {
	switch {
	case peer.GetProtocol() != Protocol:
		return fmt.Errorf("%s speaks protocol %d, %s speaks %d: run the same version of replfs on both", peer.GetNode(), peer.GetProtocol(), self.GetNode(), Protocol)
	case peer.GetCluster() != self.GetCluster():
		return fmt.Errorf("%s belongs to cluster %q, %s to %q", peer.GetNode(), peer.GetCluster(), self.GetNode(), self.GetCluster())
	case name != "" && peer.GetNode() != name:
		return fmt.Errorf("expected node %s, but %s answers", name, peer.GetNode())
	case peer.GetClusterId() != "" && self.GetClusterId() != "" && peer.GetClusterId() != self.GetClusterId():
		return fmt.Errorf("%s and %s hold data of two different clusters that are both named %q: to discard the data of one node, stop it and empty its state directory",
			self.GetNode(), peer.GetNode(), self.GetCluster())
	}
	return nil
}

// Plan is how a standby is to be brought on.
type Plan struct {
	// From is the first record it gets, unless Copy.
	From uint64
	// Copy: it needs a complete copy; Reason says why.
	Copy   bool
	Reason string
	// Diverged: its store may hold what the primary's does not.
	Diverged bool
}

// Decide compares a standby's state with this primary's log, which ends at
// last.
func Decide(peer *wire.NodeState, own History, last uint64) Plan {
	history := HistoryFromWire(peer.GetHistory())
	applied := Position{peer.GetApplied().GetEpoch(), peer.GetApplied().GetLsn()}
	received := Position{peer.GetReceived().GetEpoch(), peer.GetReceived().GetLsn()}
	switch {
	case peer.GetCopying():
		return Plan{Copy: true, Reason: "its last copy was interrupted"}
	case peer.GetSuspect() != "":
		return Plan{Copy: true, Diverged: true, Reason: peer.GetSuspect()}
	case applied.Epoch == 0:
		return Plan{Copy: true, Diverged: true, Reason: "it has no data of this cluster yet"}
	case !own.Holds(history, applied, last):
		return Plan{Copy: true, Diverged: true, Reason: fmt.Sprintf("it has applied %d/%d, which this primary's history does not hold", applied.Epoch, applied.LSN)}
	}
	if received.LSN >= applied.LSN && own.Holds(history, received, last) {
		return Plan{From: received.LSN + 1}
	}
	return Plan{From: applied.LSN + 1}
}
