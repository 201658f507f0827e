package fs

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// burst is how much of a second's allowance may be used at once.
	burst = 20 * time.Millisecond
	// longestNap bounds a sleep that nothing else ends.
	longestNap = time.Second
)

// throttle is a bucket of bytes that fills at a rate. Whoever finds it not in
// debt takes what he needs, into debt if need be: so a large record does not
// wait for longer than small ones.
type throttle struct {
	// on is all that is looked at while nobody is to be slowed down.
	on      atomic.Bool
	waiting atomic.Int64

	mu     sync.Mutex
	now    func() time.Time
	rate   float64 // bytes a second
	bytes  float64
	filled time.Time
	room   int64 // what may still come, at any rate
	change chan struct{}
}

func (t *throttle) init() {
	t.now, t.rate, t.change = time.Now, math.Inf(1), make(chan struct{})
}

func (t *throttle) set(rate float64, room int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if math.IsInf(rate, 1) && room == math.MaxInt64 {
		t.on.Store(false)
	} else if !t.on.Load() {
		t.bytes, t.filled = 0, t.now()
		t.on.Store(true)
	} else {
		t.fill()
	}
	t.rate, t.room = rate, room
	if t.waiting.Load() > 0 {
		close(t.change)
		t.change = make(chan struct{})
	}
}

// fill adds what has come since the last time. Needs mu.
func (t *throttle) fill() {
	now := t.now()
	since := now.Sub(t.filled)
	t.filled = now
	if math.IsInf(t.rate, 1) {
		t.bytes = 0
		return
	}
	t.bytes = min(t.bytes+t.rate*since.Seconds(), t.rate*burst.Seconds())
}

// take takes size bytes and returns true, or waits until that may be possible,
// or until other is closed, and returns false.
func (t *throttle) take(size int, other <-chan struct{}) bool {
	t.mu.Lock()
	if !t.on.Load() {
		t.mu.Unlock()
		return true
	}
	t.fill()
	if t.rate > 0 && t.bytes >= 0 && t.room > 0 {
		t.bytes -= float64(size)
		t.room -= int64(size)
		t.mu.Unlock()
		return true
	}
	nap := longestNap
	if t.rate > 0 && t.room > 0 {
		nap = time.Duration(min(-t.bytes/t.rate*float64(time.Second)+1, float64(longestNap)))
	}
	change := t.change
	t.waiting.Add(1)
	t.mu.Unlock()
	defer t.waiting.Add(-1)
	timer := time.NewTimer(nap)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-change:
	case <-other:
	}
	return false
}
