package fs

import "golang.org/x/sys/unix"

const (
	aclDefault = "system.posix_acl_default"
	capability = "security.capability"
)

// Two attributes are asked for again and again and are hardly ever there: a
// directory's default ACL by every new entry in it, a file's capabilities by
// the first write of the kernel. That one is not there is remembered while this
// is a primary, whose mount is the only way to set it.

// lacks says whether it is this attribute that is remembered of n.
func (n *inode) lacks(attr string) bool {
	if n.isDir() {
		return attr == aclDefault
	}
	return attr == capability
}

// knownAbsent reports whether n is known not to have the attribute. n.mu is
// held.
func (fs *FS) knownAbsent(n *inode, attr string) bool {
	return n.lacks(attr) && n.absentIn == fs.role.Load() && fs.cacheTime() > 0
}

// noteAbsent remembers that n does not have the attribute; n.mu is held.
func (fs *FS) noteAbsent(n *inode, attr string) {
	if n.lacks(attr) && fs.cacheTime() > 0 {
		n.absentIn = fs.role.Load()
	}
}

// noteChanged forgets it. n.mu is held.
func (fs *FS) noteChanged(n *inode, attr string) {
	if n.lacks(attr) {
		n.absentIn = 0
	}
}

// hasDefaultACL tells whether new entries take their mode from the
// directory's default ACL instead of the umask. dir.mu is held.
func (fs *FS) hasDefaultACL(dir *inode) bool {
	if fs.knownAbsent(dir, aclDefault) {
		return false
	}
	_, err := unix.Lgetxattr(fileRef{dirfd: fs.dirfd(dir), name: "."}.proc(), aclDefault, nil)
	if err == unix.ENODATA || err == unix.EOPNOTSUPP {
		fs.noteAbsent(dir, aclDefault)
	}
	return err == nil
}
