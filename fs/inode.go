package fs

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// inode is a file of the store that the kernel, or one of ours, knows.
type inode struct {
	// id is the kernel's node id and the records' file id. Never reused.
	id  uint64
	key inodeKey
	// typ is st_mode's S_IFMT part.
	typ uint32
	// durability is the Durability of the file's path, as of pathGen.
	durability atomic.Uint32
	// dir is the descriptor of a directory. Everything else is reached through
	// its directory or an open handle.
	dir dirFD

	// mu orders the mutations of this inode, and of a directory's entries.
	// Taken by lockInodes, under FS.tree.
	mu sync.Mutex

	// The rest is guarded by table.mu.

	lookups uint64 // what the kernel will forget
	pins    int    // our own references
	kids    int    // names whose directory this is
	// names are the names known to be alive. A file may have more that were
	// never looked up.
	names   []dirName
	handles []*handle
	// shared says that requests without a handle may use one of handles.
	shared bool
	// ghost is an O_PATH descriptor of what has no name any more, or -1. What the
	// kernel resolved before a rename still finds the replaced file; and FIFOs,
	// devices and symlinks, which no handle is for, may be open.
	ghost int
	// last is the state of an inode that lost its last name.
	last *unix.Stat_t
	// role is the FS.role in which the kernel was last told to drop pages.
	role uint64
	// seq counts changes of a directory's entries; odd while one is removed.
	seq uint64
	// path is the cached path of a tracked name at generation pathGen.
	path    string
	tracked bool
	pathGen uint64
	// layout counts shifts of the content (collapse, insert), which a copy
	// under way must notice. Guarded by mu.
	layout uint64
	// absentIn is the FS.role in which an attribute was found to be absent, see
	// absent.go. Guarded by mu.
	absentIn uint64
	// lastRecord is the LSN of its last record, 0 for not known; see position.go.
	lastRecord atomic.Uint64
}

type inodeKey struct{ dev, ino uint64 }

type dirName struct {
	dir  *inode
	name string
}

func keyOf(st *unix.Stat_t) inodeKey { return inodeKey{st.Dev, st.Ino} }

func (n *inode) isDir() bool { return n.typ == unix.S_IFDIR }

// rootID is FUSE_ROOT_ID.
const rootID = 1

// table is the inode table. Its lock is the innermost one.
type table struct {
	fs    *FS
	mu    sync.Mutex
	byID  map[uint64]*inode
	byKey map[inodeKey]*inode
	next  uint64
	root  *inode
	dirs  dirFiles
	// peak is the most that byID held since it was made.
	peak int
	// gen grows with every rename of a directory: cached paths of older
	// generations are void.
	gen uint64
}

func (t *table) init(fs *FS, fd int, st *unix.Stat_t) {
	t.fs = fs
	t.root = &inode{id: rootID, key: keyOf(st), typ: unix.S_IFDIR, ghost: -1, lookups: 1, pins: 1}
	t.root.dir.num.Store(int32(fd))
	t.dirs.limit = openDirLimit()
	t.byID = map[uint64]*inode{rootID: t.root}
	t.byKey = map[inodeKey]*inode{t.root.key: t.root}
	t.next = rootID + 1
	t.gen = 1
	t.noteDurability(t.root)
}

func (t *table) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.byID {
		if fd, ok := t.dropDir(n); ok && n != t.root {
			unix.Close(fd)
		}
		if n.ghost >= 0 {
			unix.Close(n.ghost)
		}
		// A request that got n before and comes too late finds nothing.
		n.ghost, n.names, n.handles = -1, nil, nil
	}
	t.byID, t.byKey = nil, nil
}

// shrink gives back the memory of what the kernel has forgotten: a map keeps
// what it has grown to.
func (t *table) shrink() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.peak < 4096 || len(t.byID) > t.peak/4 {
		return
	}
	byID, byKey := make(map[uint64]*inode, len(t.byID)), make(map[inodeKey]*inode, len(t.byKey))
	maps.Copy(byID, t.byID)
	maps.Copy(byKey, t.byKey)
	t.byID, t.byKey, t.peak = byID, byKey, len(byID)
}

// get finds the inode of a request; nil if the kernel speaks of one that it
// does not hold.
func (t *table) get(id uint64) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

func (t *table) getKey(k inodeKey) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byKey[k]
}

// refKind says who holds the reference that intern adds.
type refKind uint8

const (
	refKernel refKind = iota
	refPin
)

// lookup resolves name in the directory p and adds a reference. It needs no
// inode lock: it tries again when p's entries change meanwhile.
func (t *table) lookup(p *inode, name string, st *unix.Stat_t, kind refKind) (*inode, error) {
	for {
		t.mu.Lock()
		seq := p.seq
		t.mu.Unlock()
		if seq&1 != 0 {
			time.Sleep(10 * time.Microsecond)
			continue
		}
		if err := unix.Fstatat(t.fs.dirfd(p), name, st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, err
		}
		if n := t.intern(p, name, st, kind, &seq); n != nil {
			return n, nil
		}
	}
}

// intern finds or makes the inode for st, notes that it is called name in p,
// and adds a reference. With seq it returns nil when p changed since; without,
// the caller has just made the file.
func (t *table) intern(p *inode, name string, st *unix.Stat_t, kind refKind, seq *uint64) *inode {
	t.mu.Lock()
	if seq != nil && p.seq != *seq {
		t.mu.Unlock()
		return nil
	}
	n := t.byKey[keyOf(st)]
	if n == nil {
		n = &inode{id: t.next, key: keyOf(st), typ: st.Mode & unix.S_IFMT, ghost: -1}
		t.next++
		if seq == nil && n.typ == unix.S_IFREG {
			t.fs.noteAbsent(n, capability) // it was just made
		}
		t.byID[n.id] = n
		t.byKey[n.key] = n
		t.peak = max(t.peak, len(t.byID))
	}
	t.addName(n, p, name)
	if kind == refKernel {
		n.lookups++
	} else {
		n.pins++
	}
	t.mu.Unlock()
	if n.isDir() && t.fs.cacheTime() == 0 {
		t.fs.dirfd(n) // it may move, unseen, before it is needed
	}
	return n
}

// addName and dropName need t.mu.
func (t *table) addName(n, p *inode, name string) {
	if n == t.root {
		return
	}
	dn := dirName{p, name}
	if slices.Contains(n.names, dn) {
		return
	}
	if n.isDir() {
		// A directory has one name; another one means that it moved while
		// nobody told us (a standby's store).
		for len(n.names) > 0 {
			t.dropName(n, n.names[0].dir, n.names[0].name)
			t.gen++
		}
	}
	n.names = append(n.names, dn)
	n.pathGen = 0
	p.kids++
}

func (t *table) dropName(n, p *inode, name string) {
	i := slices.Index(n.names, dirName{p, name})
	if i < 0 {
		return
	}
	n.names = slices.Delete(n.names, i, i+1)
	n.pathGen = 0
	p.kids--
	t.reap(p)
}

// forget takes back references of the kernel.
func (t *table) forget(id, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || n == t.root {
		return
	}
	n.lookups -= min(count, n.lookups)
	t.reap(n)
}

// pin keeps an inode in the table; unpin lets it go.
func (t *table) pin(n *inode) {
	t.mu.Lock()
	n.pins++
	t.mu.Unlock()
}

func (t *table) unpin(n *inode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.pins--
	t.reap(n)
}

// reap drops an inode that nobody refers to, and with it directories that
// were kept for its path. Needs t.mu.
func (t *table) reap(n *inode) {
	for n != nil && n != t.root && n.lookups == 0 && n.pins == 0 && n.kids == 0 && t.byID[n.id] == n {
		delete(t.byID, n.id)
		if t.byKey[n.key] == n {
			delete(t.byKey, n.key)
		}
		if fd, ok := t.dropDir(n); ok {
			t.fs.janitor.closeLater(fd)
		}
		if n.ghost >= 0 {
			// Only requests for n use it, and there are none.
			unix.Close(n.ghost)
			n.ghost = -1
		}
		names := n.names
		n.names = nil
		n = nil
		for i, dn := range names {
			dn.dir.kids--
			if i == 0 {
				n = dn.dir
			} else {
				t.reap(dn.dir)
			}
		}
	}
}

// removing comes before the system call that takes name from n in p. When it
// is the last name, the inode's number may be used again by the store from
// that moment on, by a new file in any directory: n must not be found by it.
func (t *table) removing(n, p *inode, last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.seq++
	if n != nil && last && t.byKey[n.key] == n {
		delete(t.byKey, n.key)
	}
}

// kept undoes removing: the system call failed.
func (t *table) kept(n, p *inode, last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.seq++
	if n != nil && last {
		t.byKey[n.key] = n
	}
}

// removed ends removing. last is the state before, if that was the last name.
func (t *table) removed(n, p *inode, name string, last *unix.Stat_t) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.seq++
	if n == nil {
		return
	}
	if last == nil {
		t.dropName(n, p, name)
		return
	}
	st := *last
	st.Nlink = 0
	n.last = &st
	t.pinned(n, func() {
		for len(n.names) > 0 {
			t.dropName(n, n.names[0].dir, n.names[0].name)
		}
	})
}

// bury keeps a descriptor of a file that lost its last name, as long as the
// kernel knows it.
func (t *table) bury(n *inode, fd int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[n.id] == n && n.ghost < 0 {
		n.ghost = fd
		return
	}
	unix.Close(fd)
}

// pinned runs f while n cannot be reaped. Needs t.mu.
func (t *table) pinned(n *inode, f func()) {
	n.pins++
	f()
	n.pins--
	t.reap(n)
}

// linked notes a new name of n.
func (t *table) linked(n, p *inode, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.seq += 2
	n.last = nil
	t.addName(n, p, name)
}

// changed notes that p's entries changed.
func (t *table) changed(p *inode) {
	t.mu.Lock()
	p.seq += 2
	t.mu.Unlock()
}

// moved notes a rename; for a directory, with FS.tree held exclusively.
func (t *table) moved(n, from *inode, oldName string, to *inode, newName string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	from.seq += 2
	to.seq += 2
	if n == nil {
		return
	}
	t.pinned(n, func() {
		t.dropName(n, from, oldName)
		t.addName(n, to, newName)
	})
	if n.isDir() {
		t.gen++
	}
}

// path returns a name of n for its records, relative to the store. ok is
// false when its mutations give none: no name is left (then path is empty),
// or all are excluded, or it is a socket. Call it with n.mu (or the tree exclusively) held, so
// that the answer stays true until the record is appended.
func (t *table) path(n *inode) (path string, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pathLocked(n)
}

func (t *table) pathLocked(n *inode) (string, bool) {
	if n == t.root {
		return "", true
	}
	if n.pathGen == t.gen {
		return n.path, n.tracked
	}
	n.path, n.tracked = "", false
	if n.typ != unix.S_IFSOCK {
		for _, dn := range n.names {
			if n.path, n.tracked = t.childPath(dn.dir, dn.name); n.tracked {
				break
			}
		}
	}
	// A nameless inode with names elsewhere is searched for; see named.
	if len(n.names) > 0 || n.last != nil {
		n.pathGen = t.gen
	}
	if n.tracked {
		t.noteDurability(n)
	}
	return n.path, n.tracked
}

// childPath is the path of an entry, and whether it is replicated.
func (t *table) childPath(dir *inode, name string) (string, bool) {
	p, ok := t.pathLocked(dir)
	if !ok && p == "" {
		return "", false // of a directory without a name
	}
	if p != "" {
		var b strings.Builder
		b.Grow(len(p) + 1 + len(name))
		b.WriteString(p)
		b.WriteByte('/')
		b.WriteString(name)
		p = b.String()
	} else {
		p = name
	}
	return p, ok && !t.fs.cfg.Excluded(p)
}

// entryPath is childPath for a caller without the lock.
func (t *table) entryPath(dir *inode, name string) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.childPath(dir, name)
}

// pathAs is path by one name, if n still has that.
func (t *table) pathAs(n *inode, as dirName) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.Contains(n.names, as) {
		return "", false
	}
	return t.childPath(as.dir, as.name)
}

// allPaths are all tracked names of n that are known.
func (t *table) allPaths(n *inode) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for _, dn := range n.names {
		if p, ok := t.childPath(dn.dir, dn.name); ok {
			out = append(out, p)
		}
	}
	return out
}

// ref gives a way to reach n. Valid while FS.tree is held.
func (t *table) ref(n *inode) (fileRef, bool) {
	if n.isDir() {
		fd := t.fs.dirfd(n)
		return fileRef{dirfd: fd, name: "."}, fd >= 0
	}
	t.mu.Lock()
	if len(n.names) == 0 {
		defer t.mu.Unlock()
		if ref, ok := n.openRef(); ok {
			return ref, true
		}
		return fileRef{dirfd: n.ghost, path: true}, n.ghost >= 0
	}
	dn := n.names[0]
	t.mu.Unlock()
	return fileRef{dirfd: t.fs.dirfd(dn.dir), name: dn.name}, true
}

// openRef reaches n through an open handle.
func (t *table) openRef(n *inode) (fileRef, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.openRef()
}

// openFD is a descriptor that is open anyway. Needs t.mu.
func (n *inode) openFD() (fd int, ok bool) {
	switch {
	case n.dir.num.Load() != 0:
		return int(n.dir.num.Load()), true
	case len(n.handles) > 0:
		return n.handles[0].fd, true
	}
	return -1, false
}

func (n *inode) openRef() (fileRef, bool) {
	if len(n.handles) == 0 {
		return fileRef{}, false
	}
	n.shared = true
	return fileRef{dirfd: n.handles[0].fd}, true
}

// lockInodes locks up to four inodes, nil and repeated ones once, in the one
// order that all use: directories before others, then by id.
func lockInodes(ns ...*inode) (unlock func()) {
	var held [4]*inode
	k := 0
	for _, n := range ns {
		if n != nil && !slices.Contains(held[:k], n) {
			held[k] = n
			k++
		}
	}
	slices.SortFunc(held[:k], func(a, b *inode) int {
		switch {
		case a.isDir() != b.isDir():
			if a.isDir() {
				return -1
			}
			return 1
		case a.id < b.id:
			return -1
		default:
			return 1
		}
	})
	for _, n := range held[:k] {
		n.mu.Lock()
	}
	return func() {
		for i := k - 1; i >= 0; i-- {
			held[i].mu.Unlock()
		}
	}
}
