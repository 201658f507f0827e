package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// SetAttr is truncate, chown, chmod and utimensat: one request, one record.
func (fs *FS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) (s fuse.Status) {
	n := fs.table.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	p := passage{fs: fs}
	if s := p.enter(recordSize); !s.Ok() {
		return s
	}
	defer func() { s = p.leave(s) }()
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	n.mu.Lock()
	defer n.mu.Unlock()

	var h *handle
	if in.Valid&fuse.FATTR_FH != 0 {
		if h = fs.handles.get(in.Fh); h != nil && h.inode != n {
			h = nil
		}
	}
	var ref fileRef
	if h != nil {
		ref = fileRef{dirfd: h.fd}
	} else {
		var ok bool
		if ref, ok = fs.table.ref(n); !ok {
			return fuse.Status(unix.ESTALE)
		}
	}
	r := fs.newRecord(record.OpSetAttr)
	r.Request = in.Unique
	if path, tracked := fs.named(n, h); tracked {
		r.Path, r.FileID = path, n.id
		r.Fields = record.FieldPath | record.FieldFileID
		p.changes(n)
	}
	tracked := r.Fields != 0
	m := fs.begin(r)
	m.touch(n)
	defer m.end()

	changed, err := fs.applyAttr(in, n, h, ref)
	if err != nil {
		r.Request = 0 // not carried out, though something may be recorded
	}
	var st unix.Stat_t
	if serr := ref.stat(&st); serr != nil {
		return errStatus(serr)
	}
	if tracked && changed != 0 {
		setResult(r, changed, &st)
		if _, s := m.commit(nil); !s.Ok() {
			return s
		}
	}
	if err != nil {
		return errStatus(err)
	}
	out.SetTimeout(fs.cacheTime())
	fillAttr(&out.Attr, &st)
	return fuse.OK
}

// setResult copies what changed from the file's state after the change.
func setResult(r *record.Record, changed record.Field, st *unix.Stat_t) {
	r.Size, r.Mode, r.UID, r.GID = st.Size, st.Mode, st.Uid, st.Gid
	r.Mtime, r.Atime = mtimeOf(st), atimeOf(st)
	if changed&record.FieldSize != 0 {
		changed |= record.FieldMtime
	}
	if changed&record.FieldOwner != 0 {
		changed |= record.FieldMode // chown(2) may clear suid and sgid
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		changed &^= record.FieldMode
	}
	r.Fields |= changed
}

// applyAttr makes the changes and says which were made: when a later one
// fails, the earlier ones still have to be recorded.
func (fs *FS) applyAttr(in *fuse.SetAttrIn, n *inode, h *handle, ref fileRef) (changed record.Field, err error) {
	if size, ok := in.GetSize(); ok {
		if err := fs.truncate(n, h, int64(size)); err != nil {
			return changed, err
		}
		changed |= record.FieldSize
	}
	uid, hasUID := in.GetUID()
	gid, hasGID := in.GetGID()
	var before unix.Stat_t
	if in.Valid&fuse.FATTR_KILL_SUIDGID != 0 {
		if err := ref.stat(&before); err != nil {
			return changed, err
		}
	}
	if hasUID || hasGID {
		u, g := -1, -1
		if hasUID {
			u = int(uid)
		}
		if hasGID {
			g = int(gid)
		}
		if err := chown(ref, u, g); err != nil {
			return changed, err
		}
		changed |= record.FieldOwner
	}
	if !hasGID {
		gid = before.Gid
	}
	if mode, ok := in.GetMode(); ok {
		if err := chmod(ref, mode); err != nil {
			return changed, err
		}
		changed |= record.FieldMode
	} else if in.Valid&fuse.FATTR_KILL_SUIDGID != 0 {
		// A chown asks for it whoever the caller is, a truncate only if it may
		// not keep them.
		did, err := killSetID(ref, &before, &in.Caller, changed&record.FieldOwner != 0, gid)
		if err != nil {
			return changed, err
		}
		if did {
			changed |= record.FieldMode
		}
	}
	ts, set := setTimes(in)
	if set != 0 {
		flags := unix.AT_SYMLINK_NOFOLLOW
		if ref.name == "" {
			flags = unix.AT_EMPTY_PATH
		}
		if err := unix.UtimesNanoAt(ref.dirfd, ref.name, ts, flags); err != nil {
			return changed, err
		}
		changed |= set
	}
	return changed, nil
}

func setTimes(in *fuse.SetAttrIn) ([]unix.Timespec, record.Field) {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	var set record.Field
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_ATIME_NOW) != 0 {
		set |= record.FieldAtime
		ts[0] = unix.Timespec{Sec: int64(in.Atime), Nsec: int64(in.Atimensec)}
		if in.Valid&fuse.FATTR_ATIME_NOW != 0 {
			ts[0] = unix.Timespec{Nsec: unix.UTIME_NOW}
		}
	}
	if in.Valid&(fuse.FATTR_MTIME|fuse.FATTR_MTIME_NOW) != 0 {
		set |= record.FieldMtime
		ts[1] = unix.Timespec{Sec: int64(in.Mtime), Nsec: int64(in.Mtimensec)}
		if in.Valid&fuse.FATTR_MTIME_NOW != 0 {
			ts[1] = unix.Timespec{Nsec: unix.UTIME_NOW}
		}
	}
	return ts, set
}

// truncate is ftruncate(2) on a handle, truncate(2) without: of the two only the
// former changes the mtime of a file that has the size already.
func (fs *FS) truncate(n *inode, h *handle, size int64) error {
	if h != nil && h.writable {
		return unix.Ftruncate(h.fd, size)
	}
	if n.typ != unix.S_IFREG {
		return unix.EINVAL
	}
	fd, err := fs.openInode(n, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Truncate(fileRef{dirfd: fd}.proc(), size)
}

func chown(ref fileRef, uid, gid int) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if ref.name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return unix.Fchownat(ref.dirfd, ref.name, uid, gid, flags)
}

func chmod(ref fileRef, mode uint32) error {
	switch {
	case ref.path:
		return unix.Fchmodat(unix.AT_FDCWD, ref.proc(), mode, 0)
	case ref.name == "":
		return unix.Fchmod(ref.dirfd, mode)
	}
	// The kernel refuses chmod of a symlink before it comes here.
	return unix.Fchmodat(ref.dirfd, ref.name, mode, 0)
}

// killSetID clears suid and sgid after a change by the caller; before is what
// the file was, gid its new group if the change was a chown.
func killSetID(ref fileRef, before *unix.Stat_t, c *fuse.Caller, chowned bool, gid uint32) (bool, error) {
	mode := withoutSetID(before, c)
	if mode == before.Mode {
		return false, nil
	}
	if chowned && before.Mode&(unix.S_ISGID|unix.S_IXGRP) == unix.S_ISGID {
		// sgid may be kept, by whoever might give it to the file: with suid to
		// be cleared the kernel asks so of the new group as well.
		may := func(gid uint32) bool { return inGroup(c, gid) || capable(c, unix.CAP_FSETID) }
		mode |= unix.S_ISGID
		if !may(before.Gid) || before.Mode&unix.S_ISUID != 0 && !may(gid) {
			mode &^= unix.S_ISGID
		}
	}
	return true, chmod(ref, mode&0o7777)
}
