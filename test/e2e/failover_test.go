package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/replfs/replfs/test/lab"
)

// TestFailover: the primary dies, the standby has everything acknowledged and
// takes over; the old primary returns as a standby, and back again.
func TestFailover(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	s := seed(t)
	rng := random(s)
	c := started(t, ctx, lab.Options{})
	old, new := one, two
	var loads []*load
	for i := range rounds(2, 20) {
		l := startLoad(t, ctx, c, old, fmt.Sprintf("load%d", i), s+uint64(i))
		loads = append(loads, l)
		sleepRandom(rng, 300*time.Millisecond, 900*time.Millisecond)
		must(t, c.KillNode(old))
		l.stop(gone...)
		promote(t, ctx, c, new, false)
		for _, l := range loads {
			l.verify(c.Mount(new))
		}

		l = startLoad(t, ctx, c, new, fmt.Sprintf("after%d", i), s)
		loads = append(loads, l)
		begun := logMark(t, c, old)
		must(t, c.StartNode(ctx, old))
		must(t, c.WaitRole(ctx, old, "standby"))
		must(t, c.WaitInSync(ctx, new, old))
		l.moving(ctx)
		l.stop()
		equalStores(t, ctx, c, new, old)
		settleRole(t, begun, fmt.Sprintf("%s is primary in epoch %d", new, 2+2*i))
		// What only the old primary had was moved aside, if there was anything.
		if copies := begun.since(t, msgReceiving); len(copies) > 0 {
			if !strings.Contains(copies[0].Reason, "history does not hold") {
				t.Errorf("a complete copy because %s", copies[0].Reason)
			}
			if salvaged(t, c, old) == "" {
				t.Errorf("nothing was salvaged on %s", old)
			}
		} else if dir := salvaged(t, c, old); dir != "" {
			t.Errorf("salvaged without a copy: %s", dir)
		}
		must(t, os.RemoveAll(filepath.Join(c.State(old), "salvage")))

		promote(t, ctx, c, old, false) // planned
		must(t, c.WaitInSync(ctx, old, new))
		if st, err := status(ctx, c, new); err != nil || st.Role != "standby" || !strings.Contains(problems(st)+st.Primary, old) {
			t.Errorf("after it was switched back, %s says %+v, %v", new, st, err)
		}
		equalStores(t, ctx, c, old, new)
		for _, l := range loads {
			l.verify(c.Mount(old))
			l.verify(c.Mount(new))
		}
	}
}

// settleRole expects a node to have become standby for a reason.
func settleRole(t *testing.T, begun mark, reason string) {
	t.Helper()
	e := begun.since(t, "role decided")
	if len(e) != 1 || e[0].Reason != reason {
		t.Errorf("the role was decided: %+v, want one because %q", e, reason)
	}
}

// TestDivergence: what the dead primary had and never sent is kept when it
// comes back, and named.
func TestDivergence(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{Durability: "async"})
	write := func(node, name string) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(c.Mount(node), name), []byte(name), 0o640))
	}
	write(one, "shared")
	must(t, c.WaitCaughtUp(ctx, one, two))
	must(t, c.KillNode(two))
	write(one, "only here")
	must(t, os.Mkdir(filepath.Join(c.Mount(one), "dir"), 0o750))
	write(one, "dir/only here either")
	must(t, c.KillNode(one))

	must(t, c.StartNode(ctx, two))
	must(t, c.WaitRole(ctx, two, "standby"))
	promote(t, ctx, c, two, false)
	write(two, "from the new primary")
	begun := logMark(t, c, one)
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitInSync(ctx, two, one))
	equalStores(t, ctx, c, two, one)
	begun.want(t, msgReceiving, 1)
	dir := salvaged(t, c, one)
	if dir == "" || !strings.HasPrefix(filepath.Base(dir), "1-") {
		t.Fatalf("salvaged in %q, want a directory for epoch 1", dir)
	}
	for _, name := range []string{"shared", "only here", "dir/only here either"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(b) != name {
			t.Errorf("salvaged %q: %q, %v", name, b, err)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "dir")); err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("the salvaged directory: %v, %v", st, err)
	}
	if e := begun.since(t, "the store's earlier content was moved aside"); len(e) != 1 {
		t.Errorf("the log names the salvage %d times", len(e))
	}
}
