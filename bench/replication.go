package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/replfs/replfs/internal/version"
)

// ReplicationOptions shape a run of RunReplication.
type ReplicationOptions struct {
	// Dir, Binary, Rounds, Scale, Workloads and Progress are as in Options.
	Dir string
	// PeerDir is where the standbys work, if not in Dir: on a file system, and at
	// best a disk, of their own, as on another machine.
	PeerDir   string
	Binary    string
	Rounds    int
	Scale     float64
	Workloads []string
	Progress  func(done, total int, what string)
	// Behind is how many bytes the standby is behind when it catches up.
	Behind int64
}

// replWorkload measures some numbers, all of them in each round.
type replWorkload struct {
	name, about string
	run         func(r *replBencher, ctx context.Context, round int) error
}

func replWorkloads() []replWorkload {
	return []replWorkload{
		{"lag", "1,000 writes a second of 4 KiB: from write(2) returning to the bytes being in the standby's store", (*replBencher).lag},
		{"stream", "one large file, written to the mount and straight to the log, and raw gRPC streaming plus pwrite", (*replBencher).streaming},
		{"records", "appends of 1 KiB to many files, from the log to the standby's store and through the mount", (*replBencher).records},
		{"fsync", "8 KiB append + fdatasync with durability fsync, one writer, and 16 writers to 16 files", (*replBencher).fsync},
		{"catch-up", "a standby that was away while much was written, and the primary goes on writing", (*replBencher).catchUp},
	}
}

// ReplicationWorkloads are what RunReplication measures, name and description.
func ReplicationWorkloads() (all [][2]string) {
	for _, w := range replWorkloads() {
		all = append(all, [2]string{w.name, w.about})
	}
	return all
}

// replBencher is a run under way.
type replBencher struct {
	opt      ReplicationOptions
	site     *site
	clusters map[string]*running
	report   *ReplicationReport
}

// RunReplication measures replication between two nodes on this machine, beside
// what it is compared with, round by round, and leaves nothing behind.
func RunReplication(ctx context.Context, opt ReplicationOptions) (_ *ReplicationReport, err error) {
	loads, err := chooseReplication(opt)
	if err != nil {
		return nil, err
	}
	r := &replBencher{opt: opt, clusters: map[string]*running{}}
	if r.site, err = newSite(opt.Dir); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	r.site.journal = max(8<<30, 2*opt.Behind) // behind is not too far behind
	if opt.PeerDir != "" {
		if err := r.site.addPeer(opt.PeerDir); err != nil {
			return nil, err
		}
	}
	r.report = &ReplicationReport{
		Version: version.Get().Version, Started: time.Now(), Host: host(), FileSystem: fsName(r.site.dir),
		Rounds: opt.Rounds, Scale: opt.Scale,
	}
	if opt.PeerDir != "" {
		r.report.PeerFileSystem = fsName(r.site.peer) + " of its own"
	}
	for i, w := range loads {
		for round := range opt.Rounds {
			if opt.Progress != nil {
				opt.Progress(i*opt.Rounds+round, len(loads)*opt.Rounds, fmt.Sprintf("%s, round %d", w.name, round+1))
			}
			if err := r.guarded(ctx, func(ctx context.Context) error { return w.run(r, ctx, round) }); err != nil {
				return nil, fmt.Errorf("%s: %w", w.name, err)
			}
		}
	}
	r.report.finish()
	return r.report, nil
}

func chooseReplication(opt ReplicationOptions) ([]replWorkload, error) {
	if opt.Rounds < 1 {
		return nil, &UsageError{fmt.Errorf("%d rounds measure nothing", opt.Rounds)}
	}
	if opt.Scale <= 0 {
		return nil, &UsageError{fmt.Errorf("the scale must be positive, not %g", opt.Scale)}
	}
	loads := keep(replWorkloads(), func(w replWorkload) bool { return matches(opt.Workloads, w.name) })
	for _, g := range opt.Workloads {
		if _, err := filepath.Match(g, ""); err != nil {
			return nil, &UsageError{fmt.Errorf("workload %q: %w", g, err)}
		}
		if !slices.ContainsFunc(loads, func(w replWorkload) bool { return matches([]string{g}, w.name) }) {
			return nil, &UsageError{fmt.Errorf("no workload is called %q: --list shows them", g)}
		}
	}
	return loads, nil
}

// guarded runs f and frees it by killing the clusters if it hangs in a mount.
func (r *replBencher) guarded(ctx context.Context, f func(ctx context.Context) error) error {
	kill := func() {
		for _, c := range r.clusters {
			c.kill()
		}
	}
	hung := time.AfterFunc(hangLimit, kill)
	defer hung.Stop()
	stop := context.AfterFunc(ctx, func() { hung.Reset(cancelGrace) })
	defer stop()
	err := f(ctx)
	if err != nil && ctx.Err() == nil {
		for _, c := range r.clusters {
			err = errors.Join(err, c.alive())
		}
	}
	return err
}

func (r *replBencher) close() error {
	var errs []error
	for _, c := range r.clusters {
		errs = append(errs, c.stop())
	}
	return errors.Join(append(errs, r.site.close())...)
}

// n scales a number of operations.
func (r *replBencher) n(base int) int { return max(1, int(float64(base)*r.opt.Scale)) }

// cluster is a primary and a standby in sync, started when first needed, the
// only ones that run.
func (r *replBencher) cluster(ctx context.Context, durability string) (*running, error) {
	if c := r.clusters[durability]; c != nil {
		return c, nil
	}
	for name, c := range r.clusters {
		if err := c.stop(); err != nil {
			return nil, err
		}
		delete(r.clusters, name)
	}
	c, err := startCluster(durability, true)(ctx, r.opt.Binary, r.site, durability)
	if err != nil {
		return nil, fmt.Errorf("start a cluster: %w", err)
	}
	r.clusters[durability] = c
	return c, nil
}

// standbyStore is the store of a cluster's standby.
func (r *replBencher) standbyStore(durability string) string {
	return r.site.node(durability, "standby", "store")
}

// add notes what a number was in this round.
func (r *replBencher) add(workload, name, unit string, v float64) {
	r.report.add(workload, name, unit, v)
}

// fresh opens a new file for appending.
func fresh(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a file to write to: %w", err)
	}
	return f, nil
}
