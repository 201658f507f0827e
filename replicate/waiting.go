package replicate

import (
	"context"
	"slices"
	"time"
)

// Level is how far a standby has come with a record. A higher one includes
// those below.
type Level uint8

const (
	// Received: the record is in the standby's own log, in memory, which
	// survives its process but not its machine.
	Received Level = iota
	// Applied: its store shows it.
	Applied
	// Durable: every fsync up to it is done on the standby's store.
	Durable
	levels
)

// waiter is somebody who waits for all standbys in sync.
type waiter struct {
	level Level
	lsn   uint64
	since time.Time
	done  chan error
}

// WaitDurable returns when the fsync at lsn is durable on every standby in
// sync, or ErrNotPrimary.
func (s *InSync) WaitDurable(lsn uint64) error {
	return s.Wait(context.Background(), Durable, lsn)
}

// Wait returns when every standby in sync has come to level with the record
// lsn, and enough are in sync; ErrNotPrimary when the node stops being primary,
// the cause of ctx's end when that comes first.
func (s *InSync) Wait(ctx context.Context, level Level, lsn uint64) error {
	s.mu.Lock()
	if low, ok := s.lowest(); ok && low[level] >= lsn {
		s.mu.Unlock()
		return nil
	}
	if !s.active {
		s.mu.Unlock()
		return ErrNotPrimary
	}
	s.wanted[level] = max(s.wanted[level], lsn)
	w := &waiter{level: level, lsn: lsn, since: s.cfg.Now(), done: make(chan error, 1)}
	s.waiters = append(s.waiters, w)
	s.mu.Unlock()
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
	}
	s.mu.Lock()
	s.waiters = slices.DeleteFunc(s.waiters, func(o *waiter) bool { return o == w })
	s.mu.Unlock()
	select {
	case err := <-w.done: // both came at once
		return err
	default:
		return context.Cause(ctx)
	}
}

// lowest is how far every standby that counts has come, by level; not ok when
// too few are in sync. Needs mu.
func (s *InSync) lowest() (low [levels]uint64, ok bool) {
	low = [levels]uint64{^uint64(0), ^uint64(0), ^uint64(0)}
	in := 0
	for _, m := range s.members {
		if m.inSync {
			in++
		}
		if m.counted {
			low[Received] = min(low[Received], m.received)
			low[Applied] = min(low[Applied], m.applied)
			low[Durable] = min(low[Durable], m.durable)
		}
	}
	return low, in >= s.cfg.MinInSync
}

// release lets go whoever has waited long enough; it comes after every change
// that may matter to them. Needs mu.
func (s *InSync) release() {
	if len(s.waiters) == 0 {
		return
	}
	low, ok := s.lowest()
	if s.active && !ok {
		return
	}
	still := s.waiters[:0]
	for _, w := range s.waiters {
		switch {
		case ok && low[w.level] >= w.lsn:
			w.done <- nil
		case !s.active:
			w.done <- ErrNotPrimary
		default:
			still = append(still, w)
		}
	}
	clear(s.waiters[len(still):])
	s.waiters = still
}

// Waiting says what an InSync's callers wait for.
type Waiting struct {
	// Count is how many wait, the first of them since Since.
	Count int
	Since time.Time
	// InSync is how many standbys are in sync; Enough, whether that is as many
	// as there have to be.
	InSync int
	Enough bool
	// Kept are standbys that stand still and are not let go of.
	Kept []string
}

// Waiting tells what is being waited for right now.
func (s *InSync) Waiting() Waiting {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := Waiting{Count: len(s.waiters), InSync: s.count()}
	w.Enough = w.InSync >= s.cfg.MinInSync
	if w.Count > 0 {
		w.Since = s.waiters[0].since
	}
	for name, m := range s.members {
		if m.kept && m.inSync {
			w.Kept = append(w.Kept, name)
		}
	}
	slices.Sort(w.Kept)
	return w
}

// Member is a standby's progress as a Pacer needs it.
type Member struct {
	Name    string
	Applied uint64
	// Connected: it streams.
	Connected bool
	// Counts: what asks for durability waits for it.
	Counts bool
	// Kept: it is in a set that must not get smaller, connected or not.
	Kept bool
	// Trouble: it says that it cannot go on.
	Trouble bool
}

// AppendMembers appends the standbys that have been heard of in this term.
func (s *InSync) AppendMembers(out []Member) []Member {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.cfg.MinInSync > 0 && s.count() <= s.cfg.MinInSync
	for name, m := range s.members {
		out = append(out, Member{
			Name: name, Applied: m.applied, Connected: m.connected, Counts: m.counted,
			Kept: last && m.inSync, Trouble: m.trouble != "",
		})
	}
	return out
}
