package apply

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"
)

// updateMeta changes what changes rarely, durably.
func (a *Applier) updateMeta(change func(*meta)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return errClosed
	}
	return a.st.update(change)
}

// SetInSync stores whether the primary waits for this node, durably.
func (a *Applier) SetInSync(inSync bool) error {
	return a.updateMeta(func(m *meta) { m.inSync = inSync })
}

// SetApplied says that the store is at this position now because something
// else wrote to it: a primary that is demoted becomes a standby there. A
// record that was applied in part and a copy that ran count no more. Durable
// follows when the store was synced in the background.
func (a *Applier) SetApplied(lsn, epoch uint64) error {
	err := a.rebase(lsn, epoch, false, func(m *meta) { m.fresh, m.syncing = false, false })
	if err != nil {
		return fmt.Errorf("set position %d/%d: %w", epoch, lsn, err)
	}
	if err := a.sync.addWhole(a.root.FD(), false); err != nil {
		return fmt.Errorf("set position %d/%d: %w", epoch, lsn, err)
	}
	return nil
}

// BeginFresh forgets what was applied: the store was emptied for a complete
// copy, and the next record is lsn+1 or an OpSyncBegin for this node. That the
// state is suspect remains until the copy is complete.
func (a *Applier) BeginFresh(lsn, epoch uint64) error {
	err := a.rebase(lsn, epoch, true, func(m *meta) {
		m.fresh, m.syncing, m.inSync, m.storeIno = true, false, false, a.storeIno
	})
	if err != nil {
		return fmt.Errorf("begin afresh at %d/%d: %w", epoch, lsn, err)
	}
	a.sync.advance(lsn)
	return nil
}

// DropCaches closes all cached files and directories: what they name may have
// been changed by others.
func (a *Applier) DropCaches() {
	a.files.lru.Purge()
	a.root.ForgetAll()
}

// rebase moves to another position, which ends any copy.
func (a *Applier) rebase(lsn, epoch uint64, fresh bool, change func(*meta)) error {
	if a.closed {
		return errClosed
	}
	a.settleSyncs()
	if err := a.updateMeta(change); err != nil {
		return err
	}
	a.DropCaches()
	a.fresh, a.syncing, a.copyStale = fresh, false, false
	a.copy = copyState{}
	durable, _ := a.sync.position()
	a.st.clearIntent()
	// The durable LSN may not be past the position at any moment.
	a.sync.moveTo(lsn, min(durable, lsn), false)
	a.st.setPosition(lsn, epoch)
	return nil
}

// settleSyncs waits for the outstanding fsyncs, whatever comes of them.
func (a *Applier) settleSyncs() {
	if err := a.sync.wait(context.Background()); err != nil {
		a.log.Debug("fsyncs settled", zap.Error(err))
	}
}

// MarkSuspect stores durably that the store may not be what its position says,
// and why. It ends being in sync, and Durable stays where it is.
func (a *Applier) MarkSuspect(reason string) error {
	if reason == "" {
		reason = "for a reason not given"
	}
	a.sync.freeze(errors.New(reason))
	return a.setSuspect(reason)
}

func (a *Applier) setSuspect(reason string) error {
	return a.updateMeta(func(m *meta) {
		m.suspect, m.inSync, m.reason = true, false, limit(reason, maxReason)
	})
}

// syncFailed is called by a worker. What the kernel failed to write it may
// have dropped, and a later fsync would not say so again.
func (a *Applier) syncFailed(err error) {
	a.log.Error("fsync failed: the store cannot be trusted any more", zap.Error(err))
	if err := a.setSuspect(err.Error()); err != nil {
		a.log.Error("cannot store that the store is suspect", zap.Error(err))
	}
}

// ClearSuspect says that the store was found or made to be what its position
// says. Durable follows when the store was synced in the background.
func (a *Applier) ClearSuspect() error {
	err := a.updateMeta(func(m *meta) { m.suspect, m.reason, m.storeIno = false, "", a.storeIno })
	if err == nil {
		err = a.sync.addWhole(a.root.FD(), true)
	}
	if err != nil {
		return fmt.Errorf("trust the store again: %w", err)
	}
	return nil
}

// Close ends the workers, makes the store durable, and then notes that
// durably: the next Open trusts the position even if the machine was restarted
// meanwhile. An error means that it will not, or that closing failed; the
// applier is closed all the same.
func (a *Applier) Close() error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil
	}
	a.mu.Unlock()
	a.sync.close()
	_, failed := a.sync.position()
	var err error
	if failed == nil {
		err = a.k.syncfs(a.root.FD())
		if err == nil {
			err = a.markClean()
		}
		if err != nil {
			err = fmt.Errorf("close store: %w", err)
		}
	}
	return errors.Join(err, a.release())
}

func (a *Applier) markClean() error {
	lsn, epoch := a.st.position()
	a.sync.moveTo(lsn, lsn, false)
	return a.updateMeta(func(m *meta) { m.clean, m.cleanLSN, m.cleanEpoch = true, lsn, epoch })
}

// release gives back what the applier holds.
func (a *Applier) release() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = a.state()
	a.closed = true
	a.files.lru.Purge()
	a.dropEntering()
	return errors.Join(a.st.close(), a.root.Close())
}
