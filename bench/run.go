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

// Options shape a run.
type Options struct {
	// Dir is where the run works, in a directory of its own.
	Dir string
	// Binary is the replfs to measure.
	Binary string
	Rounds int
	// Scale makes the workloads smaller or larger.
	Scale float64
	// Workloads and Targets are globs of names; none means all.
	Workloads, Targets []string
	// Progress is told before each measurement what comes. May be nil.
	Progress func(done, total int, what string)
}

// UsageError says that the options are wrong.
type UsageError struct{ error }

const (
	// hangLimit is how long one step may take before the target's daemons are
	// killed, which frees whoever hangs in its mount.
	hangLimit = 15 * time.Minute
	// cancelGrace is the same once the run was canceled.
	cancelGrace = 20 * time.Second
)

// bencher is a run under way.
type bencher struct {
	opt      Options
	site     *site
	material *material
	loads    []Workload
	targets  []Target
	started  map[string]*running
	report   *Report
	done     int
}

// Run measures the workloads on the targets, in turns, and leaves nothing
// behind. A target or workload that needs what is not installed is skipped;
// the report says so.
func Run(ctx context.Context, opt Options) (_ *Report, err error) {
	b := &bencher{opt: opt, started: map[string]*running{}}
	if err := b.choose(); err != nil {
		return nil, err
	}
	if b.site, err = newSite(opt.Dir); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	b.material = &material{scale: opt.Scale, site: b.site}
	b.loads = keep(workloads(b.material), func(w Workload) bool { return matches(opt.Workloads, w.Name) })
	b.report = &Report{
		Version: version.Get().Version, Started: time.Now(), Host: host(), FileSystem: fsName(b.site.dir),
		Rounds: opt.Rounds, Scale: opt.Scale,
	}
	if err := b.startTargets(ctx); err != nil {
		return nil, err
	}
	for _, w := range b.loads {
		if err := b.measure(ctx, w); err != nil {
			return nil, err
		}
	}
	b.step("clean up")
	b.report.finish()
	return b.report, nil
}

// choose selects what to measure.
func (b *bencher) choose() error {
	if b.opt.Rounds < 1 {
		return &UsageError{fmt.Errorf("%d rounds measure nothing", b.opt.Rounds)}
	}
	if b.opt.Scale <= 0 {
		return &UsageError{fmt.Errorf("the scale must be positive, not %g", b.opt.Scale)}
	}
	b.targets = keep(Targets(), func(t Target) bool { return matches(b.opt.Targets, t.Name) })
	b.loads = keep(Workloads(), func(w Workload) bool { return matches(b.opt.Workloads, w.Name) })
	for what, globs := range map[string][]string{"target": b.opt.Targets, "workload": b.opt.Workloads} {
		for _, g := range globs {
			if _, err := filepath.Match(g, ""); err != nil {
				return &UsageError{fmt.Errorf("%s %q: %w", what, g, err)}
			}
			some := slices.ContainsFunc(b.targets, func(t Target) bool { return matches([]string{g}, t.Name) })
			if what == "workload" {
				some = slices.ContainsFunc(b.loads, func(w Workload) bool { return matches([]string{g}, w.Name) })
			}
			if !some {
				return &UsageError{fmt.Errorf("no %s is called %q: --list shows them", what, g)}
			}
		}
	}
	return nil
}

// matches says whether a name is chosen by a list of globs.
func matches(globs []string, name string) bool {
	return len(globs) == 0 || slices.ContainsFunc(globs, func(g string) bool {
		ok, err := filepath.Match(g, name)
		return ok && err == nil
	})
}

func keep[T any](all []T, want func(T) bool) []T {
	var out []T
	for _, v := range all {
		if want(v) {
			out = append(out, v)
		}
	}
	return out
}

func (b *bencher) step(what string) {
	if b.opt.Progress != nil {
		b.opt.Progress(b.done, len(b.targets)*len(b.loads)*(b.opt.Rounds+1), what)
	}
}

func (b *bencher) startTargets(ctx context.Context) error {
	for _, t := range b.targets {
		b.step("start " + t.Name)
		info := TargetInfo{Name: t.Name, About: t.About}
		r, err := t.start(ctx, b.opt.Binary, b.site, t.Name)
		var missing *notInstalledError
		switch {
		case errors.As(err, &missing):
			info.Skipped = missing.Error()
		case err != nil:
			return fmt.Errorf("start %s: %w", t.Name, err)
		default:
			b.started[t.Name] = r
		}
		b.report.Targets = append(b.report.Targets, info)
	}
	b.targets = keep(b.targets, func(t Target) bool { return b.started[t.Name] != nil })
	if len(b.targets) == 0 {
		return errors.New("nothing to measure: no target could be started")
	}
	return nil
}

func (b *bencher) close() error {
	var errs []error
	for _, r := range b.started {
		errs = append(errs, r.stop())
	}
	return errors.Join(append(errs, b.site.close())...)
}

// measure runs one workload on all targets. Each round begins with another
// target, so that none always follows the same.
func (b *bencher) measure(ctx context.Context, w Workload) (err error) {
	info := WorkloadInfo{Name: w.Name, About: w.About, Unit: w.Unit}
	if w.needs != nil {
		var missing *notInstalledError
		if err := w.needs(); errors.As(err, &missing) {
			info.Skipped = missing.Error()
		} else if err != nil {
			return fmt.Errorf("%s: %w", w.Name, err)
		}
	}
	b.report.Workloads = append(b.report.Workloads, info)
	if info.Skipped != "" {
		b.done += len(b.targets) * (b.opt.Rounds + 1)
		return nil
	}
	results := make([]Result, len(b.targets))
	defer func() {
		for _, t := range b.targets {
			err = errors.Join(err, b.end(ctx, t, w))
		}
	}()
	for i, t := range b.targets {
		b.step(w.Name + ": prepare " + t.Name)
		results[i] = Result{Workload: w.Name, Target: t.Name}
		if err := b.begin(ctx, t, w); err != nil {
			return fmt.Errorf("prepare %s on %s: %w", w.Name, t.Name, err)
		}
		b.done++
	}
	for round := range b.opt.Rounds {
		for k := range b.targets {
			i := (k + round) % len(b.targets)
			t := b.targets[i]
			b.step(fmt.Sprintf("%s: %s, round %d", w.Name, t.Name, round+1))
			if err := b.once(ctx, t, w, &results[i]); err != nil {
				return fmt.Errorf("%s on %s: %w", w.Name, t.Name, err)
			}
			b.done++
		}
	}
	b.report.Results = append(b.report.Results, results...)
	return nil
}

// guarded runs f, which works in the target's mount, and frees it by killing
// the target if it hangs there.
func (b *bencher) guarded(ctx context.Context, t Target, f func(ctx context.Context) error) error {
	r := b.started[t.Name]
	hung := time.AfterFunc(hangLimit, r.kill)
	defer hung.Stop()
	stop := context.AfterFunc(ctx, func() { hung.Reset(cancelGrace) })
	defer stop()
	err := f(ctx)
	if err != nil && ctx.Err() == nil {
		err = errors.Join(err, r.alive())
	}
	return err
}

func (b *bencher) dirOf(t Target, w Workload) string {
	return filepath.Join(b.started[t.Name].dir, w.Name)
}

func (b *bencher) begin(ctx context.Context, t Target, w Workload) error {
	return b.guarded(ctx, t, func(ctx context.Context) error {
		dir := b.dirOf(t, w)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make a directory on %s: %w", t.Name, err)
		}
		if w.setup == nil {
			return nil
		}
		return w.setup(ctx, dir)
	})
}

// end runs whether or not begin did, canceled or not.
func (b *bencher) end(ctx context.Context, t Target, w Workload) error {
	return b.guarded(context.WithoutCancel(ctx), t, func(ctx context.Context) error {
		var err error
		if w.teardown != nil {
			err = w.teardown(ctx, b.dirOf(t, w))
		}
		if rerr := os.RemoveAll(b.dirOf(t, w)); rerr != nil {
			err = errors.Join(err, fmt.Errorf("remove what %s left: %w", w.Name, rerr))
		}
		return err
	})
}

// once is one round of a workload on a target.
func (b *bencher) once(ctx context.Context, t Target, w Workload, res *Result) error {
	return b.guarded(ctx, t, func(ctx context.Context) error {
		r, dir := b.started[t.Name], b.dirOf(t, w)
		if w.prepare != nil {
			if err := w.prepare(ctx, dir); err != nil {
				return fmt.Errorf("prepare: %w", err)
			}
		}
		if err := r.settle(ctx); err != nil {
			return err
		}
		before, err := r.requests(ctx)
		if err != nil {
			return err
		}
		begun := time.Now()
		s, err := w.run(ctx, dir)
		if s.took == 0 {
			s.took = time.Since(begun)
		}
		if err != nil {
			return err
		}
		if s.ops == 0 {
			return errors.New("it did nothing")
		}
		after, err := r.requests(ctx)
		if err != nil {
			return err
		}
		res.add(s, before, after)
		if w.cleanup != nil {
			if err := w.cleanup(ctx, dir); err != nil {
				return fmt.Errorf("clean up: %w", err)
			}
		}
		return r.settle(ctx)
	})
}
