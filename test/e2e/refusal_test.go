package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/replfs/replfs/test/lab"
)

// TestPromoteEmpty: a node that never had data of the cluster.
func TestPromoteEmpty(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := newCluster(t, lab.Options{})
	must(t, c.StartNode(ctx, two))
	must(t, c.WaitRole(ctx, two, "standby"))
	refused(t, ctx, c, two, "never held data")
	// Forced, it founds the cluster.
	promote(t, ctx, c, two, true)
	must(t, os.WriteFile(filepath.Join(c.Mount(two), "file"), nil, 0o600))
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitInSync(ctx, two, one))
	equalStores(t, ctx, c, two, one)
}

// TestPromoteInCopy: a node with a part of the data, while its primary lives
// and after it died.
func TestPromoteInCopy(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := newCluster(t, lab.Options{})
	fill(t, c.Store(one), 1500, random(seed(t)))
	must(t, c.StartNode(ctx, one))
	must(t, c.StartNode(ctx, two))
	copying(t, ctx, c)
	// A copy that stands still, so that it is not complete too soon.
	stopDaemon(t, c, one)
	signal(t, c, one, syscall.SIGCONT)
	refused(t, ctx, c, two, "cannot hand over: gl-2 is not in sync")
	stopDaemon(t, c, two)
	must(t, c.KillNode(one))
	signal(t, c, two, syscall.SIGCONT)
	refused(t, ctx, c, two, "the store holds only a part of the data")
	if st, err := status(ctx, c, two); err != nil || st.Role != "standby" || !strings.Contains(problems(st), "complete copy") {
		t.Errorf("the node says %+v, %v", st, err)
	}
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
}

// TestHigherEpoch: a primary that was cut off while another was made by force
// turns read-only by itself when it learns of that, and gives way; what only
// it had is kept.
func TestHigherEpoch(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	c := started(t, ctx, lab.Options{Namespaces: true, AckTimeout: 300 * time.Millisecond})
	must(t, os.WriteFile(filepath.Join(c.Mount(one), "common"), []byte("common"), 0o600))
	must(t, c.WaitCaughtUp(ctx, one, two))
	must(t, c.Network().Cut(one, two))
	returns(t, "in the cut", fsyncOf(t, c, one, "only on the old one"), hang)
	promote(t, ctx, c, two, true)
	returns(t, "on the new primary", fsyncOf(t, c, two, "new"), hang)
	if st, err := status(ctx, c, one); err != nil || st.Role != "primary" {
		t.Fatalf("in the cut, the old primary is %+v, %v", st, err)
	}
	old := logMark(t, c, one)
	must(t, c.Network().Heal(one, two))
	must(t, c.WaitRole(ctx, one, "standby"))
	must(t, c.WaitInSync(ctx, two, one))
	// Either may connect first: one is told, the other refused.
	if e := old.since(t, "a higher epoch exists: this node turns read-only"); len(e) != 1 {
		t.Errorf("the old primary says %d times that it turns read-only", len(e))
	}
	equalStores(t, ctx, c, two, one)
	if err := os.WriteFile(filepath.Join(c.Mount(one), "file"), nil, 0o600); quietly(err, syscall.EROFS) != nil || err == nil {
		t.Errorf("a write on the former primary: %v, want EROFS", err)
	}
	dir := salvaged(t, c, one)
	if b, err := os.ReadFile(filepath.Join(dir, "only on the old one")); err != nil || string(b) != "only on the old one" {
		t.Errorf("salvaged in %q: %q, %v", dir, b, err)
	}
	if _, err := os.Stat(filepath.Join(c.Mount(one), "only on the old one")); !os.IsNotExist(err) {
		t.Errorf("the new primary's file system has it: %v", err)
	}
	waitFlag(t, ctx, c, one, "ro")
	promote(t, ctx, c, one, false)
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
}

// TestReadOnlyNotice: in the moment between, the former primary says why it is
// read-only; here for as long as the new one is stopped.
func TestReadOnlyNotice(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{})
	res, err := c.Command(ctx, one, "demote")
	must(t, err)
	if res.Code != 0 {
		t.Fatalf("demote: %+v", res)
	}
	waitProblem(t, ctx, c, one, "demoted by an operator")
	st, err := status(ctx, c, one)
	if err != nil || st.Role != "standby" || st.Writable {
		t.Fatalf("after demote: %+v, %v", st, err)
	}
	waitFlag(t, ctx, c, one, "ro")
	promote(t, ctx, c, two, false)
	must(t, c.WaitInSync(ctx, two, one))
	if st, err := status(ctx, c, one); err != nil || strings.Contains(problems(st), "demoted") {
		t.Errorf("a notice that is over: %q, %v", problems(st), err)
	}
	equalStores(t, ctx, c, two, one)
	logStart(c, one).want(t, msgReceiving, 0)
}
