package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Writable reports whether mutations are accepted right now.
func (fs *FS) Writable() bool { return fs.gate.open() }

// SetWritable makes this the primary's file system: names that the table
// learnt while somebody else changed the store are checked, the kernel may
// cache, mutations may come.
func (fs *FS) SetWritable() {
	if !fs.unbroken.Swap(false) {
		fs.tree.Lock()
		fs.table.verifyNames()
		fs.rehomeAll()
		fs.tree.Unlock()
		fs.lost.reset()
		fs.role.Add(1)
	}
	fs.ttl.Store(int64(primaryTTL))
	fs.gate.set(gateOpen)
}

// SetReadOnly closes the gate; when it returns no mutation is under way and
// every further one gets EROFS. The kernel's caches are dropped, because the
// store will change underneath from now on.
func (fs *FS) SetReadOnly() {
	fs.gate.set(gateClosed)
	fs.unbroken.Store(false)
	fs.ttl.Store(0)
	if srv := fs.srv.Load(); srv != nil {
		go fs.invalidate(srv)
	}
}

// invalidate drops what the kernel cached. It runs outside every handler and
// lock: the kernel may wait for requests of ours while it works.
func (fs *FS) invalidate(srv *fuse.Server) {
	type entry struct {
		parent uint64
		name   string
	}
	fs.table.mu.Lock()
	ids := make([]uint64, 0, len(fs.table.byID))
	var entries []entry
	for id, n := range fs.table.byID {
		if n.lookups > 0 {
			ids = append(ids, id)
		}
		for _, dn := range n.names {
			entries = append(entries, entry{dn.dir.id, dn.name})
		}
	}
	fs.table.mu.Unlock()
	for _, id := range ids {
		if s := srv.InodeNotify(id, 0, 0); !s.Ok() && s != fuse.ENOENT {
			fs.log.Debug("invalidate", zap.Uint64("node", id), zap.Stringer("status", s))
		}
	}
	for _, e := range entries {
		srv.EntryNotify(e.parent, e.name)
	}
}

// verifyNames drops names that no longer mean their inode. FS.tree is held
// exclusively.
func (t *table) verifyNames() {
	t.mu.Lock()
	t.gen++
	all := make([]*inode, 0, len(t.byID))
	for _, n := range t.byID {
		n.pins++
		all = append(all, n)
	}
	t.mu.Unlock()
	type name struct {
		n  *inode
		dn dirName
	}
	var gone []name
	for i, n := range all {
		if i%1024 == 0 && t.tooManyDirs() {
			t.evict()
		}
		for _, dn := range n.names {
			var st unix.Stat_t
			err := unix.Fstatat(t.fs.dirfd(dn.dir), dn.name, &st, unix.AT_SYMLINK_NOFOLLOW)
			if err != nil || keyOf(&st) != n.key {
				gone = append(gone, name{n, dn})
			}
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, g := range gone {
		t.dropName(g.n, g.dn.dir, g.dn.name)
	}
	for _, n := range all {
		n.pathGen = 0
		n.lastRecord.Store(0)
		if len(n.names) == 0 && n != t.root && t.byKey[n.key] == n {
			t.rehome(n)
		}
	}
	for _, n := range all {
		n.pins--
		t.reap(n)
	}
}

// rehome decides about an inode none of whose names is known any more: it
// may be gone from the store, and its number used again.
func (t *table) rehome(n *inode) {
	fd, open := n.openFD()
	var st unix.Stat_t
	if open && unix.Fstat(fd, &st) == nil && st.Nlink > 0 {
		return // alive elsewhere: the next lookup, or a search, finds it
	}
	delete(t.byKey, n.key)
	if open {
		last := st
		n.last = &last
	}
}
