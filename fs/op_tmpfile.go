package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Tmpfile makes a file without a name (O_TMPFILE). Nothing of it is recorded
// until link(2) gives it one: then it enters the replicated tree with all that
// it holds.
func (fs *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	dir := fs.table.get(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	if s := fs.gate.enter(0); !s.Ok() {
		return s
	}
	defer fs.gate.leave()
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	defer lockInodes(dir)()
	e := newEntry{fs: fs, dir: dir, caller: &in.InHeader, perm: in.Mode & 0o7777, umask: in.Umask, typ: unix.S_IFREG}
	e.mask()
	// Not O_EXCL: whether it may get a name the kernel knows itself.
	flags := storeFlags(in.Flags)&^unix.O_NOFOLLOW | unix.O_TMPFILE
	fd, err := unix.Openat(fs.dirfd(dir), ".", flags, e.perm)
	if err != nil {
		return errStatus(err)
	}
	var st unix.Stat_t
	if err := e.settle(fd, &st); err != nil {
		unix.Close(fd)
		return errStatus(err)
	}
	n := fs.table.nameless(&st)
	fs.fillEntry(&out.EntryOut, n, &st)
	h := fs.openHandle(n, fd, true)
	out.Fh = h.id
	out.OpenFlags = fs.openMode(n, in.Flags)
	h.direct = out.OpenFlags&fuse.FOPEN_DIRECT_IO != 0
	return fuse.OK
}

// nameless makes the inode of a file that never had a name, with a reference
// of the kernel's. It is not found by its number, which may be used again as
// soon as its last descriptor is closed.
func (t *table) nameless(st *unix.Stat_t) *inode {
	last := *st
	t.mu.Lock()
	defer t.mu.Unlock()
	n := &inode{id: t.next, key: keyOf(st), typ: st.Mode & unix.S_IFMT, ghost: -1, lookups: 1, last: &last}
	t.next++
	t.byID[n.id] = n
	return n
}

// naming comes before the system call that gives a nameless inode a name: who
// looks that up at once must find n. A descriptor keeps its number. unnamed
// undoes it: the system call failed.
func (t *table) naming(n *inode) (was bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.last == nil {
		return false
	}
	t.byKey[n.key] = n
	return true
}

func (t *table) unnamed(n *inode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byKey[n.key] == n {
		delete(t.byKey, n.key)
	}
}
