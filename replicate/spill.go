package replicate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/replfs/replfs/replicate/journal"
	"github.com/replfs/replfs/replicate/oplog"
)

// run moves records from the ring to the journal, and gives the journal back,
// until the term ends.
func (s *Spiller) run() {
	defer close(s.done)
	tick := time.NewTicker(spillTick)
	defer tick.Stop()
	for {
		for s.step() {
			select {
			case <-s.quit:
				return
			default:
			}
		}
		select {
		case <-s.quit:
			return
		case <-s.wake:
		case <-tick.C:
		}
	}
}

// step does one piece of work, and tells whether there may be more.
func (s *Spiller) step() bool {
	s.mu.Lock()
	if s.pending != nil {
		s.settle()
	}
	work := s.next()
	if work == nil {
		if s.pending == nil {
			s.arm()
		}
		s.mu.Unlock()
		return false
	}
	j, gen := s.j, s.gen
	s.working = time.Now()
	s.mu.Unlock()
	err := work(j)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.working = time.Time{}
	switch {
	case s.ended:
		return false
	case gen != s.gen: // what it did is void
		return true
	case err != nil:
		s.lose(err)
		return true
	}
	s.moveHold()
	return true
}

// next decides what to do. The lock is held; what it gives is called without.
func (s *Spiller) next() func(*journal.Journal) error {
	switch {
	case s.ended || s.cfg.Dir == "":
		return nil
	case len(s.orphans) > 0:
		orphan := s.orphans[0]
		s.orphans = s.orphans[1:]
		return func(*journal.Journal) error {
			s.removed(orphan)
			return nil
		}
	case s.j == nil && s.pending == nil:
		if time.Now().Before(s.retry) {
			return nil
		}
		return s.reopen
	case s.j == nil:
		return nil
	}
	need := s.need()
	if s.active && (need == 0 || need > s.j.Last()) {
		s.log.Info("no standby needs the journal any more", zap.Uint64("last", s.j.Last()), zap.Int64("bytes", s.j.Size()))
		s.void()
		s.moveHold()
	}
	if !s.active && !s.j.Empty() {
		return (*journal.Journal).Drop
	}
	if s.pending != nil {
		return nil
	}
	from, behind := need, s.cfg.Log.Size()/2
	if s.active {
		if s.j.Trimmable(need) {
			return func(j *journal.Journal) error { return j.TrimBefore(need) }
		}
		from, behind = s.j.Last()+1, s.cfg.Log.Size()/4+s.chunk()
	}
	waiting := s.cfg.Log.Waiting() > 0
	switch {
	case need == 0 || from > s.cfg.Log.Last():
		return nil
	case !waiting && (s.cfg.Log.BytesAfter(from-1) <= behind || !s.active && !s.settled()):
		return nil
	}
	if !s.active {
		s.active = true
		s.log.Info("a standby is far behind: the log goes on in the journal", zap.Uint64("from", from), zap.String("dir", s.cfg.Dir))
	}
	return func(j *journal.Journal) error { return s.spill(context.Background(), j, from) }
}

// chunk is how much is spilled at a time.
func (s *Spiller) chunk() uint64 { return min(batchSize, s.cfg.Log.Size()/16) }

// settled reports whether the standbys have had time to say where they are.
func (s *Spiller) settled() bool {
	if time.Since(s.started) > settleTime {
		return true
	}
	for _, p := range s.peers {
		if p.need != 0 && !p.heard {
			return false
		}
	}
	return true
}

// arm has the ring wake the goroutine when there will be something to do. The
// lock is held.
func (s *Spiller) arm() {
	size := s.cfg.Log.Size()
	switch need := s.need(); {
	case s.j == nil || need == 0 || s.ended:
		s.cfg.Log.NoAlarm()
	case s.active:
		s.cfg.Log.Alarm(s.j.Last(), size/4+s.chunk(), s.wake)
	case !s.settled():
		s.cfg.Log.Alarm(need-1, size, s.wake) // for appends that wait
	default:
		s.cfg.Log.Alarm(need-1, size/2, s.wake)
	}
}

// spill appends records of the ring to the journal, from one that is held.
func (s *Spiller) spill(ctx context.Context, j *journal.Journal, from uint64) error {
	if s.reader == nil {
		r, err := s.cfg.Log.NewReader(from)
		if err != nil {
			return err
		}
		s.reader = r
	} else if err := s.reader.Rewind(from); err != nil {
		return err
	}
	batch, first, last, err := s.reader.Read(ctx, s.buf[:0:int(s.chunk())])
	if err != nil {
		return err
	}
	return j.Append(batch, first, last)
}

// reopen tries a journal that failed again.
func (s *Spiller) reopen(*journal.Journal) error {
	if err := journal.Remove(s.cfg.Dir); err != nil {
		return err
	}
	j, _, err := s.open()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.j, s.failure = j, ""
	s.mu.Unlock()
	return nil
}

// end stops the goroutines, and lets go of the ring.
func (s *Spiller) end() bool {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return false
	}
	s.ended = true
	s.moveHold()
	s.mu.Unlock()
	close(s.quit)
	<-s.watched
	ended := true
	select {
	case <-s.done:
	case <-time.After(s.cfg.StallLimit):
		s.log.Error("the journal's disk hangs", zap.String("dir", s.cfg.Dir))
		ended = false
	}
	s.cfg.Log.NoAlarm()
	s.hold.Close()
	if !ended {
		return false
	}
	if s.reader != nil {
		s.reader.Close()
		s.reader = nil
	}
	for _, j := range s.orphans {
		s.removed(j)
	}
	return true
}

// removed removes a journal that failed, as far as that goes.
func (s *Spiller) removed(j *journal.Journal) {
	if err := errors.Join(j.Drop(), j.Close()); err != nil {
		s.log.Warn("cannot remove the journal", zap.String("dir", s.cfg.Dir), zap.Error(err))
	}
}

// Drop ends the term, and the journal with it: the next primary's history may
// be another. Senders have ended.
func (s *Spiller) Drop() {
	if s.end() && s.j != nil {
		s.removed(s.j)
	}
}

// Close ends the term as a kill would, and leaves the journal as it is.
func (s *Spiller) Close() {
	if s.end() && s.j != nil {
		if err := s.j.Close(); err != nil {
			s.log.Warn("cannot close the journal", zap.Error(err))
		}
	}
}

// Park ends the term of a primary that stops in an orderly way and will be
// primary again: what standbys still need is put into the journal, until ctx
// ends, and made durable, since the ring does not survive a reboot. Nothing
// may be appended any more.
func (s *Spiller) Park(ctx context.Context) {
	if !s.end() || s.j == nil {
		return
	}
	err := s.park(ctx)
	if err != nil {
		s.log.Warn("the journal is dropped: standbys that are behind get a complete copy if this machine restarts", zap.Error(err))
		err = s.j.Drop()
	}
	if err = errors.Join(err, s.j.Close()); err != nil {
		s.log.Warn("cannot remove the journal", zap.String("dir", s.cfg.Dir), zap.Error(err))
	}
}

func (s *Spiller) park(ctx context.Context) error {
	need, last := s.need(), s.cfg.Log.Last()
	if need == 0 || need > last {
		return s.j.Drop()
	}
	if !s.active {
		if err := s.j.Drop(); err != nil {
			return err
		}
	}
	defer func() {
		if s.reader != nil {
			s.reader.Close()
		}
	}()
	for s.j.Last() < last {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("write what standbys need: %w", err)
		}
		from := need
		if s.active {
			from = s.j.Last() + 1
		}
		if err := s.spill(ctx, s.j, from); err != nil {
			return err
		}
		s.active = true
	}
	if err := s.j.Seal(); err != nil {
		return err
	}
	s.log.Info("the journal keeps what standbys need", zap.Uint64("first", s.j.First()), zap.Uint64("last", last), zap.Int64("bytes", s.j.Size()))
	return nil
}

// SpillStatus is how the journal is doing.
type SpillStatus struct {
	// Enabled says that there is to be a journal, Active that it is in use.
	Enabled, Active bool
	Bytes, MaxBytes int64
	// First and Last bound what it holds, 0 for nothing.
	First, Last uint64
	// Failure says why it cannot be used now.
	Failure string
	// Lost says why standbys lost their places, while some have none.
	Lost string
}

// Status says how it goes.
func (s *Spiller) Status() SpillStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := SpillStatus{Enabled: s.cfg.Dir != "", Active: s.active, MaxBytes: s.cfg.MaxBytes, Failure: s.failure}
	if s.j != nil && s.active {
		st.Bytes, st.First, st.Last = s.j.Size(), s.j.First(), s.j.Last()
	}
	for _, p := range s.peers {
		if p.need == 0 || p.losing {
			st.Lost = s.loss
		}
	}
	if st.Lost == "" {
		s.loss = ""
	}
	return st
}

// BytesAfter is the size of the records after lsn that the ring and the
// journal hold.
func (s *Spiller) BytesAfter(lsn uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.active || lsn+1 >= s.cfg.Log.First() || s.j.Last() <= lsn {
		return s.cfg.Log.BytesAfter(lsn)
	}
	return uint64(s.j.BytesAfter(lsn)) + s.cfg.Log.BytesAfter(s.j.Last())
}

// TimeOf gives the time of the record lsn, if it is kept.
func (s *Spiller) TimeOf(lsn uint64) (time.Time, bool) {
	if t, ok := s.cfg.Log.TimeOf(lsn); ok {
		return t, true
	}
	j := s.journal()
	if j == nil {
		return time.Time{}, false
	}
	h, ok := j.Header(lsn)
	return time.Unix(0, h.Time), ok
}

// journal is the journal if it is in use.
func (s *Spiller) journal() *journal.Journal {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.active {
		return nil
	}
	return s.j
}

// unreadable says that the journal does not give what was put into it.
func (s *Spiller) unreadable(j *journal.Journal, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.active || s.j != j || errors.Is(err, oplog.ErrGone) {
		return
	}
	s.lose(err)
}
