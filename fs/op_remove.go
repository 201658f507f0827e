package fs

import (
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// lockEntry finds what name in dir is, and locks dir and it. The inode is in the
// table until unlock: a lookup that comes meanwhile must not make another one.
func (fs *FS) lockEntry(dir *inode, name string, st *unix.Stat_t) (n *inode, unlock func(), err error) {
	unlockDir := lockInodes(dir)
	n, err = fs.table.lookup(dir, name, st, refPin)
	switch {
	case err != nil:
		unlockDir()
		return nil, nil, err
	case !n.isDir():
		n.mu.Lock() // after the directory, whose lock keeps the name n's
		return n, func() { n.mu.Unlock(); unlockDir(); fs.table.unpin(n) }, nil
	}
	// Two directories are locked in their own order.
	for unlockDir(); ; {
		unlock := lockInodes(dir, n)
		err := unix.Fstatat(fs.dirfd(dir), name, st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && keyOf(st) == n.key {
			return n, func() { unlock(); fs.table.unpin(n) }, nil
		}
		unlock()
		fs.table.unpin(n)
		if err != nil {
			return nil, nil, err
		}
		if n, err = fs.table.lookup(dir, name, st, refPin); err != nil {
			return nil, nil, err
		}
	}
}

// Unlink removes a name of a non-directory.
func (fs *FS) Unlink(cancel <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	return fs.remove(cancel, header, name, record.OpUnlink, 0)
}

// Rmdir removes an empty directory.
func (fs *FS) Rmdir(cancel <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	return fs.remove(cancel, header, name, record.OpRmdir, unix.AT_REMOVEDIR)
}

func (fs *FS) remove(cancel <-chan struct{}, header *fuse.InHeader, name string, op record.Op, flags int) (s fuse.Status) {
	dir := fs.table.get(header.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	p := passage{fs: fs}
	if s := p.enter(recordSize); !s.Ok() {
		return s
	}
	defer func() { s = p.leave(s) }()
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	var st unix.Stat_t
	n, unlock, err := fs.lockEntry(dir, name, &st)
	if err != nil {
		return errStatus(err)
	}
	defer unlock()
	path, tracked := fs.table.entryPath(dir, name)
	tracked = tracked && st.Mode&unix.S_IFMT != unix.S_IFSOCK
	if tracked {
		p.changesAt(path)
	}

	last := op == record.OpRmdir || st.Nlink <= 1
	r := fs.newRecord(op)
	r.Request = header.Unique
	r.Path, r.FileID = path, n.id
	r.Fields = record.FieldPath | record.FieldFileID
	if last {
		r.Flags |= record.FlagLast
	}
	if !tracked {
		fs.asDirTimes(r, dir)
		p.changesDir(r, dir)
	}
	m := fs.begin(r)
	m.touch(dir, n)
	defer m.end()
	if n.isDir() {
		fs.dirfd(n) // who is in it goes on using it, without a name to open it by
	}
	ghost := -1
	if last && n.typ != unix.S_IFREG && n.typ != unix.S_IFDIR {
		ghost = openGhost(fs.dirfd(dir), name)
	}
	fs.table.removing(n, dir, last)
	if err := unix.Unlinkat(fs.dirfd(dir), name, flags); err != nil {
		fs.table.kept(n, dir, last)
		if ghost >= 0 {
			unix.Close(ghost)
		}
		return errStatus(err)
	}
	if ghost >= 0 {
		fs.table.bury(n, ghost)
	}
	if last {
		fs.table.removed(n, dir, name, &st)
	} else {
		fs.table.removed(n, dir, name, nil)
	}
	if !tracked {
		return m.commitDirTimes(dir)
	}
	fs.setParentTime(r, dir)
	_, s = m.commit(nil)
	return s
}

// openGhost opens what is about to lose its last name; -1 if it cannot be.
func openGhost(dirfd int, name string) int {
	fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

// Rename moves a name, over another one or swapping with it.
func (fs *FS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) (s fuse.Status) {
	from, to := fs.table.get(in.NodeId), fs.table.get(in.Newdir)
	if from == nil || to == nil {
		return fuse.Status(unix.ESTALE)
	}
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL // RENAME_WHITEOUT
	}
	p := passage{fs: fs}
	if s := p.enter(recordSize); !s.Ok() {
		return s
	}
	defer func() { s = p.leave(s) }()
	ren := rename{fs: fs, passage: &p, unique: in.Unique, from: from, to: to, oldName: oldName, newName: newName, flags: in.Flags}
	if s, done := ren.files(); done {
		return s
	}
	// A directory's rename changes the paths of all below it: do it alone.
	fs.tree.Lock()
	defer fs.tree.Unlock()
	if _, err := ren.look(); err != nil {
		return errStatus(err)
	}
	return ren.run()
}

// files does the rename if no directory moves.
func (r *rename) files() (s fuse.Status, done bool) {
	r.fs.tree.RLock()
	defer r.fs.tree.RUnlock()
	dir, err := r.look()
	if err != nil {
		return errStatus(err), true
	}
	if dir {
		return 0, false
	}
	unlock, again, err := r.lock()
	if err != nil {
		return errStatus(err), true
	}
	if again {
		return 0, false
	}
	defer unlock()
	return r.run(), true
}

type rename struct {
	fs               *FS
	passage          *passage
	from, to         *inode
	oldName, newName string
	flags            uint32
	unique           uint64

	src, dst     unix.Stat_t
	hasDst       bool
	srcIn, dstIn *inode
}

// look sees what the two names are, and whether a directory moves.
func (r *rename) look() (dir bool, err error) {
	if err := unix.Fstatat(r.fs.dirfd(r.from), r.oldName, &r.src, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	err = unix.Fstatat(r.fs.dirfd(r.to), r.newName, &r.dst, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && err != unix.ENOENT {
		return false, err
	}
	r.hasDst = err == nil
	r.srcIn = r.fs.table.getKey(keyOf(&r.src))
	r.dstIn = nil
	if r.hasDst {
		r.dstIn = r.fs.table.getKey(keyOf(&r.dst))
	}
	isDir := r.src.Mode&unix.S_IFMT == unix.S_IFDIR || r.hasDst && r.dst.Mode&unix.S_IFMT == unix.S_IFDIR
	return isDir, nil
}

// lock takes the inode locks for a rename of files; again when what look saw
// is no longer so.
func (r *rename) lock() (unlock func(), again bool, err error) {
	src, dst, had := keyOf(&r.src), keyOf(&r.dst), r.hasDst
	srcIn, dstIn := r.srcIn, r.dstIn
	unlock = lockInodes(r.from, r.to, srcIn, dstIn)
	dir, err := r.look()
	if err != nil {
		unlock()
		return nil, false, err
	}
	if dir || keyOf(&r.src) != src || r.hasDst != had || had && keyOf(&r.dst) != dst || r.srcIn != srcIn || r.dstIn != dstIn {
		unlock()
		return nil, true, nil
	}
	return unlock, false, nil
}

func (r *rename) run() fuse.Status {
	fs, exchange := r.fs, r.flags&unix.RENAME_EXCHANGE != 0
	oldPath, oldIn := fs.table.entryPath(r.from, r.oldName)
	newPath, newIn := fs.table.entryPath(r.to, r.newName)
	srcSock := r.src.Mode&unix.S_IFMT == unix.S_IFSOCK
	dstSock := r.hasDst && r.dst.Mode&unix.S_IFMT == unix.S_IFSOCK
	if exchange && oldIn != newIn {
		// Each side would have to travel as a deletion and a copy at once.
		// Nobody swaps with an excluded path; rename(2) knows EXDEV.
		return fuse.EXDEV
	}
	if r.src.Mode&unix.S_IFMT == unix.S_IFDIR && fs.crossesBelow(r.srcIn, oldPath, newPath, oldIn, newIn) {
		return fuse.EXDEV
	}
	if r.hasDst && !exchange && keyOf(&r.src) == keyOf(&r.dst) {
		// Two names of one file: rename(2) does nothing.
		return errStatus(unix.Renameat2(r.fs.dirfd(r.from), r.oldName, r.fs.dirfd(r.to), r.newName, uint(r.flags)))
	}

	// What it was called counts as well as what it is called then.
	if oldIn {
		r.passage.changesAt(oldPath)
	}
	if newIn {
		r.passage.changesAt(newPath)
	}
	rec := fs.newRecord(record.OpRename)
	rec.Request = r.unique
	rec.Path, rec.Path2 = newPath, oldPath
	rec.Fields = record.FieldPath | record.FieldPath2
	// The store's inode numbers tell a recovery whether it happened.
	rec.Size, rec.Length = int64(r.src.Ino), int64(r.dst.Ino)
	rec.Fields |= record.FieldSize | record.FieldLength
	if exchange {
		rec.Flags |= record.FlagExchange
	}
	m := fs.begin(rec)
	m.touch(r.from, r.to, r.srcIn, r.dstIn)
	defer m.end()
	over := r.hasDst && !exchange
	last := r.dst.Mode&unix.S_IFMT == unix.S_IFDIR || r.dst.Nlink <= 1
	ghost := -1
	if over && r.dstIn != nil && r.dstIn.isDir() {
		fs.dirfd(r.dstIn) // as in remove
	}
	if over {
		if last && r.dstIn != nil && r.dstIn.typ != unix.S_IFDIR {
			ghost = openGhost(fs.dirfd(r.to), r.newName)
		}
		fs.table.removing(r.dstIn, r.to, last)
	}
	if err := unix.Renameat2(r.fs.dirfd(r.from), r.oldName, r.fs.dirfd(r.to), r.newName, uint(r.flags)); err != nil {
		if over {
			fs.table.kept(r.dstIn, r.to, last)
		}
		if ghost >= 0 {
			unix.Close(ghost)
		}
		return errStatus(err)
	}
	if ghost >= 0 {
		fs.table.bury(r.dstIn, ghost)
	}
	rec.Fields &^= record.FieldSize | record.FieldLength
	rec.Size, rec.Length = 0, 0
	r.updateTable(exchange, last)
	if r.srcIn != nil {
		rec.FileID = r.srcIn.id
		rec.Fields |= record.FieldFileID
	}
	fs.setParentTime(rec, r.to)
	if rec.Fields.Has(record.FieldParentMtime) {
		var st unix.Stat_t
		if unix.Fstat(r.fs.dirfd(r.from), &st) == nil {
			rec.Parent2Mtime = mtimeOf(&st)
			rec.Fields |= record.FieldParent2Mtime
		}
	}
	r.movedTime(rec, &r.src, r.to, r.newName)
	s := fuse.OK
	if exchange {
		s = r.recordExchange(&m, oldIn, srcSock, dstSock)
	} else {
		s = r.record(&m, oldIn, newIn, srcSock, dstSock)
	}
	if s.Ok() {
		fs.completed.note(r.unique, rec.FileID, 0)
	}
	return s
}

// movedTime notes the mtime of a directory that went to another one, where it
// is called name now: XFS changes it, for the sake of "..".
func (r *rename) movedTime(rec *record.Record, was *unix.Stat_t, dir *inode, name string) {
	rec.Fields &^= record.FieldMtime
	if was.Mode&unix.S_IFMT != unix.S_IFDIR || r.from == r.to {
		return
	}
	var st unix.Stat_t
	if unix.Fstatat(r.fs.dirfd(dir), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		rec.Mtime = mtimeOf(&st)
		rec.Fields |= record.FieldMtime
	}
}

func (r *rename) updateTable(exchange, last bool) {
	t := &r.fs.table
	if exchange {
		t.moved(r.srcIn, r.from, r.oldName, r.to, r.newName)
		t.moved(r.dstIn, r.to, r.newName, r.from, r.oldName)
		return
	}
	if r.hasDst {
		if last {
			t.removed(r.dstIn, r.to, r.newName, &r.dst)
		} else {
			t.removed(r.dstIn, r.to, r.newName, nil)
		}
	}
	t.moved(r.srcIn, r.from, r.oldName, r.to, r.newName)
}

// record appends what a plain rename is to the standbys, who know neither
// sockets nor excluded paths.
func (r *rename) record(m *mutation, oldIn, newIn, srcSock, dstSock bool) fuse.Status {
	fs, rec := r.fs, m.rec
	victim := r.hasDst && newIn && !dstSock
	if victim && r.dstIn != nil {
		rec.FileID2 = r.dstIn.id
		rec.Fields |= record.FieldFileID2
		if r.dst.Mode&unix.S_IFMT == unix.S_IFDIR || r.dst.Nlink <= 1 {
			rec.Flags |= record.FlagLast
		}
	}
	srcHere, dstHere := oldIn && !srcSock, newIn && !srcSock
	switch {
	case srcHere && dstHere:
		_, s := m.commit(nil)
		return s
	case srcHere: // it leaves
		r.leave(m, rec.Path2, rec.Parent2Mtime)
		fs.recordDirTimes(r.to)
		_, s := m.commit(nil)
		return s
	case dstHere: // it enters
		if victim {
			r.leave(m, rec.Path, rec.ParentMtime)
			// The intent stays: what follows belongs to it.
			part := mutation{fs: fs, rec: rec}
			if _, s := part.commit(nil); !s.Ok() {
				return s
			}
		}
		s := fs.emitEntering(r.to, r.newName)
		fs.recordDirTimes(r.from)
		return s
	case victim: // a socket took a file's place
		r.leave(m, rec.Path, rec.ParentMtime)
		rec.FileID, rec.Fields = rec.FileID2, rec.Fields|record.FieldFileID
		if r.from != r.to {
			fs.recordDirTimes(r.from)
		}
		_, s := m.commit(nil)
		return s
	}
	fs.recordDirTimes(r.from)
	if r.from != r.to {
		fs.recordDirTimes(r.to)
	}
	return fuse.OK
}

// leave turns the record into the removal of path.
func (r *rename) leave(m *mutation, path string, parent record.Timespec) {
	m.rec.Op, m.rec.Flags = record.OpRemoveTree, m.rec.Flags&record.FlagLast
	m.rec.Path, m.rec.Path2, m.rec.ParentMtime = path, "", parent
	m.rec.Fields = record.FieldPath | record.FieldParentMtime | m.rec.Fields&(record.FieldFileID|record.FieldFileID2)
}

func (r *rename) recordExchange(m *mutation, in, srcSock, dstSock bool) fuse.Status {
	rec := m.rec
	switch {
	case !in || srcSock && dstSock:
		r.fs.recordDirTimes(r.from)
		if r.from != r.to {
			r.fs.recordDirTimes(r.to)
		}
		return fuse.OK
	case dstSock:
		rec.Flags &^= record.FlagExchange
	case srcSock:
		rec.Flags &^= record.FlagExchange
		rec.Path, rec.Path2 = rec.Path2, rec.Path
		rec.ParentMtime, rec.Parent2Mtime = rec.Parent2Mtime, rec.ParentMtime
		rec.Fields &^= record.FieldFileID
		if r.dstIn != nil {
			rec.FileID, rec.Fields = r.dstIn.id, rec.Fields|record.FieldFileID
		}
		r.movedTime(rec, &r.dst, r.from, r.oldName)
	}
	if _, s := m.commit(nil); !s.Ok() || srcSock || dstSock {
		return s
	}
	// The record has room for one of the two.
	other := record.Record{Op: record.OpSetAttr, Path: rec.Path2, Fields: record.FieldPath}
	if r.movedTime(&other, &r.dst, r.from, r.oldName); !other.Fields.Has(record.FieldMtime) {
		return fuse.OK
	}
	times := mutation{fs: r.fs, rec: &other}
	times.touch(r.dstIn)
	_, s := times.commit(nil)
	return s
}

// crossesBelow tells whether the rename of a directory would change which of
// the paths below it are excluded. mv(1) copies when told EXDEV.
func (fs *FS) crossesBelow(dir *inode, oldPath, newPath string, oldIn, newIn bool) bool {
	if !oldIn || !newIn || dir == nil {
		return false
	}
	differs := false
	walkNames(fs.dirfd(dir), func(rel string) bool {
		differs = fs.cfg.Excluded(oldPath+"/"+rel) != fs.cfg.Excluded(newPath+"/"+rel)
		return !differs
	}, fs.deepExcludes(oldPath, newPath))
	return differs
}

// deepExcludes says whether any exclusion can differ below the two paths, so
// that a walk is needed at all.
func (fs *FS) deepExcludes(paths ...string) bool {
	if fs.cfg.DeepExcludes == nil {
		return false
	}
	return slices.ContainsFunc(paths, fs.cfg.DeepExcludes)
}
