package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/replfs/replfs/test/lab"
)

// fsyncOf writes to a file on a node's mount and fsyncs it in the background.
// It hands over the error and the time that it took.
func fsyncOf(t *testing.T, c *lab.Cluster, node, name string) <-chan fsynced {
	t.Helper()
	f, err := os.Create(filepath.Join(c.Mount(node), name))
	must(t, err)
	_, err = f.WriteString(name)
	must(t, err)
	out := make(chan fsynced, 1)
	go func() {
		begun := time.Now()
		err := f.Sync()
		took := time.Since(begun)
		_ = f.Close() // what counts is fsync
		out <- fsynced{err, took}
	}()
	return out
}

type fsynced struct {
	err  error
	took time.Duration
}

// returns waits for an fsync, which must succeed.
func returns(t *testing.T, what string, ch <-chan fsynced, limit time.Duration) time.Duration {
	t.Helper()
	select {
	case r := <-ch:
		if r.err != nil {
			t.Fatalf("fsync %s: %v", what, r.err)
		}
		return r.took
	case <-time.After(limit):
		t.Fatalf("fsync %s has not returned within %s", what, limit)
		return 0
	}
}

// blocks expects an fsync not to return for a while.
func blocks(t *testing.T, what string, ch <-chan fsynced, limit time.Duration) {
	t.Helper()
	select {
	case r := <-ch:
		t.Fatalf("fsync %s returned after %s (%v): it has to wait for the standby", what, r.took, r.err)
	case <-time.After(limit):
	}
}

// stopDaemon stops a node with SIGSTOP until the test ends or it is continued.
func stopDaemon(t *testing.T, c *lab.Cluster, node string) {
	t.Helper()
	signal(t, c, node, syscall.SIGSTOP)
	// The signal is sent before it has stopped every thread.
	tasks := fmt.Sprintf("/proc/%d/task/*/stat", c.Process(node).Pid())
	eventually(t, t.Context(), hang, node+" stops", func() error {
		stats, err := filepath.Glob(tasks)
		for _, path := range stats {
			b, err := os.ReadFile(path)
			if err == nil && !strings.Contains(string(b), ") T ") {
				return fmt.Errorf("a thread still runs: %.40s", b)
			}
		}
		return err
	})
	// Whoever looks at its mount hangs until it goes on.
	t.Cleanup(func() { _ = c.Process(node).Signal(syscall.SIGCONT) })
}

// TestFsyncWaits (I4): an fsync waits for a standby that does not answer.
func TestFsyncWaits(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{AckTimeout: 30 * time.Second})
	returns(t, "with a standby that answers", fsyncOf(t, c, one, "before"), hang)
	stopDaemon(t, c, two)
	ch := fsyncOf(t, c, one, "meanwhile")
	blocks(t, "with a stopped standby", ch, 1500*time.Millisecond)
	// What asks for no durability goes on.
	must(t, os.WriteFile(filepath.Join(c.Mount(one), "not synced"), nil, 0o600))
	signal(t, c, two, syscall.SIGCONT)
	returns(t, "after the standby went on", ch, hang)
	if got, err := os.ReadFile(filepath.Join(c.Store(two), "meanwhile")); err != nil || string(got) != "meanwhile" {
		t.Errorf("fsync returned and the standby has %q, %v", got, err)
	}
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
}

// TestFsyncAsync: with durability async nothing waits.
func TestFsyncAsync(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{Durability: "async", AckTimeout: 30 * time.Second})
	stopDaemon(t, c, two)
	if took := returns(t, "with async", fsyncOf(t, c, one, "file"), hang); took > 15*time.Second {
		t.Errorf("it took %s", took)
	}
	signal(t, c, two, syscall.SIGCONT)
	equalStores(t, ctx, c, one, two)
}

// givenUp waits for an fsync that the primary acknowledges without its
// standby, and expects the disk to say so already.
func givenUp(t *testing.T, ctx context.Context, c *lab.Cluster, ch <-chan fsynced, timeout time.Duration) {
	t.Helper()
	if in := stateOf(t, c, one).InSync; len(in) != 1 || in[0] != two {
		t.Fatalf("in sync before: %q", in)
	}
	took := returns(t, "without the standby", ch, timeout+hang)
	// Read after the return, from the file: it was written before.
	if in := stateOf(t, c, one).InSync; len(in) != 0 {
		t.Fatalf("fsync was acknowledged while %q counts as in sync (I5)", in)
	}
	if took < timeout*8/10 {
		t.Errorf("it took %s, ack_timeout is %s", took, timeout)
	}
	p, err := peer(ctx, c, one, two)
	must(t, err)
	st, err := status(ctx, c, one)
	must(t, err)
	if p.InSync || !strings.Contains(problems(st), two) {
		t.Errorf("the primary says: %+v, %q", p, problems(st))
	}
	// The next one does not wait any more.
	if took := returns(t, "after that", fsyncOf(t, c, one, "after that"), hang); took > timeout {
		t.Errorf("the next one took %s", took)
	}
}

// TestFsyncDegrades (I5): a standby that is silent for ack_timeout is taken out
// of the set on disk before an fsync is acknowledged without it, and is not
// promoted then.
func TestFsyncDegrades(t *testing.T) {
	const timeout = 2 * time.Second
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{AckTimeout: timeout})
	stopDaemon(t, c, two)
	givenUp(t, ctx, c, fsyncOf(t, c, one, "file"), timeout)
	time.Sleep(time.Second) // the primary tells its standby ten times a second
	// A primary that hangs, before it dies: with its connection, what it said
	// last and nobody has read yet would be lost.
	stopDaemon(t, c, one)
	signal(t, c, two, syscall.SIGCONT)
	waitProblem(t, ctx, c, two, "not in sync")
	must(t, c.KillNode(one))
	refused(t, ctx, c, two, "not in sync when contact with the primary was lost")
	// The state outlives the daemon.
	must(t, c.KillNode(two))
	must(t, c.StartNode(ctx, two))
	must(t, c.WaitRole(ctx, two, "standby"))
	refused(t, ctx, c, two, "not in sync when contact with the primary was lost")
	promote(t, ctx, c, two, true)
	must(t, os.WriteFile(filepath.Join(c.Mount(two), "new"), nil, 0o600))

	must(t, c.StartNode(ctx, one))
	must(t, c.WaitInSync(ctx, two, one))
	equalStores(t, ctx, c, two, one)
}

// TestFsyncInCut: the same when the network is cut, both ways and either.
func TestFsyncInCut(t *testing.T) {
	const timeout = 2 * time.Second
	ctx := bounded(t, 4*time.Minute)
	c := started(t, ctx, lab.Options{AckTimeout: timeout, Namespaces: true})
	begun := logMark(t, c, two)
	cuts := []func() error{
		func() error { return c.Network().Cut(one, two) },
		func() error { return c.Network().CutOneWay(one, two) },
		func() error { return c.Network().CutOneWay(two, one) },
	}
	for i, cut := range cuts {
		must(t, cut())
		givenUp(t, ctx, c, fsyncOf(t, c, one, fmt.Sprintf("file%d", i)), timeout)
		must(t, c.Network().Heal(one, two))
		must(t, c.WaitInSync(ctx, one, two))
		returns(t, "after the cut", fsyncOf(t, c, one, fmt.Sprintf("healed%d", i)), hang)
		equalStores(t, ctx, c, one, two)
	}
	begun.want(t, msgReceiving, 0)
}
