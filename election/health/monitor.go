package health

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Monitor makes checks from Start to Stop. Its methods may be called concurrently.
type Monitor struct {
	checks  []Check
	log     *zap.Logger
	changed func(State, string)
	// For tests.
	probe func(context.Context, Check) error
	now   func() time.Time
	sleep func(context.Context, time.Time)

	mu       sync.Mutex
	trackers []*Tracker
	state    State
	waiters  []chan struct{}
	cancel   context.CancelFunc
	done     sync.WaitGroup
}

// New makes a Monitor that checks nothing yet. changed is called, from one
// goroutine at a time, when the service's state has changed while it is being
// checked, with what is wrong.
func New(checks []Check, log *zap.Logger, changed func(state State, why string)) *Monitor {
	return &Monitor{
		checks: checks, log: log, changed: changed, now: time.Now,
		probe: func(ctx context.Context, c Check) error { return c.probe(ctx) },
		sleep: func(ctx context.Context, until time.Time) {
			t := time.NewTimer(time.Until(until))
			defer t.Stop()
			select {
			case <-ctx.Done():
			case <-t.C:
			}
		},
	}
}

// Start begins to check; all states are unknown at first, or healthy if there is
// nothing to check. While the checks run it does nothing.
func (m *Monitor) Start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.trackers = nil
	var report sync.Mutex
	for _, c := range m.checks {
		t := &Tracker{Rise: c.Rise, Fall: c.Fall, Interval: c.Interval}
		m.trackers = append(m.trackers, t)
		m.done.Go(func() { m.watch(ctx, c, t, &report) })
	}
	m.state = m.combined()
	m.wake()
}

// Stop ends the checks, and waits for those under way, which it cuts short. It
// must not be called by changed.
func (m *Monitor) Stop() {
	m.mu.Lock()
	cancel := m.cancel
	m.mu.Unlock()
	if cancel == nil {
		return
	}
	cancel()
	m.done.Wait()
	m.mu.Lock()
	m.cancel, m.trackers, m.state = nil, nil, Unknown
	m.wake()
	m.mu.Unlock()
}

func (m *Monitor) watch(ctx context.Context, c Check, t *Tracker, report *sync.Mutex) {
	for ctx.Err() == nil {
		began := m.now()
		err := m.probe(ctx, c)
		if ctx.Err() != nil {
			return
		}
		report.Lock()
		m.mu.Lock()
		if t.Observe(began, err) {
			m.log.Info("a health check has changed", zap.String("check", c.Name()), zap.Stringer("state", t.State()), zap.Error(err))
		}
		due, state, before := t.Due(), m.combined(), m.state
		m.state = state
		why := m.why()
		if state != before {
			m.wake()
		}
		m.mu.Unlock()
		if state != before && m.changed != nil {
			m.changed(state, why)
		}
		report.Unlock()
		m.sleep(ctx, due)
	}
}

func (m *Monitor) combined() State {
	states := make([]State, len(m.trackers))
	for i, t := range m.trackers {
		states[i] = t.State()
	}
	return Combine(states)
}

func (m *Monitor) wake() {
	for _, w := range m.waiters {
		close(w)
	}
	m.waiters = nil
}

// why says which checks are not healthy.
func (m *Monitor) why() string {
	out := ""
	for i, t := range m.trackers {
		if t.State() == Healthy {
			continue
		}
		if out != "" {
			out += "; "
		}
		out += m.checks[i].Name() + ": "
		if t.Err() != nil {
			out += t.Err().Error()
		} else {
			out += "not healthy for long enough yet"
		}
	}
	return out
}

// Wait returns nil when the service is healthy, or an error that says what is
// wrong when ctx ends.
func (m *Monitor) Wait(ctx context.Context) error {
	for {
		m.mu.Lock()
		if m.cancel != nil && m.state == Healthy {
			m.mu.Unlock()
			return nil
		}
		w := make(chan struct{})
		m.waiters = append(m.waiters, w)
		why := m.why()
		m.mu.Unlock()
		select {
		case <-w:
		case <-ctx.Done():
			m.mu.Lock()
			if now := m.why(); now != "" {
				why = now
			}
			m.mu.Unlock()
			return fmt.Errorf("the service is not healthy: %s (%w)", why, context.Cause(ctx))
		}
	}
}

// Result is a check as a status shows it.
type Result struct {
	Name  string
	State State
	// Err is the last result.
	Err error
}

// Results are the checks' states, none while nothing is checked.
func (m *Monitor) Results() (State, []Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Result
	for i, t := range m.trackers {
		out = append(out, Result{m.checks[i].Name(), t.State(), t.Err()})
	}
	return m.state, out
}
