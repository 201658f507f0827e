package fs

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"go.uber.org/zap"
)

// named is table.path for a mutation of n (n.mu or the tree exclusively
// held), which also finds a further name of a hard-linked file when all known
// ones are gone: one that was made before this process and never looked up.
func (fs *FS) named(n *inode, h *handle) (string, bool) {
	path, ok := fs.table.path(n)
	if ok {
		return path, true
	}
	fs.table.mu.Lock()
	unknown := len(n.names) == 0 && n.last == nil && n.typ != unix.S_IFSOCK && n != fs.table.root
	if h == nil && len(n.handles) > 0 {
		h = n.handles[0]
		n.shared = true
	}
	fs.table.mu.Unlock()
	if !unknown || h == nil {
		return "", false
	}
	var st unix.Stat_t
	if unix.Fstat(h.fd, &st) != nil || st.Nlink == 0 {
		return "", false
	}
	fs.log.Info("searching the store for another name of a hard-linked file", zap.Uint64("inode", n.key.ino))
	// Not by way of the table: a descriptor for each directory of a large
	// store would be too many.
	path, found := findName(fs.storeFd, "", n.key, fs.cfg.Excluded)
	if !found || !fs.intern(path, n) {
		return "", false
	}
	return fs.table.path(n)
}

// findName searches below a directory for a name of the file key that is
// replicated.
func findName(dirfd int, prefix string, key inodeKey, excluded func(string) bool) (path string, found bool) {
	names, err := readNames(dirfd)
	if err != nil {
		return "", false
	}
	for _, name := range names {
		path := prefix + name
		var st unix.Stat_t
		if excluded(path) || unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		if keyOf(&st) == key {
			return path, true
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		path, found := findName(fd, path+"/", key, excluded)
		unix.Close(fd)
		if found {
			return path, true
		}
	}
	return "", false
}

// intern notes that n is at path, with the directories on the way there. It
// tells whether that is so.
func (fs *FS) intern(path string, n *inode) bool {
	t := &fs.table
	dir := t.root
	t.pin(dir)
	defer func() { t.unpin(dir) }()
	var st unix.Stat_t
	for {
		name, rest, more := strings.Cut(path, "/")
		child, err := t.lookup(dir, name, &st, refPin)
		if err != nil {
			return false
		}
		t.unpin(dir)
		dir = child
		if !more {
			return child == n
		}
		if !child.isDir() {
			return false
		}
		path = rest
	}
}

// rehomeAll finds where the inodes are that lost all known names while
// somebody else changed the store: the kernel, and a process whose working
// directory one is, go on using them. FS.tree is held exclusively.
func (fs *FS) rehomeAll() {
	t := &fs.table
	t.mu.Lock()
	lost := map[*inode]int{}
	for _, n := range t.byKey {
		if n == t.root || len(n.names) > 0 {
			continue
		}
		fd, open := n.openFD()
		if !open {
			continue
		}
		lost[n] = fd
		n.pins++
	}
	t.mu.Unlock()
	for n, fd := range lost {
		if path, ok := fs.whereIs(fd); !ok || !fs.intern(path, n) {
			fs.log.Info("searching the store for a file that moved", zap.Uint64("inode", n.key.ino))
			if path, ok = findName(fs.storeFd, "", n.key, func(string) bool { return false }); !ok || !fs.intern(path, n) {
				fs.log.Warn("a file in use is not in the store any more", zap.Uint64("inode", n.key.ino))
			}
		}
		t.unpin(n)
	}
}

// whereIs asks the kernel for the path of an open file below the store.
func (fs *FS) whereIs(fd int) (string, bool) {
	store, err := os.Readlink(fileRef{dirfd: fs.storeFd}.proc())
	if err != nil {
		return "", false
	}
	path, err := os.Readlink(fileRef{dirfd: fd}.proc())
	if err != nil {
		return "", false
	}
	return strings.CutPrefix(path, strings.TrimSuffix(store, "/")+"/")
}

// readNames lists a directory by its O_PATH descriptor.
func readNames(dirfd int) ([]string, error) {
	fd, err := unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "store directory")
	names, err := f.Readdirnames(-1)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return names, err
}

// walkNames calls visit with the relative path of everything below a
// directory until it returns false. With want false it does nothing.
func walkNames(dirfd int, visit func(rel string) bool, want bool) {
	if want {
		walkNamesAt(dirfd, "", visit)
	}
}

func walkNamesAt(dirfd int, prefix string, visit func(rel string) bool) bool {
	names, err := readNames(dirfd)
	if err != nil {
		return true
	}
	for _, name := range names {
		if !visit(prefix + name) {
			return false
		}
		fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // not a directory
		}
		more := walkNamesAt(fd, prefix+name+"/", visit)
		unix.Close(fd)
		if !more {
			return false
		}
	}
	return true
}
