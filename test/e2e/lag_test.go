package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
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

// slowLink lets a node send so many bytes a second.
func slowLink(t *testing.T, ctx context.Context, c *lab.Cluster, node string, rate int) {
	t.Helper()
	_, err := lab.RunOK(ctx, lab.Command{
		Name: "tc", Path: "/usr/sbin/tc", Namespace: c.Namespace(node),
		Args: []string{"qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", strconv.Itoa(8 * rate), "burst", "256kb", "latency", "300ms"},
	})
	must(t, err)
}

// steady is a writer that would write at a rate.
type steady struct {
	wrote atomic.Int64
	quit  atomic.Bool
	ended chan error
}

func startSteady(path string, rate int) *steady {
	w := &steady{ended: make(chan error, 1)}
	go func() {
		f, err := os.Create(path)
		data := make([]byte, 32<<10)
		begun := time.Now()
		for err == nil && !w.quit.Load() {
			if ahead := time.Duration(w.wrote.Load()) * time.Second / time.Duration(rate); ahead > time.Since(begun) {
				time.Sleep(time.Millisecond)
				continue
			}
			if _, err = f.WriteAt(data, w.wrote.Load()%(16<<20)); err == nil {
				w.wrote.Add(int64(len(data)))
			}
		}
		w.ended <- err
	}()
	return w
}

func (w *steady) end(t *testing.T) {
	t.Helper()
	w.quit.Store(true)
	select {
	case err := <-w.ended:
		if err != nil {
			t.Errorf("the writer failed: %v", err)
		}
	case <-time.After(hang):
		t.Fatal("the writer hangs")
	}
}

// TestMaxLagSlowLink: over a slow link, the standby stays within the bound while
// it is in sync; and when it was away, it catches up with a primary whose load alone
// would keep it from that.
func TestMaxLagSlowLink(t *testing.T) {
	const rate, bound = 8 << 20, 8 << 20
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{
		Durability: "async", AckTimeout: 3 * time.Second, Namespaces: true,
		Replication: map[string]any{"max_lag_bytes": "8MiB"},
	})
	slowLink(t, ctx, c, one, rate)
	w := startSteady(filepath.Join(c.Mount(one), "in sync"), 5*rate)
	var most uint64
	sawLimit := false
	for begun := time.Now(); time.Since(begun) < 6*time.Second; time.Sleep(5 * time.Millisecond) {
		st, err := status(ctx, c, one)
		must(t, err)
		most = max(most, st.Peers[0].Lag.Bytes)
		sawLimit = sawLimit || st.Waiting.Limited && st.Waiting.Standby == two
	}
	w.end(t)
	t.Logf("a link of %d MiB/s, a load of %d: %d MiB written in 6 s, lag up to %.1f MiB", rate>>20, 5*rate>>20, w.wrote.Load()>>20, float64(most)/(1<<20))
	if most > bound+1<<20 || !sawLimit {
		t.Errorf("lag up to %d bytes, the bound is %d; limited: %v", most, bound, sawLimit)
	}
	must(t, c.WaitInSync(ctx, one, two))

	must(t, c.StopNode(two))
	begun := logMark(t, c, two)
	must(t, os.WriteFile(filepath.Join(c.Mount(one), "meanwhile"), make([]byte, 16<<20), 0o600))
	eventually(t, ctx, hang, "the standby is left behind", func() error {
		p, err := peer(ctx, c, one, two)
		if err == nil && p.InSync {
			err = errors.New("it still counts")
		}
		return err
	})
	must(t, c.StartNode(ctx, two))
	const load = rate + rate/4
	w = startSteady(filepath.Join(c.Mount(one), "load"), load)
	back := time.Now()
	must(t, c.WaitInSync(ctx, one, two))
	did := float64(w.wrote.Load()) / time.Since(back).Seconds()
	t.Logf("in sync after %s, beside a load of %.1f MiB/s that would be %d", time.Since(back).Round(time.Millisecond), did/(1<<20), load>>20)
	w.end(t)
	equalStores(t, ctx, c, one, two)
	begun.want(t, msgReceiving, 0)
}
