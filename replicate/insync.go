package replicate

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// ErrNotPrimary is what waiters get when the node stops being primary.
var ErrNotPrimary = errors.New("this node is no longer the primary")

// ErrKept is wrapped by the refusal to take a standby out of the set when too
// few would be left in it, and the config says to wait rather than go on.
var ErrKept = errors.New("too few standbys would be left in sync, and on_standby_loss is block")

// InSync keeps the set of standbys that the primary waits for, and lets
// fsyncs wait for them. A standby leaves the set in the store of truth before
// any fsync is acknowledged without it (invariant I5), and enters it only
// when no acknowledged fsync is missing on it.
type InSync struct {
	cfg InSyncConfig

	mu      sync.Mutex
	members map[string]*member
	// waiters are in the order in which they came.
	waiters []*waiter
	// wanted is, by level, the highest LSN that something waits for.
	wanted [levels]uint64
	active bool
	stop   chan struct{}
}

// InSyncConfig is what an InSync needs.
type InSyncConfig struct {
	AckTimeout time.Duration
	// MinInSync, if not 0, is how many standbys must be in sync for anything to
	// be acknowledged (on_standby_loss: block): the set never shrinks below it.
	MinInSync int
	// Near says of a standby that is not in sync whether it is so close to the
	// end of the log that fsyncs may begin to wait for it. nil: always.
	Near func(name string, applied uint64) bool
	// Stopped says that writers are held up because a standby is too far behind
	// (see Pacer). nil: never.
	Stopped func() bool
	// Last is the end of the primary's log.
	Last func() uint64
	// Persist writes the set to the store of truth, durably.
	Persist func(set []string) error
	Now     func() time.Time
	Log     *zap.Logger
}

type member struct {
	inSync bool
	// stored: the store of truth may name it, even if writing that failed.
	stored bool
	// counted: fsyncs wait for it, though it may not be in sync yet.
	counted bool
	// joinAt: when durable reaches it, the standby has missed nothing.
	joinAt                     uint64
	connected                  bool
	received, applied, durable uint64
	trouble                    string
	stalled                    time.Time
	// kept: it would have left the set, were there others.
	kept bool
	// synced is the LSN of the last OpSync that it has done, sessions how often
	// it has connected; see wait.go.
	synced, sessions uint64
}

// NewInSync makes an inactive set.
func NewInSync(cfg InSyncConfig) *InSync {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &InSync{cfg: cfg, members: map[string]*member{}}
}

// Start begins a primary's term with the set as the store of truth has it.
func (s *InSync) Start(set []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members = map[string]*member{}
	for _, name := range set {
		s.members[name] = &member{inSync: true, stored: true, counted: true}
	}
	s.wanted, s.active = [levels]uint64{}, true
	s.stop = make(chan struct{})
	go s.watch(s.stop)
}

// Stop ends the term: everybody who waits hears ErrNotPrimary.
func (s *InSync) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.active {
		return
	}
	s.active = false
	close(s.stop)
	s.release()
}

func (s *InSync) member(name string) *member {
	m := s.members[name]
	if m == nil {
		m = &member{}
		s.members[name] = m
	}
	return m
}

// Connected says that a standby streams from a position it was found to
// share with this log. Until its first ack nothing is known of it.
func (s *InSync) Connected(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.member(name)
	m.connected, m.trouble, m.stalled = true, "", time.Time{}
	m.sessions++
	if !m.inSync {
		m.joinAt = s.cfg.Last()
	}
}

// Disconnected says that the stream broke. A standby in sync stays in the
// set until something would have to be acknowledged without it.
func (s *InSync) Disconnected(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.member(name)
	m.connected = false
	if m.inSync || !s.active {
		return
	}
	if err := s.drop(name, "it disconnected while joining"); err != nil {
		s.cfg.Log.Error("cannot write the in-sync set; fsyncs wait", zap.Error(err))
	}
}

// Ack notes how far a standby is. Positions never go back.
func (s *InSync) Ack(name string, received, applied, durable uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.active {
		return
	}
	m := s.member(name)
	// While an fsync is under way there (applied is past durable), only its
	// end is progress: an fsync that hangs must not hide behind traffic.
	if durable > m.durable || m.applied <= m.durable && (received > m.received || applied > m.applied) {
		m.stalled, m.kept = time.Time{}, false
	}
	m.received, m.applied, m.durable = max(m.received, received), max(m.applied, applied), max(m.durable, durable)
	s.tryJoin(name, m)
	s.release()
}

func (s *InSync) tryJoin(name string, m *member) {
	if m.connected && m.received > 0 && !m.inSync && m.trouble == "" && m.durable >= m.joinAt && m.applied >= m.joinAt {
		s.join(name, m)
	}
}

// join takes a caught-up standby into the set in two steps: first fsyncs wait
// for it, then, when it has all that was acknowledged before, it is in sync.
func (s *InSync) join(name string, m *member) {
	if !m.counted {
		if s.cfg.Near != nil && !s.cfg.Near(name, m.applied) {
			return // what waited for it would wait for long
		}
		m.counted = true
		m.joinAt = s.cfg.Last()
		if m.durable < m.joinAt || m.applied < m.joinAt {
			return
		}
	}
	m.inSync, m.stored = true, true
	if err := s.cfg.Persist(s.set()); err != nil {
		m.inSync = false
		s.cfg.Log.Error("cannot write the in-sync set", zap.Error(err))
		return
	}
	s.cfg.Log.Info("standby is in sync", zap.String("peer", name), zap.Uint64("lsn", m.durable))
	s.release()
}

// Reset forgets a standby's progress: it begins anew with a complete copy, with
// which it has nothing that counts. So it leaves the set in any case.
func (s *InSync) Reset(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.takeOut(name, "it needs a complete copy"); err != nil {
		return err
	}
	delete(s.members, name)
	return nil
}

// Trouble notes that a standby stands still, or, with "", that it does no more.
// It leaves the set, unless that has to be waited for.
func (s *InSync) Trouble(name, what string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.member(name)
	m.trouble = what
	if what == "" {
		m.joinAt = s.cfg.Last()
		return nil
	}
	if err := s.drop(name, what); err != nil && !errors.Is(err, ErrKept) {
		return err
	}
	return nil
}

// Drop takes a standby out of the set. When it returns nil, the store of
// truth says so and fsyncs no longer wait for it. ErrKept says that it stays.
func (s *InSync) Drop(name, reason string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drop(name, reason)
}

func (s *InSync) drop(name, reason string) error {
	if m := s.members[name]; m != nil && m.inSync && s.active && s.count()-1 < s.cfg.MinInSync {
		if !m.kept {
			m.kept = true
			s.cfg.Log.Warn("waiting for a standby: it is not let go of", zap.String("peer", name), zap.String("reason", reason))
		}
		return fmt.Errorf("keep %s in the in-sync set: %w", name, ErrKept)
	}
	return s.takeOut(name, reason)
}

// takeOut is drop whatever the config says about the last ones.
func (s *InSync) takeOut(name, reason string) error {
	m := s.members[name]
	if m == nil || !s.active || !m.counted && !m.inSync && !m.stored {
		return nil
	}
	if m.stored {
		was := m.inSync
		m.inSync = false
		if err := s.cfg.Persist(s.set()); err != nil {
			m.inSync = was
			return fmt.Errorf("take %s out of the in-sync set: %w", name, err)
		}
		m.stored = false
		s.cfg.Log.Warn("standby is no longer in sync", zap.String("peer", name), zap.String("reason", reason))
	}
	m.counted, m.stalled = false, time.Time{}
	m.joinAt = s.cfg.Last()
	s.release()
	return nil
}

// count is how many are in sync.
func (s *InSync) count() int {
	n := 0
	for _, m := range s.members {
		if m.inSync {
			n++
		}
	}
	return n
}

// set lists the members in sync.
func (s *InSync) set() []string {
	out := []string{}
	for name, m := range s.members {
		if m.inSync {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Set lists the standbys in sync.
func (s *InSync) Set() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set()
}

// Has reports whether a standby is in sync.
func (s *InSync) Has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.members[name]
	return m != nil && m.inSync
}

// Progress is what a standby last acknowledged.
func (s *InSync) Progress(name string) (received, applied, durable uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.members[name]; m != nil {
		return m.received, m.applied, m.durable
	}
	return 0, 0, 0
}

const watchInterval = 50 * time.Millisecond

// watch drops what stands still for AckTimeout while something waits for it.
func (s *InSync) watch(stop chan struct{}) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			s.Check()
		}
	}
}

// Check looks once for standbys that stand still.
func (s *InSync) Check() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.active {
		return
	}
	now, last := s.cfg.Now(), s.cfg.Last()
	stopped := s.cfg.Stopped != nil && s.cfg.Stopped()
	for name, m := range s.members {
		s.tryJoin(name, m)
		behind := m.durable < s.wanted[Durable] || m.applied < s.wanted[Applied] || m.received < last || stopped && m.applied < last
		switch {
		case !m.counted || !behind:
			m.stalled = time.Time{}
		case m.stalled.IsZero():
			m.stalled = now
		case now.Sub(m.stalled) >= s.cfg.AckTimeout:
			if err := s.drop(name, fmt.Sprintf("no progress for %s", s.cfg.AckTimeout)); err != nil && !errors.Is(err, ErrKept) {
				// Nothing is acknowledged without it; tried again.
				s.cfg.Log.Error("cannot write the in-sync set; fsyncs wait", zap.Error(err))
			}
		}
	}
}

// WaitApplied returns when a standby in sync has applied, durably, all up to
// lsn.
func (s *InSync) WaitApplied(name string, lsn uint64, timeout time.Duration) error {
	deadline := s.cfg.Now().Add(timeout)
	for {
		s.mu.Lock()
		m, active := s.members[name], s.active
		done := m != nil && m.applied >= lsn && m.durable >= lsn
		dropped := m == nil || !m.inSync
		s.mu.Unlock()
		switch {
		case done:
			return nil
		case !active:
			return ErrNotPrimary
		case dropped:
			return fmt.Errorf("%s is no longer in sync", name)
		case !s.cfg.Now().Before(deadline):
			return fmt.Errorf("%s has not applied everything within %s", name, timeout)
		}
		time.Sleep(time.Millisecond)
	}
}
