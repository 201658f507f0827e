package replicate

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/replfs/replfs/replicate/journal"
	"github.com/replfs/replfs/replicate/oplog"
)

// SpillerConfig is what a Spiller needs.
type SpillerConfig struct {
	Log *oplog.Log
	// Dir is the journal's directory; "" is no journal.
	Dir string
	// MaxBytes bounds the journal, at least journal.MinBytes.
	MaxBytes int64
	// Cluster is the cluster's id, BootID the machine's boot.
	Cluster, BootID string
	// Peers are the standbys of the config.
	Peers  []string
	InSync *InSync
	// AckTimeout is how long writers wait for a connected standby that makes
	// no progress, when there is no journal.
	AckTimeout time.Duration
	// StallLimit is how long they wait for a journal that takes nothing; 0 is
	// AckTimeout, but at least ten seconds.
	StallLimit time.Duration
	// OS is what the journal writes with; nil is the real one.
	OS     journal.OS
	Logger *zap.Logger
}

// Spiller keeps, for a primary's term, what the standbys have not received:
// in the ring while it fits, else in the journal on disk. Each standby has a
// place, the first record it still needs; what lies before all places may be
// overwritten. Only the spiller holds the ring, so that a standby that is
// slow or away makes writers wait for the journal's disk at most. A standby
// whose place cannot be kept (bound reached, disk failed) leaves the in-sync
// set, loses its place, and gets a complete copy.
//
// Without a journal the places of connected standbys are held in the ring:
// writers wait for those that make progress.
type Spiller struct {
	cfg     SpillerConfig
	log     *zap.Logger
	hold    *oplog.Hold
	wake    chan struct{}
	quit    chan struct{}
	done    chan struct{}
	watched chan struct{}
	started time.Time

	mu    sync.Mutex
	peers map[string]*peerPlace
	// j is nil when there is no journal, or none that can be used now.
	j *journal.Journal
	// active: the journal holds what is needed and no longer held in the ring.
	active bool
	// gen grows whenever what the journal holds, or was about to, became void.
	gen uint64
	// working is since when the journal's disk has been at work.
	working time.Time
	// failure says why there is no journal, until a try after retry succeeds.
	failure string
	retry   time.Time
	// orphans are journals that failed, for the goroutine to remove.
	orphans []*journal.Journal
	// pending is why standbys are losing their places, until the in-sync set
	// says so.
	pending error
	// loss says why standbys lost their places; it is forgotten when all have
	// one again.
	loss  string
	ended bool

	// The goroutine's own.
	reader *oplog.Reader
	buf    []byte
}

// peerPlace is what is kept of a standby.
type peerPlace struct {
	// need is the first record it has not acknowledged; 0: it has no place.
	need      uint64
	heard     bool // in this term
	losing    bool // counts for nothing; see settle
	connected bool
	progress  time.Time
	cancel    func(error)
}

const (
	spillTick = 100 * time.Millisecond
	// settleTime is how long standbys have at a term's start to say where they
	// are before records are spilled for them without need.
	settleTime = 2 * time.Second
	// retryJournal is when a journal that failed is tried again.
	retryJournal  = 10 * time.Second
	minStallLimit = 10 * time.Second
)

var errStalled = errors.New("the journal's disk takes nothing")

// StartSpiller begins a term. history is what the journal of an earlier
// process must agree with; with fresh nothing of it counts, and no standby
// has a place until it begins a copy. When it returns, the ring is held:
// nothing that a standby may need is overwritten any more.
func StartSpiller(cfg SpillerConfig, history History, fresh bool) *Spiller {
	if cfg.StallLimit == 0 {
		cfg.StallLimit = max(minStallLimit, cfg.AckTimeout)
	}
	s := &Spiller{
		cfg: cfg, log: cfg.Logger, hold: cfg.Log.NewHold(), started: time.Now(),
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}), watched: make(chan struct{}),
		peers: map[string]*peerPlace{}, buf: make([]byte, 0, batchSize),
	}
	for _, p := range cfg.Peers {
		s.peers[p] = &peerPlace{}
	}
	if cfg.Dir != "" {
		s.openFirst(history, fresh)
	}
	if !fresh && s.j != nil {
		oldest := cfg.Log.First()
		if s.active {
			oldest = s.j.First()
		}
		for _, p := range s.peers {
			p.need = oldest
		}
	}
	s.moveHold()
	go s.run()
	go s.watch()
	return s
}

// openFirst takes over what an earlier process of this primary left.
func (s *Spiller) openFirst(history History, fresh bool) {
	if fresh {
		if err := journal.Remove(s.cfg.Dir); err != nil {
			s.log.Warn("cannot remove an old journal", zap.Error(err))
		}
	}
	j, rec, err := s.open()
	if err != nil {
		s.failed(err)
		return
	}
	s.j = j
	if rec.Last == 0 {
		return
	}
	if why := s.unfit(&rec, history); why != "" {
		// The goroutine removes it.
		s.log.Warn("the journal is dropped", zap.String("reason", why), zap.Uint64("first", rec.First), zap.Uint64("last", rec.Last))
		return
	}
	s.active = true
	s.log.Info("the journal survived", zap.Uint64("first", rec.First), zap.Uint64("last", rec.Last), zap.Int64("bytes", rec.Bytes))
}

func (s *Spiller) open() (*journal.Journal, journal.Recovered, error) {
	j, rec, err := journal.Open(s.cfg.Dir, journal.Options{
		Cluster: s.cfg.Cluster, BootID: s.cfg.BootID, MaxBytes: s.cfg.MaxBytes, OS: s.cfg.OS,
	})
	for _, p := range rec.Problems {
		s.log.Warn("the journal was not whole", zap.String("dir", s.cfg.Dir), zap.String("problem", p))
	}
	return j, rec, err
}

// unfit says why a journal does not belong before what is in the ring. Epoch
// and LSN together name a record: if those of the last one are in the
// history, so are all before it.
func (s *Spiller) unfit(rec *journal.Recovered, history History) string {
	first, last := s.cfg.Log.First(), s.cfg.Log.Last()
	e, ok := history.At(rec.Last)
	switch {
	case rec.Last > last:
		return fmt.Sprintf("it goes on to LSN %d, the log ends at %d", rec.Last, last)
	case rec.Last+1 < first:
		return fmt.Sprintf("it ends at LSN %d, the log begins at %d", rec.Last, first)
	case !ok || e.Epoch != rec.LastEpoch:
		return fmt.Sprintf("its record %d is of epoch %d, which is not in this node's history", rec.Last, rec.LastEpoch)
	}
	return ""
}

// failed notes that there is no journal for now. The lock is held.
func (s *Spiller) failed(err error) {
	if s.j != nil {
		s.orphans = append(s.orphans, s.j)
	}
	s.j, s.active, s.gen = nil, false, s.gen+1
	news := s.failure != err.Error()
	s.failure, s.retry = err.Error(), time.Now().Add(retryJournal)
	if news {
		s.log.Error("the journal cannot be used: a standby that falls behind the ring gets a complete copy",
			zap.String("dir", s.cfg.Dir), zap.Error(err))
	}
	for _, p := range s.peers {
		if !p.connected && !p.losing {
			p.need = 0 // it may go on from the ring, but makes nobody wait
		}
	}
}

// need is the first record that a standby with a place needs, 0 if none has
// one. The lock is held.
func (s *Spiller) need() uint64 {
	need := uint64(0)
	for _, p := range s.peers {
		if p.need != 0 && !p.losing && (need == 0 || p.need < need) {
			need = p.need
		}
	}
	return need
}

// held is the first record that the ring must keep, 0 if none. The lock is
// held.
func (s *Spiller) held() uint64 {
	need := s.need()
	if need != 0 && s.active {
		need = max(need, s.j.Last()+1)
	}
	return need
}

// moveHold makes the ring keep what it must. The lock is held.
func (s *Spiller) moveHold() {
	if s.pending != nil && !s.ended {
		return
	}
	from := s.held()
	if from == 0 || s.ended {
		s.hold.Release()
		return
	}
	if err := s.hold.Move(from); err != nil {
		s.hold.Release()
		if !errors.Is(err, oplog.ErrClosed) {
			s.log.Error("the log does not hold what a standby needs", zap.Error(err))
		}
	}
}

func (s *Spiller) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// attach gives a standby that goes on at from its place, and a source that
// reads from there. cancel is called when the place is lost. oplog.ErrGone
// says that from is in neither the journal nor the ring.
func (s *Spiller) attach(peer string, from uint64, cancel func(error)) (*source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return nil, ErrNotPrimary
	case s.pending != nil:
		return nil, status.Error(codes.Unavailable, "places in the log are being given up: "+s.pending.Error())
	}
	if !s.active || from < s.j.First() || from > s.j.Last() {
		if held := s.held(); held == 0 || from < held {
			if err := s.hold.Move(from); err != nil {
				return nil, err
			}
		} else if from > s.cfg.Log.Next() {
			return nil, fmt.Errorf("going on at LSN %d: %w", from, oplog.ErrGone)
		}
		if s.active && from < s.j.First() {
			// The ring reaches further back than the journal: all of the
			// journal is in it still.
			s.void()
		}
	}
	s.peers[peer] = &peerPlace{need: from, heard: true, connected: true, progress: time.Now(), cancel: cancel}
	s.moveHold()
	s.signal()
	return &source{spiller: s, log: s.cfg.Log, next: from}, nil
}

// void says that nothing needs what the journal holds; the goroutine removes
// it. The lock is held.
func (s *Spiller) void() {
	s.active = false
	s.gen++
	s.signal()
}

// detach says that the standby's session ended. Its place stays, if there is
// a journal to keep it in.
func (s *Spiller) detach(peer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[peer]
	if p == nil || !p.connected {
		return
	}
	p.connected, p.cancel = false, nil
	if s.j == nil && !p.losing {
		p.need = 0
	}
	s.moveHold()
}

// forget says that nothing is kept for a standby any more: it begins anew.
func (s *Spiller) forget(peer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[peer]; p != nil && !p.losing {
		p.need, p.heard = 0, true
		s.moveHold()
		s.signal()
	}
}

// ack says that the standby has received all up to lsn.
func (s *Spiller) ack(peer string, lsn uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[peer]
	if p == nil || p.need == 0 || p.losing || lsn < p.need {
		return
	}
	p.need, p.progress = lsn+1, time.Now()
	switch {
	case !s.active:
		s.moveHold()
	case lsn >= s.j.Last() || s.j.Trimmable(lsn+1):
		s.signal()
	}
}

// lose gives up what the journal holds, and the journal itself unless it is
// only full or damaged. Standbys whose place is not in the ring lose it. The
// lock is held.
func (s *Spiller) lose(why error) {
	first := s.cfg.Log.First()
	full := errors.Is(why, journal.ErrFull)
	if full {
		first = max(first, s.need()+1) // somebody has to give way
	}
	for _, p := range s.peers {
		p.losing = p.losing || p.need != 0 && p.need < first
	}
	s.pending = why
	s.void()
	var damage *journal.DamageError
	if !full && !errors.As(why, &damage) {
		s.failed(why)
	}
	s.settle()
}

// settle takes those who lose their places out of the in-sync set, then lets
// the ring go on. While the set cannot be written, writers wait; the journal
// is given back nevertheless, as it may be what fills the disk. The lock is held.
func (s *Spiller) settle() {
	why := s.pending
	var losers []string
	for name, p := range s.peers {
		if !p.losing {
			continue
		}
		if err := s.cfg.InSync.Drop(name, "its place in the log is lost: "+why.Error()); err != nil {
			s.log.Error("cannot let go of a standby; writers wait", zap.String("peer", name), zap.Error(err))
			return
		}
		losers = append(losers, name)
	}
	s.pending = nil
	for _, name := range losers {
		s.dismiss(s.peers[name], why)
	}
	if len(losers) > 0 {
		s.loss = why.Error()
		s.log.Error("the journal is dropped: standbys get a complete copy", zap.Strings("peers", losers), zap.Error(why))
	}
	s.moveHold()
}

func (s *Spiller) dismiss(p *peerPlace, why error) {
	p.need, p.losing = 0, false
	if p.cancel != nil {
		p.cancel(status.Error(codes.Aborted, "its place in the log is lost: "+why.Error()))
	}
}

// watch looks for what makes writers wait for too long: a journal's disk that
// hangs, or, without a journal, a standby that makes no progress.
func (s *Spiller) watch() {
	defer close(s.watched)
	tick := time.NewTicker(spillTick)
	defer tick.Stop()
	for {
		select {
		case <-s.quit:
			return
		case <-tick.C:
		}
		since, blocked := s.cfg.Log.BlockedSince()
		if !blocked {
			continue
		}
		s.mu.Lock()
		switch {
		case s.ended:
		case s.j == nil:
			s.guard(time.Since(since))
		case !s.working.IsZero() && min(time.Since(s.working), time.Since(since)) > s.cfg.StallLimit:
			s.lose(fmt.Errorf("%w for %s", errStalled, s.cfg.StallLimit))
		}
		s.mu.Unlock()
	}
}

// guard lets go of standbys that do not move while writers have waited for
// so long. The lock is held.
func (s *Spiller) guard(waited time.Duration) {
	last := s.cfg.Log.Last()
	for name, p := range s.peers {
		if p.need == 0 || p.losing || p.need > last || min(waited, time.Since(p.progress)) <= s.cfg.AckTimeout {
			continue
		}
		why := errors.New("the log is full and the standby makes no progress")
		if err := s.cfg.InSync.Drop(name, why.Error()); err != nil {
			s.log.Error("cannot let go of a standby; writers wait", zap.String("peer", name), zap.Error(err))
			continue
		}
		s.dismiss(p, why)
	}
	s.moveHold()
}
