package lab

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	redisUser = "redis"
	// redisStart bounds the start of a server, loading its file included.
	redisStart = 30 * time.Second
)

// RedisConfig places a Redis server.
type RedisConfig struct {
	Data   string // working directory with the append-only file; made when missing
	Socket string // directory of the unix socket; made when missing, 0700
	Log    string // file with the server's output
	// Listen is the TCP address, port 6379; empty for the unix socket only.
	Listen string
	// Namespace is the network the server runs in; nil for the host's.
	Namespace *Namespace
}

// Redis is a Redis server that syncs its append-only file before each answer.
type Redis struct {
	cfg     RedisConfig
	process *Process
}

// NewRedis prepares a server; it starts nothing. The data directory may be one
// that another server has left behind.
func NewRedis(cfg RedisConfig) (*Redis, error) {
	for _, dir := range []string{cfg.Data, cfg.Socket} {
		if err := mkdirFor(redisUser, dir); err != nil {
			return nil, err
		}
	}
	return &Redis{cfg: cfg}, nil
}

// socket is the path of the unix socket.
func (r *Redis) socket() string { return filepath.Join(r.cfg.Socket, "redis.sock") }

// Start starts the server and waits until it has loaded its data.
func (r *Redis) Start(ctx context.Context) error {
	if r.process != nil && r.process.Running() {
		return errors.New("this Redis server runs already")
	}
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		return fmt.Errorf("find Redis (apt-get install redis-server): %w", err)
	}
	args := []string{
		"--dir", r.cfg.Data, "--daemonize", "no", "--supervised", "no",
		"--unixsocket", r.socket(), "--unixsocketperm", "700",
		"--appendonly", "yes", "--appendfsync", "always", "--save", "",
	}
	if r.cfg.Listen == "" {
		args = append(args, "--port", "0")
	} else {
		args = append(args, "--port", "6379", "--bind", r.cfg.Listen)
	}
	r.process, err = StartProcess(Command{
		Name: "Redis", Path: bin, Args: args,
		User: redisUser, Namespace: r.cfg.Namespace, Isolated: true,
	}, r.cfg.Log)
	if err != nil {
		return err
	}
	client := r.Client()
	defer func() { _ = client.Close() }() // a probe: only its answer counts
	return poll(ctx, redisStart, "start Redis", func(ctx context.Context) error {
		if !r.process.Running() {
			return permanent(fmt.Errorf("it has ended:\n%s", r.process.Tail(15)))
		}
		if err := client.Ping(ctx).Err(); err != nil {
			return fmt.Errorf("ping: %w", err)
		}
		return nil
	})
}

// Process is the server as it was last started, or nil.
func (r *Redis) Process() *Process { return r.process }

// Kill sends SIGKILL to the server.
func (r *Redis) Kill() error {
	if r.process == nil {
		return nil
	}
	return r.process.Kill()
}

// Stop ends the server in an orderly way.
func (r *Redis) Stop() error {
	if r.process == nil {
		return errors.New("this Redis server was not started")
	}
	if err := r.process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	code, err := r.process.Wait(stopLimit)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("redis ended with exit code %d:\n%s", code, r.process.Tail(15))
	}
	return nil
}

// Client returns a client that never sends a command twice: a retry would blur
// what was acknowledged.
func (r *Redis) Client() *redis.Client {
	return redis.NewClient(&redis.Options{
		Network: "unix", Addr: r.socket(), MaxRetries: -1,
		DialTimeout: 2 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		DisableIdentity: true,
	})
}

// CheckFile verifies the append-only file of a server that was stopped.
func (r *Redis) CheckFile(ctx context.Context) error {
	bin, err := exec.LookPath("redis-check-aof")
	if err != nil {
		return fmt.Errorf("find redis-check-aof (apt-get install redis-tools): %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	_, err = RunOK(ctx, Command{
		Name: "redis-check-aof", Path: bin, User: redisUser, Isolated: true,
		Args: []string{filepath.Join(r.cfg.Data, "appendonlydir", "appendonly.aof.manifest")},
	})
	return err
}
