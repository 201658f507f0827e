package fs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func (fs *FS) cacheTime() time.Duration { return time.Duration(fs.ttl.Load()) }

func (fs *FS) fillEntry(out *fuse.EntryOut, n *inode, st *unix.Stat_t) {
	ttl := fs.cacheTime()
	out.NodeId = n.id
	out.Generation = uint64(fs.generation)
	out.SetEntryTimeout(ttl)
	out.SetAttrTimeout(ttl)
	fillAttr(&out.Attr, st)
}

// Lookup resolves a name.
func (fs *FS) Lookup(_ <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	p := fs.table.get(header.NodeId)
	if p == nil || !p.isDir() {
		return fuse.Status(unix.ESTALE)
	}
	var st unix.Stat_t
	n, err := fs.table.lookup(p, name, &st, refKernel)
	if err == unix.ENOENT {
		if ttl := fs.cacheTime(); ttl > 0 {
			// Node id 0 lets the kernel remember that there is nothing.
			out.NodeId = 0
			out.SetEntryTimeout(ttl)
			return fuse.OK
		}
	}
	if err != nil {
		return errStatus(err)
	}
	fs.fillEntry(out, n, &st)
	return fuse.OK
}

// Forget drops references of the kernel.
func (fs *FS) Forget(nodeid, nlookup uint64) { fs.table.forget(nodeid, nlookup) }

// statInode reads n's attributes, by handle if the kernel named one.
func (fs *FS) statInode(n *inode, h *handle, st *unix.Stat_t) error {
	if h != nil && h.inode == n {
		return unix.Fstat(h.fd, st)
	}
	if err := fs.statNamed(n, st); err != unix.ESTALE {
		return err
	}
	// A rename or unlink may be between its system call and the table. With
	// the lock, a name that does not mean n was moved underneath (a standby's
	// store): the kernel looks it up anew.
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := fs.statNamed(n, st); err != unix.ESTALE {
		return err
	}
	// Removed underneath, but somebody has it open.
	if ref, ok := fs.table.openRef(n); ok {
		return ref.stat(st)
	}
	return unix.ESTALE
}

func (fs *FS) statNamed(n *inode, st *unix.Stat_t) error {
	for range 16 {
		ref, ok := fs.table.ref(n)
		if !ok {
			fs.table.mu.Lock()
			last := n.last
			fs.table.mu.Unlock()
			if last == nil {
				return unix.ESTALE
			}
			*st = *last
			return nil
		}
		if err := ref.stat(st); err == nil && keyOf(st) == n.key {
			return nil
		} else if err != nil && err != unix.ENOENT {
			return err
		}
		// It was just replaced or removed.
		fs.dropStale(n, ref)
	}
	return unix.ESTALE
}

// dropStale forgets a name by which n was not found on a standby, whose store
// changes underneath: n may have another one. A primary's names are right, but
// for the moment of a rename or an unlink.
func (fs *FS) dropStale(n *inode, ref fileRef) {
	if fs.cacheTime() > 0 || ref.name == "" || n.isDir() {
		return
	}
	t := &fs.table
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, dn := range n.names {
		if int(dn.dir.dir.num.Load()) == ref.dirfd && dn.name == ref.name {
			t.pinned(n, func() { t.dropName(n, dn.dir, dn.name) })
			return
		}
	}
}

// holdRef is table.ref for calls that cannot tell
// whether they have met n. n.mu is held, which on a primary keeps the name n's;
// on a standby it takes a descriptor, which release closes.
func (fs *FS) holdRef(n *inode) (ref fileRef, release func(), err error) {
	release = func() {}
	ref, ok := fs.table.ref(n)
	switch {
	case !ok:
		return ref, release, unix.ESTALE
	case ref.name == "" || n.isDir() || fs.cacheTime() > 0:
		return ref, release, nil
	}
	fd, err := fs.openInode(n, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return ref, release, err
	}
	return fileRef{dirfd: fd, path: true}, func() { unix.Close(fd) }, nil
}

// GetAttr is stat.
func (fs *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	n := fs.table.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	var h *handle
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 {
		h = fs.handles.get(in.Fh())
	}
	var st unix.Stat_t
	if err := fs.statInode(n, h, &st); err != nil {
		return errStatus(err)
	}
	out.SetTimeout(fs.cacheTime())
	fillAttr(&out.Attr, &st)
	return fuse.OK
}

// Statx is stat with the time of birth, which is all that the kernel takes
// from it beyond what GetAttr says.
func (fs *FS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	n := fs.table.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	var h *handle
	if in.GetattrFlags&fuse.FUSE_GETATTR_FH != 0 {
		h = fs.handles.get(in.Fh)
	}
	var st unix.Stat_t
	if err := fs.statInode(n, h, &st); err != nil {
		return errStatus(err)
	}
	out.SetTimeout(fs.cacheTime())
	fillStatx(&out.Statx, &st)
	n.mu.Lock() // the name stays n's
	defer n.mu.Unlock()
	ref, ok := fs.table.ref(n)
	if h != nil && h.inode == n {
		ref, ok = fileRef{dirfd: h.fd}, true
	}
	var x unix.Statx_t
	if ok && ref.statx(&x) == nil && x.Ino == st.Ino && x.Mask&unix.STATX_BTIME != 0 {
		out.Mask |= unix.STATX_BTIME
		out.Btime.FromStatxTimestamp(&x.Btime)
	}
	return fuse.OK
}

// Readlink reads a symlink's target.
func (fs *FS) Readlink(_ <-chan struct{}, header *fuse.InHeader) ([]byte, fuse.Status) {
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	n := fs.table.get(header.NodeId)
	if n == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	n.mu.Lock() // the name stays n's
	defer n.mu.Unlock()
	ref, release, err := fs.holdRef(n)
	if err != nil {
		return nil, errStatus(err)
	}
	defer release()
	target, err := readlinkat(ref)
	if err != nil {
		return nil, errStatus(err)
	}
	return target, fuse.OK
}

func readlinkat(ref fileRef) ([]byte, error) {
	buf := make([]byte, unix.PathMax)
	k, err := unix.Readlinkat(ref.dirfd, ref.name, buf)
	if err != nil {
		return nil, err
	}
	return buf[:k], nil
}

// StatFs describes the store's file system.
func (fs *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var s unix.Statfs_t
	if err := unix.Fstatfs(fs.storeFd, &s); err != nil {
		return errStatus(err)
	}
	out.Blocks, out.Bfree, out.Bavail = s.Blocks, s.Bfree, s.Bavail
	out.Files, out.Ffree = s.Files, s.Ffree
	out.Bsize, out.Frsize, out.NameLen = uint32(s.Bsize), uint32(s.Frsize), uint32(s.Namelen)
	return fuse.OK
}
