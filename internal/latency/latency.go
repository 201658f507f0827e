// Package latency keeps idle CPUs awake while requests come fast.
//
// A request through /dev/fuse wakes a thread of the daemon and then the
// application again. A CPU that sleeps takes its time to wake: some
// microseconds on bare metal, tens of them on a virtual machine, where it has to
// be scheduled by its host first. That is more than what is done for most requests.
// The kernel's PM QoS interface lets a process ask for a CPU wake-up latency
// of zero, for as long as it wants
// (Documentation/power/pm_qos_interface.rst); idle CPUs poll meanwhile, which
// costs power.
package latency

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Device is the kernel's interface.
const Device = "/dev/cpu_dma_latency"

const (
	// A burst is burstSize requests within burstWindow: 2000 a second. From
	// there on, what waking costs is more than a few percent of the time.
	burstSize   = 32
	burstWindow = 16 * time.Millisecond
	// While fewer than lullSize requests come within lullWindow, CPUs may sleep.
	lullSize   = 50
	lullWindow = 50 * time.Millisecond

	// The values of the kernel's PM_QOS_CPU_LATENCY_DEFAULT_VALUE, which is
	// no wish at all, and of the strictest wish.
	noWish  = 2_000_000_000
	noSleep = 0
)

// Guard notes requests and decides. A nil Guard notes nothing.
type Guard struct {
	log   *zap.Logger
	file  *os.File
	now   func() time.Time
	start time.Time

	count     atomic.Uint64
	lastBurst atomic.Int64 // time since start
	holding   atomic.Bool
	wake      chan struct{}
	stop      chan struct{}
	done      sync.WaitGroup
}

// Open opens the kernel's interface, or what is at path. An error says that
// this machine has none: it is no reason not to work.
func Open(path string, log *zap.Logger) (*Guard, error) { return open(path, log, time.Now) }

func open(path string, log *zap.Logger, now func() time.Time) (*Guard, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("keep CPUs awake: %w", err)
	}
	g := &Guard{log: log, file: f, now: now, start: now(), wake: make(chan struct{}, 1), stop: make(chan struct{})}
	g.lastBurst.Store(int64(-burstWindow))
	// The device asks for the strictest wish from the moment it is opened.
	if err := g.ask(noWish); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	g.done.Go(g.run)
	return g, nil
}

// Note says that a request came. It takes some nanoseconds and may be called
// concurrently.
func (g *Guard) Note() {
	if g == nil {
		return
	}
	if g.count.Add(1)%burstSize != 0 || g.holding.Load() {
		return
	}
	now := int64(g.now().Sub(g.start))
	if last := g.lastBurst.Swap(now); now-last > int64(burstWindow) {
		return
	}
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// Holding tells whether CPUs are kept awake now.
func (g *Guard) Holding() bool { return g != nil && g.holding.Load() }

// Close lets CPUs sleep.
func (g *Guard) Close() error {
	if g == nil {
		return nil
	}
	close(g.stop)
	g.done.Wait()
	if err := g.file.Close(); err != nil {
		return fmt.Errorf("let CPUs sleep: %w", err)
	}
	return nil
}

func (g *Guard) run() {
	for {
		select {
		case <-g.stop:
			return
		case <-g.wake:
		}
		if err := g.hold(); err != nil {
			g.log.Warn("cannot keep CPUs awake any more", zap.Error(err))
			return
		}
	}
}

// hold keeps CPUs awake until there is a lull.
func (g *Guard) hold() error {
	if err := g.ask(noSleep); err != nil {
		return err
	}
	g.holding.Store(true)
	defer g.holding.Store(false)
	tick := time.NewTicker(lullWindow)
	defer tick.Stop()
	for seen := g.count.Load(); ; {
		select {
		case <-g.stop:
			return g.ask(noWish)
		case <-tick.C:
		}
		n := g.count.Load()
		if n-seen < lullSize {
			return g.ask(noWish)
		}
		seen = n
	}
}

func (g *Guard) ask(microseconds int32) error {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(microseconds))
	if _, err := g.file.Write(b[:]); err != nil {
		return fmt.Errorf("ask for a CPU wake-up latency of %d microseconds: %w", microseconds, err)
	}
	return nil
}
