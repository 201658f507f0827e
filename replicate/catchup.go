package replicate

import (
	"math"
	"time"
)

// CatchUpStatus is how a standby that is far behind comes closer.
type CatchUpStatus struct {
	Started time.Time
	// Remaining is the size of what it has not applied yet, in bytes.
	Remaining uint64
	// Rate is by how many bytes a second that shrinks: what it applies less
	// what is appended meanwhile, averaged over some ten seconds. It may be
	// negative.
	Rate float64
}

// Left is the time until nothing remains if the rate stays so; false if it
// does not shrink.
func (c *CatchUpStatus) Left() (time.Duration, bool) {
	if c.Rate <= 0 {
		return 0, false
	}
	seconds := float64(c.Remaining) / c.Rate
	if seconds > math.MaxInt32 {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}

const (
	catchUpSample = time.Second
	// catchUpMemory is the time constant of the rate's average.
	catchUpMemory = 10 * time.Second
)

// catchUp measures how far a session's standby is behind.
type catchUp struct {
	s       *session
	enter   uint64
	leave   uint64
	status  *CatchUpStatus
	sampled time.Time
	bytes   uint64
}

func newCatchUp(s *session) *catchUp {
	size := s.cfg.Log.Size()
	return &catchUp{s: s, enter: size / 4, leave: size / 16}
}

// measure looks how far the standby is behind. It never waits for the stream.
func (s *session) measure() error {
	c := newCatchUp(s)
	tick := time.NewTicker(standingInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return nil
		case now := <-tick.C:
			c.look(now)
		}
	}
}

// look measures, and sets the sender's state.
func (c *catchUp) look(now time.Time) {
	s := c.s
	if s.copying.Load() {
		c.status = nil
		return
	}
	s.ackMu.Lock()
	applied := max(s.last.Applied, s.begun-1)
	s.ackMu.Unlock()
	if c.status == nil && applied >= s.cfg.Log.First() && s.cfg.Log.BytesAfter(applied) <= c.enter {
		return
	}
	remaining := s.cfg.Spiller.BytesAfter(applied)
	switch {
	case c.status == nil && remaining <= c.enter:
		return
	case c.status == nil:
		c.status = &CatchUpStatus{Started: now}
		c.sampled, c.bytes = now, remaining
	case remaining <= c.leave:
		c.status = nil
	case now.Sub(c.sampled) >= catchUpSample:
		dt := now.Sub(c.sampled)
		rate := (float64(c.bytes) - float64(remaining)) / dt.Seconds()
		if c.status.Rate != 0 {
			old := math.Exp(-dt.Seconds() / catchUpMemory.Seconds())
			rate = old*c.status.Rate + (1-old)*rate
		}
		c.status.Rate = rate
		c.sampled, c.bytes = now, remaining
	}
	s.set(func(st *SenderStatus) {
		if st.State != stateStreaming && st.State != stateCatchingUp {
			return
		}
		if c.status == nil {
			st.State, st.CatchUp = stateStreaming, nil
			return
		}
		c.status.Remaining = remaining
		shown := *c.status
		st.State, st.CatchUp = stateCatchingUp, &shown
	})
}
