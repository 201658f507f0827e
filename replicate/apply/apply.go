// Package apply applies the records of the replication log, in order, to a
// standby's store, such that the store is the primary's as of one LSN at every
// moment, also when the process is killed at any instruction.
package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/beneath"
	"github.com/replfs/replfs/replicate/record"
)

// Config says what an Applier works on. Store and StateFile are needed.
type Config struct {
	// Store is the directory that records are applied to. Nothing else may
	// change what is in it while an Applier is in use, unless the cached
	// paths are dropped afterwards (SetApplied, BeginFresh, DropCaches).
	Store string
	// StateFile keeps the position, outside of the store.
	StateFile string
	// Node is the name by which this node is meant in OpSyncBegin and OpSyncEnd.
	Node string
	// BootID tells whether the machine was restarted; "" asks the kernel.
	BootID string
	Log    *zap.Logger
	// SyncWorkers is how many fsyncs run at a time; 0 means 16: the file system
	// makes one commit of those that wait together.
	SyncWorkers int
	// ApplyWorkers is how many records of different files are applied at a
	// time, at most, when they wait for the disk; 0 means 8.
	ApplyWorkers int
	// OpenFiles and OpenDirs bound the files and directories kept open; 0
	// means 256 and beneath.DefaultDirs.
	OpenFiles, OpenDirs int
	// Need is called, by Apply, when a complete copy lacks path: the primary
	// must send its state (with contents: that of an existing file) again.
	Need func(path string, contents bool)
	// SyncDone is called by Apply of an OpSyncEnd for this node. Unless
	// complete, what was needed has to be sent and another OpSyncEnd.
	SyncDone func(id string, complete bool)
	// Excluded says which paths do not count when the store must be empty.
	Excluded func(path string) bool
}

// State is where an Applier stands.
type State struct {
	// Applied is the LSN of the last record that is wholly applied, Epoch
	// its epoch, and Durable the LSN up to which every fsync is done.
	Applied, Epoch, Durable uint64
	// Pending, unless 0, is the LSN of the last record that may be applied, in
	// part or wholly, as may those between Applied and it: the store is at no
	// LSN until they were all given again.
	Pending uint64
	// Fresh: no record was ever applied, or BeginFresh was called.
	Fresh bool
	// InSync is what SetInSync stored.
	InSync bool
	// Syncing: a complete copy, SyncID, is under way, so the store is not a
	// copy of anything yet. When it is not, SyncID is the last to be complete.
	Syncing bool
	SyncID  string
	// Suspect, unless "", says why the store may differ from its position.
	Suspect string
}

// Applier applies records to a store.
//
// Apply, Queue, Queued, ApplyQueued, SetApplied, BeginFresh, DropCaches and Close
// are for one goroutine at a time; the other methods may be called at any time.
type Applier struct {
	cfg   Config
	log   *zap.Logger
	k     kernel
	root  *beneath.Root
	files *fileCache
	sync  *syncer
	st    *stateFile

	storeIno uint64

	// For the applying goroutine.
	redo      bool // being applied already is no error
	resumed   bool // and it is this applier that tried before
	begins    bool // it begins this node's copy
	fresh     bool
	syncing   bool
	copyStale bool // syncing, but what is known about the copy is lost
	copy      copyState
	entering  map[string]*entering
	report    func() // to be called once the record is applied
	queued    run

	mu     sync.Mutex // guards st.meta and the end of the mapping
	closed bool
	last   State // once closed
}

// Open opens the store and its state. A missing state file is made: the state
// is then fresh. What makes the position untrustworthy (a damaged file, a
// restart of the machine without Close, another store) is no error but makes
// the state suspect. Errors are for what cannot be worked with: no such store,
// a state file that is something else's (ErrForeign) or in use.
func Open(c Config) (*Applier, error) { return open(c, nil) }

func open(c Config, probe func(point string) error) (*Applier, error) {
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.SyncWorkers <= 0 {
		c.SyncWorkers = 16
	}
	if c.ApplyWorkers <= 0 {
		c.ApplyWorkers = 8
	}
	if c.OpenFiles <= 0 {
		c.OpenFiles = 256
	}
	c.OpenFiles = max(c.OpenFiles, 4) // see handle
	if c.BootID == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("read the boot id: %w", err)
		}
		c.BootID = strings.TrimSpace(string(b))
	}
	if len(c.BootID) > 64 {
		return nil, fmt.Errorf("boot id of %d bytes", len(c.BootID))
	}
	a := &Applier{cfg: c, log: c.Log, k: kernel{probe: probe}}
	var err error
	if a.files, err = newFileCache(c.OpenFiles); err != nil {
		return nil, err
	}
	if a.root, err = beneath.Open(c.Store, c.OpenDirs); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := a.load(); err != nil {
		return nil, errors.Join(err, a.root.Close())
	}
	return a, nil
}

// load opens the state file and decides whether to trust it.
func (a *Applier) load() error {
	var st unix.Stat_t
	if err := unix.Fstat(a.root.FD(), &st); err != nil {
		return fmt.Errorf("stat store: %w", err)
	}
	s, damage, err := openState(a.cfg.StateFile)
	if err != nil {
		return err
	}
	a.st, a.storeIno = s, st.Ino
	lsn, epoch := s.position()
	was := s.meta
	var reasons []string
	switch {
	case damage != nil:
		reasons = append(reasons, damage.Error())
	case was.fresh:
	default:
		clean := was.clean && was.cleanLSN == lsn && was.cleanEpoch == epoch
		if was.bootID != a.cfg.BootID && !clean {
			reasons = append(reasons, "machine restarted without a clean stop: the page cache may be lost")
		}
		if was.storeIno != st.Ino {
			reasons = append(reasons, fmt.Sprintf(
				"the store is another directory than before (inode %d, was %d): is its filesystem mounted?",
				st.Ino, was.storeIno))
		}
	}
	err = s.update(func(m *meta) {
		// Synced before the first record: a crash after it must show.
		m.bootID, m.clean = a.cfg.BootID, false
		if m.storeIno == 0 || m.fresh {
			m.storeIno = st.Ino
		}
		if len(reasons) > 0 && !m.suspect {
			m.suspect, m.inSync, m.reason = true, false, limit(strings.Join(reasons, "; "), maxReason)
		}
	})
	if err != nil {
		return errors.Join(err, s.close())
	}
	if s.meta.suspect {
		a.log.Warn("store is suspect", zap.String("reason", s.meta.reason), zap.Uint64("lsn", lsn))
	}
	a.fresh, a.syncing, a.copyStale = s.meta.fresh, s.meta.syncing, s.meta.syncing
	durable := s.load(offDurable)
	a.sync = newSyncer(&a.k, a.cfg.SyncWorkers, lsn, durable,
		func(d uint64) { s.store(offDurable, d) }, a.syncFailed)
	switch {
	case s.meta.suspect:
		a.sync.freeze(errors.New(s.meta.reason))
	case durable < lsn:
		// Fsyncs were outstanding when the process ended, of what is not
		// known any more.
		err = a.sync.addWhole(a.root.FD(), false)
	}
	if err != nil {
		a.sync.close()
		return errors.Join(err, s.close())
	}
	return nil
}

func limit(s string, n int) string {
	if len(s) > n {
		s = s[:n-3] + "..."
	}
	return s
}

// State returns where the applier stands. After Close it is the last state.
func (a *Applier) State() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state()
}

// state needs mu.
func (a *Applier) state() State {
	if a.closed {
		return a.last
	}
	m := &a.st.meta
	s := State{Fresh: m.fresh, InSync: m.inSync, Syncing: m.syncing, SyncID: m.syncID}
	if m.suspect {
		s.Suspect = m.reason
	}
	s.Durable, _ = a.sync.position()
	s.Applied, s.Epoch = a.st.position()
	if lsn, _ := a.st.intent(); lsn > s.Applied {
		s.Pending = lsn
	}
	return s
}

// Durable is the LSN up to which every OpFsync is done: that of the last
// record applied unless some are outstanding. While the state is suspect it
// does not advance.
func (a *Applier) Durable() uint64 {
	d, _ := a.sync.position()
	return d
}

// DurableChanged returns a channel that receives when an fsync that was done
// made Durable or Synced advance, or when one failed, which makes the state suspect.
// Several such events may give one receipt. What Apply itself advances gives
// none.
func (a *Applier) DurableChanged() <-chan struct{} { return a.sync.changed }

// Apply applies the next record. It returns nil only when the record is wholly
// applied, or means nothing to this node; an OpFsync counts as applied when it
// is under way. The record is not kept.
//
// Any other error than one that wraps ErrOrder or ErrCopyInterrupted is an
// *Error; the applied LSN has not moved and the same record may be given
// again.
//
// An OpSyncBegin for this node begins a copy after BeginFresh, and need not be
// the next record then: the position before it means nothing to an empty store.
// Otherwise it is left over from a copy that came to nothing.
func (a *Applier) Apply(rec *record.Record) error {
	if err := a.admit(rec); err != nil {
		return err
	}
	a.useEpoch(rec.Epoch)
	a.redo = a.resumed || rec.Flags.Has(record.FlagRedo)
	a.report = nil
	if a.fresh && !a.begins {
		if err := a.updateMeta(func(m *meta) { m.fresh = false }); err != nil {
			return a.failed(rec, err)
		}
		a.fresh = false
	}
	if !a.resumed {
		a.st.setIntent(rec.LSN, rec.Epoch)
	}
	a.k.changed = false
	err := a.k.at("intent")
	if err == nil {
		err = a.dispatch(rec)
	}
	if err == nil {
		err = a.k.at("applied")
	}
	if err != nil {
		if !a.k.changed && !a.resumed {
			a.st.clearIntent() // nothing happened: the next try is a first one
		}
		return a.failed(rec, err)
	}
	a.st.setPosition(rec.LSN, rec.Epoch)
	a.sync.advance(rec.LSN)
	if a.report != nil {
		a.report()
	}
	return nil
}

// useEpoch forgets what holds for one epoch only when another begins.
func (a *Applier) useEpoch(epoch uint64) {
	if epoch != a.files.epoch {
		a.dropEntering() // their primary is gone
	}
	a.files.useEpoch(epoch)
}

// admit says whether rec may be applied now, and whether it was tried before.
func (a *Applier) admit(rec *record.Record) error {
	if a.closed {
		return fmt.Errorf("%w: %w", ErrOrder, errClosed)
	}
	if n := len(a.queued.tasks); n > 0 {
		return fmt.Errorf("%w: %d records wait to be applied before %d", ErrOrder, n, rec.LSN)
	}
	intent, intentEpoch := a.st.intent()
	a.begins = a.beginsCopy(rec)
	lsn, epoch := a.st.position()
	tried := intent >= rec.LSN
	if a.begins {
		tried = intent == rec.LSN
	}
	a.resumed = tried && intentEpoch == rec.Epoch
	if !a.begins {
		switch {
		case rec.LSN != lsn+1:
			return fmt.Errorf("%w: LSN %d after %d", ErrOrder, rec.LSN, lsn)
		case rec.Epoch < epoch:
			return fmt.Errorf("%w: record %d is of epoch %d, the one before of epoch %d",
				ErrOrder, rec.LSN, rec.Epoch, epoch)
		case a.copyStale:
			return fmt.Errorf("record %d: %w", rec.LSN, ErrCopyInterrupted)
		}
	}
	if !a.begins && tried && !a.resumed {
		return a.failed(rec, diverged(
			"another record %d, of epoch %d, may have been applied in part before this one of epoch %d",
			rec.LSN, intentEpoch, rec.Epoch))
	}
	return nil
}

func (a *Applier) failed(rec *record.Record, err error) error {
	return &Error{LSN: rec.LSN, Op: rec.Op, Path: rec.Path, Err: hint(err), Divergence: divergence(err)}
}

// dispatch carries out the record.
func (a *Applier) dispatch(rec *record.Record) error {
	switch rec.Op {
	case record.OpEpoch:
		return nil
	case record.OpSync:
		return a.syncAll(rec)
	case record.OpSyncBegin:
		return a.beginCopy(rec)
	case record.OpSyncEnd:
		return a.endCopy(rec)
	case record.OpState, record.OpStateData, record.OpStateEnd:
		if !a.syncing && !rec.Flags.Has(record.FlagLive) {
			return nil
		}
		return a.stateRecord(rec)
	}
	if a.syncing {
		return a.mutateCopy(rec)
	}
	return a.mutate(rec)
}

// mutate applies a mutation to a store that is exactly at the LSN before.
func (a *Applier) mutate(rec *record.Record) error {
	err := a.mutateOnce(rec)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return err
	}
	if cleared, cerr := a.makeWay(rec); cerr != nil {
		return errors.Join(err, cerr)
	} else if !cleared {
		return err
	}
	return a.mutateOnce(rec)
}

func (a *Applier) mutateOnce(rec *record.Record) error {
	switch rec.Op {
	case record.OpFsync:
		return a.fsync(rec)
	case record.OpCreate:
		return a.create(rec)
	case record.OpMkdir:
		return a.mkdir(rec)
	case record.OpSymlink:
		return a.symlink(rec)
	case record.OpLink:
		return a.link(rec)
	case record.OpUnlink, record.OpRmdir, record.OpRemoveTree:
		return a.remove(rec)
	case record.OpRename:
		return a.rename(rec)
	case record.OpWrite:
		return a.write(rec)
	case record.OpSetAttr:
		return a.setAttr(rec)
	case record.OpFallocate:
		return a.fallocate(rec)
	case record.OpCopyRange:
		return a.copyRange(rec)
	case record.OpSetXattr, record.OpRemoveXattr:
		return a.xattr(rec)
	}
	return fmt.Errorf("operation %d is unknown to this version of replfs; upgrade the standby first", rec.Op)
}

// Flush waits until no fsync is outstanding. Its error is ctx's, or says which
// fsync failed or why the state is suspect.
func (a *Applier) Flush(ctx context.Context) error {
	if err := a.sync.wait(ctx); err != nil {
		return fmt.Errorf("flush store: %w", err)
	}
	return nil
}

// Sync makes everything that is applied durable, asked for or not, and waits
// for it. The errors are Flush's.
func (a *Applier) Sync(ctx context.Context) error {
	if err := a.sync.addWhole(a.root.FD(), false); err != nil {
		return fmt.Errorf("sync store: %w", err)
	}
	return a.Flush(ctx)
}
