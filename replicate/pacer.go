package replicate

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Pacer keeps standbys from falling behind without bound: it slows the writers
// of a primary down, smoothly, while a standby that fsyncs wait for is more
// than half of what is allowed behind, and so that one which catches up can.
//
// At half of the bound writers may be twice as fast as the standby, at the
// bound they stop. In between lies, at three quarters, the lag at which both are
// equally fast; a load that is faster than a standby settles there.
type Pacer struct {
	cfg PacerConfig
	// stopped: writers are held up completely.
	stopped atomic.Bool

	mu      sync.Mutex
	marks   marks
	begin   uint64 // the log's end when the term began
	paces   map[string]*pace
	members []Member
	end     mark
	on      bool    // a limit is set
	slowest string  // the standby it is set for
	rate    float64 // of the limit
	quit    chan struct{}
	done    chan struct{}
}

// PacerConfig is what a Pacer needs.
type PacerConfig struct {
	// MaxLagBytes and MaxLag bound how far a standby in sync may be behind, in
	// bytes of the log and by the age of the oldest record that it has not
	// applied. 0 is no bound.
	MaxLagBytes uint64
	MaxLag      time.Duration
	// AckTimeout is how long a standby that is not in sync may stand still and
	// be given way to.
	AckTimeout time.Duration
	// Position is the log's end: its last LSN, and how many bytes have been
	// appended ever.
	Position func() (lsn, bytes uint64)
	// BytesAfter is what the log still holds after an LSN, for standbys that
	// were behind when the Pacer started.
	BytesAfter func(lsn uint64) uint64
	// Members appends the standbys as they are now.
	Members func([]Member) []Member
	// Limit sets what writers may append: rate bytes a second, at most room
	// until the next call. math.Inf(1) is no limit.
	Limit func(rate float64, room int64)
	Now   func() time.Time
}

const (
	pacerInterval = 20 * time.Millisecond
	// maxMarks is 80 s of marks, or more at a coarser resolution.
	maxMarks = 4096
	// rateWindow is the time over which a standby's speed is averaged.
	rateWindow = time.Second
	// nearBytes and nearTime of work are what a standby may lack that fsyncs
	// begin to wait for.
	nearBytes = 1 << 20
	nearTime  = 200 * time.Millisecond
	// converging is the part of its speed that a standby is left to catch up by.
	converging = 0.8
	// surge is more than writers can append between two looks.
	surge = 40 << 20
	// learning is how long a standby's speed is watched before anybody is
	// slowed down for it.
	learning = rateWindow / 2
)

// pace is how fast a standby applies while it has something to apply.
type pace struct {
	bytes uint64 // applied
	at    time.Time
	rate  float64 // bytes a second
	// busy is how long it has been watched at work; moved, when it last got on.
	busy  time.Duration
	moved time.Time
	lag   uint64
	age   time.Duration
	// connected, and returning: it was away, and is not back within its bound.
	connected, returning bool
}

// NewPacer makes a Pacer that does nothing yet.
func NewPacer(cfg PacerConfig) *Pacer {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Pacer{cfg: cfg}
}

// Start begins a primary's term.
func (p *Pacer) Start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.marks, p.paces = marks{max: maxMarks}, map[string]*pace{}
	p.begin, _ = p.cfg.Position()
	p.quit, p.done = make(chan struct{}), make(chan struct{})
	go p.run(p.quit, p.done)
}

// Stop ends it, and every limit.
func (p *Pacer) Stop() {
	p.mu.Lock()
	quit, done := p.quit, p.done
	p.quit = nil
	p.mu.Unlock()
	if quit == nil {
		return
	}
	close(quit)
	<-done
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lift()
}

func (p *Pacer) run(quit, done chan struct{}) {
	defer close(done)
	tick := time.NewTicker(pacerInterval)
	defer tick.Stop()
	for {
		p.Tick()
		select {
		case <-quit:
			return
		case <-tick.C:
		}
	}
}

// Stopped says that writers are held up completely.
func (p *Pacer) Stopped() bool { return p.stopped.Load() }

// Pacing is what a Pacer does at the moment.
type Pacing struct {
	// Limited: writers are slowed down to Rate bytes a second for Standby.
	Limited bool
	Rate    float64
	Standby string
}

// Status says what it does.
func (p *Pacer) Status() Pacing {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.on || math.IsInf(p.rate, 1) {
		return Pacing{}
	}
	return Pacing{Limited: true, Rate: p.rate, Standby: p.slowest}
}

// Lag is how far a standby is behind, as of the last tick: also when the log does
// not hold the records any more. Not ok for one that is not known.
func (p *Pacer) Lag(name string) (bytes uint64, age time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.paces[name]
	if s == nil {
		return 0, 0, false
	}
	return s.lag, s.age, true
}

// Near says whether a standby at applied has so little left to do that what
// waits for it does not wait for long.
func (p *Pacer) Near(name string, applied uint64) bool {
	_, total := p.cfg.Position()
	p.mu.Lock()
	defer p.mu.Unlock()
	rate := 0.0
	if s := p.paces[name]; s != nil {
		rate = s.rate
	}
	return float64(p.behind(applied, total)) <= near(rate)
}

func near(rate float64) float64 { return nearBytes + rate*nearTime.Seconds() }

// behind is the size of what follows a record. Needs mu.
func (p *Pacer) behind(applied, total uint64) uint64 {
	if bytes, _, ok := p.marks.find(p.assumed(applied)); ok {
		return total - min(bytes, total)
	}
	behind := p.cfg.BytesAfter(applied)
	if len(p.marks.m) > 0 {
		behind = max(behind, total-min(total, p.marks.m[0].bytes))
	}
	return behind
}

// assumed is how far a standby is taken to be that has said nothing yet.
func (p *Pacer) assumed(applied uint64) uint64 {
	if applied == 0 {
		return p.begin
	}
	return applied
}

// Tick looks once.
func (p *Pacer) Tick() {
	now := p.cfg.Now()
	lsn, total := p.cfg.Position()
	p.mu.Lock()
	members := p.members[:0]
	p.mu.Unlock()
	members = p.cfg.Members(members) // takes a lock that is held around Near
	p.mu.Lock()
	defer p.mu.Unlock()
	p.members = members
	p.end = mark{lsn: lsn, bytes: total, at: now}
	p.marks.add(p.end)
	rate, room := math.Inf(1), int64(math.MaxInt64)
	oldest, slowest := lsn, ""
	for i := range members {
		m := &members[i]
		m.Applied = p.assumed(m.Applied)
		oldest = min(oldest, m.Applied)
		s := p.measure(m)
		r, left := p.allowed(m, s)
		room = min(room, left)
		if r < rate {
			rate, slowest = r, m.Name
		}
	}
	p.marks.trim(oldest)
	for name := range p.paces {
		if !hasMember(members, name) {
			delete(p.paces, name)
		}
	}
	if math.IsInf(rate, 1) && room == math.MaxInt64 {
		p.lift()
		return
	}
	p.on, p.rate, p.slowest = true, rate, slowest
	p.stopped.Store(rate == 0 || room <= 0)
	p.cfg.Limit(rate, room)
}

// lift ends a limit. Needs mu.
func (p *Pacer) lift() {
	p.stopped.Store(false)
	if p.on {
		p.on, p.rate, p.slowest = false, 0, ""
		p.cfg.Limit(math.Inf(1), math.MaxInt64)
	}
}

func hasMember(members []Member, name string) bool {
	for i := range members {
		if members[i].Name == name {
			return true
		}
	}
	return false
}

// measure brings a standby's speed up to date. Only when it did not come to the
// end of what lay before it was that all it could do.
func (p *Pacer) measure(m *Member) *pace {
	s := p.paces[m.Name]
	now, total := p.end.at, p.end.bytes
	lag := p.behind(m.Applied, total)
	applied := total - min(lag, total)
	if s == nil {
		s = &pace{bytes: applied, at: now, moved: now}
		p.paces[m.Name] = s
	}
	s.age = 0
	if m.Applied < p.end.lsn {
		_, at, ok := p.marks.find(m.Applied)
		if !ok {
			at = p.marks.m[0].at // at least since then
		}
		s.age = max(0, now.Sub(at))
	}
	did := applied - min(s.bytes, applied)
	if did > 0 || lag == 0 {
		s.moved = now
	}
	if d := now.Sub(s.at); d > 0 {
		rate := float64(did) / d.Seconds()
		switch {
		case !m.Connected:
		case did < s.lag:
			s.busy += d
			// While little is known, all of it counts the same.
			w := max(1-math.Exp(-d.Seconds()/rateWindow.Seconds()), d.Seconds()/s.busy.Seconds())
			s.rate += (rate - s.rate) * w
		default:
			s.rate = max(s.rate, rate)
		}
		s.bytes, s.at = max(s.bytes, applied), now
	}
	if m.Connected && !s.connected {
		s.returning = true
	}
	s.lag, s.connected = lag, m.Connected
	return s
}

// allowed is what a standby lets writers append.
func (p *Pacer) allowed(m *Member, s *pace) (rate float64, room int64) {
	free, most := math.Inf(1), int64(math.MaxInt64)
	switch {
	case m.Kept, m.Counts && m.Connected:
		over, room := -1.0, most
		if b := p.cfg.MaxLagBytes; b > 0 {
			over = float64(s.lag)/(float64(b)/2) - 1
			room = int64(b) - int64(min(s.lag, math.MaxInt64)) //nolint:gosec // bounded
		}
		if b := p.cfg.MaxLag; b > 0 {
			// What is appended now will be as old as what lies before it takes.
			age := s.age.Seconds()
			if s.lag > 0 && s.busy > 0 {
				age = max(age, float64(s.lag)/s.rate)
			}
			over = max(over, age/(b.Seconds()/2)-1)
		}
		if s.returning = s.returning && over > 0; s.returning && !m.Kept {
			return p.converging(s), most
		}
		switch {
		case over <= 0 && room-surge > int64(p.cfg.MaxLagBytes/2): //nolint:gosec // the config's bytes are an int64
			return free, most // it cannot get there before the next look
		case over <= 0:
			return free, room
		}
		if over >= 1 || room <= 0 {
			return 0, room
		}
		rate := s.rate * 2 * (1 - over)
		if b := p.cfg.MaxLagBytes; b > 0 {
			// One that stands still does not stop writers while there is room:
			// perhaps it goes on, or is dropped.
			rate = max(rate, (1-over)*float64(b)/2/p.cfg.AckTimeout.Seconds())
		}
		return rate, room
	case !m.Counts && m.Connected && !m.Trouble && float64(s.lag) > near(s.rate)/2:
		return p.converging(s), most
	}
	return free, most
}

// converging is what leaves a standby enough to catch up; nothing is left to one
// that does not get on.
func (p *Pacer) converging(s *pace) float64 {
	if s.busy < learning || p.end.at.Sub(s.moved) > p.cfg.AckTimeout {
		return math.Inf(1)
	}
	return converging * s.rate
}
