package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// gate decides whether a mutation may start. It is open (a primary), frozen
// (a switchover is under way: mutations wait) or closed (read-only).
//
// Every mutation is inside from before its system call until its record is
// appended, so when freeze or close return, no mutation is under way and none
// begins.
type gate struct {
	throttle throttle
	inside   sync.RWMutex
	mu       sync.Mutex
	state    gateState
	change   chan struct{}
}

type gateState uint8

const (
	gateClosed gateState = iota
	gateFrozen
	gateOpen
)

func (g *gate) init() {
	g.change = make(chan struct{})
	g.throttle.init()
}

func (g *gate) set(s gateState) {
	g.inside.Lock()
	g.mu.Lock()
	g.state = s
	close(g.change)
	g.change = make(chan struct{})
	g.mu.Unlock()
	g.inside.Unlock()
}

// enter lets a mutation in, by which the log grows by about size, or says EROFS.
// It comes before any lock: it may hold the caller up. A frozen gate holds it back until
// it opens or closes, which its owner bounds. An interrupt does not end the
// wait: FUSE has no restart, so that a program would see EINTR of calls that
// never give it elsewhere, and Go's signal each other all the time.
func (g *gate) enter(size int) fuse.Status {
	if g.throttle.on.Load() {
		g.slow(size)
	}
	return g.pass()
}

// pass is enter for what makes the log grow by next to nothing: no throttle.
func (g *gate) pass() fuse.Status {
	for {
		g.inside.RLock()
		g.mu.Lock()
		state, change := g.state, g.change
		g.mu.Unlock()
		switch state {
		case gateOpen:
			return fuse.OK
		case gateClosed:
			g.inside.RUnlock()
			return fuse.EROFS
		}
		g.inside.RUnlock()
		<-change
	}
}

// slow lets the mutations in at the throttle's rate while the gate is open.
func (g *gate) slow(size int) {
	for {
		g.mu.Lock()
		state, change := g.state, g.change
		g.mu.Unlock()
		if state != gateOpen || g.throttle.take(size, change) {
			return
		}
	}
}

func (g *gate) leave() { g.inside.RUnlock() }

func (g *gate) open() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state == gateOpen
}

// Freeze makes mutations wait and returns when none is under way.
func (fs *FS) Freeze() { fs.gate.set(gateFrozen) }

// Throttle lets mutations in so that the log grows by at most rate bytes a
// second, and by no more than room bytes (and one record) until it is called
// again. Rate 0 holds every mutation up; math.Inf(1) with math.MaxInt64 is no
// limit. The sizes of records are estimated. It takes effect at once, on those that wait as well.
func (fs *FS) Throttle(rate float64, room int64) { fs.gate.throttle.set(rate, room) }

// Throttled is how many mutations are being held up by Throttle right now.
func (fs *FS) Throttled() int { return int(fs.gate.throttle.waiting.Load()) }

// Thaw ends a freeze.
func (fs *FS) Thaw() { fs.gate.set(gateOpen) }
