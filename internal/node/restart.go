package node

import (
	"fmt"
	"os"

	"github.com/replfs/replfs/election"
	"github.com/replfs/replfs/replicate"
	"github.com/replfs/replfs/replicate/oplog"
)

// bootIDEnv replaces the kernel's boot id, so that a test can restart a machine
// without one. It is for tests only: what it says of a crash nobody can undo.
const bootIDEnv = "REPLFS_BOOT_ID"

// bootID tells boots of the machine apart; "" is the kernel's.
func bootID() string { return os.Getenv(bootIDEnv) }

// standbyTier says what a standby found when it started, and how it goes on.
func (n *Node) standbyTier(st election.State, rec oplog.Recovered) string {
	sb := n.standby.Applier().State()
	received := max(sb.Applied, n.oplog.Last())
	ended := "its process ended without a stop"
	if st.Clean {
		ended = "clean stop"
	}
	switch {
	case n.resumed:
		return fmt.Sprintf("a successor took over: goes on behind record %d", received)
	case !st.Joined() || sb.Fresh:
		return "it has no data yet: gets a complete copy"
	case replicate.Copying(sb):
		return ended + " in a complete copy: gets another one"
	case sb.Suspect != "":
		return sb.Suspect + ": gets a complete copy"
	case rec.Fresh && st.Clean:
		return fmt.Sprintf("%s, and its own log is gone as after a restart of the machine: goes on behind record %d, which its store shows", ended, sb.Applied)
	case rec.Fresh:
		return fmt.Sprintf("its own log is gone (%s): goes on behind record %d, which its store shows", rec.Reason, sb.Applied)
	}
	return fmt.Sprintf("%s: goes on behind record %d, which it had received, and had applied %d", ended, received, sb.Applied)
}

// primaryTier says what a node that was primary found when it started, and how
// it goes on.
func (n *Node) primaryTier(st election.State, rec oplog.Recovered) string {
	switch {
	case n.resumed:
		return fmt.Sprintf("a successor took over: the log goes on behind record %d", rec.Last)
	case !st.Joined():
		return "started for the first time"
	case n.unclean:
		return fmt.Sprintf("the log was lost without a clean stop, as in a crash of the machine (%s): every standby gets a complete copy", rec.Reason)
	case rec.Fresh:
		return fmt.Sprintf("clean stop, and the log is gone as after a restart of the machine: it goes on behind record %d", st.CleanLSN)
	case st.Clean:
		return fmt.Sprintf("clean stop: the log goes on behind record %d", rec.Last)
	}
	return fmt.Sprintf("its process ended without a stop: the log goes on behind record %d, and %d operations that were under way are settled", rec.Last, len(rec.Intents))
}
