package replicate

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestInvariantI5 runs writers, standbys that come and go, and an unreliable
// store of truth at once: at no moment does the stored set name a standby
// that lacks an acknowledged fsync.
func TestInvariantI5(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { runI5(t, seed) })
	}
}

// i5Standby is a standby of the model; durable is the truth, of which acks
// tell with delay.
type i5Standby struct {
	name    string
	durable atomic.Uint64
}

func runI5(t *testing.T, seed uint64) {
	standbys := []*i5Standby{{name: "b"}, {name: "c"}}
	r := newInSyncRig(t, "b")
	var acked uint64 // under r.mu
	var joins int
	rng := rand.New(rand.NewPCG(seed, 7))
	check := func(set []string, when string) {
		for _, s := range standbys {
			if slices.Contains(set, s.name) && s.durable.Load() < acked {
				t.Errorf("%s: %s is in the stored set %v with %d durable, but %d was acknowledged", when, s.name, set, s.durable.Load(), acked)
			}
		}
	}
	r.onPersist = func(set []string) { // under r.mu
		r.fail = nil
		if rng.IntN(4) == 0 {
			r.fail = errors.New("etcd is away")
			return
		}
		if len(set) > len(r.persisted) {
			joins++
			check(set, "join")
		}
	}
	stop := make(chan struct{})
	var writers, others sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				lsn := r.last.Add(1)
				if err := r.WaitDurable(lsn); err != nil {
					if !errors.Is(err, ErrNotPrimary) {
						t.Error(err)
					}
					return
				}
				r.mu.Lock()
				acked = max(acked, lsn)
				check(r.persisted, "ack")
				r.mu.Unlock()
			}
		})
	}
	for i, s := range standbys {
		others.Go(func() { s.run(r, rand.New(rand.NewPCG(seed, uint64(i))), stop) })
	}
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			r.clock.advance(ackTimeout / 3)
			r.Check()
			time.Sleep(200 * time.Microsecond)
		}
	})
	time.Sleep(150 * time.Millisecond)
	close(stop)
	others.Wait()
	r.Stop()
	writers.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if acked == 0 || joins == 0 {
		t.Errorf("%d acknowledged, %d joins: nothing was tested", acked, joins)
	}
	r.onPersist = nil
}

func (s *i5Standby) run(r *inSyncRig, rng *rand.Rand, stop <-chan struct{}) {
	for connected := false; ; {
		select {
		case <-stop:
			return
		default:
		}
		switch n := rng.IntN(200); {
		case n == 0:
			r.Disconnected(s.name)
			connected = false
		case n == 1:
			_ = r.Drop(s.name, "test")
		case n == 2:
			if r.Trouble(s.name, "test") == nil && rng.IntN(2) == 0 {
				_ = r.Trouble(s.name, "")
			}
		case n == 3 && r.Reset(s.name) == nil:
			// Emptied, and copied up to some LSN.
			s.durable.Store(0)
			connected = false
			s.durable.Store(rng.Uint64N(r.last.Load() + 1))
		case !connected && n < 20:
			r.Connected(s.name)
			connected = true
		case connected:
			now, last := s.durable.Load(), r.last.Load()
			if last > now {
				now += 1 + rng.Uint64N(last-now)
				s.durable.Store(now)
			}
			if rng.IntN(3) > 0 {
				r.Ack(s.name, last, now, now-rng.Uint64N(min(now+1, 3)))
			}
		}
	}
}
