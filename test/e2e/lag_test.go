package e2e

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/replfs/replfs/test/lab"
)

// slowed runs writers for a while beside a standby that works half of the time,
// and returns the largest lag that was seen and what was written.
func slowed(t *testing.T, replication map[string]any) (most uint64, wrote int64) {
	t.Helper()
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{Durability: "async", AckTimeout: 20 * time.Second, Replication: replication})
	var quit atomic.Bool
	var bytes atomic.Int64
	ended := make(chan error, 4)
	for i := range cap(ended) {
		go func() {
			f, err := os.Create(filepath.Join(c.Mount(one), string(rune('a'+i))))
			data := make([]byte, 64<<10)
			for err == nil && !quit.Load() {
				_, err = f.WriteAt(data, int64(i)<<20)
				bytes.Add(int64(len(data)))
			}
			ended <- err
		}()
	}
	done := make(chan struct{})
	go func() { // the standby's duty cycle
		defer close(done)
		for !quit.Load() {
			_ = c.Process(two).Signal(syscall.SIGSTOP)
			time.Sleep(150 * time.Millisecond)
			_ = c.Process(two).Signal(syscall.SIGCONT)
			time.Sleep(150 * time.Millisecond)
		}
	}()
	for begun := time.Now(); time.Since(begun) < 6*time.Second; time.Sleep(5 * time.Millisecond) {
		p, err := peer(ctx, c, one, two)
		must(t, err)
		most = max(most, p.Lag.Bytes)
	}
	quit.Store(true)
	<-done
	for range cap(ended) {
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("a writer failed: %v", err)
			}
		case <-time.After(hang):
			t.Fatal("a writer hangs")
		}
	}
	if in := stateOf(t, c, one).InSync; len(in) != 1 {
		t.Errorf("in sync: %q", in)
	}
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
	return most, bytes.Load()
}

// TestMaxLag: writers that are faster than the standby do not get further ahead of
// it than max_lag_bytes, none of them fails, and the standby is not lost.
func TestMaxLag(t *testing.T) {
	const bound = 8 << 20
	most, wrote := slowed(t, map[string]any{"max_lag_bytes": "8MiB"})
	t.Logf("with a bound of 8 MiB: lag up to %.1f MiB, %d MiB written", float64(most)/(1<<20), wrote>>20)
	// A record may be on its way from each writer when the room is used up.
	if most > bound+1<<20 {
		t.Errorf("the standby was %d bytes behind, the bound is %d", most, bound)
	}
	if wrote < 2*bound {
		t.Errorf("only %d bytes were written", wrote)
	}
	without, wrote := slowed(t, nil)
	t.Logf("without: lag up to %.1f MiB, %d MiB written", float64(without)/(1<<20), wrote>>20)
	if without <= bound+1<<20 {
		t.Errorf("the same load does not get further ahead without the bound (%d bytes): nothing was proven", without)
	}
}

// TestMaxLagBlocks: with on_standby_loss block writers wait at the bound while
// the last standby is away, and go on when it is back.
func TestMaxLagBlocks(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{AckTimeout: time.Second, Replication: map[string]any{
		"on_standby_loss": "block", "max_lag_bytes": "4MiB",
	}})
	must(t, c.KillNode(two))
	f, err := os.Create(filepath.Join(c.Mount(one), "file"))
	must(t, err)
	var wrote atomic.Int64
	done := make(chan error, 1)
	go func() {
		data := make([]byte, 64<<10)
		var err error
		for wrote.Load() < 12<<20 && err == nil {
			if _, err = f.Write(data); err == nil {
				wrote.Add(int64(len(data)))
			}
		}
		done <- err
	}()
	waitProblem(t, ctx, c, one, "writers wait, so that gl-2 can follow")
	suggests(t, c, one, "writers wait", "max_lag_bytes")
	time.Sleep(300 * time.Millisecond)
	if n := wrote.Load(); n > 5<<20 || n < 2<<20 {
		t.Errorf("%d bytes were written, the bound is 4 MiB", n)
	}
	must(t, c.StartNode(ctx, two))
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(hang):
		t.Fatal("the writer does not go on")
	}
	must(t, f.Close())
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
}
