package apply

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// sync adds an OpSync, as the log of a primary has it.
func (p *primary) sync() *record.Record {
	r := p.add(record.OpSync, "", nil)
	r.Fields, r.FileID = 0, 0
	return r
}

func (r *rig) waitSynced(want uint64) {
	r.t.Helper()
	r.waitPosition("synced", r.a.Synced, want)
}

// TestSyncAll: a sync of the whole store ends when it ends, and nothing else
// waits for it.
func TestSyncAll(t *testing.T) {
	r := tempRig(t)
	g := r.gate()
	r.p.create("f", 0o644)         // 1
	r.p.sync()                     // 2
	r.p.write("f", []byte("x"), 0) // 3
	r.catchUp()
	r.waitDurable(3)
	r.p.fsync("f", 0) // 4
	r.catchUp()
	if r.a.Synced() != 0 || r.a.Durable() != 3 {
		t.Fatalf("synced to %d, durable to %d while both are outstanding", r.a.Synced(), r.a.Durable())
	}
	g.pass <- nil
	g.pass <- nil
	r.waitDurable(4)
	r.waitSynced(2)
	r.equal()
}

// TestSyncAllMerges: one that waits for a worker does for later ones, one that
// runs does not.
func TestSyncAllMerges(t *testing.T) {
	r := tempRig(t)
	r.crash()
	r.cfg.SyncWorkers = 1
	r.open()
	g := r.gate()
	r.p.create("f", 0o644) // 1
	r.p.sync()             // 2: taken by the worker
	r.catchUp()
	for g.calls.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	for range 1000 {
		r.p.sync() // 3..1002: the first one waits
	}
	r.catchUp()
	g.pass <- nil
	r.waitSynced(2)
	g.pass <- nil
	r.waitSynced(1002)
	if n := g.calls.Load(); n != 2 {
		t.Errorf("%d syncs, want 2", n)
	}
}

// TestSyncAllFails: as with an fsync, what the kernel may have dropped is not
// called durable by a later one.
func TestSyncAllFails(t *testing.T) {
	r := tempRig(t)
	g := r.gate()
	r.p.create("f", 0o644) // 1
	r.p.sync()             // 2
	r.catchUp()
	g.pass <- unix.EIO
	if err := r.a.Flush(context.Background()); !errors.Is(err, unix.EIO) {
		t.Errorf("flush after a failed sync: %v", err)
	}
	r.suspect("of the store")
	r.p.sync() // 3
	r.catchUp()
	if n := r.a.Synced(); n != 0 {
		t.Errorf("synced to %d after a failure", n)
	}
}

// TestSyncAllForgotten: a new process knows of none, and a copy has none.
func TestSyncAllForgotten(t *testing.T) {
	r := tempRig(t)
	r.p.create("f", 0o644) // 1
	r.p.sync()             // 2
	r.catchUp()
	r.waitSynced(2)
	r.reopen()
	if n := r.a.Synced(); n != 0 {
		t.Errorf("a new process has synced to %d", n)
	}
	r.p.sync() // 3
	r.catchUp()
	r.waitSynced(3)
	r.p.must(r.a.SetApplied(3, r.p.epoch))
	if n := r.a.Synced(); n != 0 {
		t.Errorf("in another life it has synced to %d", n)
	}
}
