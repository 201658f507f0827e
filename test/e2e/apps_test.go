package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/replfs/replfs/test/lab"
)

// TestApplications: a database and git repositories that lose their node at
// work have on the other one everything that they acknowledged.
func TestApplications(t *testing.T) {
	if _, err := lab.FindPostgres(); err != nil {
		t.Skip(err)
	}
	ctx := bounded(t, 4*time.Minute)
	c := started(t, ctx, lab.Options{})
	dir, err := c.MakeDir(one, "apps")
	must(t, err)
	postgres := func(node string) *lab.Postgres {
		t.Helper()
		p, err := lab.NewPostgres(lab.PostgresConfig{
			Data: filepath.Join(c.Mount(node), "apps", "postgres"), Socket: c.Path("socket-" + node), Log: c.Path("postgres-" + node + ".log"),
		})
		must(t, err)
		// Before its directory goes, and after the node was killed.
		c.OnClose(p.Kill)
		return p
	}
	must(t, os.Chmod(dir, 0o777)) // initdb makes its directory as its own user
	db := postgres(one)
	must(t, db.Init(ctx))
	must(t, db.Start(ctx))
	must(t, db.PgbenchInit(ctx, 1))
	must(t, os.Mkdir(c.Path("clones"), 0o755))
	repos := func(node string) (out []*lab.GitRepo) {
		for i := range 2 {
			out = append(out, lab.OpenGitRepo(filepath.Join(c.Mount(node), "apps", fmt.Sprintf("repo%d.git", i)), nil))
		}
		return out
	}
	for _, r := range repos(one) {
		must(t, r.Init(ctx))
	}
	rows, err := db.StartLoad(ctx, "first", 2)
	must(t, err)
	defer rows.Stop()
	pushes, err := lab.StartGitLoad(ctx, "load", c.Path("clones"), repos(one)...)
	must(t, err)
	defer pushes.Stop()
	bench, err := db.StartPgbench(2, time.Minute, c.Path("pgbench.log"))
	must(t, err)
	must(t, rows.WaitAcked(ctx, 100))
	must(t, pushes.WaitAcked(ctx, 6))

	must(t, c.KillNode(one))
	must(t, db.Kill())
	rows.Stop()
	pushes.Stop()
	transactions, err := bench.Acked(20 * time.Second)
	must(t, err)
	promote(t, ctx, c, two, false)
	db = postgres(two)
	must(t, db.Start(ctx))

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
	report(pushes.Verify(ctx, repos(two)...))
	must(t, db.Amcheck(ctx))
	must(t, db.Stop("fast"))
	must(t, db.Checksums(ctx))
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitInSync(ctx, two, one))
	equalStores(t, ctx, c, two, one)
}
