package node

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/replfs/replfs/internal/control"
)

func newTransition(after func(kind, step string)) (*Node, *transition) {
	n := &Node{log: zap.NewNop(), opts: Options{AfterStep: after}}
	return n, n.begin("promote", "a test")
}

func TestTransition(t *testing.T) {
	var ran []string
	n, tr := newTransition(func(kind, step string) { ran = append(ran, kind+"/"+step) })
	broken := errors.New("broken")
	step1 := step{name: "one", run: func(context.Context) (string, error) {
		if st := n.transition.status(); st.Result != control.Running || st.Steps[0].Result != control.Running {
			t.Errorf("while it runs: %+v", st)
		}
		return "shown", nil
	}}
	err := tr.run(t.Context(), step1,
		step{name: "two", optional: true, run: do(func() error { return broken })},
		step{name: "three", run: do(func() error { return nil })})
	if err != nil {
		t.Fatalf("an optional step ended it: %v", err)
	}
	if err := tr.end(nil); !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "two: ") {
		t.Errorf("end: %v", err)
	}
	st := tr.status()
	if st.Result != control.Failed || st.Error == "" || len(st.Steps) != 3 || st.Steps[0].Detail != "shown" ||
		st.Steps[1].Result != control.Failed || st.Steps[1].Detail != "broken" || st.Steps[2].Result != control.Done {
		t.Errorf("status %+v", st)
	}
	if got := strings.Join(ran, " "); got != "promote/one promote/two promote/three" {
		t.Errorf("after steps: %s", got)
	}
}

func TestTransitionEnds(t *testing.T) {
	broken := errors.New("broken")
	never := step{name: "never", run: do(func() error {
		t.Error("a step ran after the end")
		return nil
	})}
	_, tr := newTransition(nil)
	if err := tr.run(t.Context(), step{name: "one", run: do(func() error { return broken })}, never); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	_, tr = newTransition(nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	err := tr.run(ctx, step{name: "one", run: do(func() error {
		cancel(errRoleChange)
		return nil
	})}, never)
	if !errors.Is(err, errRoleChange) {
		t.Errorf("error %v", err)
	}
	if err := tr.end(err); !errors.Is(err, errRoleChange) || tr.status().Result != control.Failed {
		t.Errorf("end: %v", err)
	}
}
