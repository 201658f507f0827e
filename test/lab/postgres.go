package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	postgresUser = "postgres"
	// postgresStart bounds the start of a server, recovery included.
	postgresStart = 60 * time.Second
	// postgresTool bounds initdb, pgbench -i, pg_amcheck and pg_checksums.
	postgresTool = 120 * time.Second
)

// FindPostgres returns the directory with the programs of the newest PostgreSQL
// server installed in Debian's layout.
func FindPostgres() (string, error) {
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", fmt.Errorf("look for PostgreSQL: %w", err)
	}
	if len(dirs) == 0 {
		return "", errors.New("no PostgreSQL server in /usr/lib/postgresql (apt-get install postgresql)")
	}
	version := func(path string) int {
		// An odd directory name sorts first: it is no version.
		n, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		if err != nil {
			return -1
		}
		return n
	}
	newest := slices.MaxFunc(dirs, func(a, b string) int { return cmp.Compare(version(a), version(b)) })
	return filepath.Dir(newest), nil
}

// PostgresConfig places a PostgreSQL server.
type PostgresConfig struct {
	Data   string // data directory; Init makes it
	Socket string // directory of the unix socket; made when missing, 0700
	Log    string // file with the server's output
	Port   int    // default 5432
	// Listen is the TCP address; empty for the unix socket only.
	Listen string
	// Namespace is the network the server runs in; nil for the host's.
	Namespace *Namespace
	// Settings are more server settings, as after "-c".
	Settings []string
}

// Postgres is a PostgreSQL server with checksums and every kind of sync on.
type Postgres struct {
	cfg     PostgresConfig
	bin     string
	process *Process
}

// NewPostgres prepares a server; it starts nothing. The data directory may be
// one that another server has left behind.
func NewPostgres(cfg PostgresConfig) (*Postgres, error) {
	bin, err := FindPostgres()
	if err != nil {
		return nil, err
	}
	if cfg.Port == 0 {
		cfg.Port = 5432
	}
	if err := mkdirFor(postgresUser, cfg.Socket); err != nil {
		return nil, err
	}
	return &Postgres{cfg: cfg, bin: bin}, nil
}

// mkdirFor makes a directory, if it is not there, that belongs to a user.
func mkdirFor(username, dir string) error {
	uid, gid, err := lookupUser(username)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); errors.Is(err, os.ErrExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("make a directory for %s: %w", username, err)
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return fmt.Errorf("give a directory to %s: %w", username, err)
	}
	return nil
}

// tool runs one of PostgreSQL's programs as its user.
func (p *Postgres) tool(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, postgresTool)
	defer cancel()
	return RunOK(ctx, Command{
		Name: name, Path: filepath.Join(p.bin, name), Args: args,
		User: postgresUser, Namespace: p.cfg.Namespace, Isolated: true,
	})
}

// client runs a program that connects to the server.
func (p *Postgres) client(ctx context.Context, name string, args ...string) (string, error) {
	return p.tool(ctx, name, append(p.connection(), args...)...)
}

// connection are the arguments that name the server.
func (p *Postgres) connection() []string {
	return []string{"-h", p.cfg.Socket, "-p", strconv.Itoa(p.cfg.Port), "-U", postgresUser}
}

// Init makes a new database cluster with data checksums.
func (p *Postgres) Init(ctx context.Context) error {
	if err := mkdirFor(postgresUser, p.cfg.Data); err != nil {
		return err
	}
	_, err := p.tool(ctx, "initdb", "-D", p.cfg.Data, "-k", "-U", postgresUser,
		"--auth=trust", "--encoding=UTF8", "--locale=C")
	return err
}

// Start starts the server and waits until it takes queries, recovery done.
func (p *Postgres) Start(ctx context.Context) error {
	if p.process != nil && p.process.Running() {
		return errors.New("this PostgreSQL server runs already")
	}
	args := []string{"-D", p.cfg.Data}
	settings := []string{
		"port=" + strconv.Itoa(p.cfg.Port),
		"listen_addresses=" + p.cfg.Listen,
		"unix_socket_directories=" + p.cfg.Socket,
		"fsync=on", "synchronous_commit=on", "full_page_writes=on",
		// In the process's IPC namespace, where a kill leaves nothing behind.
		"shared_memory_type=mmap", "dynamic_shared_memory_type=sysv",
		"shared_buffers=64MB", "max_connections=60", "logging_collector=off",
	}
	for _, s := range append(settings, p.cfg.Settings...) {
		args = append(args, "-c", s)
	}
	var err error
	p.process, err = StartProcess(Command{
		Name: "PostgreSQL", Path: filepath.Join(p.bin, "postgres"), Args: args,
		User: postgresUser, Namespace: p.cfg.Namespace, Isolated: true,
	}, p.cfg.Log)
	if err != nil {
		return err
	}
	return poll(ctx, postgresStart, "start PostgreSQL", func(ctx context.Context) error {
		if !p.process.Running() {
			return permanent(fmt.Errorf("it has ended:\n%s", p.process.Tail(15)))
		}
		conn, err := p.Connect(ctx)
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
}

// Process is the server as it was last started, or nil.
func (p *Postgres) Process() *Process { return p.process }

// Kill sends SIGKILL to the server and all its children.
func (p *Postgres) Kill() error {
	if p.process == nil {
		return nil
	}
	return p.process.Kill()
}

// Stop ends the server in the mode "fast", which leaves a clean data directory,
// or "immediate", which leaves one to recover.
func (p *Postgres) Stop(mode string) error {
	signals := map[string]syscall.Signal{"fast": syscall.SIGINT, "immediate": syscall.SIGQUIT}
	sig, ok := signals[mode]
	if !ok {
		return fmt.Errorf("PostgreSQL has no stop mode %q here", mode)
	}
	if p.process == nil {
		return errors.New("this PostgreSQL server was not started")
	}
	if err := p.process.Signal(sig); err != nil {
		return err
	}
	code, err := p.process.Wait(stopLimit)
	if err != nil {
		return err
	}
	if mode == "fast" && code != 0 {
		return fmt.Errorf("PostgreSQL ended with exit code %d:\n%s", code, p.process.Tail(15))
	}
	return nil
}

// Connect opens a connection over the unix socket.
func (p *Postgres) Connect(ctx context.Context) (*pgx.Conn, error) {
	dsn := fmt.Sprintf("host=%s port=%d user=%s dbname=postgres connect_timeout=5",
		p.cfg.Socket, p.cfg.Port, postgresUser)
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	return conn, nil
}

// Amcheck checks every table and index of every database with pg_amcheck.
func (p *Postgres) Amcheck(ctx context.Context) error {
	_, err := p.client(ctx, "pg_amcheck", "--all", "--install-missing", "--heapallindexed")
	return err
}

// Checksums verifies the checksum of every page of a server that was stopped
// with "fast".
func (p *Postgres) Checksums(ctx context.Context) error {
	_, err := p.tool(ctx, "pg_checksums", "--check", "-D", p.cfg.Data)
	return err
}
