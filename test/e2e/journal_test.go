package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/test/lab"
)

const (
	smallRing    = 4 << 20
	smallJournal = 256 << 20
	fileSize     = 64 << 10

	msgJournal = "the journal survived"
	msgLost    = "the journal is dropped: standbys get a complete copy"
)

func journalOptions(journal int64) lab.Options {
	return lab.Options{
		Durability: "async", AckTimeout: 500 * time.Millisecond,
		Replication: map[string]any{"ring": smallRing, "journal": map[string]any{"max_bytes": journal}},
	}
}

func numbered(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("n%06d", i)) }

func numberedContent(i int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%08d", i), fileSize/8)
}

// writeNumbered makes files in order, one after the other.
func writeNumbered(t *testing.T, ctx context.Context, dir string, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		must(t, ctx.Err())
		must(t, os.WriteFile(numbered(dir, i), numberedContent(i), 0o600))
	}
}

// away stops the standby's process, and writes several rings full.
func away(t *testing.T, ctx context.Context, c *lab.Cluster, from, n int) {
	t.Helper()
	signal(t, c, two, syscall.SIGSTOP)
	writeNumbered(t, ctx, c.Mount(one), from, n)
}

// spilled waits until the journal holds something.
func spilled(t *testing.T, ctx context.Context, c *lab.Cluster) {
	t.Helper()
	eventually(t, ctx, hang, "the journal is in use", func() error {
		st, err := status(ctx, c, one)
		if err == nil && (st.Journal == nil || !st.Journal.Active || st.Journal.Bytes == 0) {
			err = fmt.Errorf("journal %+v", st.Journal)
		}
		return err
	})
}

// givenBack waits until the journal is empty again.
func givenBack(t *testing.T, ctx context.Context, c *lab.Cluster) {
	t.Helper()
	eventually(t, ctx, hang, "the journal is given back", func() error {
		st, err := status(ctx, c, one)
		if err == nil && (st.Journal == nil || st.Journal.Active || st.Journal.Error != "") {
			err = fmt.Errorf("journal %+v", st.Journal)
		}
		return err
	})
	left, err := filepath.Glob(filepath.Join(c.State(one), "journal", "*.seg"))
	must(t, err)
	if len(left) > 0 {
		t.Fatalf("left: %v", left)
	}
}

// rss is the resident memory of a node's daemon in KiB, but for what is shared.
func rss(t *testing.T, c *lab.Cluster, node string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Process(node).Pid()))
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			must(t, err)
			return n
		}
	}
	t.Fatal("no RssAnon")
	return 0
}

// TestStandbyCatchesUpRecordByRecord: a standby that was away for many rings
// goes on from the journal, while the primary goes on writing; nobody waits,
// and the daemon's memory does not grow with what is kept.
func TestStandbyCatchesUpRecordByRecord(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	c := started(t, ctx, journalOptions(smallJournal))
	standby := logMark(t, c, two)
	writeNumbered(t, ctx, c.Mount(one), 0, 100)
	before := rss(t, c, one)
	away(t, ctx, c, 100, 2000) // 128 MiB
	spilled(t, ctx, c)
	after := rss(t, c, one)
	t.Logf("the daemon's memory went from %d to %d KiB", before, after)
	if after > before+64<<10 {
		t.Error("that is more than it may")
	}
	st, err := status(ctx, c, one)
	must(t, err)
	if j := st.Journal; j.First == 0 || j.Last <= j.First || j.Bytes < 100<<20 || j.MaxBytes != smallJournal {
		t.Errorf("journal %+v", j)
	}
	// The dump works while the daemon does.
	res, err := c.Command(ctx, one, "journal", "dump", "--json", "--from", fmt.Sprint(st.Journal.First), "--to", fmt.Sprint(st.Journal.First+9))
	must(t, err)
	if res.Code != 0 || strings.Count(res.Stdout, "\n") < 10 {
		t.Errorf("dump: exit code %d: %s", res.Code, res.Output())
	}
	for line := range strings.Lines(res.Stdout) {
		if !json.Valid([]byte(line)) {
			t.Errorf("dump: %q", line)
		}
	}
	l := startLoad(t, ctx, c, one, "load", seed(t))
	signal(t, c, two, syscall.SIGCONT)
	eventually(t, ctx, hang, "it catches up", func() error {
		p, err := peer(ctx, c, one, two)
		switch {
		case err != nil:
			return err
		case p.CatchUp != nil && p.State == "catching up" && p.CatchUp.Bytes > 0, p.InSync:
			return nil
		}
		return fmt.Errorf("state %q", p.State)
	})
	must(t, c.WaitInSync(ctx, one, two))
	l.stop()
	equalStores(t, ctx, c, one, two)
	l.verify(c.Mount(two))
	standby.want(t, msgReceiving, 0)
	givenBack(t, ctx, c)
}

// TestPromoteWhileCatchingUp (I3): a standby that is made primary in the
// middle of catching up has what was written up to some moment, and nothing
// of what came after.
func TestPromoteWhileCatchingUp(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	rng := random(seed(t))
	opts := journalOptions(smallJournal)
	opts.Namespaces = true
	c := started(t, ctx, opts)
	standby := logMark(t, c, two)
	writeNumbered(t, ctx, c.Mount(one), 0, 50)
	must(t, c.WaitCaughtUp(ctx, one, two))
	const files = 3000
	away(t, ctx, c, 50, files-50)
	// So slow that it cannot have caught up before the kill.
	slowLink(t, ctx, c, one, 16<<20)
	signal(t, c, two, syscall.SIGCONT)
	have, err := status(ctx, c, two)
	must(t, err)
	eventually(t, ctx, hang, "it comes closer, and is told that it is not in sync", func() error {
		st, err := status(ctx, c, two)
		if err == nil && (st.LSN.Applied == have.LSN.Applied || st.InSync) {
			err = fmt.Errorf("applied %d, in sync: %v", st.LSN.Applied, st.InSync)
		}
		return err
	})
	sleepRandom(rng, 0, 50*time.Millisecond)
	must(t, c.KillNode(one))
	refused(t, ctx, c, two, "not in sync")
	promote(t, ctx, c, two, true)
	last := -1
	for i := range files {
		b, err := os.ReadFile(numbered(c.Mount(two), i))
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		must(t, err)
		last = i
		if !bytes.Equal(b, numberedContent(i)) {
			if !bytes.HasPrefix(numberedContent(i), b) {
				t.Fatalf("file %d holds something else", i)
			}
			break
		}
	}
	entries, err := os.ReadDir(c.Mount(two))
	must(t, err)
	if last < 50 || len(entries) != last+1 {
		t.Fatalf("files up to %d, but %d entries", last, len(entries))
	}
	t.Logf("promoted with %d of %d files", last+1, files)
	standby.want(t, msgReceiving, 0)
}

// TestJournalBoundExceeded: past the bound a complete copy, and then all is well.
func TestJournalBoundExceeded(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	c := started(t, ctx, journalOptions(16<<20))
	primary, standby := logMark(t, c, one), logMark(t, c, two)
	away(t, ctx, c, 0, 800) // 50 MiB
	waitProblem(t, ctx, c, one, "needs a complete copy")
	signal(t, c, two, syscall.SIGCONT)
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
	primary.want(t, msgLost, 1)
	standby.want(t, msgReceiving, 1)
	givenBack(t, ctx, c)
	st, err := status(ctx, c, one)
	must(t, err)
	if p := problems(st); p != "" {
		t.Errorf("afterwards: %s", p)
	}
}

// TestJournalDiskFull: writers go on, and the status says what to do.
func TestJournalDiskFull(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	c := newCluster(t, journalOptions(smallJournal))
	dir := filepath.Join(c.State(one), "journal")
	must(t, os.MkdirAll(dir, 0o700))
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=6m"))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	start(t, ctx, c)
	standby := logMark(t, c, two)
	away(t, ctx, c, 0, 400) // 25 MiB
	waitProblem(t, ctx, c, one, "the journal cannot be used")
	waitProblem(t, ctx, c, one, "no space left on device")
	signal(t, c, two, syscall.SIGCONT)
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
	standby.want(t, msgReceiving, 1)
}

// TestKillPrimaryWhileSpilling: the next process goes on with ring and journal.
func TestKillPrimaryWhileSpilling(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	rng := random(seed(t))
	c := started(t, ctx, journalOptions(smallJournal))
	primary, standby := logMark(t, c, one), logMark(t, c, two)
	signal(t, c, two, syscall.SIGSTOP)
	n := rounds(3, 30)
	for i := range n {
		dir := filepath.Join(c.Mount(one), fmt.Sprintf("round%d", i))
		must(t, os.Mkdir(dir, 0o700))
		done := make(chan struct{})
		go func() {
			defer close(done)
			for k := 0; ctx.Err() == nil; k++ {
				if os.WriteFile(numbered(dir, k%200), numberedContent(k), 0o600) != nil {
					return
				}
			}
		}()
		spilled(t, ctx, c)
		sleepRandom(rng, 10*time.Millisecond, 300*time.Millisecond)
		must(t, c.KillNode(one))
		<-done
		must(t, c.StartNode(ctx, one))
		must(t, c.WaitRole(ctx, one, "primary"))
	}
	primary.want(t, msgJournal, n)
	signal(t, c, two, syscall.SIGCONT)
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
	standby.want(t, msgReceiving, 0)
	givenBack(t, ctx, c)
}

// TestCleanStopKeepsTheJournal: after a stop in good order the ring may be
// gone, as after a reboot, and the standby goes on all the same.
func TestCleanStopKeepsTheJournal(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	c := started(t, ctx, journalOptions(smallJournal))
	standby := logMark(t, c, two)
	away(t, ctx, c, 0, 300)
	spilled(t, ctx, c)
	must(t, c.StopNode(one))
	must(t, os.Remove(c.Path(one, "lab-"+one+".ring")))
	primary := logMark(t, c, one)
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitRole(ctx, one, "primary"))
	primary.want(t, msgJournal, 1)
	writeNumbered(t, ctx, c.Mount(one), 300, 100)
	signal(t, c, two, syscall.SIGCONT)
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
	standby.want(t, msgReceiving, 0)
	givenBack(t, ctx, c)
}

// TestDamagedJournal: a flipped bit means one complete copy, and is logged.
func TestDamagedJournal(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	c := started(t, ctx, journalOptions(smallJournal))
	primary, standby := logMark(t, c, one), logMark(t, c, two)
	away(t, ctx, c, 0, 400)
	spilled(t, ctx, c)
	segs, err := filepath.Glob(filepath.Join(c.State(one), "journal", "*.seg"))
	must(t, err)
	if len(segs) < 3 {
		t.Fatalf("segments: %v", segs)
	}
	f, err := os.OpenFile(segs[1], os.O_RDWR, 0)
	must(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 1<<20)
	must(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b, 1<<20)
	must(t, errors.Join(err, f.Close()))
	res, err := c.Command(ctx, one, "journal", "dump", segs[0], segs[1])
	must(t, err)
	if res.Code != 1 || !strings.Contains(res.Stderr, segs[1]+" is damaged at byte ") {
		t.Errorf("dump: exit code %d: %s", res.Code, res.Stderr)
	}
	signal(t, c, two, syscall.SIGCONT)
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
	lost := primary.since(t, msgLost)
	if len(lost) != 1 || !strings.Contains(lost[0].Error, "is damaged at byte") {
		t.Errorf("logged: %+v", lost)
	}
	standby.want(t, msgReceiving, 1)
	givenBack(t, ctx, c)
}
