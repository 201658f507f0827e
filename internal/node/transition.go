package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/replfs/replfs/internal/control"
)

// step is a part of a change of roles, in words that an administrator reads.
type step struct {
	name string
	// run does it. What it returns is shown beside its name.
	run func(context.Context) (detail string, err error)
	// optional: if it fails the change goes on, and says so.
	optional bool
}

// transition is a change of roles: steps, one after the other, each logged with
// how long it took, and shown by the status while it runs and afterwards. Who
// decides about roles only composes the steps.
type transition struct {
	log   *zap.Logger
	after func(kind, step string)

	mu   sync.Mutex
	view control.Transition
	// failed are the errors of optional steps.
	failed []error
}

// begin starts a transition, which the status shows from now on.
func (n *Node) begin(kind, reason string) *transition {
	t := &transition{
		log: n.log.With(zap.String("transition", kind)), after: n.opts.AfterStep,
		view: control.Transition{Kind: kind, Reason: reason, Started: time.Now(), Result: control.Running, Steps: []control.Step{}},
	}
	t.log.Info("transition begins", zap.String("reason", reason))
	n.mu.Lock()
	n.transition = t
	n.mu.Unlock()
	return t
}

// run takes the steps until one that is not optional fails, or ctx ends.
func (t *transition) run(ctx context.Context, steps ...step) error {
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := t.step(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (t *transition) step(ctx context.Context, s step) error {
	begun := time.Now()
	t.mu.Lock()
	i := len(t.view.Steps)
	t.view.Steps = append(t.view.Steps, control.Step{Name: s.name, Result: control.Running})
	t.mu.Unlock()
	detail, err := s.run(ctx)
	took := time.Since(begun)
	result := control.Done
	if err != nil {
		result, detail = control.Failed, err.Error()
		t.log.Warn("step failed", zap.String("step", s.name), zap.Duration("took", took), zap.Error(err))
	} else {
		t.log.Info("step done", zap.String("step", s.name), zap.Duration("took", took), zap.String("detail", detail))
	}
	t.mu.Lock()
	t.view.Steps[i] = control.Step{Name: s.name, Result: result, Detail: detail, Seconds: took.Seconds()}
	if err != nil && s.optional {
		t.failed = append(t.failed, fmt.Errorf("%s: %w", s.name, err))
		err = nil
	}
	t.mu.Unlock()
	if t.after != nil {
		t.after(t.view.Kind, s.name)
	}
	return err
}

// end closes a transition and returns err with what optional steps have failed at.
func (t *transition) end(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err = errors.Join(append(slices.Clone(t.failed), err)...)
	t.view.Seconds, t.view.Result = time.Since(t.view.Started).Seconds(), control.Done
	if err != nil {
		t.view.Result, t.view.Error = control.Failed, err.Error()
	}
	t.log.Info("transition ends", zap.String("result", t.view.Result), zap.Float64("seconds", t.view.Seconds), zap.Error(err))
	return err
}

// status is what is shown of it now.
func (t *transition) status() *control.Transition {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.view
	out.Steps = slices.Clone(t.view.Steps)
	if out.Result == control.Running {
		out.Seconds = time.Since(out.Started).Seconds()
	}
	return &out
}

// do makes a step of something that has nothing to show.
func do(f func() error) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return "", f() }
}
