package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// newEntry is the common part of what makes a name in a directory: gate,
// locks, intent, owner, record, inode.
type newEntry struct {
	fs     *FS
	dir    *inode
	name   string
	caller *fuse.InHeader
	// perm is the mode asked for, umask the caller's.
	perm, umask uint32
	typ         uint32
	rdev        uint64
	target      string
	passage     passage
}

// make applies the entry with call, which gets the mode to pass on and
// returns an open descriptor or -1, records it, and interns the inode.
func (e *newEntry) make(cancel <-chan struct{}, call func(perm uint32) (int, error), st *unix.Stat_t) (n *inode, fd int, s fuse.Status) {
	fs := e.fs
	e.passage.fs = fs
	if s := e.passage.enter(recordSize); !s.Ok() {
		return nil, -1, s
	}
	defer func() {
		if s = e.passage.leave(s); s.Ok() || n == nil {
			return
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		fs.table.forget(n.id, 1) // the kernel does not learn of it
		n, fd = nil, -1
	}()
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	defer lockInodes(e.dir)()
	return e.makeLocked(call, st)
}

func (e *newEntry) makeLocked(call func(perm uint32) (int, error), st *unix.Stat_t) (*inode, int, fuse.Status) {
	fs := e.fs
	e.mask()
	path, tracked := fs.table.entryPath(e.dir, e.name)
	tracked = tracked && e.typ != unix.S_IFSOCK
	if tracked {
		e.passage.changesAt(path)
	}

	r := fs.newRecord(record.OpCreate)
	r.Request = e.caller.Unique
	switch e.typ {
	case unix.S_IFDIR:
		r.Op = record.OpMkdir
	case unix.S_IFLNK:
		r.Op = record.OpSymlink
		r.Path2, r.Fields = e.target, record.FieldPath2
	case unix.S_IFBLK, unix.S_IFCHR:
		r.Rdev, r.Fields = e.rdev, record.FieldRdev
	}
	r.Path, r.Perm = path, e.perm
	r.Fields |= record.FieldPath | record.FieldPerm
	if !tracked {
		fs.asDirTimes(r, e.dir)
		e.passage.changesDir(r, e.dir)
	}
	m := fs.begin(r)
	m.touch(e.dir)
	defer m.end()

	fd, err := call(e.perm)
	if err != nil {
		return nil, -1, errStatus(err)
	}
	if err := e.settle(fd, st); err != nil {
		fs.log.Warn("new entry could not be given to its owner", logPath(path), logErr(err))
	}
	n := fs.table.intern(e.dir, e.name, st, refKernel, nil)
	fs.table.changed(e.dir)
	if !tracked {
		return n, fd, m.commitDirTimes(e.dir)
	}
	r.FileID, r.Mode, r.UID, r.GID, r.Mtime = n.id, st.Mode, st.Uid, st.Gid, mtimeOf(st)
	r.Fields |= record.FieldFileID | record.FieldMode | record.FieldOwner | record.FieldMtime
	fs.setParentTime(r, e.dir)
	m.touch(n)
	if _, s := m.commit(nil); !s.Ok() {
		if fd >= 0 {
			unix.Close(fd)
		}
		fs.table.forget(n.id, 1)
		return nil, -1, s
	}
	return n, fd, fuse.OK
}

// mask applies the umask, unless a default ACL takes its place.
func (e *newEntry) mask() {
	if e.typ != unix.S_IFLNK && e.umask != 0 && !e.fs.hasDefaultACL(e.dir) {
		e.perm &^= e.umask
	}
}

// settle gives the entry its owner, as the kernel would have done for the
// caller (inode_init_owner): the group of a setgid directory is inherited.
func (e *newEntry) settle(fd int, st *unix.Stat_t) error {
	stat := func() error {
		if fd >= 0 {
			return unix.Fstat(fd, st)
		}
		return unix.Fstatat(e.fs.dirfd(e.dir), e.name, st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err := stat(); err != nil {
		return err
	}
	uid, gid := e.caller.Uid, e.caller.Gid
	if st.Gid != 0 {
		gid = st.Gid // inherited: the daemon's own group is 0
	} else if gid != 0 && e.inheritsGroup() {
		gid = 0
	}
	if uid == st.Uid && gid == st.Gid {
		return nil
	}
	ref := fileRef{dirfd: e.fs.dirfd(e.dir), name: e.name}
	if fd >= 0 {
		ref = fileRef{dirfd: fd}
	}
	if err := chown(ref, int(uid), int(gid)); err != nil {
		return err
	}
	mode := st.Mode
	if e.typ != unix.S_IFLNK && e.typ != unix.S_IFDIR && mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		// chown(2) cleared them.
		if err := chmod(ref, mode&0o7777); err != nil {
			return err
		}
	}
	return stat()
}

func (e *newEntry) inheritsGroup() bool {
	var st unix.Stat_t
	return unix.Fstat(e.fs.dirfd(e.dir), &st) == nil && st.Mode&unix.S_ISGID != 0
}

// setParentTime notes the directory's mtime in a record of a change in it.
func (fs *FS) setParentTime(r *record.Record, dir *inode) {
	var st unix.Stat_t
	if unix.Fstat(fs.dirfd(dir), &st) == nil {
		r.ParentMtime = mtimeOf(&st)
		r.Fields |= record.FieldParentMtime
	}
}

// asDirTimes turns the record of a change to an entry that is not replicated
// (a socket, an excluded path) into that of the directory's new mtime: the
// directory is replicated. Of an excluded directory nothing is recorded.
func (fs *FS) asDirTimes(r *record.Record, dir *inode) {
	path, tracked := fs.table.path(dir)
	*r = record.Record{Op: record.OpSetAttr, Path: path, FileID: dir.id, Request: r.Request}
	if tracked {
		r.Fields = record.FieldPath | record.FieldFileID
	}
}

// commitDirTimes ends a mutation begun with asDirTimes.
func (m *mutation) commitDirTimes(dir *inode) fuse.Status {
	var st unix.Stat_t
	if m.rec.Fields == 0 || unix.Fstat(m.fs.dirfd(dir), &st) != nil {
		m.fs.completed.note(m.rec.Request, m.rec.FileID, 0)
		return fuse.OK
	}
	m.rec.Mtime = mtimeOf(&st)
	m.rec.Fields |= record.FieldMtime
	_, s := m.commit(nil)
	return s
}

// recordDirTimes records a directory's mtime beside another record. The
// directory's lock is held, and an intent that covers it.
func (fs *FS) recordDirTimes(dir *inode) {
	r := fs.newRecord(record.OpSetAttr)
	fs.asDirTimes(r, dir)
	m := mutation{fs: fs, rec: r}
	m.touch(dir)
	m.commitDirTimes(dir)
	fs.putRecord(r)
}

// Mkdir makes a directory.
func (fs *FS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	dir := fs.table.get(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	e := newEntry{fs: fs, dir: dir, name: name, caller: &in.InHeader, perm: in.Mode & 0o7777, umask: in.Umask, typ: unix.S_IFDIR}
	return e.reply(cancel, out, func(perm uint32) (int, error) {
		return -1, unix.Mkdirat(fs.dirfd(dir), name, perm)
	})
}

// Mknod makes a file, FIFO, device or socket.
func (fs *FS) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	dir := fs.table.get(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	typ := in.Mode & unix.S_IFMT
	if typ == 0 {
		typ = unix.S_IFREG
	}
	dev := storeDev(in.Rdev)
	e := newEntry{fs: fs, dir: dir, name: name, caller: &in.InHeader, perm: in.Mode & 0o7777, umask: in.Umask, typ: typ, rdev: dev}
	return e.reply(cancel, out, func(perm uint32) (int, error) {
		return -1, unix.Mknodat(fs.dirfd(dir), name, typ|perm, int(dev))
	})
}

// Symlink makes a symbolic link.
func (fs *FS) Symlink(cancel <-chan struct{}, header *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	dir := fs.table.get(header.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	e := newEntry{fs: fs, dir: dir, name: name, caller: header, perm: 0o777, typ: unix.S_IFLNK, target: target}
	return e.reply(cancel, out, func(uint32) (int, error) {
		return -1, unix.Symlinkat(target, fs.dirfd(dir), name)
	})
}

func (e *newEntry) reply(cancel <-chan struct{}, out *fuse.EntryOut, call func(perm uint32) (int, error)) fuse.Status {
	var st unix.Stat_t
	n, _, s := e.make(cancel, call, &st)
	if s.Ok() {
		e.fs.fillEntry(out, n, &st)
	}
	return s
}

// Create makes a regular file and opens it. The file may have come to exist
// since the kernel looked, without O_EXCL it is opened then.
func (fs *FS) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	dir := fs.table.get(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	e := newEntry{fs: fs, dir: dir, name: name, caller: &in.InHeader, perm: in.Mode & 0o7777, umask: in.Umask, typ: unix.S_IFREG}
	flags := storeFlags(in.Flags)
	var st unix.Stat_t
	n, fd, s := e.make(cancel, func(perm uint32) (int, error) {
		return unix.Openat(fs.dirfd(dir), name, flags|unix.O_CREAT|unix.O_EXCL, perm)
	}, &st)
	if s == fuse.Status(unix.EEXIST) && in.Flags&unix.O_EXCL == 0 {
		return fs.createExisting(cancel, in, dir, name, out)
	}
	if !s.Ok() {
		return s
	}
	fs.fillEntry(&out.EntryOut, n, &st)
	h := fs.openHandle(n, fd, in.Flags&unix.O_ACCMODE != unix.O_RDONLY)
	out.Fh = h.id
	out.OpenFlags = fs.createMode(n, in.Flags, in.Mode)
	h.direct = out.OpenFlags&fuse.FOPEN_DIRECT_IO != 0
	return fuse.OK
}

func (fs *FS) createExisting(cancel <-chan struct{}, in *fuse.CreateIn, dir *inode, name string, out *fuse.CreateOut) fuse.Status {
	if s := fs.Lookup(cancel, &in.InHeader, name, &out.EntryOut); !s.Ok() {
		return s
	}
	if out.NodeId == 0 {
		return fuse.ENOENT
	}
	open := fuse.OpenIn{InHeader: in.InHeader, Flags: in.Flags, Mode: in.OpenFlags}
	open.NodeId = out.NodeId
	s := fs.Open(cancel, &open, &out.OpenOut)
	if !s.Ok() {
		fs.table.forget(out.NodeId, 1)
		out.NodeId = 0
		return s
	}
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	var st unix.Stat_t
	h := fs.handles.get(out.Fh)
	if err := unix.Fstat(h.fd, &st); err == nil {
		fillAttr(&out.Attr, &st)
	}
	return fuse.OK
}

// Link gives a file a further name.
func (fs *FS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) (s fuse.Status) {
	dir, n := fs.table.get(in.NodeId), fs.table.get(in.Oldnodeid)
	if dir == nil || n == nil {
		return fuse.Status(unix.ESTALE)
	}
	p := passage{fs: fs}
	if s := p.enter(recordSize); !s.Ok() {
		return s
	}
	linked := false
	defer func() {
		if s = p.leave(s); !s.Ok() && linked {
			fs.table.forget(n.id, 1)
		}
	}()
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	defer lockInodes(dir, n)()
	ref, ok := fs.table.ref(n)
	if !ok {
		return fuse.ENOENT
	}
	old, oldTracked := fs.named(n, nil)
	path, newTracked := fs.table.entryPath(dir, name)
	newTracked = newTracked && n.typ != unix.S_IFSOCK
	if newTracked {
		p.changesAt(path)
	}

	r := fs.newRecord(record.OpLink)
	r.Request = in.Unique
	r.Path, r.Path2, r.FileID = path, old, n.id
	r.Fields = record.FieldPath | record.FieldPath2 | record.FieldFileID
	if !newTracked {
		fs.asDirTimes(r, dir)
		p.changesDir(r, dir)
	}
	m := fs.begin(r)
	m.touch(dir, n)
	defer m.end()
	entering := fs.table.naming(n)
	if err := linkat(ref, fs.dirfd(dir), name); err != nil {
		if entering {
			fs.table.unnamed(n)
		}
		return errStatus(err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fs.dirfd(dir), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return errStatus(err)
	}
	fs.table.linked(n, dir, name)
	fs.table.mu.Lock()
	n.lookups++
	fs.table.mu.Unlock()
	linked = true
	fs.fillEntry(out, n, &st)
	switch {
	case !newTracked:
		return m.commitDirTimes(dir)
	case !oldTracked:
		// It enters the replicated part: the standby has none of it.
		fs.completed.note(r.Request, n.id, 0)
		return fs.emitEntering(dir, name)
	}
	fs.setParentTime(r, dir)
	_, s = m.commit(nil)
	return s
}

func linkat(ref fileRef, dirfd int, name string) error {
	if ref.name == "" {
		return unix.Linkat(unix.AT_FDCWD, ref.proc(), dirfd, name, unix.AT_SYMLINK_FOLLOW)
	}
	return unix.Linkat(ref.dirfd, ref.name, dirfd, name, 0)
}
