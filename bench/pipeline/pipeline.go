// Package pipeline measures the way of records from a primary's log to a
// standby's store, within one process and without a mount: what the replication
// itself can do.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/replfs/replfs/replicate"
	"github.com/replfs/replfs/replicate/apply"
	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
	"github.com/replfs/replfs/replicate/wire"
)

// Options say what to send.
type Options struct {
	// Dir holds the store and the logs, in a directory of its own.
	Dir string
	// Records of Size bytes each, appended to Files in turns.
	Records, Size, Files int
	// TCP sends over the loopback interface rather than through memory.
	TCP bool
	// Compress asks for zstd.
	Compress bool
}

// Result is how it went.
type Result struct {
	Records int `json:"records"`
	// Seconds passed from the first record being appended to the last being
	// applied.
	Seconds float64 `json:"seconds"`
}

const (
	ringSize = 64 << 20
	window   = 8 << 20
	buffered = 256 << 10
	limit    = 5 * time.Minute
)

// Run sends the records and waits until they are applied.
func Run(ctx context.Context, opt Options) (_ *Result, err error) {
	if opt.Records < 1 || opt.Files < 1 || opt.Size < 0 || opt.Size > record.MaxData {
		return nil, fmt.Errorf("%d records of %d bytes for %d files cannot be sent", opt.Records, opt.Size, opt.Files)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	p := &pipeline{opt: opt}
	if p.dir, err = os.MkdirTemp(opt.Dir, "replfs-pipeline-"); err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	defer func() {
		if rerr := os.RemoveAll(p.dir); rerr != nil {
			err = errors.Join(err, fmt.Errorf("clean up: %w", rerr))
		}
	}()
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	res, err := p.send(ctx)
	return res, errors.Join(err, p.stop())
}

type pipeline struct {
	opt     Options
	dir     string
	log     *oplog.Log // the primary's
	ring    *oplog.Log // the standby's
	standby *replicate.Standby
	insync  *replicate.InSync
	server  *grpc.Server
	closers []func() error // in the order in which they were made
}

func (p *pipeline) onStop(f func() error) { p.closers = append(p.closers, f) }

func (p *pipeline) stop() error {
	var errs []error
	for i := len(p.closers) - 1; i >= 0; i-- {
		errs = append(errs, p.closers[i]())
	}
	return errors.Join(errs...)
}

func (p *pipeline) openLog(name string) (*oplog.Log, error) {
	l, _, err := oplog.Open(filepath.Join(p.dir, name), oplog.Options{Size: ringSize})
	if err != nil {
		return nil, fmt.Errorf("open a log: %w", err)
	}
	p.onStop(l.Close)
	return l, nil
}

const (
	cluster = "bench"
	life    = "bench-pipeline"
)

func identity(node string) *wire.Identity {
	return &wire.Identity{Cluster: cluster, Node: node, ClusterId: life, Protocol: replicate.Protocol}
}

func (p *pipeline) start(ctx context.Context) error {
	var err error
	if p.log, err = p.openLog("primary"); err != nil {
		return err
	}
	if p.ring, err = p.openLog("standby"); err != nil {
		return err
	}
	store := filepath.Join(p.dir, "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		return fmt.Errorf("make the store: %w", err)
	}
	p.standby, err = replicate.NewStandby(replicate.StandbyConfig{
		Node: "b", Store: store, Salvage: filepath.Join(p.dir, "salvage"), Log: p.ring,
		Excluded: func(string) bool { return false },
		Applier:  apply.Config{StateFile: filepath.Join(p.dir, "state")},
		Self: func() *wire.NodeState {
			st := p.standby.Applier().State()
			at := &wire.Position{Epoch: st.Epoch, Lsn: st.Applied}
			return &wire.NodeState{
				Identity: identity("b"), Role: wire.Role_ROLE_STANDBY, Applied: at, Received: at, Accepts: wire.Accepted(),
			}
		},
		Greeted: func(*wire.NodeState) error { return nil },
		Epoch:   func(replicate.Epoch, string) error { return nil },
		Begin:   func(replicate.History, string) error { return nil },
		Logger:  zap.NewNop(),
	})
	if err != nil {
		return fmt.Errorf("open the standby: %w", err)
	}
	p.onStop(p.standby.Close)
	if err := p.standby.Start(); err != nil {
		return fmt.Errorf("start the standby: %w", err)
	}
	dial, err := p.serve()
	if err != nil {
		return err
	}
	return p.stream(ctx, dial)
}

type service struct {
	wire.UnimplementedReplicationServer
	standby *replicate.Standby
}

func (s *service) Stream(stream wire.Replication_StreamServer) error {
	return s.standby.Serve(stream, func(*wire.Identity) error { return nil })
}

// serve makes the standby reachable, as a node does.
func (p *pipeline) serve() (dial func() (*grpc.ClientConn, error), err error) {
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), wire.Dial(),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithWriteBufferSize(buffered), grpc.WithReadBufferSize(buffered),
	}
	var lis net.Listener
	target := "passthrough:///standby"
	if p.opt.TCP {
		if lis, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
		target = "passthrough:///" + lis.Addr().String()
	} else {
		b := bufconn.Listen(buffered)
		opts = append(opts, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.DialContext(ctx) }))
		lis = b
	}
	p.server = grpc.NewServer(wire.Serve(), grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		grpc.WriteBufferSize(buffered), grpc.ReadBufferSize(buffered))
	wire.RegisterReplicationServer(p.server, &service{standby: p.standby})
	served := make(chan error, 1)
	go func() { served <- p.server.Serve(lis) }()
	p.onStop(func() error {
		p.server.Stop()
		<-served //nolint:errcheck // it was stopped
		return nil
	})
	return func() (*grpc.ClientConn, error) { return grpc.NewClient(target, opts...) }, nil
}

// noWalk copies an empty store.
type noWalk struct{}

func (noWalk) Tree(context.Context) error               { return nil }
func (noWalk) Path(context.Context, string, bool) error { return nil }
func (noWalk) Close()                                   {}

// stream opens the epoch and starts the sender.
func (p *pipeline) stream(ctx context.Context, dial func() (*grpc.ClientConn, error)) error {
	p.log.SetEpoch(1)
	begin := &record.Record{Op: record.OpEpoch, Path: "a", Path2: life, Fields: record.FieldPath | record.FieldPath2}
	lsn, err := p.log.Append(begin, nil, nil)
	if err != nil {
		return fmt.Errorf("open the epoch: %w", err)
	}
	history := replicate.History{{Epoch: 1, Primary: "a", Begin: lsn}}
	p.insync = replicate.NewInSync(replicate.InSyncConfig{
		AckTimeout: limit, Last: p.log.Last,
		Persist: func([]string) error { return nil }, Log: zap.NewNop(),
	})
	p.insync.Start(nil)
	spiller := replicate.StartSpiller(replicate.SpillerConfig{
		Log: p.log, Cluster: life, BootID: life, Peers: []string{"b"}, InSync: p.insync, AckTimeout: limit, Logger: zap.NewNop(),
	}, history, false)
	p.onStop(func() error {
		spiller.Close()
		return nil
	})
	sender := replicate.NewSender(replicate.SenderConfig{
		Peer: "b", Dial: dial, Log: p.log, InSync: p.insync, Spiller: spiller, Compress: p.opt.Compress, Logger: zap.NewNop(),
		Self: func() *wire.NodeState {
			at := &wire.Position{Epoch: 1, Lsn: p.log.Last()}
			return &wire.NodeState{Identity: identity("a"), Role: wire.Role_ROLE_PRIMARY, Epoch: 1, Applied: at, Received: at}
		},
		History: func() replicate.History { return history },
		NewWalk: func(func(context.Context) error, func(int, int64)) replicate.Walk { return noWalk{} },
		Superseded: func(*wire.NodeState) {
		},
	})
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		sender.Run(ctx)
	}()
	p.onStop(func() error {
		cancel()
		p.insync.Stop()
		<-done
		return nil
	})
	return p.applied(ctx, lsn)
}

// applied waits until the standby shows a record.
func (p *pipeline) applied(ctx context.Context, lsn uint64) error {
	tick := time.NewTicker(100 * time.Microsecond)
	defer tick.Stop()
	for {
		st := p.standby.Status()
		switch {
		case st.Applied >= lsn && !st.Syncing && st.Suspect == "":
			return nil
		case st.Trouble != "":
			return fmt.Errorf("the standby stands still: %s", st.Trouble)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for record %d, the standby is at %d: %w", lsn, st.Applied, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

func (p *pipeline) send(ctx context.Context) (*Result, error) {
	const mode = 0o100600
	var last uint64
	for i := range p.opt.Files {
		rec := &record.Record{
			Op: record.OpCreate, Path: fmt.Sprintf("file-%d", i), FileID: uint64(i + 1), Mode: mode, Perm: 0o600,
			Fields: record.FieldPath | record.FieldFileID | record.FieldMode | record.FieldPerm | record.FieldOwner,
		}
		var err error
		if last, err = p.log.Append(rec, nil, nil); err != nil {
			return nil, fmt.Errorf("append: %w", err)
		}
	}
	if err := p.applied(ctx, last); err != nil {
		return nil, err
	}
	data := make([]byte, p.opt.Size)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	paths := make([]string, p.opt.Files)
	for i := range paths {
		paths[i] = fmt.Sprintf("file-%d", i)
	}
	begun := time.Now()
	var rec record.Record
	for i := range p.opt.Records {
		f := i % p.opt.Files
		rec = record.Record{
			Op: record.OpWrite, Path: paths[f], FileID: uint64(f + 1), Offset: int64(i/p.opt.Files) * int64(p.opt.Size),
			Mtime:  record.Timespec{Sec: int64(i)},
			Fields: record.FieldPath | record.FieldFileID | record.FieldOffset | record.FieldMtime,
		}
		var err error
		if last, err = p.log.Append(&rec, data, nil); err != nil {
			return nil, fmt.Errorf("append: %w", err)
		}
	}
	if err := p.applied(ctx, last); err != nil {
		return nil, err
	}
	return &Result{Records: p.opt.Records, Seconds: time.Since(begun).Seconds()}, nil
}
