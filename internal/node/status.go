package node

import (
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/replfs/replfs/internal/control"
	"github.com/replfs/replfs/internal/version"
	"github.com/replfs/replfs/replicate"
	"github.com/replfs/replfs/replicate/wire"
)

// contactLost is how long a standby may hear nothing of its primary, which
// sends ten heartbeats a second, before it says so.
const contactLost = 3 * time.Second

// status is what `replfs status` shows.
func (n *Node) status() *control.Status {
	st := n.state.Get()
	n.mu.Lock()
	role, suspect, notice, resumed := n.role, n.suspect, n.notice, n.resumedAs
	senders := append([]*sender(nil), n.senders...)
	spiller := n.spiller
	n.mu.Unlock()
	out := &control.Status{
		Version: version.Get().Version, Cluster: n.view.Cluster, ClusterID: st.ClusterID, Node: n.view.Name,
		Role: "starting", Writable: n.fs.Writable(), Epoch: st.Epoch,
		Durability: string(n.cfg.Replication.Durability), Mount: n.view.Mount, Store: n.view.Store,
		Started: n.started, Peers: []control.Peer{}, History: []control.Epoch{}, Problems: []control.Problem{},
		Requests: n.fs.Requests(), Resumed: resumed,
	}
	for _, e := range st.History {
		out.History = append(out.History, control.Epoch(e))
	}
	if suspect != "" {
		out.Problems = append(out.Problems, control.Problem{
			What: "this node is suspect: " + suspect,
			Do:   "look at the log; if this is the primary, promote the standby, then restart replfs here: it gets a complete copy",
		})
	}
	if lost, files := n.fs.LostPages(); lost > 0 {
		out.Problems = append(out.Problems, control.Problem{
			What: fmt.Sprintf("%d bytes that programs had stored in mapped files came to be written after this node stopped being primary, and were refused: %s",
				lost, strings.Join(files, ", ")),
			Do: "the programs got EIO from msync, fsync or close; stop them before a switchover",
		})
	}
	switch role {
	case wire.Role_ROLE_PRIMARY:
		n.primaryStatus(out, senders, spiller)
		n.journalStatus(out, spiller)
	case wire.Role_ROLE_STANDBY:
		n.standbyStatus(out)
	}
	if notice != "" && role != wire.Role_ROLE_PRIMARY {
		out.Problems = append(out.Problems, control.Problem{What: notice})
	}
	return out
}

func (n *Node) primaryStatus(out *control.Status, senders []*sender, spiller *replicate.Spiller) {
	var kept kept = n.oplog
	if spiller != nil {
		kept = spiller
	}
	last := n.oplog.Last()
	out.Role, out.Primary, out.InSync = "primary", n.view.Name, true
	out.LSN = control.LSNs{Appended: last, Received: last, Applied: last, Durable: last}
	for _, s := range senders {
		ss := s.Status()
		p := control.Peer{
			Name: s.peer.Name, Address: s.peer.Address, Role: "standby", State: ss.State,
			InSync: n.insync.Has(s.peer.Name), LastContact: ss.LastContact, Error: ss.Error, CatchUp: catchUp(ss.CatchUp),
			Resumed: ss.Resumed,
		}
		if ss.LastContact.IsZero() {
			p.Role = "unknown"
		}
		received, applied, durable := n.insync.Progress(s.peer.Name)
		p.LSN = control.LSNs{Appended: last, Sent: ss.Sent, Received: received, Applied: applied, Durable: durable}
		if applied > 0 {
			p.Lag = lag(kept, applied, last)
		}
		if ss.Copy != nil {
			p.Sync = &control.Sync{Node: s.peer.Name, Started: ss.Copy.Started, Files: ss.Copy.Files, Bytes: ss.Copy.Bytes}
			out.Sync = p.Sync
		}
		if ss.Trouble != "" {
			p.Error = ss.Trouble
		}
		out.LSN.Sent = max(out.LSN.Sent, ss.Sent)
		out.Peers = append(out.Peers, p)
		n.peerProblem(out, &p)
	}
	n.waitingStatus(out)
}

// goOnAlone is what an administrator may do who cannot wait.
const goOnAlone = "or go on without it: set `on_standby_loss: degrade` in the config, then run `replfs reload` here"

// stuckFor is how long something may wait before it is a problem.
const stuckFor = time.Second

// waitingStatus says who waits for what.
func (n *Node) waitingStatus(out *control.Status) {
	w, pace := n.insync.Waiting(), n.pacer.Status()
	out.Waiting = &control.Waiting{
		Fsyncs: w.Count, Since: w.Since, Writers: n.fs.Throttled(),
		Limited: pace.Limited, Rate: pace.Rate, Standby: pace.Standby,
	}
	add := func(do, format string, args ...any) {
		out.Problems = append(out.Problems, control.Problem{What: fmt.Sprintf(format, args...), Do: do})
	}
	waiting := "the next fsync waits"
	if w.Count > 0 {
		waiting = fmt.Sprintf("%d requests wait, the first since %s", w.Count, w.Since.Format(time.RFC3339))
	}
	switch {
	case !w.Enough:
		add("bring the standbys back; "+goOnAlone, "%d standbys are in sync and min_in_sync is %d: %s",
			w.InSync, n.cfg.Replication.MinInSync, waiting)
	case len(w.Kept) > 0:
		add("mend it; "+goOnAlone, "%s does not answer, and on_standby_loss is block: %s", strings.Join(w.Kept, ", "), waiting)
	case w.Count > 0 && time.Since(w.Since) > stuckFor:
		add(fmt.Sprintf("if a standby stays silent for ack_timeout (%s), it is left behind", n.cfg.Replication.AckTimeout),
			"%s for the standbys in sync", waiting)
	}
	if pace.Limited {
		lag, age, _ := n.pacer.Lag(pace.Standby)
		what := fmt.Sprintf("may write %s/s together", humanize.IBytes(uint64(pace.Rate)))
		if n.pacer.Stopped() {
			what = "wait"
		}
		add(fmt.Sprintf("see why %s is slow (disk, network), or raise max_lag_bytes or max_lag", pace.Standby),
			"writers %s, so that %s can follow: it is %s and %s behind", what, pace.Standby, humanize.IBytes(lag), age.Round(time.Millisecond))
	}
}

func (n *Node) peerProblem(out *control.Status, p *control.Peer) {
	switch {
	case p.State == "syncing":
		out.Problems = append(out.Problems, control.Problem{
			What: fmt.Sprintf("%s is receiving a complete copy: it cannot take over yet", p.Name),
			Do:   "wait; `replfs status` shows the progress",
		})
	case p.State == "catching up":
		out.Problems = append(out.Problems, control.Problem{
			What: fmt.Sprintf("%s is catching up, record by record: its store is at a prefix; to promote it now takes --force and loses what it lacks", p.Name),
			Do:   "wait; `replfs status` shows how far it is",
		})
	case p.Error != "":
		do := "writes are acknowledged without it; mend it and it catches up by itself"
		if p.InSync {
			do = "fsyncs wait for it until it is left behind; mend it and it catches up by itself"
		}
		out.Problems = append(out.Problems, control.Problem{What: fmt.Sprintf("%s: %s", p.Name, p.Error), Do: do})
	case !p.InSync:
		out.Problems = append(out.Problems, control.Problem{
			What: fmt.Sprintf("%s is not in sync: what is acknowledged now it may not have", p.Name),
			Do:   "if this lasts, see the log of " + p.Name,
		})
	}
}

// kept is what knows size and age of records that are not applied yet.
type kept interface {
	BytesAfter(lsn uint64) uint64
	TimeOf(lsn uint64) (time.Time, bool)
}

func lag(log kept, applied, last uint64) control.Lag {
	if applied >= last {
		return control.Lag{}
	}
	lag := control.Lag{Records: last - applied, Bytes: log.BytesAfter(applied)}
	if t, ok := log.TimeOf(applied + 1); ok {
		lag.Seconds = max(0, time.Since(t).Seconds())
	}
	return lag
}

func (n *Node) standbyStatus(out *control.Status) {
	sb := n.standby.Status()
	last := n.oplog.Last()
	appended := max(sb.Appended, last)
	out.Role, out.Primary, out.InSync = "standby", sb.Primary, sb.InSync
	out.LSN = control.LSNs{Appended: appended, Sent: appended, Received: max(last, sb.Applied), Applied: sb.Applied, Durable: sb.Durable}
	out.Lag = lag(n.oplog, sb.Applied, last)
	out.Lag.Records = appended - min(appended, sb.Applied)
	for _, p := range n.view.Peers() {
		peer := control.Peer{Name: p.Name, Address: p.Address, Role: "unknown", State: "unreachable"}
		if p.Name == sb.Primary {
			peer.LastContact = sb.LastContact
			if sb.Connected {
				peer.Role, peer.State, peer.InSync = "primary", "streaming", true
			}
		}
		out.Peers = append(out.Peers, peer)
	}
	if sb.Copy != nil {
		out.Sync = &control.Sync{Node: n.view.Name, Started: sb.Copy.Started, Files: sb.Copy.Files, Bytes: sb.Copy.Bytes}
	}
	n.standbyProblems(out, &sb)
}

func (n *Node) standbyProblems(out *control.Status, sb *replicate.StandbyStatus) {
	add := func(what, do string) { out.Problems = append(out.Problems, control.Problem{What: what, Do: do}) }
	copying := replicate.Copying(sb.State)
	if !sb.Connected || time.Since(sb.LastContact) > contactLost {
		what := "no primary is connected"
		if sb.Primary != "" {
			what = fmt.Sprintf("no contact with the primary %s since %s", sb.Primary, sb.LastContact.Format(time.RFC3339))
		}
		add(what, "if the primary is gone for good, run `replfs promote` here; otherwise see its log and this one")
	}
	switch {
	case copying:
		add("a complete copy is under way: this node cannot take over yet", "wait; if it does not move, see the log")
	case sb.Suspect != "":
		add("the store is suspect: "+sb.Suspect, "if its disk failed (see the kernel log), mend that; it gets a complete copy when the primary connects")
	}
	if sb.Trouble != "" {
		add("the store does not take what the primary sends: "+sb.Trouble, "mend that; it goes on by itself")
	} else if !sb.InSync && !copying && sb.Suspect == "" {
		add("this node is not in sync: the primary acknowledges writes without it", "if this lasts, see the log of the primary")
	}
}
