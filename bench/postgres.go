package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"
)

const (
	pgUser    = "postgres"
	pgClients = 4
)

// pgWorkloads are pgbench's, against a server whose data are on the target.
func (m *material) pgWorkloads() []Workload {
	return []Workload{
		m.pgbench("pgbench-tpcb", "TPC-B", 0),
		m.pgbench("pgbench-select", "select-only, warm", 2, "-S"),
	}
}

func (m *material) pgbench(name, what string, warmUp int, args ...string) Workload {
	scale, seconds := m.n(20), max(2, m.n(10))
	return Workload{
		Name: name, Unit: "transaction",
		About: fmt.Sprintf("pgbench %s, scale %d, %d clients", what, scale, pgClients),
		needs: func() error {
			_, err := findPostgres()
			if err == nil {
				_, _, err = lookupUser(pgUser)
			}
			return err
		},
		setup: func(ctx context.Context, dir string) error {
			p, err := newPostgres(filepath.Join(dir, "data"), m.site.runtime)
			if err != nil {
				return err
			}
			m.mu.Lock()
			if m.pgs == nil {
				m.pgs = map[string]*postgres{}
			}
			m.pgs[dir] = p
			m.mu.Unlock()
			if err := p.start(ctx); err != nil {
				return err
			}
			_, err = p.client(ctx, "pgbench", "-i", "-q", "-s", strconv.Itoa(scale), "postgres")
			return err
		},
		prepare: func(ctx context.Context, dir string) error {
			p := m.postgres(dir)
			if warmUp > 0 {
				_, err := p.pgbench(ctx, warmUp, args)
				return err
			}
			_, err := p.client(ctx, "psql", "-q", "-c", "checkpoint", "postgres")
			return err
		},
		run: func(ctx context.Context, dir string) (sample, error) {
			return m.postgres(dir).pgbench(ctx, seconds, args)
		},
		teardown: func(_ context.Context, dir string) error {
			m.mu.Lock()
			p := m.pgs[dir]
			delete(m.pgs, dir)
			m.mu.Unlock()
			if p == nil {
				return nil
			}
			return p.stop()
		},
	}
}

func (m *material) postgres(dir string) *postgres {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pgs[dir]
}

// postgres is a PostgreSQL server.
type postgres struct {
	bin, data, socket string
	server            *process
}

// findPostgres returns the programs of the newest server in Debian's layout.
func findPostgres() (string, error) {
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench")
	if err != nil || len(dirs) == 0 {
		return "", errors.Join(&notInstalledError{"PostgreSQL"}, err)
	}
	version := func(path string) int {
		n, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		if err != nil {
			return -1 // no version: sorts first
		}
		return n
	}
	newest := slices.MaxFunc(dirs, func(a, b string) int { return cmp.Compare(version(a), version(b)) })
	return filepath.Dir(newest), nil
}

// newPostgres makes a place for a server's data, and one for its socket.
func newPostgres(data, runtime string) (*postgres, error) {
	bin, err := findPostgres()
	if err != nil {
		return nil, err
	}
	uid, gid, err := lookupUser(pgUser)
	if err != nil {
		return nil, err
	}
	socket, err := os.MkdirTemp(runtime, "pg")
	if err != nil {
		return nil, fmt.Errorf("make a directory for PostgreSQL's socket: %w", err)
	}
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, fmt.Errorf("make PostgreSQL's data directory: %w", err)
	}
	for _, d := range []string{data, socket} {
		if err := os.Chown(d, int(uid), int(gid)); err != nil {
			return nil, fmt.Errorf("give a directory to PostgreSQL: %w", err)
		}
	}
	return &postgres{bin: bin, data: data, socket: socket}, nil
}

func (p *postgres) program(name string, args ...string) command {
	return command{name: filepath.Join(p.bin, name), args: args, user: pgUser}
}

// client runs a program that connects to the server.
func (p *postgres) client(ctx context.Context, name string, args ...string) (string, error) {
	return p.program(name, append([]string{"-h", p.socket, "-U", pgUser}, args...)...).run(ctx)
}

func (p *postgres) start(ctx context.Context) error {
	_, err := p.program("initdb", "-D", p.data, "-k", "-U", pgUser, "--auth=trust", "--encoding=UTF8", "--locale=C").run(ctx)
	if err != nil {
		return err
	}
	args := []string{"-D", p.data}
	for _, s := range []string{
		"listen_addresses=", "unix_socket_directories=" + p.socket,
		"shared_memory_type=mmap", "dynamic_shared_memory_type=sysv", // in its own namespace
		"shared_buffers=128MB", "max_wal_size=4GB", "checkpoint_timeout=1h", "autovacuum=off", "logging_collector=off",
	} {
		args = append(args, "-c", s)
	}
	server := p.program("postgres", args...)
	server.isolated = true
	if p.server, err = server.start("PostgreSQL"); err != nil {
		return err
	}
	return poll(ctx, "start PostgreSQL", startLimit, func() error {
		if err := p.server.ended(); err != nil {
			return &goneError{err}
		}
		_, err := p.client(ctx, "psql", "-q", "-c", "select 1", "postgres")
		return err
	})
}

func (p *postgres) stop() error {
	if p.server == nil {
		return nil
	}
	return p.server.stop(syscall.SIGINT) // "fast"
}

var (
	pgProcessed = regexp.MustCompile(`(?m)^number of transactions actually processed: (\d+)`)
	pgRate      = regexp.MustCompile(`(?m)^tps = ([0-9.]+) \(without initial connection time\)`)
)

// pgbench runs a load for some seconds and takes its own word for the rate:
// connecting is not part of it.
func (p *postgres) pgbench(ctx context.Context, seconds int, args []string) (sample, error) {
	args = append([]string{"-n", "-c", strconv.Itoa(pgClients), "-T", strconv.Itoa(seconds)}, args...)
	out, err := p.client(ctx, "pgbench", append(args, "postgres")...)
	if err != nil {
		return sample{}, err
	}
	n, rate := pgProcessed.FindStringSubmatch(out), pgRate.FindStringSubmatch(out)
	if n == nil || rate == nil {
		return sample{}, fmt.Errorf("pgbench did not say what it has done: %s", lastLines(out, 5))
	}
	ops, err := strconv.Atoi(n[1])
	if err != nil {
		return sample{}, fmt.Errorf("pgbench's count: %w", err)
	}
	tps, err := strconv.ParseFloat(rate[1], 64)
	if err != nil || tps <= 0 {
		return sample{}, fmt.Errorf("pgbench's rate %q: %w", rate[1], errors.Join(err, errors.New("no transaction")))
	}
	return sample{ops: ops, took: time.Duration(float64(ops) / tps * float64(time.Second))}, nil
}
