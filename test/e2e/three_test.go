package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/workload"
	"github.com/replfs/replfs/test/lab"
)

// three is the second standby of a cluster that has one.
const three = "gl-3"

// startedThree is a cluster of three data nodes, both standbys in sync.
func startedThree(t *testing.T, ctx context.Context, opts lab.Options) *lab.Cluster {
	t.Helper()
	opts.Nodes = []string{one, two, three}
	c := newCluster(t, opts)
	start(t, ctx, c)
	must(t, c.WaitInSync(ctx, one, three))
	return c
}

// equalAll waits until all standbys have everything, then compares.
func equalAll(t *testing.T, ctx context.Context, c *lab.Cluster, primary string) {
	t.Helper()
	for _, n := range c.Names() {
		if n != primary {
			must(t, c.WaitInSync(ctx, primary, n))
			equalStores(t, ctx, c, primary, n)
		}
	}
}

// TestThreeNodes: an fsync waits for both standbys; one that dies is let go of
// while the other counts on, and catches up when it is back.
func TestThreeNodes(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := startedThree(t, ctx, lab.Options{AckTimeout: 3 * time.Second})
	for _, node := range []string{two, three} {
		returns(t, "with both", fsyncOf(t, c, one, "before "+node), hang)
		stopDaemon(t, c, node)
		ch := fsyncOf(t, c, one, "without "+node)
		blocks(t, "with one that is stopped", ch, 700*time.Millisecond)
		signal(t, c, node, syscall.SIGCONT)
		returns(t, "when it goes on", ch, hang)
		for _, n := range []string{two, three} {
			if b, err := os.ReadFile(filepath.Join(c.Store(n), "without "+node)); err != nil || len(b) == 0 {
				t.Errorf("fsync has returned, and %s has %q, %v", n, b, err)
			}
		}
	}
	s := seed(t)
	begun := map[string]mark{two: logMark(t, c, two), three: logMark(t, c, three)}
	l := startLoad(t, ctx, c, one, "load", s)
	l.moving(ctx)
	must(t, c.KillNode(three))
	returns(t, "with one that is dead", fsyncOf(t, c, one, "after a death"), hang)
	if in := stateOf(t, c, one).InSync; len(in) != 1 || in[0] != two {
		t.Errorf("in sync: %q", in)
	}
	st, err := status(ctx, c, one)
	must(t, err)
	if len(st.Peers) != 2 || !st.Peers[0].InSync || st.Peers[1].InSync || st.Peers[0].Name != two || !strings.Contains(problems(st), three) {
		t.Errorf("the primary says %+v, %q", st.Peers, problems(st))
	}
	res, err := c.Command(ctx, one, "status")
	must(t, err)
	for _, n := range []string{two, three} {
		if !strings.Contains(res.Stdout, n) {
			t.Errorf("status does not show %s:\n%s", n, res.Stdout)
		}
	}
	waits(t, ctx, c, one, 0, "durable on gl-2 ")
	l.moving(ctx)
	must(t, c.StartNode(ctx, three))
	must(t, c.WaitInSync(ctx, one, three))
	l.moving(ctx)
	l.stop()
	waits(t, ctx, c, one, 0, "durable on gl-2, gl-3 ")
	equalAll(t, ctx, c, one)
	for n, m := range begun {
		m.want(t, msgReceiving, 0)
		l.verify(c.Mount(n))
	}
}

// unequal makes gl-3 have more of the log than gl-2, and the primary dead.
func unequal(t *testing.T, ctx context.Context) *lab.Cluster {
	t.Helper()
	c := startedThree(t, ctx, lab.Options{Namespaces: true, AckTimeout: 50 * time.Second})
	must(t, os.WriteFile(filepath.Join(c.Mount(one), "common"), []byte("common"), 0o600))
	must(t, c.WaitCaughtUp(ctx, one, two))
	must(t, c.WaitCaughtUp(ctx, one, three))
	must(t, c.Network().Cut(one, two))
	must(t, os.WriteFile(filepath.Join(c.Mount(one), "more"), []byte("more"), 0o600))
	must(t, c.WaitCaughtUp(ctx, one, three))
	must(t, c.KillNode(one))
	must(t, c.Network().Heal(one, two))
	refused(t, ctx, c, two, "gl-3 has newer data")
	refused(t, ctx, c, two, "promote it instead, with `replfs promote` there")
	return c
}

// TestPromoteBest: of two standbys the one with more of the log may become
// primary, and the other goes on behind what it has.
func TestPromoteBest(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := unequal(t, ctx)
	begun := []mark{logMark(t, c, one), logMark(t, c, two)}
	promote(t, ctx, c, three, false)
	must(t, c.WaitInSync(ctx, three, two))
	if p, err := peer(ctx, c, three, two); err != nil || !strings.Contains(p.Resumed, "went on behind record") {
		t.Errorf("%+v, %v", p, err)
	}
	returns(t, "on the new primary", fsyncOf(t, c, three, "new"), hang)
	must(t, c.StartNode(ctx, one))
	equalAll(t, ctx, c, three)
	for _, m := range begun {
		m.want(t, msgReceiving, 0)
	}
	if b, err := os.ReadFile(filepath.Join(c.Mount(two), "more")); err != nil || string(b) != "more" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestPromoteWorse: forced, the other one becomes primary, and what only the
// better one had is kept aside there.
func TestPromoteWorse(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := unequal(t, ctx)
	begun := logMark(t, c, three)
	promote(t, ctx, c, two, true)
	must(t, c.WaitInSync(ctx, two, three))
	if p, err := peer(ctx, c, two, three); err != nil || !strings.Contains(p.Resumed, "complete copy: it has applied") {
		t.Errorf("%+v, %v", p, err)
	}
	begun.want(t, msgReceiving, 1)
	dir := salvaged(t, c, three)
	if b, err := os.ReadFile(filepath.Join(dir, "more")); err != nil || string(b) != "more" {
		t.Errorf("salvaged in %q: %q, %v", dir, b, err)
	}
	if _, err := os.Stat(filepath.Join(c.Mount(three), "more")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the new primary's file system has it: %v", err)
	}
	must(t, c.StartNode(ctx, one))
	equalAll(t, ctx, c, two)
	if salvaged(t, c, one) == "" {
		t.Error("the old primary kept nothing")
	}
}

// TestSwitchoverThree: the role goes round under load; nobody who writes sees an
// error, nothing is lost, and nobody needs a complete copy.
func TestSwitchoverThree(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	s := seed(t)
	rng := random(s)
	c := startedThree(t, ctx, lab.Options{})
	var mounts []string
	var begun []mark
	for _, n := range c.Names() {
		mounts = append(mounts, c.Mount(n))
		begun = append(begun, logMark(t, c, n))
	}
	must(t, os.MkdirAll(filepath.Join(mounts[0], "work"), 0o755))
	running, stop := context.WithCancel(ctx)
	defer stop()
	errs := make(chan error, 16)
	var wg sync.WaitGroup
	writers := make([]*patientWriter, 3)
	for i := range writers {
		w := &patientWriter{mounts: mounts, name: fmt.Sprintf("w%d", i), acked: map[int]bool{}}
		must(t, os.WriteFile(filepath.Join(mounts[0], w.name), nil, 0o600))
		writers[i] = w
		wg.Go(func() { errs <- w.run(running) })
	}
	for i, mount := range mounts {
		wg.Go(func() {
			var err error
			for running.Err() == nil && quietly(err, unix.ENOENT, unix.ENOTDIR) == nil {
				_, err = workload.Run(running, filepath.Join(mount, "work"), workload.Options{
					Seed: s + uint64(i), Writers: 1, MaxBytes: 16 << 20, MaxFiles: 300, Pause: 2 * time.Millisecond,
					TolerateEROFS: true, Tolerate: []unix.Errno{unix.EOPNOTSUPP, unix.EIO}, // EIO: mapped pages
				})
			}
			errs <- quietly(err, unix.ENOENT, unix.ENOTDIR)
		})
	}
	names := c.Names()
	at := 0
	for range rounds(7, 60) {
		sleepRandom(rng, 50*time.Millisecond, 500*time.Millisecond)
		at = (at + 1) % len(names)
		promote(t, ctx, c, names[at], false)
		for _, n := range names {
			if n != names[at] {
				must(t, c.WaitInSync(ctx, names[at], n))
			}
		}
	}
	stop()
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	equalAll(t, ctx, c, names[at])
	for i, m := range begun {
		m.want(t, msgReceiving, 0)
		for _, w := range writers {
			w.verify(t, mounts[i])
			if w.counts[i] == 0 {
				t.Errorf("%s wrote %v times on the mounts", w.name, w.counts)
			}
		}
	}
}

// copyingTo waits until a primary says that it copies to a standby.
func copyingTo(t *testing.T, ctx context.Context, c *lab.Cluster, primary, standby string) {
	t.Helper()
	eventually(t, ctx, hang, "a copy is under way", func() error {
		p, err := peer(ctx, c, primary, standby)
		if err == nil && (p.Sync == nil || p.Sync.Files < 20) {
			err = fmt.Errorf("it is %+v", p)
		}
		return err
	})
}

// TestCopyBesides: a complete copy of one standby does not disturb the other;
// and when the role moves in the middle of it, the new primary begins anew and
// the old one goes on behind what it has.
func TestCopyBesides(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	s := seed(t)
	c := newCluster(t, lab.Options{Nodes: []string{one, two, three}})
	fill(t, c.Store(one), 2500, random(s))
	must(t, c.StartNode(ctx, one))
	must(t, c.StartNode(ctx, two))
	must(t, c.WaitInSync(ctx, one, two))
	l := startLoad(t, ctx, c, one, "load", s)
	l.moving(ctx)
	primary, first := logMark(t, c, one), logMark(t, c, two)
	must(t, c.StartNode(ctx, three))
	copyingTo(t, ctx, c, one, three)
	begun := time.Now()
	for {
		st, err := status(ctx, c, one)
		must(t, err)
		if !st.Peers[0].InSync || st.Peers[0].State != "streaming" {
			t.Fatalf("the copy of another one has disturbed %+v", st.Peers[0])
		}
		if st.Peers[1].Sync == nil {
			break
		}
		if st.Lag.Records > 0 || time.Since(begun) > hang {
			t.Fatalf("the copy does not end: %+v", st)
		}
		time.Sleep(20 * time.Millisecond)
	}
	must(t, c.WaitInSync(ctx, one, three))
	l.moving(ctx)
	l.stop()
	equalAll(t, ctx, c, one)
	first.want(t, msgReceiving, 0)
	primary.want(t, "standby is no longer in sync", 0)

	// Once more, and the primary hands over meanwhile.
	must(t, c.StopNode(three))
	must(t, os.RemoveAll(c.State(three)))
	must(t, os.MkdirAll(c.State(three), 0o700))
	must(t, c.StartNode(ctx, three))
	copyingTo(t, ctx, c, one, three)
	old, third := logMark(t, c, one), logMark(t, c, three)
	promote(t, ctx, c, two, false)
	must(t, c.WaitInSync(ctx, two, one))
	returns(t, "on the new primary", fsyncOf(t, c, two, "new"), hang)
	equalAll(t, ctx, c, two)
	old.want(t, msgReceiving, 0)
	third.want(t, msgReceiving, 1)
	if st, err := status(ctx, c, two); err != nil || len(st.Peers) != 2 || st.Sync != nil || st.Role != "primary" {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestHandoverDrainsAll: an fsync that waits for another standby than the one
// that takes over is acknowledged before the role moves, not failed.
func TestHandoverDrainsAll(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := startedThree(t, ctx, lab.Options{AckTimeout: 50 * time.Second, Replication: map[string]any{"drain_timeout": "40s"}})
	stopDaemon(t, c, three)
	ch := fsyncOf(t, c, one, "waited for")
	blocks(t, "with one that is stopped", ch, 300*time.Millisecond)
	promoted := make(chan error, 1)
	go func() {
		res, err := c.Promote(ctx, two, false)
		if err == nil && res.Code != 0 {
			err = fmt.Errorf("exit code %d: %s", res.Code, res.Output())
		}
		promoted <- err
	}()
	// It asks all nodes first, and the one that is stopped does not answer.
	blocks(t, "while the role is to move", ch, 4*time.Second)
	signal(t, c, three, syscall.SIGCONT)
	returns(t, "when it goes on", ch, hang)
	must(t, <-promoted)
	must(t, c.WaitRole(ctx, two, "primary"))
	equalAll(t, ctx, c, two)
	for _, n := range c.Names() {
		if b, err := os.ReadFile(filepath.Join(c.Mount(n), "waited for")); err != nil || string(b) != "waited for" {
			t.Errorf("%s has %q, %v", n, b, err)
		}
	}
}
