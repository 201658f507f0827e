package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/replfs/replfs/test/lab"
)

// TestKillPrimary: a primary that was killed continues its log: no complete
// copy, nothing acknowledged lost, both stores equal.
func TestKillPrimary(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	s := seed(t)
	rng := random(s)
	c := started(t, ctx, lab.Options{})
	primary, standby := logMark(t, c, one), logMark(t, c, two)
	n := rounds(5, 60)
	var loads []*load
	for i := range n {
		l := startLoad(t, ctx, c, one, fmt.Sprintf("load%d", i), s+uint64(i))
		loads = append(loads, l)
		big := startBigWrites(t, ctx, c, one)
		sleepRandom(rng, 100*time.Millisecond, 900*time.Millisecond)
		must(t, c.KillNode(one))
		l.stop(gone...)
		big()
		must(t, c.StartNode(ctx, one))
		must(t, c.WaitRole(ctx, one, "primary"))
		must(t, c.WaitInSync(ctx, one, two))
		equalStores(t, ctx, c, one, two)
		for _, l := range loads {
			l.verify(c.Mount(one))
			l.verify(c.Mount(two))
		}
	}
	primary.want(t, msgSurvived, n)
	t.Logf("%d operations were under way when the primary was killed", len(primary.since(t, msgSettling)))
	primary.want(t, msgDetached, n)
	primary.want(t, msgCopying, 0)
	standby.want(t, msgReceiving, 0)
	if st := stateOf(t, c, one); st.Epoch != uint64(n+1) {
		t.Errorf("epoch %d after %d restarts", st.Epoch, n)
	}
}

// TestKillStandby: the standby dies at random moments of a load that goes on.
func TestKillStandby(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	s := seed(t)
	rng := random(s)
	c := started(t, ctx, lab.Options{AckTimeout: 500 * time.Millisecond})
	primary, standby := logMark(t, c, one), logMark(t, c, two)
	l := startLoad(t, ctx, c, one, "load", s)
	for range rounds(6, 80) {
		sleepRandom(rng, 20*time.Millisecond, 400*time.Millisecond)
		must(t, c.KillNode(two))
		// Now and then until after the primary has given it up.
		sleepRandom(rng, 0, 800*time.Millisecond)
		must(t, c.StartNode(ctx, two))
		// Killed again while it catches up, half of the time.
		if rng.IntN(2) == 0 {
			must(t, c.WaitInSync(ctx, one, two))
		}
	}
	must(t, c.WaitInSync(ctx, one, two))
	l.moving(ctx)
	l.stop()
	equalStores(t, ctx, c, one, two)
	l.verify(c.Mount(two))
	primary.want(t, msgCopying, 0)
	standby.want(t, msgReceiving, 0)
	standby.want(t, msgDetached, rounds(6, 80))
}

// TestKillBoth: both daemons die within a moment, in either order.
func TestKillBoth(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	s := seed(t)
	rng := random(s)
	c := started(t, ctx, lab.Options{})
	primary, standby := logMark(t, c, one), logMark(t, c, two)
	n := rounds(4, 40)
	var loads []*load
	for i := range n {
		l := startLoad(t, ctx, c, one, fmt.Sprintf("load%d", i), s+uint64(i))
		loads = append(loads, l)
		sleepRandom(rng, 100*time.Millisecond, 700*time.Millisecond)
		first, second := one, two
		if rng.IntN(2) == 0 {
			first, second = two, one
		}
		must(t, c.KillNode(first))
		must(t, c.KillNode(second))
		l.stop(gone...)
		first, second = two, one
		if rng.IntN(2) == 0 {
			first, second = one, two
		}
		must(t, c.StartNode(ctx, first))
		must(t, c.StartNode(ctx, second))
		must(t, c.WaitRole(ctx, one, "primary"))
		must(t, c.WaitInSync(ctx, one, two))
		equalStores(t, ctx, c, one, two)
		for _, l := range loads {
			l.verify(c.Mount(one))
			l.verify(c.Mount(two))
		}
	}
	primary.want(t, msgSurvived, n)
	primary.want(t, msgCopying, 0)
	standby.want(t, msgReceiving, 0)
}

// startBigWrites keeps long operations under way, so that a kill meets some in
// the middle. The function that it returns waits for them to end by that.
func startBigWrites(t *testing.T, ctx context.Context, c *lab.Cluster, node string) (wait func()) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range 3 {
		f, err := os.OpenFile(filepath.Join(c.Mount(node), fmt.Sprintf("big%d", i)), os.O_CREATE|os.O_WRONLY, 0o600)
		must(t, err)
		wg.Go(func() {
			defer f.Close()
			data := make([]byte, 1<<20)
			for n := 0; ctx.Err() == nil; n++ {
				// All of it differs from what was there.
				for j := 0; j < len(data); j += 512 {
					data[j]++
				}
				if _, err := f.WriteAt(data, int64(n%4)<<20); err != nil {
					return
				}
				// The ring must hold what the standby lacks when it is killed.
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	return wg.Wait
}
