package apply

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// gate lets the workers' calls pass one at a time, each with an error or nil.
type gate struct {
	calls atomic.Int64
	pass  chan error
}

func (r *rig) gate() *gate {
	g := &gate{pass: make(chan error)}
	r.probe = func(point string) error {
		if !strings.HasPrefix(point, "worker.") {
			return nil
		}
		g.calls.Add(1)
		return <-g.pass
	}
	return g
}

func (r *rig) waitDurable(want uint64) {
	r.t.Helper()
	r.waitPosition("durable", r.a.Durable, want)
}

func (r *rig) waitPosition(what string, position func() uint64, want uint64) {
	r.t.Helper()
	deadline := time.After(time.Minute)
	for position() != want {
		select {
		case <-r.a.DurableChanged():
		case <-deadline:
			r.t.Fatalf("%s to %d, want %d", what, position(), want)
		}
	}
}

func TestDurableFollowsFsyncs(t *testing.T) {
	r := tempRig(t)
	g := r.gate()
	r.p.create("f", 0o644) // 1
	r.p.create("g", 0o644) // 2
	r.catchUp()
	if d := r.a.Durable(); d != 2 {
		t.Fatalf("durable to %d with no fsync outstanding", d)
	}
	r.p.fsync("f", 0)                   // 3
	r.p.write("f", []byte("x"), 0)      // 4
	r.p.fsync("g", record.FlagDataOnly) // 5
	r.p.fsync("", 0)                    // 6
	r.p.write("g", []byte("x"), 0)      // 7
	r.catchUp()
	if s := r.a.State(); s.Applied != 7 || s.Durable != 2 {
		t.Fatalf("state %+v while all fsyncs are outstanding", s)
	}
	// Three workers are in their call; whichever passes first, durable does
	// not pass the first that has not.
	g.pass <- nil
	time.Sleep(10 * time.Millisecond)
	if d := r.a.Durable(); d != 2 && d != 4 {
		t.Fatalf("durable to %d with two fsyncs outstanding", d)
	}
	g.pass <- nil
	g.pass <- nil
	r.waitDurable(7)
	r.p.must(r.a.Flush(context.Background()))
}

// An fsync that waits for a worker is joined by later ones of the same file;
// one that runs is not, as it may miss what was written since.
func TestFsyncsMerge(t *testing.T) {
	r := tempRig(t)
	r.crash()
	r.cfg.SyncWorkers = 1
	r.open()
	g := r.gate()
	r.p.create("f", 0o644) // 1
	r.p.fsync("f", 0)      // 2: taken by the worker
	r.catchUp()
	for g.calls.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	for range 10 {
		r.p.write("f", []byte("x"), 0) // 3, 5, ...
		r.p.fsync("f", 0)              // 4, 6, ...: the first one waits
	}
	r.catchUp()
	g.pass <- nil
	r.waitDurable(3)
	g.pass <- nil
	r.waitDurable(22)
	if n := g.calls.Load(); n != 2 {
		t.Errorf("%d fsyncs, want 2", n)
	}
}

func TestFailedFsync(t *testing.T) {
	r := tempRig(t)
	g := r.gate()
	r.p.must(r.a.SetInSync(true))
	r.p.create("f", 0o644) // 1
	r.p.create("g", 0o644) // 2
	r.p.fsync("f", 0)      // 3
	r.catchUp()
	g.pass <- unix.EIO
	if err := r.a.Flush(context.Background()); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), `"f" (record 3)`) {
		t.Errorf("flush after a failed fsync: %v", err)
	}
	<-r.a.DurableChanged() // says that there is something to look at
	r.suspect(`fsync "f" (record 3): `)
	if r.a.State().InSync {
		t.Error("in sync after a failed fsync")
	}
	r.p.fsync("f", 0) // 4: the kernel would say that all is well now
	r.p.fsync("g", 0) // 5
	r.probe = nil
	r.catchUp()
	if s := r.a.State(); s.Applied != 5 || s.Durable != 2 {
		t.Errorf("state %+v, want durable to stay at 2", s)
	}
	r.reopen()
	r.suspect(`fsync "f" (record 3): `)
	if d := r.a.Durable(); d != 2 {
		t.Errorf("durable to %d after a restart", d)
	}
	r.p.must(r.a.ClearSuspect())
	r.waitDurable(5)
}

// Fsyncs that were outstanding when the process ended are made up for.
func TestDurableAfterKill(t *testing.T) {
	r := tempRig(t)
	g := r.gate()
	r.p.create("f", 0o644)
	r.p.fsync("f", 0)
	r.p.write("f", []byte("x"), 0)
	r.catchUp()
	if d := r.a.Durable(); d != 1 {
		t.Fatalf("durable to %d", d)
	}
	for g.calls.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	go func() { g.pass <- nil }() // the worker finishes after the kill
	var calls []string
	r.a.sync.mu.Lock()
	r.a.sync.store = func(uint64) {}
	r.a.sync.mu.Unlock()
	r.a.sync.abandon()
	r.p.must(r.a.release())
	done := make(chan struct{})
	r.probe = func(point string) error {
		if strings.HasPrefix(point, "worker.") {
			calls = append(calls, point)
			<-done
		}
		return nil
	}
	r.open()
	if d := r.a.Durable(); d != 1 {
		t.Errorf("durable to %d before the store was synced", d)
	}
	close(done)
	r.waitDurable(3)
	if len(calls) != 1 || calls[0] != "worker.syncfs" {
		t.Errorf("made up for with %v", calls)
	}
}

func TestFlushGivesUp(t *testing.T) {
	r := tempRig(t)
	g := r.gate()
	r.p.create("f", 0o644)
	r.p.fsync("f", 0)
	r.catchUp()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := r.a.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flush: %v", err)
	}
	g.pass <- nil
	r.p.must(r.a.Flush(context.Background()))
	go func() { g.pass <- nil }()
	r.p.must(r.a.Sync(context.Background()))
}

// Apply waits when too many fsyncs do, rather than use up the descriptors.
func TestFsyncBackpressure(t *testing.T) {
	r := tempRig(t)
	r.crash()
	r.cfg.SyncWorkers = 1
	r.open()
	g := r.gate()
	const n = maxQueued + 10
	for i := range n {
		name := "f" + string(rune('0'+i%10)) + strings.Repeat("x", i/10)
		r.p.create(name, 0o600)
		r.p.fsync(name, 0)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.catchUp()
	}()
	select {
	case <-done:
		t.Error("Apply did not wait")
	case <-time.After(200 * time.Millisecond):
	}
	for range n {
		g.pass <- nil
	}
	<-done
	r.waitDurable(2 * n)
}
