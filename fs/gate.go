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
	inside sync.RWMutex
	mu     sync.Mutex
	state  gateState
	change chan struct{}
}

type gateState uint8

const (
	gateClosed gateState = iota
	gateFrozen
	gateOpen
)

func (g *gate) init() { g.change = make(chan struct{}) }

func (g *gate) set(s gateState) {
	g.inside.Lock()
	g.mu.Lock()
	g.state = s
	close(g.change)
	g.change = make(chan struct{})
	g.mu.Unlock()
	g.inside.Unlock()
}

// enter lets a mutation in, or says EROFS. A frozen gate holds it back until
// it opens or closes, which its owner bounds. An interrupt does not end the
// wait: FUSE has no restart, so that a program would see EINTR of calls that
// never give it elsewhere, and Go's signal each other all the time.
func (g *gate) enter() fuse.Status {
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

func (g *gate) leave() { g.inside.RUnlock() }

func (g *gate) open() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state == gateOpen
}

// Freeze makes mutations wait and returns when none is under way.
func (fs *FS) Freeze() { fs.gate.set(gateFrozen) }

// Thaw ends a freeze.
func (fs *FS) Thaw() { fs.gate.set(gateOpen) }
