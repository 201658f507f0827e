package fs

import (
	"bytes"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// The store's files are reached through /proc/self/fd: the xattr calls have
// no *at form before Linux 6.13.

func (r fileRef) getxattr(name string, dest []byte) (int, error) {
	switch {
	case r.path:
		return unix.Getxattr(r.proc(), name, dest)
	case r.name == "":
		return unix.Fgetxattr(r.dirfd, name, dest)
	}
	return unix.Lgetxattr(r.proc(), name, dest)
}

func (r fileRef) listxattr(dest []byte) (int, error) {
	switch {
	case r.path:
		return unix.Listxattr(r.proc(), dest)
	case r.name == "":
		return unix.Flistxattr(r.dirfd, dest)
	}
	return unix.Llistxattr(r.proc(), dest)
}

func (r fileRef) setxattr(name string, value []byte, flags int) error {
	switch {
	case r.path:
		return unix.Setxattr(r.proc(), name, value, flags)
	case r.name == "":
		return unix.Fsetxattr(r.dirfd, name, value, flags)
	}
	return unix.Lsetxattr(r.proc(), name, value, flags)
}

func (r fileRef) removexattr(name string) error {
	switch {
	case r.path:
		return unix.Removexattr(r.proc(), name)
	case r.name == "":
		return unix.Fremovexattr(r.dirfd, name)
	}
	return unix.Lremovexattr(r.proc(), name)
}

// GetXAttr reads an extended attribute.
func (fs *FS) GetXAttr(_ <-chan struct{}, header *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if reserved(attr) {
		return fs.getReserved(header, attr, dest)
	}
	return fs.readXattr(header, attr, func(r fileRef) (int, error) { return r.getxattr(attr, dest) })
}

// ListXAttr lists their names.
func (fs *FS) ListXAttr(_ <-chan struct{}, header *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	return fs.readXattr(header, "", func(r fileRef) (int, error) {
		size, err := r.listxattr(nil)
		if err != nil || size == 0 {
			return size, err
		}
		names := make([]byte, size)
		if size, err = r.listxattr(names); err != nil {
			return 0, err
		}
		names = withoutReserved(visibleTo(&header.Caller, names[:size]))
		switch {
		case len(dest) == 0:
			return len(names), nil
		case len(names) > len(dest):
			return 0, unix.ERANGE
		}
		return copy(dest, names), nil
	})
}

// visibleTo leaves out of a list of names the trusted ones, unless the caller
// may see them. The store's file system shows them to the daemon.
func visibleTo(c *fuse.Caller, names []byte) []byte {
	const prefix = "trusted."
	if !bytes.Contains(names, []byte(prefix)) || capable(c, unix.CAP_SYS_ADMIN) {
		return names
	}
	return without(names, prefix)
}

// readXattr reads the attribute attr, or with "" their list.
func (fs *FS) readXattr(header *fuse.InHeader, attr string, call func(fileRef) (int, error)) (uint32, fuse.Status) {
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	n := fs.table.get(header.NodeId)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	n.mu.Lock() // the name stays n's
	defer n.mu.Unlock()
	if fs.knownAbsent(n, attr) {
		return 0, fuse.ENOATTR
	}
	ref, release, err := fs.holdRef(n)
	if err != nil {
		return 0, errStatus(err)
	}
	defer release()
	k, err := call(ref)
	if err == unix.ENODATA {
		fs.noteAbsent(n, attr)
	}
	if err != nil {
		return 0, errStatus(err)
	}
	return uint32(k), fuse.OK
}

// SetXAttr sets an extended attribute, POSIX ACLs included.
func (fs *FS) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	// The kernel says so of a default ACL as well, which changes no mode.
	kill := in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 && attr == "system.posix_acl_access"
	return fs.changeXattr(cancel, &in.InHeader, record.OpSetXattr, attr, data, kill, func(r fileRef) error {
		return r.setxattr(attr, data, int(in.Flags))
	})
}

// RemoveXAttr removes one.
func (fs *FS) RemoveXAttr(cancel <-chan struct{}, header *fuse.InHeader, attr string) fuse.Status {
	return fs.changeXattr(cancel, header, record.OpRemoveXattr, attr, nil, false, func(r fileRef) error {
		return r.removexattr(attr)
	})
}

func (fs *FS) changeXattr(cancel <-chan struct{}, header *fuse.InHeader, op record.Op, attr string, data []byte, killSgid bool, call func(fileRef) error) (s fuse.Status) {
	if reserved(attr) {
		return fuse.EPERM
	}
	n := fs.table.get(header.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	p := passage{fs: fs}
	if s := p.enter(recordSize + len(data)); !s.Ok() {
		return s
	}
	defer func() { s = p.leave(s) }()
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	ref, ok := fs.table.ref(n)
	if !ok {
		return fuse.Status(unix.ESTALE)
	}
	r := fs.newRecord(op)
	r.Request = header.Unique
	path, tracked := fs.named(n, nil)
	if tracked {
		r.Path, r.FileID, r.Name = path, n.id, attr
		r.Fields = record.FieldPath | record.FieldFileID | record.FieldName
		p.changes(n)
	}
	m := fs.begin(r)
	m.touch(n)
	defer m.end()
	fs.noteChanged(n, attr)
	if err := call(ref); err != nil {
		return errStatus(err)
	}
	if killSgid {
		// The caller is not in the file's group: as with chmod(2).
		var st unix.Stat_t
		if err := ref.stat(&st); err == nil && st.Mode&unix.S_ISGID != 0 && chmod(ref, st.Mode&0o7777&^unix.S_ISGID) == nil && tracked {
			r.Mode, r.Fields = st.Mode&^unix.S_ISGID, r.Fields|record.FieldMode
		}
	}
	if !tracked {
		return fuse.OK
	}
	if op == record.OpSetXattr && data == nil {
		data = []byte{} // an empty value is a value
	}
	_, s = m.commit(data)
	return s
}
