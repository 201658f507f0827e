package replicate

import (
	"math"
	"testing"
	"time"
)

const mb = 1e6

// paced is a primary and one standby in a time of their own: writers that
// append as fast as they may, and a standby that applies at a speed.
type paced struct {
	t *testing.T
	*Pacer
	now    time.Time
	member Member
	// wants and speed are bytes a second.
	wants, speed float64

	rate float64
	room float64
	// Every record has recordBytes; the log and the standby are at these bytes.
	appended, applied float64
	most              float64 // the largest lag
	oldest            time.Duration
	stops, limits     int
	line              []float64 // where the log ended, by millisecond
	at                int       // the first moment of which the standby lacks something
}

const recordBytes = 1000

func newPaced(t *testing.T, cfg PacerConfig) *paced {
	p := &paced{t: t, now: time.Unix(1000, 0), rate: math.Inf(1), room: math.MaxInt64}
	p.member = Member{Name: "b", Connected: true, Counts: true}
	cfg.AckTimeout = ackTimeout
	cfg.Now = func() time.Time { return p.now }
	cfg.Position = func() (uint64, uint64) { return 1000 + uint64(p.appended/recordBytes), uint64(p.appended) }
	cfg.BytesAfter = func(uint64) uint64 { return uint64(p.appended - p.applied) }
	cfg.Members = func(out []Member) []Member {
		p.member.Applied = 1000 + uint64(p.applied/recordBytes)
		return append(out, p.member)
	}
	cfg.Limit = func(rate float64, room int64) {
		p.rate, p.room = rate, float64(room)
		p.limits++
	}
	p.Pacer = NewPacer(cfg)
	p.marks, p.paces, p.begin = marks{max: 512}, map[string]*pace{}, 1000 // as Start, without its goroutine
	return p
}

// run lets time pass and returns how much was appended in it.
func (p *paced) run(d time.Duration) float64 {
	before := p.appended
	for range d / time.Millisecond {
		if p.now.UnixMilli()%pacerInterval.Milliseconds() == 0 {
			p.Tick()
			if p.Stopped() {
				p.stops++
			}
		}
		p.now = p.now.Add(time.Millisecond)
		grow := max(0, min(p.wants/1000, p.rate/1000, p.room))
		p.appended += grow
		p.room -= grow
		p.applied = min(p.appended, p.applied+p.speed/1000)
		p.line = append(p.line, p.appended)
		p.most = max(p.most, p.appended-p.applied)
		for p.at < len(p.line) && p.line[p.at] <= p.applied {
			p.at++
		}
		p.oldest = max(p.oldest, time.Duration(len(p.line)-p.at)*time.Millisecond)
	}
	return p.appended - before
}

// TestPacerSettles: a load that is faster than the standby comes down to its
// speed, without stops and without surges, and the lag keeps to its bound,
// whatever the standby's speed does.
func TestPacerSettles(t *testing.T) {
	const bound = 256 << 20
	p := newPaced(t, PacerConfig{MaxLagBytes: bound})
	p.wants, p.speed = 400*mb, 50*mb
	p.run(15 * time.Second)
	for _, speed := range []float64{50 * mb, 10 * mb, 200 * mb, 50 * mb} {
		p.speed = speed
		p.run(20 * time.Second)
		slow, fast := math.Inf(1), 0.0
		const pieces, piece = 100, 100 * time.Millisecond
		sum := 0.0
		for range pieces {
			did := p.run(piece) / piece.Seconds()
			slow, fast, sum = min(slow, did), max(fast, did), sum+did
		}
		t.Logf("standby %.0f MB/s: writers %.1f MB/s, in 100 ms between %.1f and %.1f, lag %.0f MB",
			speed/mb, sum/pieces/mb, slow/mb, fast/mb, (p.appended-p.applied)/mb)
		if mean := sum / pieces; mean < 0.9*speed || mean > 1.1*speed || slow < 0.7*speed || fast > 1.3*speed {
			t.Errorf("standby %.0f MB/s: writers get %.1f, between %.1f and %.1f", speed/mb, mean/mb, slow/mb, fast/mb)
		}
	}
	if p.most > bound+recordBytes {
		t.Errorf("the lag was %.0f MB, the bound is %d", p.most/mb, bound)
	}
	if p.stops != 0 {
		t.Errorf("writers were stopped %d times although the standby went on", p.stops)
	}
}

// TestPacerStops: at the bound writers stop until the standby moves or does not
// count any more.
func TestPacerStops(t *testing.T) {
	const bound = 64 << 20
	p := newPaced(t, PacerConfig{MaxLagBytes: bound})
	p.wants, p.speed = 400*mb, 50*mb
	p.run(5 * time.Second)
	p.speed = 0
	p.run(60 * time.Second)
	if !p.Stopped() || p.run(time.Second) != 0 {
		t.Error("writers go on at the bound")
	}
	if p.most > bound+recordBytes || p.most < bound*9/10 {
		t.Errorf("they stopped at %.0f MB, the bound is %d", p.most/mb, bound)
	}
	if s := p.Status(); !s.Limited || s.Rate != 0 || s.Standby != "b" {
		t.Errorf("status %+v", s)
	}
	p.speed = 50 * mb
	p.run(pacerInterval * 2)
	if p.Stopped() || p.run(time.Second) == 0 {
		t.Error("writers do not go on when the standby does")
	}
	p.speed = 0
	p.run(60 * time.Second)
	p.member.Counts = false // dropped
	p.run(pacerInterval * 2)
	if p.Stopped() || p.rate != math.Inf(1) || p.Status().Limited {
		t.Errorf("a limit of %f is left for a standby that does not count", p.rate)
	}
	// One that must not be lost is waited for, connected or not.
	p.member = Member{Name: "b", Kept: true}
	p.run(pacerInterval * 2)
	if !p.Stopped() {
		t.Error("writers leave behind a standby that is kept")
	}
}

// TestPacerAge: max_lag bounds the age of what the standby lacks.
func TestPacerAge(t *testing.T) {
	const bound = 2 * time.Second
	p := newPaced(t, PacerConfig{MaxLagBytes: 1 << 30, MaxLag: bound})
	p.wants, p.speed = 100*mb, 20*mb
	p.run(30 * time.Second)
	if p.oldest > bound+2*pacerInterval {
		t.Errorf("what the standby lacked was up to %v old", p.oldest)
	}
	if did := p.run(10*time.Second) / 10; did < 0.85*p.speed || did > 1.15*p.speed {
		t.Errorf("writers get %.1f MB/s beside a standby of %.1f", did/mb, p.speed/mb)
	}
	if p.stops > 3 {
		t.Errorf("writers were stopped %d times", p.stops)
	}
	if _, age, ok := p.Lag("b"); !ok || age < bound/2 || age > bound+2*pacerInterval {
		t.Errorf("the lag is said to be %v", age)
	}
	// An idle primary's standby has nothing to catch up.
	p.wants = 0
	p.run(time.Minute)
	p.wants = mb
	p.run(2 * pacerInterval)
	if p.rate != math.Inf(1) {
		t.Errorf("a limit of %.1f after an idle minute", p.rate/mb)
	}
}

// TestPacerCatchUp: writers leave a standby that comes back what it needs to
// converge, and are not slowed down more than that, nor for one that stands still,
// is in trouble or away.
func TestPacerCatchUp(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*paced)
		free   bool
	}{
		"streams":    {func(*paced) {}, false},
		"away":       {func(p *paced) { p.member.Connected = false }, true},
		"in trouble": {func(p *paced) { p.member.Trouble = true }, true},
		"stuck":      {func(p *paced) { p.speed = 0 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPaced(t, PacerConfig{MaxLagBytes: 256 << 20})
			p.member.Connected, p.member.Counts = false, false
			p.wants = 100 * mb
			p.run(20 * time.Second) // 2 GB behind, far beyond the bound
			if p.limits != 0 {
				t.Fatal("a standby that is away slows writers down")
			}
			p.member.Connected, p.speed = true, 50*mb
			c.change(p)
			p.run(10 * time.Second)
			if c.free {
				if did := p.run(time.Second); did < 99*mb {
					t.Errorf("writers are held to %.1f MB/s", did/mb)
				}
				return
			}
			before := p.appended - p.applied
			did := p.run(10*time.Second) / 10
			if did > 0.9*p.speed || did < 0.7*p.speed {
				t.Errorf("writers get %.1f MB/s beside a standby of %.1f", did/mb, p.speed/mb)
			}
			if now := p.appended - p.applied; now >= before {
				t.Errorf("the lag went from %.0f to %.0f MB", before/mb, now/mb)
			}
			if p.Near("b", p.member.Applied) {
				t.Error("it is said to be near")
			}
			took := 20 * time.Second
			for ; !p.Near("b", p.member.Applied) && took < 10*time.Minute; took += time.Second {
				p.run(time.Second)
			}
			t.Logf("2 GB behind, 50 MB/s: near after %v, lag %.1f MB", took, (p.appended-p.applied)/mb)
			if took >= 10*time.Minute {
				t.Error("it does not converge")
			}
			if p.stops != 0 {
				t.Error("writers were stopped for a standby that does not count")
			}
		})
	}
}

// TestPacerReturn: a standby that was away, and is still counted on, does not
// stop the writers dead when it comes back from beyond the bound.
func TestPacerReturn(t *testing.T) {
	const bound = 256 << 20
	p := newPaced(t, PacerConfig{MaxLagBytes: bound, MaxLag: 3 * time.Second})
	p.wants, p.speed = 100*mb, 0
	p.member.Connected = false
	p.run(10 * time.Second) // 1 GB behind
	if p.limits != 0 {
		t.Fatal("a standby that is away slows writers down")
	}
	p.member.Connected, p.speed = true, 50*mb
	p.run(5 * time.Second)
	if did := p.run(5*time.Second) / 5; did > 0.9*p.speed || did < 0.7*p.speed {
		t.Errorf("writers get %.1f MB/s beside a standby of %.1f", did/mb, p.speed/mb)
	}
	for range 60 * 3 {
		p.run(time.Second)
	}
	if p.stops != 0 {
		t.Errorf("writers were stopped %d times", p.stops)
	}
	p.most = 0
	if did := p.run(20*time.Second) / 20; p.most > bound || did < 0.95*p.speed || did > 1.05*p.speed {
		t.Errorf("in the end the lag is up to %.0f MB, and writers get %.1f MB/s", p.most/mb, did/mb)
	}
}

// TestPacerIdle: with a large bound nothing is limited, not even looked at,
// while the standby follows.
func TestPacerIdle(t *testing.T) {
	p := newPaced(t, PacerConfig{MaxLagBytes: 1 << 30, MaxLag: time.Second})
	p.wants, p.speed = 100*mb, 110*mb
	p.run(10 * time.Second)
	if p.limits != 0 {
		t.Errorf("%d limits", p.limits)
	}
}

// TestPacerRestart: what a standby lacked before this term counts as far as the
// log knows it, and one that has said nothing as if it lacked only what came since.
func TestPacerRestart(t *testing.T) {
	p := newPaced(t, PacerConfig{MaxLagBytes: 64 << 20})
	p.appended, p.begin = 100*mb, 1000+100_000
	p.cfg.BytesAfter = func(lsn uint64) uint64 { return 30 * mb } // all that is left
	p.member.Applied = 1
	p.run(pacerInterval)
	if lag, _, _ := p.Lag("b"); lag != 30*mb {
		t.Errorf("lag %d", lag)
	}
	unknown := p.cfg.Members
	p.cfg.Members = func(out []Member) []Member {
		out = unknown(out)
		out[0].Applied = 0
		return out
	}
	p.wants = mb
	p.run(time.Second)
	if lag, age, _ := p.Lag("b"); lag < 0.9*mb || lag > 1.1*mb || age > time.Second+2*pacerInterval {
		t.Errorf("lag %d, %v", lag, age)
	}
}

// TestMarks: positions are found closely enough even after most were dropped.
func TestMarks(t *testing.T) {
	s := marks{max: 64}
	begun := time.Unix(1000, 0)
	const step, bytes, n = 10, 1000, 5000
	for i := range uint64(n) {
		s.add(mark{lsn: 100 + i*step, bytes: i * bytes, at: begun.Add(time.Duration(i) * pacerInterval)})
	}
	if len(s.m) > 64 {
		t.Fatalf("%d marks", len(s.m))
	}
	if _, _, ok := s.find(99); ok {
		t.Error("found what lies before the first")
	}
	for i := uint64(0); i < n; i += 37 {
		got, at, ok := s.find(100 + i*step)
		if want := i * bytes; !ok || max(got, want)-min(got, want) > bytes { // it grew evenly
			t.Fatalf("LSN %d: %d bytes, want %d", 100+i*step, got, want)
		}
		exact := begun.Add(time.Duration(i) * pacerInterval)
		if at.After(exact) || exact.Sub(at) > n/16*pacerInterval {
			t.Fatalf("LSN %d: not before %v, which was %v", 100+i*step, at, exact)
		}
	}
	s.trim(100 + 4000*step)
	if got, _, ok := s.find(100 + 4000*step); !ok || got < 3999*bytes || got > 4001*bytes {
		t.Errorf("after trimming: %d, %v", got, ok)
	}
	last := s.m[len(s.m)-1]
	s.add(mark{lsn: last.lsn, bytes: last.bytes, at: begun.Add(time.Hour * 100)})
	if _, at, _ := s.find(last.lsn); !at.Equal(begun.Add(time.Hour * 100)) {
		t.Error("an end that stays is not brought up to date")
	}
}
