package replicate

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/replfs/replfs/internal/treediff"
	"github.com/replfs/replfs/internal/treediff/treetest"
	"github.com/replfs/replfs/replicate/apply"
	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
	"github.com/replfs/replfs/replicate/wire"
)

const patience = 60 * time.Second

// testLog is silent unless REPLFS_TEST_LOG is set.
func testLog() *zap.Logger {
	if os.Getenv("REPLFS_TEST_LOG") == "" {
		return zap.NewNop()
	}
	l, _ := zap.NewDevelopment(zap.WithCaller(false), zap.AddStacktrace(zap.FatalLevel))
	return l
}

// eventually waits for what must come true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("still not so after %v: %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}

// server serves one Replication service on a network that can be cut.
type server struct {
	wire.UnimplementedReplicationServer
	serve func(wire.Replication_StreamServer) error

	grpc *grpc.Server
	lis  *bufconn.Listener
	mu   sync.Mutex
	down bool
	cons []net.Conn
}

func (s *server) Stream(stream wire.Replication_StreamServer) error { return s.serve(stream) }

func newServer(t testing.TB, serve func(wire.Replication_StreamServer) error) *server {
	t.Helper()
	s := &server{serve: serve, grpc: grpc.NewServer(wire.Serve()), lis: bufconn.Listen(64 << 10)}
	wire.RegisterReplicationServer(s.grpc, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.grpc.Serve(s.lis)
	}()
	t.Cleanup(func() {
		s.grpc.Stop()
		<-done
	})
	return s
}

func (s *server) dial(opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///standby", append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), wire.Dial(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.down {
				return nil, errors.New("no route to host")
			}
			c, err := s.lis.DialContext(ctx)
			if err == nil {
				s.cons = append(s.cons, c)
			}
			return c, err
		}),
	}, opts...)...)
}

// cut breaks all connections; with stay none can be made until mend.
func (s *server) cut(stay bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = stay
	for _, c := range s.cons {
		_ = c.Close()
	}
	s.cons = nil
}

func (s *server) mend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = false
}

// standby is a node with a Standby, as the daemon would have it.
type standby struct {
	*Standby
	t                    testing.TB
	name, base, store    string
	cluster, certificate string // certificate: who a primary's certificate names
	ring                 *oplog.Log
	said                 *observer.ObservedLogs // warnings and worse
	noted                zapcore.Core

	mu        sync.Mutex
	mute      bool // says nothing of compressions, as an older version
	epoch     uint64
	history   History
	clusterID string
	onBegin   func()
	onEpoch   func(e Epoch)
}

func newStandby(t testing.TB, name string) *standby {
	t.Helper()
	base := shm(t)
	core, said := observer.New(zap.WarnLevel)
	s := &standby{t: t, said: said, noted: core, name: name, base: base, store: filepath.Join(base, "store"), cluster: "gitlab"}
	if err := os.Mkdir(s.store, 0o755); err != nil {
		t.Fatal(err)
	}
	s.open()
	t.Cleanup(s.close)
	return s
}

// open starts the Standby, as a process that begins would.
func (s *standby) open() {
	s.t.Helper()
	s.ring = openRing(s.t, filepath.Join(s.base, "ring"))
	sb, err := NewStandby(StandbyConfig{
		Node: s.name, Store: s.store, Salvage: filepath.Join(s.base, "salvage"), Log: s.ring,
		Excluded: func(string) bool { return false },
		Applier:  apply.Config{StateFile: filepath.Join(s.base, "state")},
		Self:     s.self,
		Greeted: func(p *wire.NodeState) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.epoch = max(s.epoch, p.GetEpoch())
			return nil
		},
		Epoch: func(e Epoch, id string) error {
			s.mu.Lock()
			s.epoch, s.history, s.clusterID = max(s.epoch, e.Epoch), s.history.With(e), id
			hook := s.onEpoch
			s.mu.Unlock()
			if hook != nil {
				hook(e)
			}
			return nil
		},
		Begin: func(h History, id string) error {
			s.mu.Lock()
			s.history, s.clusterID = h, id
			hook := s.onBegin
			s.mu.Unlock()
			if hook != nil {
				hook()
			}
			return nil
		},
		Logger: testLog().Named("b").WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return zapcore.NewTee(c, s.noted) })),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.Standby = sb
	s.mu.Unlock()
	s.start()
}

func (s *standby) start() {
	s.t.Helper()
	if err := s.Start(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *standby) close() {
	if s.Standby == nil {
		return
	}
	s.Stop()
	if err := s.Close(); err != nil {
		s.t.Error(err)
	}
	if err := s.ring.Close(); err != nil {
		s.t.Error(err)
	}
	s.mu.Lock()
	s.Standby = nil
	s.mu.Unlock()
}

func (s *standby) reopen() {
	s.t.Helper()
	s.close()
	s.open()
}

func (s *standby) self() *wire.NodeState {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.Applier().State()
	applied := &wire.Position{Epoch: st.Epoch, Lsn: st.Applied}
	received := applied
	if last := s.ring.Last(); last > st.Applied {
		received = &wire.Position{Epoch: s.ring.LastEpoch(), Lsn: last}
	}
	state := &wire.NodeState{
		Identity: &wire.Identity{Cluster: s.cluster, Node: s.name, ClusterId: s.clusterID, Protocol: Protocol},
		Role:     wire.Role_ROLE_STANDBY, Epoch: s.epoch, Received: received, Applied: applied,
		History: s.history.toWire(), InSync: st.InSync, Copying: Copying(st), Suspect: st.Suspect,
	}
	if !s.mute {
		state.Accepts = wire.Accepted()
	}
	return state
}

func (s *standby) handle(stream wire.Replication_StreamServer) error {
	s.mu.Lock()
	sb := s.Standby
	s.mu.Unlock()
	if sb == nil {
		return errors.New("the process is not there")
	}
	return sb.Serve(stream, func(id *wire.Identity) error {
		if err := CheckIdentity(s.self().GetIdentity(), id, s.certificate); err != nil {
			return status.Error(codes.PermissionDenied, err.Error())
		}
		return nil
	})
}

func (s *standby) applied() uint64 { return s.Applier().State().Applied }

// salvaged lists the files that were moved aside.
func (s *standby) salvaged() (files []string) {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(s.base, "salvage", "*", "*"))
	if err != nil {
		s.t.Fatal(err)
	}
	return files
}

// pair is a primary that streams to a standby.
type pair struct {
	t       *testing.T
	p       *primary
	s       *standby
	net     *server
	inSync  *InSync
	sender  *Sender
	spiller *Spiller
	// spill configures the spiller; without a Dir there is no journal.
	spill    SpillerConfig
	timeout  time.Duration
	unclean  bool
	compress bool
	dialing  []grpc.DialOption
	stop     func()
	cancel   func() // ends the sender

	mu         sync.Mutex
	stored     []string
	refuse     error // what writing the set fails with
	superseded []uint64
}

// leakCheck must come before all else, so that it looks last.
func leakCheck(t *testing.T) {
	t.Helper()
	quiet := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, quiet) })
}

func newPair(t *testing.T) *pair {
	t.Helper()
	leakCheck(t)
	c := &pair{t: t, p: newPrimary(t, "a"), s: newStandby(t, "b"), timeout: 10 * time.Second}
	c.net = newServer(t, func(st wire.Replication_StreamServer) error { return c.s.handle(st) })
	return c
}

func (c *pair) persist(set []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return c.refuse
	}
	c.stored = slices.Clone(set)
	return nil
}

// run starts a term of the primary.
func (c *pair) run() {
	c.t.Helper()
	c.inSync = NewInSync(InSyncConfig{
		AckTimeout: c.timeout, Last: c.p.log.Last, Persist: c.persist, Log: testLog(),
	})
	c.inSync.Start(c.stored)
	sc := c.spill
	sc.Log, sc.Cluster, sc.InSync, sc.AckTimeout, sc.Logger = c.p.log, clusterID, c.inSync, c.timeout, testLog().Named("a")
	sc.Peers = append(sc.Peers, "b")
	if sc.BootID == "" {
		sc.BootID = "boot"
	}
	c.spiller = StartSpiller(sc, c.p.terms(), c.unclean)
	spiller := c.spiller
	c.sender = NewSender(SenderConfig{
		Peer: "b", Dial: func() (*grpc.ClientConn, error) { return c.net.dial(c.dialing...) },
		Log: c.p.log, Self: c.p.state, History: c.p.terms, InSync: c.inSync, NewWalk: c.p.newWalk,
		Spiller: c.spiller, Unclean: c.unclean, Compress: c.compress, Logger: testLog().Named("a"),
		Superseded: func(peer *wire.NodeState) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.superseded = append(c.superseded, peer.GetEpoch())
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.sender.Run(ctx)
	}()
	c.cancel = func() {
		cancel()
		<-done
	}
	c.stop = sync.OnceFunc(func() {
		cancel()
		c.inSync.Stop()
		select {
		case <-done:
		case <-time.After(patience):
			c.t.Error("Run does not end")
		}
		spiller.Close()
	})
	c.t.Cleanup(c.stop)
}

// park ends the term as a primary does that stops in an orderly way.
func (c *pair) park() {
	c.t.Helper()
	c.inSync.Stop()
	c.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c.spiller.Park(ctx)
}

// caughtUp waits until the standby has applied all.
func (c *pair) caughtUp() {
	c.t.Helper()
	last := c.p.log.Last()
	eventually(c.t, "the standby has applied everything", func() bool {
		st := c.s.Applier().State()
		return st.Applied >= last && st.Epoch == c.p.log.LastEpoch() && !st.Syncing && st.Suspect == ""
	})
}

// joined waits until the standby is in sync; a write each time, as some
// progress is only told with the next one.
func (c *pair) joined() {
	c.t.Helper()
	eventually(c.t, "the standby is in sync", func() bool {
		if !c.inSync.Has("b") {
			c.p.must(c.p.setMtime("", record.Timespec{Sec: 1}))
			time.Sleep(10 * time.Millisecond)
		}
		return c.inSync.Has("b")
	})
}

// same compares the stores; nothing may be written meanwhile.
func (c *pair) same() {
	c.t.Helper()
	c.caughtUp()
	treetest.Equal(c.t, c.p.dir, c.s.store, treediff.Options{})
}
