package apply

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// syncAll begins a syncfs of the store on behalf of an OpSync. All before the
// record must be applied, and what follows need not wait. Nor do the fsyncs of
// applications: such a sync may take minutes, so that it has a position of its
// own (Synced) and does not hold Durable back.
func (a *Applier) syncAll(rec *record.Record) error {
	return a.sync.addAll(a.root.FD(), rec.LSN)
}

// Synced is the LSN of the last OpSync that is done: all that the records up to
// it changed is durable. 0 when there was none since Open. It says nothing of
// those that an earlier Applier had begun.
func (a *Applier) Synced() uint64 {
	a.sync.mu.Lock()
	defer a.sync.mu.Unlock()
	return a.sync.synced
}

// addAll asks for a syncfs of the filesystem of fd, for all up to lsn. One that
// waits for a worker does for both.
func (s *syncer) addAll(fd int, lsn uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errClosed
	case s.failed != nil:
		return nil // nothing becomes durable any more
	}
	for _, j := range s.queue {
		if j.upTo > 0 {
			j.upTo = lsn
			return nil
		}
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate descriptor: %w", err)
	}
	s.queue = append(s.queue, &syncJob{fd: own, whole: true, lsn: lsn, upTo: lsn})
	s.work.Signal()
	return nil
}

// settleWhole notes that an OpSync is done; it needs mu.
func (s *syncer) settleWhole(j *syncJob) (news bool) {
	if !j.done || s.failed != nil || j.upTo <= s.synced {
		return false
	}
	s.synced = j.upTo
	return true
}
