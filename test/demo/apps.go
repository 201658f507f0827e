package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/replfs/replfs/test/lab"
)

// repoCount is the number of git repositories, each with one client that pushes.
const repoCount = 2

// apps are the applications of one node; their data lies beneath its mount.
type apps struct {
	postgres *lab.Postgres
	redis    *lab.Redis
	repos    []*lab.GitRepo
}

// placeApps says where the applications of a node have their data, and keeps
// them from outliving the cluster. It starts nothing.
func placeApps(c *lab.Cluster, node string) (*apps, error) {
	dir, err := c.MakeDir(node, "git-data")
	if err != nil {
		return nil, err
	}
	mount, ns := c.Mount(node), c.Namespace(node)
	a := &apps{}
	for i := range repoCount {
		a.repos = append(a.repos, lab.OpenGitRepo(filepath.Join(dir, fmt.Sprintf("project-%d.git", i+1)), ns))
	}
	// The sockets and logs lie outside: they belong to the node, not to the data.
	a.postgres, err = lab.NewPostgres(lab.PostgresConfig{
		Data: filepath.Join(mount, "postgresql"), Socket: c.Path(node, "run-postgresql"),
		Log: c.Path(node, "postgresql.log"), Listen: ns.Addr(), Namespace: ns,
	})
	if err != nil {
		return nil, err
	}
	c.OnClose(a.postgres.Kill)
	a.redis, err = lab.NewRedis(lab.RedisConfig{
		Data: filepath.Join(mount, "redis"), Socket: c.Path(node, "run-redis"),
		Log: c.Path(node, "redis.log"), Listen: ns.Addr(), Namespace: ns,
	})
	if err != nil {
		return nil, err
	}
	c.OnClose(a.redis.Kill)
	return a, nil
}

// start starts the servers; git needs none.
func (a *apps) start(ctx context.Context) error {
	if err := a.postgres.Start(ctx); err != nil {
		return err
	}
	return a.redis.Start(ctx)
}

// kill kills the servers, as the death of their machine would.
func (a *apps) kill() error {
	return errors.Join(a.postgres.Kill(), a.redis.Kill())
}

// loads are the clients of all applications of a node.
type loads struct {
	postgres *lab.PostgresLoad
	redis    *lab.RedisLoad
	git      *lab.GitLoad
	pgbench  *lab.Pgbench
}

// start starts the clients. Their clones lie in the directory work.
func (l *loads) start(ctx context.Context, a *apps, run, work string) error {
	if err := os.MkdirAll(work, 0o755); err != nil {
		return fmt.Errorf("make a directory for the clients: %w", err)
	}
	var err error
	if l.git, err = lab.StartGitLoad(ctx, run, work, a.repos...); err != nil {
		return err
	}
	if l.redis, err = a.redis.StartLoad(ctx, run, 2); err != nil {
		return err
	}
	l.postgres, err = a.postgres.StartLoad(ctx, run, 3)
	return err
}

// stop stops the clients that were started.
func (l *loads) stop() {
	if l.postgres != nil {
		l.postgres.Stop()
	}
	if l.redis != nil {
		l.redis.Stop()
	}
	if l.git != nil {
		l.git.Stop()
	}
}

// waitAcked waits until every kind of client has had some writes acknowledged.
func (l *loads) waitAcked(ctx context.Context, rows, keys, pushes int) error {
	if err := l.postgres.WaitAcked(ctx, rows); err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	if err := l.redis.WaitAcked(ctx, keys); err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	if err := l.git.WaitAcked(ctx, pushes); err != nil {
		return fmt.Errorf("git: %w", err)
	}
	return nil
}

// counts tells what was acknowledged so far.
func (l *loads) counts() string {
	return fmt.Sprintf("acknowledged so far: %d PostgreSQL rows, %d Redis writes, %d git pushes",
		l.postgres.Acked(), l.redis.Acked(), l.git.Acked())
}

// lastAck is when the last write of any kind was acknowledged.
func (l *loads) lastAck() time.Time {
	last := l.postgres.LastAck()
	for _, at := range []time.Time{l.redis.LastAck(), l.git.LastAck()} {
		if at.After(last) {
			last = at
		}
	}
	return last
}

// verify looks for everything acknowledged in the applications of a node.
func (l *loads) verify(ctx context.Context, a *apps) ([]lab.Report, error) {
	rows, err := l.postgres.Verify(ctx, a.postgres)
	if err != nil {
		return nil, err
	}
	writes, err := l.redis.Verify(ctx, a.redis)
	if err != nil {
		return nil, err
	}
	pushes, err := l.git.Verify(ctx, a.repos...)
	if err != nil {
		return nil, err
	}
	return []lab.Report{rows, writes, pushes}, nil
}
