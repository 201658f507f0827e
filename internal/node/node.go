// Package node joins the parts into one daemon: the file system, the log, the
// senders or the applier, and the decisions about roles.
package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/replfs/replfs/election"
	"github.com/replfs/replfs/fs"
	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/internal/exclude"
	"github.com/replfs/replfs/internal/latency"
	"github.com/replfs/replfs/internal/pki"
	"github.com/replfs/replfs/replicate"
	"github.com/replfs/replfs/replicate/apply"
	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/wire"
)

// Node is a running data node.
type Node struct {
	wire.UnimplementedReplicationServer
	cfg     *config.Config
	view    *config.NodeView
	opts    Options
	log     *zap.Logger
	started time.Time

	lock    *os.File
	state   *election.Store
	oplog   *oplog.Log
	insync  *replicate.InSync
	pacer   *replicate.Pacer
	standby *replicate.Standby
	fs      *fs.FS
	latency *latency.Guard
	mount   *fs.Mount
	grpc    *grpc.Server

	// role changes are serialized by changing.
	changing sync.Mutex

	mu      sync.Mutex
	role    wire.Role
	senders []*sender
	spiller *replicate.Spiller // while this node is primary
	suspect string
	notice  string // what an administrator should know about the last role change
	unclean bool
	// resumedAs is how the node went on when it started.
	resumedAs string
	resumed   bool // the mount is a predecessor's, and its gate still undecided
	quitting  bool
}

type sender struct {
	*replicate.Sender
	peer   config.Node
	cancel context.CancelFunc
	done   chan struct{}
}

// Options are what is said about one start of a node.
type Options struct {
	// LazyUnmount detaches the mount at the end even if it is in use.
	LazyUnmount bool
	// NonEmpty allows a mount point with something in it.
	NonEmpty bool
}

// Run runs the node until ctx ends; then it drains, unmounts and returns nil.
func Run(ctx context.Context, view *config.NodeView, o Options, log *zap.Logger) error {
	n := &Node{cfg: view.Config, view: view, opts: o, log: log, started: time.Now(), role: wire.Role_ROLE_STARTING}
	recovered, err := n.open()
	if err != nil {
		return errors.Join(err, n.close())
	}
	lis, err := net.Listen("tcp", view.Address)
	if err != nil {
		err = fmt.Errorf("listen for peers at %s: %w (is the address this machine's, and free?)", view.Address, err)
		return errors.Join(err, n.close())
	}
	wire.RegisterReplicationServer(n.grpc, n)
	go func() {
		if err := n.grpc.Serve(lis); err != nil {
			n.log.Error("peer server ended", zap.Error(err))
		}
	}()
	ctl, err := n.serveControl()
	if err != nil {
		return errors.Join(err, n.close())
	}
	defer ctl.close()
	if err := n.start(ctx, recovered); err != nil {
		return errors.Join(err, n.close())
	}
	n.notify(daemon.SdNotifyReady)
	var lost error
	select {
	case <-ctx.Done():
		log.Info("stopping")
	case <-n.mount.Done():
		// An error, so that a supervisor starts the node again.
		lost = fmt.Errorf("somebody unmounted %s", view.Mount)
		log.Error("the mount was taken away; stopping")
	}
	n.notify(daemon.SdNotifyStopping)
	return errors.Join(lost, n.stop())
}

func (n *Node) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		n.log.Warn("cannot notify systemd", zap.Error(err))
	}
}

// open takes what the node needs, in the order in which it is used.
func (n *Node) open() (oplog.Recovered, error) {
	var none oplog.Recovered
	unix.Umask(0) // modes of new files are the caller's
	v := n.view
	if err := os.MkdirAll(v.State, 0o700); err != nil {
		return none, fmt.Errorf("make the state directory: %w", err)
	}
	runtime := filepath.Dir(v.Control)
	if err := os.MkdirAll(runtime, 0o755); err != nil {
		return none, fmt.Errorf("make the runtime directory: %w", err)
	}
	if err := n.takeLock(); err != nil {
		return none, err
	}
	if v.TLS != nil {
		if _, err := pki.Check(pki.Files(*v.TLS), v.Cluster, v.Name); err != nil {
			return none, err
		}
	}
	excl, err := exclude.New(n.cfg.Replication.Exclude)
	if err != nil {
		return none, err
	}
	if n.state, err = election.OpenStore(v.State, v.Cluster, v.Name); err != nil {
		return none, err
	}
	ring := RingPath(v)
	var recovered oplog.Recovered
	n.oplog, recovered, err = oplog.Open(ring, oplog.Options{Size: int64(n.cfg.Replication.Ring), BootID: bootID()})
	if err != nil {
		return none, fmt.Errorf("open the log ring %s: %w", ring, err)
	}
	n.pacer = n.newPacer()
	n.insync = replicate.NewInSync(replicate.InSyncConfig{
		Near: n.pacer.Near, Stopped: n.pacer.Stopped,
		MinInSync:  minInSync(&n.cfg.Replication),
		AckTimeout: n.cfg.Replication.AckTimeout.Std(),
		Last:       n.oplog.Last,
		Persist: func(set []string) error {
			return n.state.Update(func(s *election.State) { s.InSync = set })
		},
		Log: n.log,
	})
	n.guardLatency()
	n.standby, err = replicate.NewStandby(replicate.StandbyConfig{
		Node: v.Name, Store: v.Store, Salvage: filepath.Join(v.State, "salvage"),
		Excluded: excl.Excluded, Log: n.oplog,
		Applier: apply.Config{StateFile: filepath.Join(v.State, "applied.state"), BootID: bootID(), Log: n.log},
		Self:    n.self, Greeted: n.greeted, Epoch: n.epochBegan, Begin: n.copyBegins, Busy: n.latency.Note,
		Logger: n.log,
	})
	if err != nil {
		return none, err
	}
	durability, paths, err := durabilities(&n.cfg.Replication)
	if err != nil {
		return none, err
	}
	n.fs, err = fs.New(fs.Config{
		Busy: n.latency.Note, Store: v.Store, Log: logAdapter{n.oplog, n.insync}, Logger: n.log,
		Excluded: excl.Excluded, DeepExcludes: excl.Below, Suspect: n.markSuspect, Position: n.position,
		Durability: durability, Paths: paths,
	})
	if err != nil {
		return none, err
	}
	if err := n.attach(); err != nil {
		return none, err
	}
	n.grpc, err = n.newServer()
	return recovered, err
}

// takeLock keeps two daemons from using one state.
func (n *Node) takeLock() error {
	path := filepath.Join(n.view.State, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%s is locked: another replfs runs with this state directory", path)
		}
		return fmt.Errorf("lock %s: %w", path, err)
	}
	n.lock = f
	return nil
}

// close gives back what open took, as far as it came; role work has ended.
func (n *Node) close() error {
	var errs []error
	if n.grpc != nil {
		n.grpc.Stop()
	}
	if n.mount != nil {
		errs = append(errs, n.mount.Unmount(unmountWait, n.opts.LazyUnmount))
	}
	if n.standby != nil {
		errs = append(errs, n.standby.Close())
	}
	if n.fs != nil {
		errs = append(errs, n.fs.Close())
	}
	n.endSpiller((*replicate.Spiller).Close)
	errs = append(errs, n.latency.Close())
	if n.oplog != nil {
		errs = append(errs, n.oplog.Close())
	}
	if n.lock != nil {
		errs = append(errs, n.lock.Close())
	}
	return errors.Join(errs...)
}

const unmountWait = 5 * time.Second

// stop ends the node in an orderly way: no more mutations, everything drained
// to the standbys in sync (for a bounded time), unmounted, durable.
func (n *Node) stop() error {
	n.changing.Lock()
	defer n.changing.Unlock()
	n.mu.Lock()
	n.quitting = true
	role := n.role
	n.mu.Unlock()
	if role == wire.Role_ROLE_PRIMARY {
		n.flushMapped()
		n.fs.SetReadOnly()
		n.endCopies()
		last := n.oplog.Last()
		for _, name := range n.insync.Set() {
			if err := n.insync.WaitApplied(name, last, n.cfg.Replication.DrainTimeout.Std()); err != nil {
				n.log.Warn("stopping before the standby has everything", zap.String("peer", name), zap.Error(err))
			}
		}
		n.pacer.Stop()
		n.stopSenders()
		n.insync.Stop()
	} else {
		n.finishStandby()
	}
	unmounted := n.mount.Unmount(unmountWait, n.opts.LazyUnmount)
	n.mount = nil
	err := n.syncStore()
	if err == nil {
		n.parkJournal()
		last := n.oplog.Last()
		err = n.state.Update(func(s *election.State) { s.Clean, s.CleanLSN = true, last })
	}
	return errors.Join(unmounted, err, n.close())
}

// finishStandby stops following and applies what was received: the log it is in
// may not outlive the machine.
func (n *Node) finishStandby() {
	n.standby.Stop()
	st := n.standby.Status()
	if replicate.Copying(st.State) || st.Suspect != "" || st.Fresh {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.Replication.DrainTimeout.Std())
	defer cancel()
	if err := n.standby.Finish(ctx); err != nil {
		n.log.Warn("stopping before everything received is applied", zap.Error(err))
	}
}

func (n *Node) syncStore() error {
	d, err := os.Open(n.view.Store)
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("make the store durable: %w", err)
	}
	return nil
}

// guardLatency has CPUs kept awake while requests, or a primary's records, come
// fast. Without the kernel's help they take longer, that is all.
func (n *Node) guardLatency() {
	if !n.cfg.LowLatency {
		return
	}
	var err error
	if n.latency, err = latency.Open(latency.Device, n.log); err != nil {
		n.log.Info("requests take longer than they could", zap.Error(err))
	}
}

func (n *Node) markSuspect(reason string) {
	n.mu.Lock()
	n.suspect = reason
	n.mu.Unlock()
	n.log.Error("this node is suspect", zap.String("reason", reason))
}
