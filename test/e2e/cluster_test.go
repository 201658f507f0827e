package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/replfs/replfs/election"
	"github.com/replfs/replfs/internal/control"
	"github.com/replfs/replfs/internal/treediff"
	"github.com/replfs/replfs/internal/treediff/treetest"
	"github.com/replfs/replfs/test/lab"
)

// The nodes of a cluster; one is the primary at first.
const (
	one = "gl-1"
	two = "gl-2"
)

// hang is when something that should happen is taken not to: a machine may be
// slow, and its disk busy.
const hang = 60 * time.Second

// seed is printed on failure; REPLFS_SEED repeats a run.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if v := os.Getenv("REPLFS_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("REPLFS_SEED: %v", err)
		}
		s = n
	}
	t.Logf("REPLFS_SEED=%d", s)
	return s
}

func random(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// rounds is how often a loop runs: longer with REPLFS_LONG=1.
func rounds(short, long int) int {
	if os.Getenv("REPLFS_LONG") == "1" {
		return long
	}
	return short
}

// bounded is a context that ends with the test, or a test that hangs. A loop
// that is longer gets more time.
func bounded(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	if os.Getenv("REPLFS_LONG") == "1" {
		limit *= 10
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newCluster makes a cluster and starts nothing.
func newCluster(t *testing.T, opts lab.Options) *lab.Cluster {
	t.Helper()
	opts.Parent = work.Dir()
	return lab.ForTest(t, opts)
}

// started is a cluster of two nodes in sync.
func started(t *testing.T, ctx context.Context, opts lab.Options) *lab.Cluster {
	t.Helper()
	c := newCluster(t, opts)
	start(t, ctx, c)
	return c
}

func start(t *testing.T, ctx context.Context, c *lab.Cluster) {
	t.Helper()
	for _, n := range c.Names() {
		must(t, c.StartNode(ctx, n))
	}
	must(t, c.WaitInSync(ctx, c.Names()[0], c.Names()[1]))
}

// status asks a node directly: quicker than a process for each question.
func status(ctx context.Context, c *lab.Cluster, node string) (*control.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return control.NewClient(c.Path(node, "control.sock")).Status(ctx)
}

// peer is what a node says of another one.
func peer(ctx context.Context, c *lab.Cluster, node, of string) (control.Peer, error) {
	st, err := status(ctx, c, node)
	if err != nil {
		return control.Peer{}, err
	}
	i := slices.IndexFunc(st.Peers, func(p control.Peer) bool { return p.Name == of })
	if i < 0 {
		return control.Peer{}, fmt.Errorf("%s does not list %s", node, of)
	}
	return st.Peers[i], nil
}

// problems is all that a status complains about, as one text.
func problems(st *control.Status) string {
	var out []string
	for _, p := range st.Problems {
		out = append(out, p.What)
	}
	return strings.Join(out, "\n")
}

// eventually calls check until it returns nil, for at most limit.
func eventually(t *testing.T, ctx context.Context, limit time.Duration, what string, check func() error) {
	t.Helper()
	begun := time.Now()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Since(begun) > limit || ctx.Err() != nil {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// waitProblem waits until a node complains about something.
func waitProblem(t *testing.T, ctx context.Context, c *lab.Cluster, node, text string) {
	t.Helper()
	eventually(t, ctx, hang, fmt.Sprintf("%s says %q", node, text), func() error {
		st, err := status(ctx, c, node)
		if err == nil && !strings.Contains(problems(st), text) {
			err = fmt.Errorf("it says %q", problems(st))
		}
		return err
	})
}

// sleepRandom lets a load run for a while.
func sleepRandom(rng *rand.Rand, least, most time.Duration) {
	time.Sleep(least + time.Duration(rng.Int64N(int64(most-least))))
}

// equalStores waits until the standby has everything, then compares.
func equalStores(t *testing.T, ctx context.Context, c *lab.Cluster, primary, standby string) {
	t.Helper()
	must(t, c.WaitCaughtUp(ctx, primary, standby))
	// A store that is being filled anew has a position, too.
	if st, err := status(ctx, c, standby); err != nil || st.Sync != nil || strings.Contains(problems(st), "suspect") {
		t.Fatalf("%s was found to differ, and gets a complete copy: %+v, %v", standby, st, err)
	}
	if !treetest.Equal(t, c.Store(primary), c.Store(standby), treediff.Options{}) {
		t.Fatalf("the stores of %s and %s differ", primary, standby)
	}
}

// promote makes a node primary and expects it to work.
func promote(t *testing.T, ctx context.Context, c *lab.Cluster, node string, force bool) {
	t.Helper()
	res, err := c.Promote(ctx, node, force)
	must(t, err)
	if res.Code != 0 {
		t.Fatalf("promote %s: exit code %d: %s", node, res.Code, res.Output())
	}
	must(t, c.WaitRole(ctx, node, "primary"))
}

// refused expects a promotion to be refused for a reason.
func refused(t *testing.T, ctx context.Context, c *lab.Cluster, node, reason string) {
	t.Helper()
	res, err := c.Promote(ctx, node, false)
	must(t, err)
	if res.Code != 3 || !strings.Contains(res.Stderr, reason) {
		t.Fatalf("promote %s: exit code %d, want 3 with %q: %s", node, res.Code, reason, res.Output())
	}
}

// signal sends a signal to a node's daemon. One that is stopped goes on before
// the cluster is closed, which has to look at its mount.
func signal(t *testing.T, c *lab.Cluster, node string, sig syscall.Signal) {
	t.Helper()
	must(t, c.Process(node).Signal(sig))
}

// stateOf reads a node's state as it is on the disk.
func stateOf(t *testing.T, c *lab.Cluster, node string) election.State {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.State(node), "node.json"))
	must(t, err)
	var st election.State
	must(t, json.Unmarshal(b, &st))
	return st
}

// logEntry is a line of a node's log.
type logEntry struct {
	Level  string `json:"level"`
	Msg    string `json:"msg"`
	Reason string `json:"reason"`
	Error  string `json:"error"`
	Files  uint64 `json:"files"`
}

// mark is a place in a node's log.
type mark struct {
	path   string
	offset int64
}

// logMark remembers the end of a node's log.
func logMark(t *testing.T, c *lab.Cluster, node string) mark {
	t.Helper()
	m := mark{path: c.Path(node, "replfs.log")}
	st, err := os.Stat(m.path)
	if err == nil {
		m.offset = st.Size()
	} else if !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return m
}

// since returns the entries with a message that were written after the mark.
func (m mark) since(t *testing.T, msg string) []logEntry {
	t.Helper()
	b, err := os.ReadFile(m.path)
	must(t, err)
	var out []logEntry
	for line := range strings.Lines(string(b[m.offset:])) {
		var e logEntry
		if json.Unmarshal([]byte(line), &e) == nil && e.Msg == msg {
			out = append(out, e)
		}
	}
	return out
}

// Messages that tests rely on: what a standby and its primary say when a
// complete copy begins, and what a primary says whose ring was there.
const (
	msgReceiving = "receiving a complete copy"
	msgCopying   = "standby gets a complete copy"
	msgSurvived  = "the log survived"
	msgSettling  = "settling an interrupted operation"
	msgDetached  = "detaching a dead mount"
	msgEnded     = "stopped"
)

// want expects a message to have come up so many times since the mark.
func (m mark) want(t *testing.T, msg string, times int) {
	t.Helper()
	if e := m.since(t, msg); len(e) != times {
		t.Fatalf("%s has %q %d times, want %d: %+v", m.path, msg, len(e), times, e)
	}
}

// logStart is the beginning of a node's log.
func logStart(c *lab.Cluster, node string) mark { return mark{path: c.Path(node, "replfs.log")} }
