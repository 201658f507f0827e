package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// maxQueued bounds the fsyncs that wait for a worker, and with them the
// descriptors they hold; Apply waits for room.
const maxQueued = 256

// errClosed is what waiting for an fsync ends with when the applier is closed.
var errClosed = errors.New("applier closed")

// inode tells files apart on this machine.
type inode struct{ dev, ino uint64 }

// syncJob is one fsync, fdatasync or, with whole, syncfs to be done. fd is the
// job's own.
type syncJob struct {
	fd       int
	file     inode
	path     string
	lsn      uint64 // of the first record that asked
	dataOnly bool
	whole    bool
	upTo     uint64 // of an OpSync: all records up to here are synced by it
	done     bool
}

// pendingSync is an LSN that is not durable until its job is done.
type pendingSync struct {
	from uint64 // the first LSN that the job is needed for
	job  *syncJob
}

// syncer runs fsyncs in parallel and knows up to which LSN all are done.
type syncer struct {
	k        *kernel
	store    func(durable uint64) // into the state file
	onFailed func(error)
	changed  chan struct{}
	workers  sync.WaitGroup

	mu       sync.Mutex
	work     sync.Cond // the queue got longer, or closed
	progress sync.Cond // a job was taken or finished, or closed
	queue    []*syncJob
	queued   map[inode]*syncJob // those of queue that further records may join
	pending  []pendingSync      // by LSN
	running  int
	applied  uint64
	durable  uint64
	synced   uint64
	failed   error // after it, durable and synced stay where they are
	closed   bool
}

func newSyncer(k *kernel, workers int, applied, durable uint64, store func(uint64), onFailed func(error)) *syncer {
	s := &syncer{
		k: k, store: store, onFailed: onFailed, changed: make(chan struct{}, 1),
		queued: map[inode]*syncJob{}, applied: applied, durable: durable,
	}
	s.work.L, s.progress.L = &s.mu, &s.mu
	for range workers {
		s.workers.Go(s.worker)
	}
	return s
}

// add asks for file (the inode of fd) to be made durable at lsn. fd is
// borrowed. It waits while too many wait already.
func (s *syncer) add(lsn uint64, fd int, file inode, dataOnly bool, path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) >= maxQueued && s.failed == nil && !s.closed && s.queued[file] == nil {
		s.progress.Wait()
	}
	switch {
	case s.closed:
		return errClosed
	case s.failed != nil:
		return nil // nothing becomes durable any more
	}
	if j := s.queued[file]; j != nil {
		j.dataOnly = j.dataOnly && dataOnly
		s.await(lsn, j)
		return nil
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate descriptor: %w", err)
	}
	j := &syncJob{fd: own, file: file, path: path, lsn: lsn, dataOnly: dataOnly}
	s.queued[file] = j
	s.push(lsn, j)
	return nil
}

// addWhole asks for a syncfs of the filesystem of fd, which all LSNs past the
// durable one need. It never waits. With thaw it also ends a freeze: nothing
// but the syncfs is outstanding then.
func (s *syncer) addWhole(fd int, thaw bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate descriptor: %w", err)
	}
	if thaw {
		s.failed, s.pending = nil, nil
		// Jobs in the queue are not waited for any more, so none may join.
		clear(s.queued)
	}
	s.push(s.durable+1, &syncJob{fd: own, whole: true, lsn: s.applied})
	return nil
}

// push needs mu.
func (s *syncer) push(from uint64, j *syncJob) {
	s.await(from, j)
	s.queue = append(s.queue, j)
	s.work.Signal()
}

// await makes from wait for j; it needs mu. Within a run records add out of
// order, but none is applied before all have.
func (s *syncer) await(from uint64, j *syncJob) {
	i := len(s.pending)
	for i > 0 && s.pending[i-1].from > from {
		i--
	}
	s.pending = slices.Insert(s.pending, i, pendingSync{from: from, job: j})
}

// advance says that all records up to lsn are applied and their fsyncs added.
func (s *syncer) advance(lsn uint64) {
	s.mu.Lock()
	s.applied = lsn
	s.settle()
	s.mu.Unlock()
}

// settle brings durable up to date; it needs mu.
func (s *syncer) settle() bool {
	n := 0
	for n < len(s.pending) && s.pending[n].job.done {
		n++
	}
	if n > 0 {
		clear(s.pending[:n])
		if s.pending = s.pending[n:]; len(s.pending) == 0 {
			s.pending = nil
		}
	}
	if s.failed != nil {
		return false
	}
	d := s.applied
	if len(s.pending) > 0 {
		// An fsync is added before its own record counts as applied.
		d = min(d, s.pending[0].from-1)
	}
	if d <= s.durable {
		return false
	}
	s.durable = d
	s.store(d)
	return true
}

func (s *syncer) worker() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for len(s.queue) == 0 && !s.closed {
			s.work.Wait()
		}
		if len(s.queue) == 0 {
			return
		}
		j := s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		if s.queued[j.file] == j {
			delete(s.queued, j.file) // from here on it is too late to join
		}
		s.running++
		s.progress.Broadcast()
		s.mu.Unlock()
		err := s.k.syncJob(j)
		s.mu.Lock()
		s.running--
		if err != nil {
			s.fail(err)
		} else {
			j.done = true
		}
		news := s.settleWhole(j)
		if s.settle() || news || err != nil {
			s.notify()
		}
		s.progress.Broadcast()
	}
}

// fail needs mu, which it lets go of for the callback.
func (s *syncer) fail(err error) {
	if s.failed != nil {
		return
	}
	s.failed = err
	s.mu.Unlock()
	s.onFailed(err)
	s.mu.Lock()
}

func (s *syncer) notify() {
	select {
	case s.changed <- struct{}{}:
	default: // the one that is there says the same
	}
}

// wait returns when no fsync is outstanding, with the error of one that
// failed.
func (s *syncer) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		s.progress.Broadcast()
		s.mu.Unlock()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue)+s.running > 0 && ctx.Err() == nil {
		s.progress.Wait()
	}
	if s.failed != nil {
		return s.failed
	}
	return context.Cause(ctx)
}

// moveTo starts again from other positions; nothing may be outstanding. With
// thaw it ends a freeze.
func (s *syncer) moveTo(applied, durable uint64, thaw bool) {
	s.mu.Lock()
	s.pending = nil
	if thaw {
		s.failed = nil
	}
	s.applied, s.durable, s.synced = applied, durable, 0
	s.store(durable)
	s.mu.Unlock()
}

// freeze keeps durable where it is, as after a failure.
func (s *syncer) freeze(err error) {
	s.mu.Lock()
	if s.failed == nil {
		s.failed = err
	}
	s.progress.Broadcast()
	s.mu.Unlock()
}

func (s *syncer) position() (durable uint64, failed error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durable, s.failed
}

// close lets the workers do what is queued and ends them.
func (s *syncer) close() {
	s.mu.Lock()
	s.closed = true
	s.work.Broadcast()
	s.progress.Broadcast()
	s.mu.Unlock()
	s.workers.Wait()
}

// abandon is close without doing what is queued, as a crash would.
func (s *syncer) abandon() {
	s.mu.Lock()
	for _, j := range s.queue {
		_ = unix.Close(j.fd)
	}
	s.queue = nil
	s.mu.Unlock()
	s.close()
}
