package replicate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Standing is how far a standby has come, and whether the primary counts on it.
type Standing struct {
	Name                       string
	InSync                     bool
	Received, Applied, Durable uint64
	// Synced is the LSN of the last OpSync that it has done.
	Synced uint64
}

// Standings lists what is known of all standbys, by name.
func (s *InSync) Standings() []Standing {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Standing, 0, len(s.members))
	for name, m := range s.members {
		out = append(out, Standing{
			Name: name, InSync: m.inSync,
			Received: m.received, Applied: m.applied, Durable: m.durable, Synced: m.synced,
		})
	}
	slices.SortFunc(out, func(a, b Standing) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// LeftError says which of the standbys that were waited for left the in-sync
// set.
type LeftError struct{ Names []string }

func (e *LeftError) Error() string {
	return strings.Join(e.Names, ", ") + " left the in-sync set while it was waited for"
}

// Synced notes that a standby has done the OpSync at lsn.
func (s *InSync) Synced(name string, lsn uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.active {
		return
	}
	m := s.member(name)
	m.synced = max(m.synced, lsn)
}

// AwaitDurable returns when every fsync up to lsn is done on the standbys
// named, which were in sync. Unlike WaitDurable it waits for these whatever the
// durability mode, and for nobody else: a *LeftError says which of them left the
// set. ErrNotPrimary and the cause of ctx's end end it, too.
func (s *InSync) AwaitDurable(ctx context.Context, names []string, lsn uint64) error {
	return s.await(ctx, names, func(members []*member) (bool, error) {
		for _, m := range members {
			if m.durable < lsn {
				return false, nil
			}
		}
		return true, nil
	})
}

// AwaitSynced returns when the standbys named have made all durable that the
// log has now, fsynced or not. ask appends an OpSync; it is called again when a
// standby connects anew, which may have forgotten the first. The errors are
// AwaitDurable's, and ask's.
func (s *InSync) AwaitSynced(ctx context.Context, names []string, ask func() (lsn uint64, err error)) error {
	var lsn uint64
	asked := make([]uint64, len(names))
	return s.await(ctx, names, func(members []*member) (bool, error) {
		again, done := lsn == 0, true
		for i, m := range members {
			done = done && m.synced >= lsn
			again = again || m.sessions != asked[i] && m.synced < lsn
		}
		if !again {
			return done, nil
		}
		for i, m := range members {
			asked[i] = m.sessions
		}
		// The log may be full, and what makes room needs the lock.
		s.mu.Unlock()
		next, err := ask()
		s.mu.Lock()
		if err != nil {
			return false, err
		}
		lsn = next
		return false, nil
	})
}

const awaitInterval = 2 * time.Millisecond

// await calls done, with s.mu held, until it says so.
func (s *InSync) await(ctx context.Context, names []string, done func([]*member) (bool, error)) error {
	tick := time.NewTicker(awaitInterval)
	defer tick.Stop()
	for {
		if ok, err := s.awaited(names, done); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func (s *InSync) awaited(names []string, done func([]*member) (bool, error)) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.active {
		return false, ErrNotPrimary
	}
	var left []string
	members := make([]*member, 0, len(names))
	for _, name := range names {
		m := s.members[name]
		if m == nil || !m.inSync {
			left = append(left, name)
			continue
		}
		members = append(members, m)
	}
	if len(left) > 0 {
		return false, &LeftError{Names: left}
	}
	return done(members)
}

// String describes how far it is, for people.
func (st Standing) String() string {
	return fmt.Sprintf("%s has received %d, applied %d, all fsyncs up to %d and a whole sync up to %d", st.Name, st.Received, st.Applied, st.Durable, st.Synced)
}
