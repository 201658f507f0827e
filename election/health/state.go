// Package health tells whether the service on a primary works: checks that are
// made again and again, and a state that changes only after several results.
package health

import "time"

// State of a check or of the service.
type State int

const (
	// Unknown until enough results have come.
	Unknown State = iota
	Healthy
	Unhealthy
)

func (s State) String() string {
	switch s {
	case Healthy:
		return "healthy"
	case Unhealthy:
		return "unhealthy"
	}
	return "unknown"
}

// Tracker turns the results of one check into its state. It becomes healthy
// after Rise good results in a row, unhealthy after Fall bad ones in a row. It
// reads no clock and is not for concurrent use.
type Tracker struct {
	Rise, Fall int
	Interval   time.Duration

	state State
	run   int // of results that speak against the state
	good  bool
	next  time.Time
	err   error
}

// Due tells when the next result is wanted. A check that takes longer than the
// interval is made again when it has ended.
func (t *Tracker) Due() time.Time { return t.next }

// Observe takes a result, nil for good, of a check that began at some time, and
// tells whether the state has changed.
func (t *Tracker) Observe(began time.Time, err error) bool {
	t.next = began.Add(t.Interval)
	t.err = err
	good := err == nil
	if t.run > 0 && good != t.good {
		t.run = 0
	}
	t.good = good
	if good && t.state == Healthy || !good && t.state == Unhealthy {
		t.run = 0
		return false
	}
	t.run++
	switch {
	case good && t.run >= t.Rise:
		t.state = Healthy
	case !good && t.run >= t.Fall:
		t.state = Unhealthy
	default:
		return false
	}
	t.run = 0
	return true
}

// State is the state now, and Err the last result.
func (t *Tracker) State() State { return t.state }

// Err is the last result.
func (t *Tracker) Err() error { return t.err }

// Combine is the state of a service with several checks: unhealthy if one of
// them is, healthy if all are.
func Combine(states []State) State {
	out := Healthy
	for _, s := range states {
		switch s {
		case Unhealthy:
			return Unhealthy
		case Unknown:
			out = Unknown
		case Healthy:
		}
	}
	return out
}
