package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// need skips a test whose program is not installed.
func need(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Skip(err)
	}
}

// must ends a test at an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// expectReport checks what a verification found.
func expectReport(t *testing.T, r Report, err error, missing, faults int) {
	t.Helper()
	must(t, err)
	t.Logf("%s: %d acknowledged, %d found, %d unacknowledged %v", r.What, r.Acked, r.Found, r.Unacked, r.Problems)
	if r.Acked == 0 {
		t.Errorf("%s: nothing was acknowledged", r.What)
	}
	if r.Missing() != missing || r.broken != faults {
		t.Errorf("%s: %d missing and %d faults, want %d and %d", r.What, r.Missing(), r.broken, missing, faults)
	}
	if bad := missing+faults > 0; (r.Err() != nil) != bad {
		t.Errorf("%s: the verdict is %v", r.What, r.Err())
	}
}

// TestPostgres kills a server under load and verifies; then breaks what was
// acknowledged and expects the verification to see it.
func TestPostgres(t *testing.T) {
	root := testRoot(t)
	_, err := FindPostgres()
	need(t, err)
	ctx := limit(t, 100*time.Second)
	p, err := NewPostgres(PostgresConfig{Data: root.Path("data"), Socket: root.Path("sock"), Log: root.Path("log")})
	must(t, err)
	defer func() { must(t, p.Kill()) }()
	must(t, p.Init(ctx))
	must(t, p.Start(ctx))
	must(t, p.PgbenchInit(ctx, 1))
	load, err := p.StartLoad(ctx, "first", 3)
	must(t, err)
	defer load.Stop()
	bench, err := p.StartPgbench(2, 30*time.Second, root.Path("pgbench.log"))
	must(t, err)
	must(t, load.WaitAcked(ctx, 100))
	must(t, poll(ctx, 60*time.Second, "pgbench has transactions", func(ctx context.Context) error {
		conn, err := p.Connect(ctx)
		if err != nil {
			return err
		}
		var n int
		err = conn.QueryRow(ctx, "SELECT count(*) FROM pgbench_history").Scan(&n)
		if err = errors.Join(err, conn.Close(ctx)); err == nil && n < 20 {
			err = fmt.Errorf("%d", n)
		}
		return err
	}))
	must(t, p.Kill())
	load.Stop()
	transactions, err := bench.Acked(20 * time.Second)
	must(t, err)
	if failed, _ := load.Failures(); failed == 0 {
		t.Error("the load did not notice that its server was killed")
	}

	must(t, p.Start(ctx))
	r, err := load.Verify(ctx, p)
	expectReport(t, r, err, 0, 0)
	r, err = p.VerifyPgbench(ctx, transactions, bench.Clients())
	expectReport(t, r, err, 0, 0)
	must(t, p.Amcheck(ctx))

	exec := func(query string) {
		t.Helper()
		conn, err := p.Connect(ctx)
		must(t, err)
		_, err = conn.Exec(ctx, query)
		must(t, errors.Join(err, conn.Close(ctx)))
	}
	exec("DELETE FROM ledger WHERE worker = 1 AND seq = 2")
	exec("UPDATE ledger SET payload = 'torn' WHERE worker = 0 AND seq = 1")
	exec("INSERT INTO ledger VALUES ('first', 0, 1000000, 'alien')")
	exec("UPDATE pgbench_tellers SET tbalance = tbalance + 1 WHERE tid = 1")
	r, err = load.Verify(ctx, p)
	expectReport(t, r, err, 2, 1)
	r, err = p.VerifyPgbench(ctx, transactions+10, bench.Clients())
	if err != nil || r.Missing() == 0 || r.broken != 1 {
		t.Errorf("pgbench: %+v %v, want missing transactions and differing sums", r, err)
	}
	breakPages(ctx, t, p)
}

// breakPages damages the server's files and expects its checkers to see it.
func breakPages(ctx context.Context, t *testing.T, p *Postgres) {
	t.Helper()
	conn, err := p.Connect(ctx)
	must(t, err)
	var file string
	err = conn.QueryRow(ctx, "SELECT pg_relation_filepath('pgbench_accounts_pkey')").Scan(&file)
	must(t, errors.Join(err, conn.Close(ctx)))
	must(t, p.Stop("fast"))
	must(t, p.Checksums(ctx))
	f, err := os.OpenFile(filepath.Join(p.cfg.Data, file), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("damage"), 5*8192+4000)
	must(t, errors.Join(err, f.Close()))
	if err := p.Checksums(ctx); err == nil {
		t.Error("pg_checksums passed a damaged page")
	}
	must(t, p.Start(ctx))
	if err := p.Amcheck(ctx); err == nil {
		t.Error("pg_amcheck passed a damaged index")
	}
}

// TestRedis kills a server under load and verifies; then breaks what was
// acknowledged and expects the verification to see it.
func TestRedis(t *testing.T) {
	root := testRoot(t)
	ctx := limit(t, 60*time.Second)
	r, err := NewRedis(RedisConfig{Data: root.Path("data"), Socket: root.Path("sock"), Log: root.Path("log")})
	need(t, err)
	defer func() { must(t, r.Kill()) }()
	must(t, r.Start(ctx))
	load, err := r.StartLoad(ctx, "first", 3)
	must(t, err)
	defer load.Stop()
	must(t, load.WaitAcked(ctx, 300))
	must(t, r.Kill())
	load.Stop()
	must(t, r.Start(ctx))
	report, err := load.Verify(ctx, r)
	expectReport(t, report, err, 0, 0)

	client := r.Client()
	defer func() { _ = client.Close() }()
	must(t, client.Del(ctx, "first:key:0:1").Err())
	must(t, client.Set(ctx, "first:key:1:1", "torn", 0).Err())
	must(t, client.Decr(ctx, "first:counter:0").Err())
	must(t, client.IncrBy(ctx, "first:counter:1", 1000).Err())
	report, err = load.Verify(ctx, r)
	// The DECR hides behind an INCR that was in flight when the server died.
	if missing := report.Missing(); missing != 2 && missing != 3 {
		t.Errorf("%d missing, want 2 or 3", missing)
	}
	expectReport(t, report, err, report.Missing(), 1)

	must(t, r.Stop())
	must(t, r.CheckFile(ctx))
	files, err := filepath.Glob(root.Path("data", "appendonlydir", "*.incr.aof"))
	if err != nil || len(files) != 1 {
		t.Fatalf("append-only files: %v, %v", files, err)
	}
	f, err := os.OpenFile(files[0], os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("damage"), 0) // the contents of a value would pass: only the format is checked
	must(t, errors.Join(err, f.Close()))
	if err := r.CheckFile(ctx); err == nil {
		t.Error("redis-check-aof passed a damaged file")
	}
}

// TestGit pushes to two repositories and verifies; then breaks them and expects
// the verification to see it.
func TestGit(t *testing.T) {
	root := testRoot(t)
	ctx := limit(t, 60*time.Second)
	var repos []*GitRepo
	for i := range 2 {
		repo := OpenGitRepo(root.Path(fmt.Sprintf("repo%d.git", i)), nil)
		must(t, repo.Init(ctx))
		repos = append(repos, repo)
	}
	must(t, os.Mkdir(root.Path("work"), 0o755))
	load, err := StartGitLoad(ctx, "load", root.Path("work"), repos...)
	must(t, err)
	defer load.Stop()
	must(t, load.WaitAcked(ctx, 8))
	load.Stop()
	r, err := load.Verify(ctx, repos...)
	expectReport(t, r, err, 0, 0)
	// The wrong repositories hold nothing that was pushed to the right ones.
	r, err = load.Verify(ctx, repos[1], repos[0])
	if err != nil || r.Found != 0 || r.broken == 0 {
		t.Errorf("swapped repositories: %+v, %v", r, err)
	}

	tip, err := repos[0].git(ctx, repos[0].dir, "rev-parse", "load~2")
	must(t, err)
	_, err = repos[0].git(ctx, repos[0].dir, "update-ref", "refs/heads/load", strings.TrimSpace(tip))
	must(t, err)
	r, err = load.Verify(ctx, repos...)
	must(t, err)
	// One push may have been in flight when the load was stopped.
	if missing := r.Missing(); missing != 1 && missing != 2 {
		t.Errorf("%d missing after the branch went back by two commits", missing)
	}
	expectReport(t, r, err, r.Missing(), 0)

	packs, err := filepath.Glob(filepath.Join(repos[1].dir, "objects/pack/*.pack"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("packs: %v, %v", packs, err)
	}
	must(t, os.Truncate(packs[0], 40))
	if err := repos[1].Fsck(ctx); err == nil {
		t.Error("git fsck passed a torn pack")
	}
}
