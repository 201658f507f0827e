package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"

	"github.com/replfs/replfs/replicate/record"
)

// Durability says what must have happened before a request is answered. A
// stricter one is a greater one.
type Durability uint8

const (
	// Async: an fsync is done on this node's store.
	Async Durability = iota
	// Received: and the standbys in sync have in memory what came before it.
	Received
	// Fsync: and they have done the same fsync.
	Fsync
	// Sync: and every other mutation is applied by them.
	Sync
)

// PathDurability gives the paths that match a durability of their own.
type PathDurability struct {
	// Match is asked about paths relative to the store; "" is its root.
	Match      func(path string) bool
	Durability Durability
}

// syncsAnywhere tells whether any mutation has to wait.
func (c *Config) syncsAnywhere() bool {
	for _, p := range c.Paths {
		if p.Durability == Sync {
			return true
		}
	}
	return c.Durability == Sync
}

// durabilityAt is that of a path: the first rule that matches decides.
func (c *Config) durabilityAt(path string) Durability {
	for i := range c.Paths {
		if c.Paths[i].Match(path) {
			return c.Paths[i].Durability
		}
	}
	return c.Durability
}

// noteDurability caches that of n along with its path. Of a file with several
// names that are known, the strictest counts. Needs t.mu.
func (t *table) noteDurability(n *inode) {
	if len(t.fs.cfg.Paths) == 0 {
		return
	}
	d := t.fs.cfg.durabilityAt(n.path)
	for i := 0; len(n.names) > 1 && i < len(n.names); i++ {
		if p, tracked := t.childPath(n.names[i].dir, n.names[i].name); tracked {
			d = max(d, t.fs.cfg.durabilityAt(p))
		}
	}
	n.durability.Store(uint32(d))
}

// durability is that of an inode whose path was asked for under the locks that
// are held now: what it is called at this moment counts.
func (fs *FS) durability(n *inode) Durability {
	if len(fs.cfg.Paths) == 0 {
		return fs.cfg.Durability
	}
	return Durability(n.durability.Load())
}

// passage is a mutation's way through the gate and, when the durability of what
// it changes is Sync, to the standbys.
type passage struct {
	fs *FS
	// durability is the strictest of what is changed and recorded.
	durability Durability
}

// recordSize is about what a record without data takes in the log.
const recordSize = 256

// enter passes the gate; size is what the log will grow by.
func (p *passage) enter(size int) fuse.Status { return p.fs.gate.enter(size) }

// changes says that the inode will be changed; its path is known.
func (p *passage) changes(n *inode) {
	if p.fs.syncs {
		p.durability = max(p.durability, p.fs.durability(n))
	}
}

// changesAt says so of a name.
func (p *passage) changesAt(path string) {
	if p.fs.syncs {
		p.durability = max(p.durability, p.fs.cfg.durabilityAt(path))
	}
}

// changesDir says so of a directory whose times are all that r, made by
// asDirTimes, records.
func (p *passage) changesDir(r *record.Record, dir *inode) {
	if r.Fields != 0 {
		p.changes(dir)
	}
}

// leave ends the mutation, whose locks have been let go of, and returns what to
// answer instead of s.
func (p *passage) leave(s fuse.Status) fuse.Status {
	p.fs.gate.leave()
	if p.durability != Sync || !s.Ok() {
		return s
	}
	return p.fs.awaitApplied()
}

// awaitApplied waits until the standbys in sync show all that was recorded.
func (fs *FS) awaitApplied() fuse.Status {
	if err := fs.cfg.Log.WaitApplied(); err != nil {
		fs.log.Warn("mutation not acknowledged", zap.Error(err))
		return fuse.EIO
	}
	return fuse.OK
}

// awaitSynced waits for the standbys' part of an fsync.
func (fs *FS) awaitSynced(lsn uint64, d Durability) fuse.Status {
	var err error
	switch d {
	case Async:
	case Received:
		err = fs.cfg.Log.WaitReceived(lsn)
	default:
		err = fs.cfg.Log.WaitDurable(lsn)
	}
	if err != nil {
		fs.log.Warn("fsync not acknowledged", zap.Uint64("lsn", lsn), zap.Error(err))
		return fuse.EIO
	}
	return fuse.OK
}
