package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Workload is one thing that applications do.
type Workload struct {
	Name  string
	About string
	// Unit is what one operation is.
	Unit string
	// needs says what it lacks on this machine; nil for nothing.
	needs func() error
	// setup and teardown run once on each target; prepare and cleanup before
	// and after each round. Each may be nil. Only run is timed.
	setup, teardown  func(ctx context.Context, dir string) error
	prepare, cleanup func(ctx context.Context, dir string) error
	// run does the work and says how many operations it was. It may say itself
	// how long they took, when that is not all that it does.
	run func(ctx context.Context, dir string) (sample, error)
}

type sample struct {
	ops  int
	took time.Duration
}

// Workloads are all that can be measured.
func Workloads() []Workload { return workloads(&material{scale: 1}) }

func workloads(m *material) []Workload {
	return append(append(m.fileWorkloads(), m.gitWorkloads()...), m.pgWorkloads()...)
}

// material is what workloads work with, made once a run, beside the targets.
type material struct {
	scale float64
	site  *site

	mu   sync.Mutex
	made map[string]error // what make has made, by name
	// By the directory of a workload on a target:
	pgs   map[string]*postgres
	paths map[string][]string
}

// n scales a number of operations.
func (m *material) n(base int) int { return max(1, int(float64(base)*m.scale)) }

// make makes something at most once.
func (m *material) make(ctx context.Context, name string, f func(ctx context.Context, path string) error) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	path := m.site.path("material", name)
	if err, ok := m.made[name]; ok {
		return path, err
	}
	if m.made == nil {
		m.made = map[string]error{}
	}
	err := mkdirs(filepath.Dir(path))
	if err == nil {
		err = f(ctx, path)
	}
	if err != nil {
		err = fmt.Errorf("make %s: %w", name, err)
	}
	m.made[name] = err
	return path, err
}

// empty removes everything in a directory.
func empty(_ context.Context, dir string) error {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("empty a directory: %w", err)
	}
	for _, e := range ents {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("empty a directory: %w", err)
		}
	}
	return nil
}

// canceled is for loops over cheap operations: it looks at ctx now and then.
func canceled(ctx context.Context, i int) error {
	if i%256 == 0 && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}
