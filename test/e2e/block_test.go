package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/test/lab"
)

func blocking() lab.Options {
	return lab.Options{AckTimeout: time.Second, Replication: map[string]any{"on_standby_loss": "block"}}
}

// TestBlock: with on_standby_loss block an fsync waits for the last standby for as
// long as it takes, and says so; what asks for nothing goes on.
func TestBlock(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, blocking())
	syncedFile(t, c, one, "before")
	for _, lose := range []struct {
		name       string
		lose, mend func()
	}{
		{"stopped", func() { stopDaemon(t, c, two) }, func() { signal(t, c, two, syscall.SIGCONT) }},
		{"killed", func() { must(t, c.KillNode(two)) }, func() { must(t, c.StartNode(ctx, two)) }},
	} {
		lose.lose()
		ch := fsyncOf(t, c, one, lose.name)
		blocks(t, "with a lost standby", ch, 3*time.Second) // far beyond ack_timeout
		must(t, os.WriteFile(filepath.Join(c.Mount(one), lose.name+" without fsync"), nil, 0o600))
		if in := stateOf(t, c, one).InSync; !slices.Equal(in, []string{two}) {
			t.Errorf("in sync: %q", in)
		}
		st, err := status(ctx, c, one)
		must(t, err)
		if w := st.Waiting; w == nil || w.Fsyncs != 1 || time.Since(w.Since) < 2*time.Second {
			t.Errorf("waiting: %+v", w)
		}
		suggests(t, c, one, "on_standby_loss is block: 1 requests wait, the first since", "replfs reload")
		lose.mend()
		returns(t, "after the standby came back", ch, hang)
		must(t, c.WaitInSync(ctx, one, two))
	}
	equalStores(t, ctx, c, one, two)
}

// TestBlockAtFirst: nothing is acknowledged before there is a second copy.
func TestBlockAtFirst(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := newCluster(t, blocking())
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitRole(ctx, one, "primary"))
	ch := fsyncOf(t, c, one, "file")
	blocks(t, "without any standby", ch, 2*time.Second)
	suggests(t, c, one, "0 standbys are in sync and min_in_sync is 1: 1 requests wait", "on_standby_loss: degrade")
	must(t, c.StartNode(ctx, two))
	returns(t, "with a standby", ch, hang)
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
}

// TestBlockEnds: an administrator decides to go on alone; what waits goes on, after
// the set on disk says so.
func TestBlockEnds(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, blocking())
	must(t, c.KillNode(two))
	ch := fsyncOf(t, c, one, "file")
	blocks(t, "with a lost standby", ch, 2*time.Second)
	b, err := os.ReadFile(c.Config())
	must(t, err)
	text := strings.Replace(string(b), "on_standby_loss: block", "on_standby_loss: degrade", 1)
	if text == string(b) {
		t.Fatalf("the config is\n%s", b)
	}
	must(t, os.WriteFile(c.Config(), []byte(text), 0o600))
	reload(t, ctx, c, one)
	returns(t, "after the reload", ch, hang)
	if in := stateOf(t, c, one).InSync; len(in) != 0 {
		t.Errorf("acknowledged while %q counts as in sync (I5)", in)
	}
	must(t, c.StartNode(ctx, two))
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
}

// TestBlockSick: the store of the last standby is full; fsyncs wait until there is
// room, and no record is skipped.
func TestBlockSick(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := newCluster(t, blocking())
	remount := withTmpfs(t, c, two, "size=8m")
	start(t, ctx, c)
	begun := logMark(t, c, two)
	must(t, os.WriteFile(filepath.Join(c.Mount(one), "big"), make([]byte, 16<<20), 0o600))
	ch := fsyncOf(t, c, one, "file")
	waitProblem(t, ctx, c, one, "no space")
	waitProblem(t, ctx, c, two, "no space")
	blocks(t, "with a full standby", ch, 2*time.Second)
	suggests(t, c, one, "on_standby_loss is block", "on_standby_loss: degrade")
	remount(0, "size=64m")
	returns(t, "when there is room", ch, hang)
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
	begun.want(t, msgReceiving, 0)
}

// TestSync: with durability sync a write waits for the standby.
func TestSync(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{Durability: "async", AckTimeout: 30 * time.Second, Replication: map[string]any{
		"paths": []map[string]any{{"match": "strict/**", "durability": "sync"}, {"match": "**", "durability": "async"}},
	}})
	for _, dir := range []string{"strict", "loose"} {
		must(t, os.Mkdir(filepath.Join(c.Mount(one), dir), 0o755))
	}
	open := func(name string) int {
		fd, err := unix.Open(filepath.Join(c.Mount(one), name), unix.O_CREAT|unix.O_WRONLY, 0o600)
		must(t, err)
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	strict, loose := open("strict/f"), open("loose/f")
	stopDaemon(t, c, two)
	write := make(chan fsynced, 1)
	go func() {
		_, err := unix.Write(strict, []byte("x"))
		write <- fsynced{err: err}
	}()
	blocks(t, "(a write) with sync", write, time.Second)
	_, err := unix.Write(loose, []byte("x"))
	must(t, err)
	must(t, unix.Fsync(loose))
	signal(t, c, two, syscall.SIGCONT)
	returns(t, "(a write) with sync", write, hang)
	// Whenever one returns, it is there.
	for i := range 100 {
		_, err := unix.Pwrite(strict, []byte{byte(i)}, 0)
		must(t, err)
		if b, err := os.ReadFile(filepath.Join(c.Store(two), "strict/f")); err != nil || b[0] != byte(i) {
			t.Fatalf("write %d returned, and the standby has %v, %v", i, b, err)
		}
	}
	// A node that stops being primary acknowledges nothing that its standby lacks.
	stopDaemon(t, c, two)
	go func() {
		_, err := unix.Write(strict, []byte("x"))
		write <- fsynced{err: err}
	}()
	blocks(t, "(a write) with sync", write, time.Second)
	res, err := c.Command(ctx, one, "demote")
	must(t, err)
	if res.Code != 1 || !strings.Contains(res.Output(), "gl-2 has not applied everything") {
		t.Fatalf("demote: exit code %d: %s", res.Code, res.Output())
	}
	if r := <-write; r.err != unix.EIO {
		t.Errorf("a write whose node was demoted: %v", r.err)
	}
	signal(t, c, two, syscall.SIGCONT)
}
