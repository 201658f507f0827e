package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// loadLimit ends a load that nobody stops.
	loadLimit = 10 * time.Minute
	// failurePause keeps a load from spinning while its server is away.
	failurePause = 100 * time.Millisecond
	// shownExamples bounds the list of what is missing in a report.
	shownExamples = 5
)

// entry is one write of a load: each worker numbers its own, from 1.
type entry struct {
	worker int
	seq    int
}

// String names the entry in messages.
func (e entry) String() string { return fmt.Sprintf("worker %d write %d", e.worker, e.seq) }

// ledger remembers which writes a load attempted and which of them were
// acknowledged. What was attempted only, may or may not be there later.
type ledger struct {
	mu        sync.Mutex
	attempted []int // the last number of each worker
	acked     map[entry]struct{}
	failed    int
	lastError error
	lastAck   time.Time
}

// newLedger makes an empty ledger for a number of workers.
func newLedger(workers int) *ledger {
	return &ledger{attempted: make([]int, workers), acked: make(map[entry]struct{})}
}

// attempt numbers a worker's next write; call it before the write is sent.
func (l *ledger) attempt(worker int) entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attempted[worker]++
	return entry{worker, l.attempted[worker]}
}

// ack notes that a write was acknowledged.
func (l *ledger) ack(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[e] = struct{}{}
	l.lastAck = time.Now()
}

// fail notes that a write failed, or that its outcome is unknown.
func (l *ledger) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed++
	l.lastError = err
}

// isAcked says whether an entry was acknowledged.
func (l *ledger) isAcked(e entry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.acked[e]
	return ok
}

// wasAttempted says whether a load may have written an entry.
func (l *ledger) wasAttempted(e entry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return e.worker >= 0 && e.worker < len(l.attempted) && e.seq >= 1 && e.seq <= l.attempted[e.worker]
}

// Report compares what was acknowledged with what was found.
type Report struct {
	What     string   // "PostgreSQL rows"
	Acked    int      // writes that were acknowledged
	Found    int      // of those, found with the right content
	Unacked  int      // found, attempted, never acknowledged: allowed
	Problems []string // each one a broken promise; the first few of each kind
	broken   int
}

// Missing is the number of acknowledged writes that were not found.
func (r Report) Missing() int { return r.Acked - r.Found }

// Err is nil when everything acknowledged was found and nothing else is wrong.
func (r Report) Err() error {
	if r.Missing() == 0 && r.broken == 0 {
		return nil
	}
	return fmt.Errorf("%s: %d of %d acknowledged missing, %d other faults: %s",
		r.What, r.Missing(), r.Acked, r.broken, strings.Join(r.Problems, "; "))
}

// problem adds a fault that is not a missing write.
func (r *Report) problem(format string, args ...any) {
	if r.broken++; r.broken <= shownExamples {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// compare makes a report: found holds each entry that is there, and whether its
// content is right.
func (l *ledger) compare(what string, found map[entry]bool) Report {
	l.mu.Lock()
	acked := make([]entry, 0, len(l.acked))
	for e := range l.acked {
		acked = append(acked, e)
	}
	l.mu.Unlock()
	slices.SortFunc(acked, func(a, b entry) int {
		if a.worker != b.worker {
			return a.worker - b.worker
		}
		return a.seq - b.seq
	})
	r := Report{What: what, Acked: len(acked)}
	for _, e := range acked {
		right, there := found[e]
		switch {
		case right:
			r.Found++
		case len(r.Problems) >= shownExamples: // counted all the same
		case there:
			r.Problems = append(r.Problems, fmt.Sprintf("%s has a wrong content", e))
		default:
			r.Problems = append(r.Problems, fmt.Sprintf("%s is missing", e))
		}
	}
	for e, right := range found {
		switch {
		case l.isAcked(e): // reported above
		case !l.wasAttempted(e):
			r.problem("%s is there and was never sent", e)
		case !right:
			r.problem("%s, not acknowledged, is there with a wrong content", e)
		default:
			r.Unacked++
		}
	}
	return r
}

// Load is a set of workers that write until they are stopped.
type Load struct {
	ledger *ledger
	cancel context.CancelFunc
	wg     sync.WaitGroup
	closed atomic.Bool
}

// stepFunc makes one worker's next write and enters it in the ledger.
type stepFunc func(ctx context.Context, ledger *ledger, worker int) error

// startLoad starts the workers. Each calls step over and over; a step that
// fails is followed by a short pause.
func startLoad(ctx context.Context, workers int, step stepFunc, done func(worker int)) *Load {
	ctx, cancel := context.WithTimeout(ctx, loadLimit)
	l := &Load{ledger: newLedger(workers), cancel: cancel}
	for w := range workers {
		l.wg.Go(func() {
			defer done(w)
			for ctx.Err() == nil {
				if err := step(ctx, l.ledger, w); err != nil {
					l.ledger.fail(err)
					select {
					case <-ctx.Done():
					case <-time.After(failurePause):
					}
				}
			}
		})
	}
	return l
}

// Stop ends the load. Writes in flight are abandoned and count as not
// acknowledged.
func (l *Load) Stop() {
	l.closed.Store(true)
	l.cancel()
	l.wg.Wait()
}

// stopped is an error while the load runs: its ledger is not final then.
func (l *Load) stopped() error {
	if !l.closed.Load() {
		return errors.New("stop the load before its writes are verified")
	}
	return nil
}

// Acked is the number of writes acknowledged so far.
func (l *Load) Acked() int {
	l.ledger.mu.Lock()
	defer l.ledger.mu.Unlock()
	return len(l.ledger.acked)
}

// Failures is the number of writes that were not acknowledged, and why the last
// of them was not.
func (l *Load) Failures() (int, error) {
	l.ledger.mu.Lock()
	defer l.ledger.mu.Unlock()
	return l.ledger.failed, l.ledger.lastError
}

// LastAck is when the last write was acknowledged; zero when none was.
func (l *Load) LastAck() time.Time {
	l.ledger.mu.Lock()
	defer l.ledger.mu.Unlock()
	return l.ledger.lastAck
}

// WaitAcked waits until a load has a number of acknowledged writes.
func (l *Load) WaitAcked(ctx context.Context, n int) error {
	return poll(ctx, waitLimit, fmt.Sprintf("%d acknowledged writes", n), func(context.Context) error {
		if got := l.Acked(); got < n {
			failed, last := l.Failures()
			return errors.Join(fmt.Errorf("there are %d, and %d failed", got, failed), last)
		}
		return nil
	})
}
