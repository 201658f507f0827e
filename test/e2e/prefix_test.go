package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/treediff"
	"github.com/replfs/replfs/replicate/apply"
	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
	"github.com/replfs/replfs/test/lab"
)

// ringSize holds everything that a round of these tests logs.
const ringSize = 256 << 20

// ringOf opens a copy of a node's log: the daemon has the file itself.
func ringOf(t *testing.T, c *lab.Cluster, node string) *oplog.Log {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ring")
	copyTree(t, c.Path(node, "lab-"+node+".ring"), path)
	log, rec, err := oplog.Open(path, oplog.Options{Size: ringSize})
	must(t, err)
	t.Cleanup(func() { must(t, log.Close()) })
	if rec.Fresh || rec.IntentsLost || len(rec.Intents) > 0 {
		t.Fatalf("the copy of the log: %+v", rec)
	}
	return log
}

// copyTree copies with everything that treediff looks at.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

// each calls f with the records from first to last.
func each(t *testing.T, ctx context.Context, log *oplog.Log, first, last uint64, f func(*record.Record) error) {
	t.Helper()
	r, err := log.NewReader(first)
	must(t, err)
	defer r.Close()
	buf := make([]byte, 0, 1<<20)
	for next := first; next <= last; {
		batch, _, _, err := r.Read(ctx, buf)
		must(t, err)
		for len(batch) > 0 && next <= last {
			var rec record.Record
			n, err := record.Decode(batch, &rec)
			must(t, err)
			batch = batch[n:]
			if rec.LSN != next {
				t.Fatalf("record %d after %d", rec.LSN, next-1)
			}
			if err := f(&rec); err != nil {
				t.Fatalf("record %d (%s %q): %v", rec.LSN, rec.Op, rec.Path, err)
			}
			next++
		}
	}
}

// equalNow compares two trees without failing the test.
func equalNow(t *testing.T, a, b string) []treediff.Difference {
	t.Helper()
	diffs, err := treediff.Compare(a, b, treediff.Options{MaxDifferences: 5})
	must(t, err)
	return diffs
}

// TestStandbyIsPrefix (I3): whenever a standby dies, its store is what the
// primary's was after one record: that which its state names, or the last of the
// run that it was about to note. Only the records of that run may be done in part,
// and doing them again completes them.
func TestStandbyIsPrefix(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	s := seed(t)
	rng := random(s)
	c := started(t, ctx, lab.Options{
		Durability: "async", AckTimeout: 500 * time.Millisecond, Replication: map[string]any{"ring": ringSize},
	})
	seen := map[string]int{}
	for i := range rounds(5, 100) {
		// Both stores are at the same record here, from which the oracle begins.
		st, err := status(ctx, c, two)
		must(t, err)
		begin, epoch := st.LSN.Applied, st.Epoch
		oracle := c.Path(fmt.Sprintf("oracle%d", i))
		copyTree(t, c.Store(one), oracle)

		l := startLoad(t, ctx, c, one, fmt.Sprintf("load%d", i), s+uint64(i))
		sleepRandom(rng, 50*time.Millisecond, 400*time.Millisecond)
		if i%2 == 0 {
			// It keeps up too well to be killed in the middle of something:
			// let it have a lot to do at once.
			signal(t, c, two, syscall.SIGSTOP)
			time.Sleep(300 * time.Millisecond)
			signal(t, c, two, syscall.SIGCONT)
			sleepRandom(rng, 5*time.Millisecond, 40*time.Millisecond)
		}
		must(t, c.KillNode(two))
		time.Sleep(50 * time.Millisecond)
		l.stop()

		log := ringOf(t, c, one)
		state, position := standbyState(t, c)
		if position.Applied <= begin {
			t.Fatalf("the standby was at %d and died at %d", begin, position.Applied)
		}
		applier, err := apply.Open(apply.Config{Store: oracle, StateFile: filepath.Join(t.TempDir(), "oracle.state"), Node: "oracle"})
		must(t, err)
		must(t, applier.SetApplied(begin, epoch))
		replay := func(first, last uint64) { each(t, ctx, log, first, last, applier.Apply) }
		replay(begin+1, position.Applied)
		diffs := equalNow(t, oracle, c.Store(two))
		switch {
		case len(diffs) == 0:
			seen["as noted"]++
		case position.Pending <= position.Applied:
			t.Fatalf("the standby's store is not the primary's at %d: %v", position.Applied, diffs)
		default:
			replay(position.Applied+1, position.Pending)
			if diffs = equalNow(t, oracle, c.Store(two)); len(diffs) == 0 {
				seen["as far as the run"]++
				break
			}
			seen["within a run"]++
			again, err := apply.Open(apply.Config{Store: c.Store(two), StateFile: state, Node: two})
			must(t, err)
			each(t, ctx, log, position.Applied+1, position.Pending, again.Apply)
			must(t, again.Close())
			if diffs = equalNow(t, oracle, c.Store(two)); len(diffs) > 0 {
				t.Fatalf("the standby's store is not the primary's at %d, after the records from %d on were done again: %v",
					position.Pending, position.Applied+1, diffs)
			}
		}
		must(t, applier.Close())
		must(t, os.RemoveAll(oracle))

		must(t, c.StartNode(ctx, two))
		must(t, c.WaitInSync(ctx, one, two))
		equalStores(t, ctx, c, one, two)
	}
	logStart(c, two).want(t, msgReceiving, 1)
	t.Logf("the stores were: %v", seen)
}

// standbyState is where a dead standby stands, by a copy of its state file.
func standbyState(t *testing.T, c *lab.Cluster) (path string, st apply.State) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "applied.state")
	copyTree(t, filepath.Join(c.State(two), "applied.state"), path)
	looking := path + ".looking"
	copyTree(t, path, looking)
	a, err := apply.Open(apply.Config{Store: c.Store(two), StateFile: looking, Node: two})
	must(t, err)
	defer func() { must(t, a.Close()) }()
	st = a.State()
	if st.Suspect != "" || st.Syncing {
		t.Fatalf("the standby's state: %+v", st)
	}
	return path, st
}

// TestOrder (I2): what one thread does one after the other has growing numbers,
// each operation one.
func TestOrder(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{Durability: "async", Replication: map[string]any{"ring": ringSize}})
	mount := c.Mount(one)
	type step struct {
		op    record.Op
		path  string
		path2 string
	}
	var done []step
	do := func(op record.Op, path, path2 string, err error) {
		t.Helper()
		must(t, err)
		done = append(done, step{op, path, path2})
	}
	begin, err := status(ctx, c, one)
	must(t, err)
	// Others work meanwhile: their records lie in between.
	l := startLoad(t, ctx, c, one, "load", seed(t))
	at := func(name string) string { return filepath.Join(mount, name) }
	do(record.OpMkdir, "order", "", os.Mkdir(at("order"), 0o755))
	for i := range rounds(150, 3000) {
		a, b := fmt.Sprintf("order/a%d", i), fmt.Sprintf("order/b%d", i)
		f, err := os.Create(at(a))
		do(record.OpCreate, a, "", err)
		_, err = f.WriteString("x")
		do(record.OpWrite, a, "", err)
		do(record.OpRename, b, a, os.Rename(at(a), at(b)))
		_, err = f.WriteString("y")
		do(record.OpWrite, b, "", err)
		do(record.OpFsync, b, "", f.Sync())
		do(record.OpSetAttr, b, "", f.Chmod(0o640))
		must(t, f.Close())
		do(record.OpSetXattr, b, "", unix.Setxattr(at(b), "user.n", []byte("v"), 0))
		do(record.OpLink, a, b, os.Link(at(b), at(a)))
		do(record.OpSymlink, "order/s", a, os.Symlink(a, at("order/s")))
		do(record.OpUnlink, "order/s", "", os.Remove(at("order/s")))
		do(record.OpUnlink, b, "", os.Remove(at(b)))
	}
	l.stop()
	end, err := status(ctx, c, one)
	must(t, err)
	var found []step
	each(t, ctx, ringOf(t, c, one), begin.LSN.Appended+1, end.LSN.Appended, func(r *record.Record) error {
		if r.Path == "order" && r.Op == record.OpMkdir || len(r.Path) > 6 && r.Path[:6] == "order/" {
			found = append(found, step{r.Op, r.Path, r.Path2})
		}
		return nil
	})
	for i := range max(len(found), len(done)) {
		if i >= len(found) || i >= len(done) || found[i] != done[i] {
			t.Fatalf("%d operations, %d records; the first %d agree, then %v was done and %v logged",
				len(done), len(found), i, done[min(i, len(done)):min(i+3, len(done))], found[min(i, len(found)):min(i+3, len(found))])
		}
	}
}
