package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/replfs/replfs/test/lab"
)

// tier is one way in which a node may have ended, and how it is to go on.
type tier struct {
	name string
	node string
	// kill ends the process with SIGKILL, under load; without, in order.
	kill bool
	// reboot: the machine starts again, too.
	reboot bool
	// own is what the node's status says then, peer what the primary's says of
	// its standby.
	own, peer string
	// copied: the standby gets a complete copy.
	copied bool
}

var tiers = []tier{
	{name: "standby stopped", node: two, own: "clean stop: goes on behind record", peer: "went on behind record"},
	{name: "standby killed", node: two, kill: true, own: "its process ended without a stop: goes on behind record", peer: "went on behind record"},
	{name: "machine of the standby restarted", node: two, reboot: true,
		own: "clean stop, and its own log is gone as after a restart of the machine: goes on behind record", peer: "went on behind record"},
	{name: "machine of the standby crashed", node: two, kill: true, reboot: true,
		own:  "machine restarted without a clean stop: the page cache may be lost: gets a complete copy",
		peer: "complete copy: machine restarted without a clean stop", copied: true},
	{name: "primary stopped", node: one, own: "clean stop: the log goes on behind record", peer: "went on behind record"},
	{name: "primary killed", node: one, kill: true,
		own: "its process ended without a stop: the log goes on behind record", peer: "went on behind record"},
	{name: "machine of the primary restarted", node: one, reboot: true,
		own: "clean stop, and the log is gone as after a restart of the machine: it goes on behind record", peer: "went on behind record"},
	{name: "machine of the primary crashed", node: one, kill: true, reboot: true,
		own:  "the log was lost without a clean stop, as in a crash of the machine (another boot): every standby gets a complete copy",
		peer: "complete copy: the primary's log was lost", copied: true},
}

// TestRestartTiers: whatever ended, the cluster goes on by the cheapest way that
// is right, and says which.
func TestRestartTiers(t *testing.T) {
	for _, tc := range tiers {
		t.Run(tc.name, func(t *testing.T) {
			ctx := bounded(t, 4*time.Minute)
			s := seed(t)
			c := started(t, ctx, lab.Options{AckTimeout: 2 * time.Second})
			primary, standby := logMark(t, c, one), logMark(t, c, two)
			l := startLoad(t, ctx, c, one, "before", s)
			l.moving(ctx)
			end(t, c, tc, l)
			if tc.reboot {
				must(t, c.Reboot(tc.node))
			}
			if tc.node == two && !tc.reboot {
				l.moving(ctx) // something to catch up with
			}
			must(t, c.StartNode(ctx, tc.node))
			must(t, c.WaitRole(ctx, one, "primary"))
			must(t, c.WaitInSync(ctx, one, two))
			if tc.node == two {
				l.stop()
			}
			own, err := status(ctx, c, tc.node)
			must(t, err)
			if !strings.Contains(own.Resumed, tc.own) {
				t.Errorf("the node says %q, want %q", own.Resumed, tc.own)
			}
			if tc.name == "standby stopped" {
				// What it has received may be lost with the machine: it was applied.
				var received, applied uint64
				_, at, _ := strings.Cut(own.Resumed, "record ")
				if _, err := fmt.Sscanf(at, "%d, which it had received, and had applied %d", &received, &applied); err != nil || received != applied {
					t.Errorf("it says %q: %v", own.Resumed, err)
				}
			}
			p, err := peer(ctx, c, one, two)
			must(t, err)
			if !strings.Contains(p.Resumed, tc.peer) {
				t.Errorf("the primary says %q of its standby, want %q", p.Resumed, tc.peer)
			}
			res, err := c.Command(ctx, tc.node, "status")
			must(t, err)
			if !strings.Contains(res.Stdout, tc.node+" resumed: ") {
				t.Errorf("status does not show it:\n%s", res.Stdout)
			}
			after := startLoad(t, ctx, c, one, "after", s+1)
			after.moving(ctx)
			after.stop()
			equalStores(t, ctx, c, one, two)
			for _, n := range c.Names() {
				l.verify(c.Mount(n))
				after.verify(c.Mount(n))
			}
			copies := 0
			if tc.copied {
				copies = 1
			}
			primary.want(t, msgCopying, copies)
			standby.want(t, msgReceiving, copies)
		})
	}
}

// end ends a node as the tier says. The load ends with a primary.
func end(t *testing.T, c *lab.Cluster, tc tier, l *load) {
	t.Helper()
	switch {
	case tc.kill:
		must(t, c.KillNode(tc.node))
		if tc.node == one {
			l.stop(gone...)
		}
	case tc.node == one:
		l.stop() // a mount in use is not unmounted
		must(t, c.StopNode(one))
	default:
		must(t, c.StopNode(two))
	}
}

// TestRestartPromoted: after a crash of the primary's machine its standby, which
// is promoted, needs no copy; the old primary does, and says why.
func TestRestartPromoted(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	s := seed(t)
	c := started(t, ctx, lab.Options{})
	standby := logMark(t, c, two)
	l := startLoad(t, ctx, c, one, "before", s)
	l.moving(ctx)
	must(t, c.KillNode(one))
	l.stop(gone...)
	must(t, c.Reboot(one))
	promote(t, ctx, c, two, false)
	old := logMark(t, c, one)
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitInSync(ctx, two, one))
	own, err := status(ctx, c, one)
	must(t, err)
	if !strings.Contains(own.Resumed, "the log was lost without a clean stop") {
		t.Errorf("the old primary says %q", own.Resumed)
	}
	p, err := peer(ctx, c, two, one)
	must(t, err)
	if !strings.Contains(p.Resumed, "complete copy: it was primary when the machine crashed") {
		t.Errorf("the new primary says %q", p.Resumed)
	}
	standby.want(t, msgReceiving, 0)
	old.want(t, msgReceiving, 1)
	equalStores(t, ctx, c, two, one)
	for _, n := range c.Names() {
		l.verify(c.Mount(n))
	}
}
