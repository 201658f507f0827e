package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/replfs/replfs/test/lab"
)

const (
	primary = "gl-1"
	standby = "gl-2"
	// statusEvery is the time between two looks at the status under load.
	statusEvery = 3 * time.Second
	// benchClients is the number of pgbench's connections.
	benchClients = 2
)

// errCleanup marks what could not be cleaned up.
var errCleanup = errors.New("clean up")

// story is the demo while it runs.
type story struct {
	*terminal
	opts    options
	cluster *lab.Cluster
	old     *apps // of gl-1
	new     *apps // of gl-2
	loads   *loads
	killed  time.Time
	reports []lab.Report
	faults  []error       // what the applications' own checkers found
	promote time.Duration // from the kill to the end of the promotion
	back    time.Duration // from the kill to the first writes acknowledged again
}

// tell plays all steps and cleans up after them, whatever happens.
func tell(ctx context.Context, t *terminal, opts options) (err error) {
	t.step("Check this machine")
	if err := checkMachine(ctx, t, &opts); err != nil {
		return err
	}
	s := &story{terminal: t, opts: opts}
	// An interrupt is no failure: the nodes' logs would not explain it.
	defer func() { err = errors.Join(err, s.cleanUp(err != nil && ctx.Err() == nil)) }()
	for _, part := range []func(context.Context) error{
		s.build, s.startNodes, s.startApps, s.work, s.crash, s.failOver, s.prove, s.checkFiles,
	} {
		if err := part(ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
	}
	return s.summary()
}

// build makes the network, the certificates and the configuration.
func (s *story) build(ctx context.Context) error {
	s.step("Build a cluster of two nodes")
	var err error
	s.cluster, err = lab.NewCluster(ctx, lab.Options{
		Binary: s.opts.bin, Nodes: []string{primary, standby}, Namespaces: true, Durability: "fsync",
		Parent: s.opts.dir, Prefix: "replfs-demo-",
	})
	if err != nil {
		return err
	}
	for _, name := range s.cluster.Names() {
		s.say("%s: network namespace with a veth, address %s", name, s.cluster.Namespace(name).Addr())
	}
	s.say("mutual TLS: a CA and a certificate for each node, made by replfs pki")
	s.say("one configuration for both, durability fsync, files in %s", s.cluster.Path())
	return nil
}

// startNodes starts both daemons and waits until the standby is in sync.
func (s *story) startNodes(ctx context.Context) error {
	s.step("Start both nodes")
	for _, name := range s.cluster.Names() {
		if err := s.cluster.StartNode(ctx, name); err != nil {
			return err
		}
	}
	if err := s.cluster.WaitRole(ctx, primary, "primary"); err != nil {
		return err
	}
	if err := s.cluster.WaitRole(ctx, standby, "standby"); err != nil {
		return err
	}
	if err := s.cluster.WaitInSync(ctx, primary, standby); err != nil {
		return err
	}
	s.good("%s is primary, %s is standby and in sync", primary, standby)
	return s.showStatus(ctx, primary)
}

// showStatus prints what "replfs status" says.
func (s *story) showStatus(ctx context.Context, node string) error {
	res, err := s.cluster.Command(ctx, node, "status")
	if err != nil {
		return err
	}
	s.block(res.Output())
	if res.Code != 0 {
		return fmt.Errorf("replfs status on %s: exit code %d", node, res.Code)
	}
	return nil
}

// startApps installs the applications' data beneath the primary's mount.
func (s *story) startApps(ctx context.Context) error {
	s.step("Start PostgreSQL, Redis and git on %s, beneath its mount", primary)
	var err error
	if s.old, err = placeApps(s.cluster, primary); err != nil {
		return err
	}
	if err := s.old.postgres.Init(ctx); err != nil {
		return err
	}
	s.say("initdb, with data checksums")
	if err := s.old.start(ctx); err != nil {
		return err
	}
	s.say("PostgreSQL runs (fsync on), Redis runs (appendonly yes, appendfsync always)")
	if err := s.old.postgres.PgbenchInit(ctx, s.opts.scale); err != nil {
		return err
	}
	s.say("pgbench -i -s %d", s.opts.scale)
	for _, repo := range s.old.repos {
		if err := repo.Init(ctx); err != nil {
			return err
		}
	}
	s.say("%d bare git repositories", len(s.old.repos))
	return nil
}

// startLoads starts the clients, which end with the cluster at the latest.
func (s *story) startLoads(ctx context.Context, a *apps, run string) (*loads, error) {
	l := &loads{}
	s.cluster.OnClose(func() error {
		l.stop()
		return nil
	})
	return l, l.start(ctx, a, run, s.cluster.Path("clients"))
}

// work runs the load for a while and shows the replication.
func (s *story) work(ctx context.Context) error {
	s.step("Work: transactions, Redis writes and git pushes, all acknowledged ones counted")
	var err error
	if s.loads, err = s.startLoads(ctx, s.old, "demo"); err != nil {
		return err
	}
	// Longer than the load: the crash ends it.
	s.loads.pgbench, err = s.old.postgres.StartPgbench(benchClients, s.opts.load+time.Minute, s.cluster.Path("pgbench.log"))
	if err != nil {
		return err
	}
	s.cluster.OnClose(s.loads.pgbench.Kill)
	ticker := time.NewTicker(statusEvery)
	defer ticker.Stop()
	end := time.NewTimer(s.opts.load)
	defer end.Stop()
	for range int(s.opts.load/statusEvery) + 1 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-end.C:
			return s.loads.waitAcked(ctx, 1, 1, 1)
		case <-ticker.C:
			s.say("%s", s.loads.counts())
			if err := s.showStatus(ctx, primary); err != nil {
				return err
			}
		}
	}
	return s.loads.waitAcked(ctx, 1, 1, 1)
}

// crash kills the primary under load.
func (s *story) crash(context.Context) error {
	s.step("Crash: kill -9 of replfs on %s, in the middle of the work", primary)
	pid := s.cluster.Process(primary).Pid()
	s.killed = time.Now()
	if err := s.cluster.KillNode(primary); err != nil {
		return err
	}
	s.say("killed pid %d; the applications have lost their file system", pid)
	// What they say now must not count: a machine that dies takes them along.
	if err := s.old.kill(); err != nil {
		return err
	}
	s.loads.stop()
	s.say("%s", s.loads.counts())
	s.say("the last acknowledgement came %s", relative(s.loads.lastAck().Sub(s.killed)))
	return nil
}

// relative says when something was, seen from the kill.
func relative(d time.Duration) string {
	if d < 0 {
		return (-d).Round(time.Millisecond).String() + " before the kill"
	}
	return d.Round(time.Millisecond).String() + " after the kill was sent"
}

// failOver promotes the standby and starts the applications there.
func (s *story) failOver(ctx context.Context) error {
	s.step("Fail over: replfs promote on %s, then the same applications from its mount", standby)
	res, err := s.cluster.Promote(ctx, standby, false)
	if err != nil {
		return err
	}
	if out := res.Output(); out != "" {
		s.block(out)
	}
	if res.Code != 0 {
		return fmt.Errorf("replfs promote on %s: exit code %d", standby, res.Code)
	}
	if err := s.cluster.WaitRole(ctx, standby, "primary"); err != nil {
		return err
	}
	s.promote = time.Since(s.killed)
	s.good("%s is primary and writable, %.1f s after the kill", standby, s.promote.Seconds())
	if s.new, err = placeApps(s.cluster, standby); err != nil {
		return err
	}
	if err := s.new.start(ctx); err != nil {
		return err
	}
	after, err := s.startLoads(ctx, s.new, "after")
	if err != nil {
		return err
	}
	if err := after.waitAcked(ctx, 1, 1, 1); err != nil {
		return err
	}
	s.back = time.Since(s.killed)
	s.good("PostgreSQL, Redis and git take writes again, %.1f s after the kill", s.back.Seconds())
	if err := after.waitAcked(ctx, 50, 50, 4); err != nil {
		return err
	}
	after.stop()
	reports, err := after.verify(ctx, s.new)
	if err != nil {
		return err
	}
	for _, r := range reports {
		if err := r.Err(); err != nil {
			return fmt.Errorf("new writes on %s: %w", standby, err)
		}
	}
	return s.showStatus(ctx, standby)
}

// cleanUp stops everything and removes it; after a failure it first shows what
// the nodes said.
func (s *story) cleanUp(failed bool) error {
	if s.cluster == nil {
		return nil
	}
	if failed {
		for _, name := range s.cluster.Names() {
			if s.cluster.Process(name) != nil {
				s.printf("\n          last lines of the log of %s:\n", name)
				s.block(s.cluster.Tail(name, 15))
			}
		}
	}
	if err := s.cluster.Close(); err != nil {
		return fmt.Errorf("%w: %w", errCleanup, err)
	}
	s.say("cleaned up: no process, mount, namespace or file is left")
	return nil
}
