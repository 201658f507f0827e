package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/replfs/replfs/internal/control"
	"github.com/replfs/replfs/test/lab"
)

// reload replaces a node's daemon, which keeps its pid and its mount.
func reload(t *testing.T, ctx context.Context, c *lab.Cluster, node string) {
	t.Helper()
	before, err := status(ctx, c, node)
	must(t, err)
	id := mountOf(t, c, node).ID
	res, err := c.Command(ctx, node, "reload")
	must(t, err)
	if res.Code != 0 {
		t.Fatalf("reload %s: exit code %d: %s", node, res.Code, res.Output())
	}
	after, err := status(ctx, c, node)
	must(t, err)
	if after.Started.Equal(before.Started) {
		t.Fatalf("%s was not replaced", node)
	}
	if after.Role != before.Role {
		t.Fatalf("%s was %s and is %s", node, before.Role, after.Role)
	}
	if now := mountOf(t, c, node).ID; now != id {
		t.Fatalf("%s has mount %d, and had %d", node, now, id)
	}
}

// pauses is a writer that notes how long it was kept waiting.
type pauses struct {
	longest atomic.Int64
	stop    chan struct{}
	err     chan error
}

func startPauses(path string) *pauses {
	p := &pauses{stop: make(chan struct{}), err: make(chan error, 1)}
	go func() { p.err <- p.run(path) }()
	return p
}

func (p *pauses) run(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		select {
		case <-p.stop:
			return f.Close()
		case <-time.After(time.Millisecond):
		}
		begun := time.Now()
		if _, err := fmt.Fprintln(f, n); err != nil {
			return errors.Join(err, f.Close())
		}
		p.longest.Store(max(p.longest.Load(), int64(time.Since(begun))))
	}
}

// take returns the longest pause since the last call.
func (p *pauses) take() time.Duration { return time.Duration(p.longest.Swap(0)) }

func (p *pauses) end() error {
	close(p.stop)
	return <-p.err
}

// TestReload: both nodes are replaced in turn under load, and applications see
// nothing of it; no standby needs a copy.
func TestReload(t *testing.T) {
	ctx := bounded(t, 2*time.Minute)
	s := seed(t)
	rng := random(s)
	c := started(t, ctx, lab.Options{})
	primary, standby := logMark(t, c, one), logMark(t, c, two)
	l := startLoad(t, ctx, c, one, "load", s)
	p := startPauses(c.Mount(one) + "/pauses")
	reader, err := os.Open(c.Mount(two))
	must(t, err)
	defer reader.Close()
	var longest []time.Duration
	for range rounds(5, 60) {
		sleepRandom(rng, 50*time.Millisecond, 300*time.Millisecond)
		p.take()
		reload(t, ctx, c, one)
		longest = append(longest, p.take())
		reload(t, ctx, c, two)
	}
	l.moving(ctx)
	l.stop()
	must(t, p.end())
	if _, err := reader.Readdirnames(-1); err != nil {
		t.Errorf("a directory that was open on the standby: %v", err)
	}
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
	l.verify(c.Mount(two))
	primary.want(t, msgCopying, 0)
	primary.want(t, msgSettling, 0)
	standby.want(t, msgReceiving, 0)
	t.Logf("the longest pauses of a writer: %v", longest)
}

// TestReloadRoles: a node that was replaced can be promoted and demoted.
func TestReloadRoles(t *testing.T) {
	ctx := bounded(t, 2*time.Minute)
	c := started(t, ctx, lab.Options{})
	kept, err := os.OpenFile(filepath.Join(c.Mount(one), "kept"), os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	defer kept.Close()
	must(t, os.WriteFile(filepath.Join(c.Mount(one), "file"), []byte("1"), 0o600))
	must(t, c.WaitCaughtUp(ctx, one, two))
	read := func(node, want string) {
		t.Helper()
		got, err := os.ReadFile(filepath.Join(c.Mount(node), "file"))
		must(t, err)
		if string(got) != want {
			t.Fatalf("%s has %q, want %q", node, got, want)
		}
	}
	for i, to := range []string{two, one, two, one} {
		reload(t, ctx, c, one)
		reload(t, ctx, c, two)
		must(t, c.WaitInSync(ctx, other(to), to))
		promote(t, ctx, c, to, false)
		want := fmt.Sprint("promoted ", i)
		must(t, os.WriteFile(filepath.Join(c.Mount(to), "file"), []byte(want), 0o600))
		read(to, want)
		must(t, c.WaitInSync(ctx, to, other(to)))
		must(t, c.WaitCaughtUp(ctx, to, other(to)))
		read(other(to), want)
		_, err := kept.WriteString("x")
		if (err == nil) != (to == one) {
			t.Fatalf("with %s primary, a file open for writing on %s: %v", to, one, err)
		}
	}
	equalStores(t, ctx, c, one, two)
}

func other(node string) string {
	if node == one {
		return two
	}
	return one
}

// TestReloadRefused: what could not take over is found out before anything
// stops.
func TestReloadRefused(t *testing.T) {
	ctx := bounded(t, time.Minute)
	c := newCluster(t, lab.Options{Nodes: []string{one}})
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitRole(ctx, one, "primary"))
	before, err := status(ctx, c, one)
	must(t, err)
	text, err := os.ReadFile(c.Config())
	must(t, err)
	for _, bad := range []struct{ from, to, says string }{
		{"replication:", "no_such_key: 1\nreplication:", "no_such_key"},
		{c.Store(one), c.Path("elsewhere"), "store would be"},
		{"replication:", "replication:\n  ring: 128MiB", "replication.ring would be"},
	} {
		must(t, os.WriteFile(c.Config(), []byte(strings.Replace(string(text), bad.from, bad.to, 1)), 0o600))
		// Not by the command: it could not read the config either.
		_, _, err := control.NewClient(c.Path(one, "control.sock")).Reload(ctx)
		if err == nil || !strings.Contains(err.Error(), bad.says) {
			t.Errorf("a reload was answered %v, want %q", err, bad.says)
		}
		after, err := status(ctx, c, one)
		must(t, err)
		if !after.Started.Equal(before.Started) || after.Epoch != before.Epoch || !after.Writable {
			t.Errorf("the node changed: %+v", after)
		}
	}
	must(t, os.WriteFile(c.Config(), text, 0o600))
	reload(t, ctx, c, one)
}

// TestReloadApplications: a database and git repositories work on through
// replacements of the daemon, and not one of their operations fails.
func TestReloadApplications(t *testing.T) {
	if _, err := lab.FindPostgres(); err != nil {
		t.Skip(err)
	}
	ctx := bounded(t, 2*time.Minute)
	rng := random(seed(t))
	c := started(t, ctx, lab.Options{})
	dir, err := c.MakeDir(one, "apps")
	must(t, err)
	must(t, os.Chmod(dir, 0o777)) // initdb makes its directory as its own user
	db, err := lab.NewPostgres(lab.PostgresConfig{
		Data: filepath.Join(dir, "postgres"), Socket: c.Path("socket"), Log: c.Path("postgres.log"),
	})
	must(t, err)
	c.OnClose(db.Kill)
	must(t, db.Init(ctx))
	must(t, db.Start(ctx))
	must(t, db.PgbenchInit(ctx, 1))
	begun, err := os.ReadFile(c.Path("postgres.log"))
	must(t, err)
	must(t, os.Mkdir(c.Path("clones"), 0o755))
	repo := lab.OpenGitRepo(filepath.Join(dir, "repo.git"), nil)
	must(t, repo.Init(ctx))
	rows, err := db.StartLoad(ctx, "rows", 2)
	must(t, err)
	defer rows.Stop()
	pushes, err := lab.StartGitLoad(ctx, "load", c.Path("clones"), repo)
	must(t, err)
	defer pushes.Stop()
	bench, err := db.StartPgbench(2, time.Duration(rounds(15, 200))*time.Second, c.Path("pgbench.log"))
	must(t, err)
	p := startPauses(filepath.Join(dir, "pauses"))
	var longest []time.Duration
	for range rounds(6, 100) {
		sleepRandom(rng, 200*time.Millisecond, 1200*time.Millisecond)
		p.take()
		reload(t, ctx, c, one)
		longest = append(longest, p.take())
	}
	n := rows.Acked()
	must(t, rows.WaitAcked(ctx, n+50))
	must(t, pushes.WaitAcked(ctx, pushes.Acked()+2))
	transactions, err := bench.Acked(time.Duration(rounds(60, 400)) * time.Second)
	must(t, err)
	for what, load := range map[string]*lab.Load{"rows": rows.Load, "pushes": pushes.Load} {
		if n, err := load.Failures(); n != 0 {
			t.Errorf("%s: %d failures: %v", what, n, err)
		}
		load.Stop()
	}
	must(t, p.end())
	if text, err := os.ReadFile(c.Path("pgbench.log")); err != nil || !strings.Contains(string(text), "number of failed transactions: 0 ") {
		t.Errorf("pgbench: %v\n%s", err, text)
	}
	text, err := os.ReadFile(c.Path("postgres.log"))
	must(t, err)
	for _, word := range []string{"WARNING", "ERROR", "FATAL", "PANIC"} {
		if strings.Contains(string(text[len(begun):]), word) {
			t.Errorf("PostgreSQL complains:\n%s", text)
		}
	}
	report := func(r lab.Report, err error) {
		t.Helper()
		must(t, err)
		t.Logf("%s: %d acknowledged, %d found", r.What, r.Acked, r.Found)
		if r.Acked == 0 || r.Err() != nil {
			t.Errorf("%s: %d acknowledged: %v", r.What, r.Acked, r.Err())
		}
	}
	report(rows.Verify(ctx, db))
	report(db.VerifyPgbench(ctx, transactions, bench.Clients()))
	report(pushes.Verify(ctx, repo))
	must(t, db.Amcheck(ctx))
	must(t, db.Stop("fast"))
	must(t, db.Checksums(ctx))
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
	t.Logf("the longest pauses of a writer: %v", longest)
}
