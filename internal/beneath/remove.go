package beneath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// maxDepth is how many directories a removal holds open at most.
	maxDepth  = 64
	direntBuf = 8 << 10
)

// Entry is one name in a directory. Type is its DT_ constant, which may be
// DT_UNKNOWN; Ino is not that of a filesystem mounted there. Name is valid
// only during the call it is passed to.
type Entry struct {
	Name []byte
	Type uint8
	Ino  uint64
}

// ReadDir calls f for the entries of the open directory fd, from its
// beginning, without "." and "..", until f fails. Entries that are added or
// removed meanwhile may be missed.
func ReadDir(fd int, f func(Entry) error) error {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return fmt.Errorf("rewind directory: %w", err)
	}
	buf := make([]byte, direntBuf)
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("read directory: %w", err)
		}
		if n == 0 {
			return nil
		}
		for b := buf[:n]; len(b) > 0; {
			// struct linux_dirent64: ino, off, reclen, type, name
			size := int(binary.NativeEndian.Uint16(b[16:]))
			name, _, _ := bytes.Cut(b[19:size], []byte{0})
			e := Entry{Name: name, Type: b[18], Ino: binary.NativeEndian.Uint64(b)}
			b = b[size:]
			if s := string(e.Name); s == "." || s == ".." {
				continue
			}
			if err := f(e); err != nil {
				return err
			}
		}
	}
}

// RemoveOptions adjust a removal.
type RemoveOptions struct {
	// Keep, if set, is asked for the path of everything below, relative to
	// what is removed: what it keeps stays, with the directories above it.
	Keep func(rel string) bool
	// Before, if set, is called before every change; its error ends the
	// removal.
	Before func() error
}

// RemoveTree removes name in the directory dirfd with all below it. It follows
// no symbolic link and crosses into no other mounted filesystem (EXDEV), and
// needs memory and descriptors for a bounded depth only, unless Keep is set.
// kept says that something of it stays. Something that vanishes meanwhile is
// no error; name not being there at all is one (ENOENT).
func RemoveTree(dirfd int, name string, o RemoveOptions) (kept bool, err error) {
	if err := checkName(name); err != nil {
		return false, err
	}
	rm := &remover{opts: o, top: -1}
	var st unix.Stat_t
	if err := (Loc{FD: dirfd, Name: name}).Stat(&st); err != nil {
		return false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return false, rm.unlink(dirfd, name, 0)
	}
	return rm.subdir(dirfd, name, "", 0)
}

type remover struct {
	opts    RemoveOptions
	top     int // where directories too deep to descend to are moved
	hoisted int
}

// subdir removes the directory name in dirfd, whose path is rel.
func (rm *remover) subdir(dirfd int, name, rel string, depth int) (bool, error) {
	fd, err := openat2(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0,
		resolve|unix.RESOLVE_NO_XDEV)
	if err != nil {
		if errors.Is(err, unix.EXDEV) {
			return false, fmt.Errorf("%w (another filesystem is mounted there)", err)
		}
		return false, err
	}
	defer func() { _ = unix.Close(fd) }()
	if depth == 0 {
		rm.top = fd
	}
	for {
		kept, removed, err := rm.entries(fd, rel, depth)
		if err != nil || kept && !removed {
			return kept, err
		}
		if kept {
			continue // until a pass finds nothing more to remove
		}
		err = rm.unlink(dirfd, name, unix.AT_REMOVEDIR)
		if !removed || !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
			return false, err
		}
		// Removing while reading may have made the reading miss some.
	}
}

// entries makes one pass over a directory.
func (rm *remover) entries(fd int, rel string, depth int) (kept, removed bool, err error) {
	err = ReadDir(fd, func(e Entry) error {
		name := string(e.Name)
		path := ""
		if rm.opts.Keep != nil {
			if path = name; rel != "" {
				path = rel + "/" + name
			}
			if rm.opts.Keep(path) {
				kept = true
				return nil
			}
		}
		if e.Type != unix.DT_DIR {
			err := rm.unlink(fd, name, 0)
			if !errors.Is(err, unix.EISDIR) {
				removed = true
				return err
			}
		}
		if depth+1 >= maxDepth && rm.opts.Keep == nil {
			removed = true
			return rm.hoist(fd, name)
		}
		k, err := rm.subdir(fd, name, path, depth+1)
		if errors.Is(err, unix.ENOENT) {
			err = nil
		}
		kept = kept || k
		removed = removed || !k
		return err
	})
	return kept, removed, err
}

// hoist moves a deep directory up to the top, to be removed from there: a
// deep tree must not cost a descriptor a level.
func (rm *remover) hoist(fd int, name string) error {
	for {
		if err := rm.before(); err != nil {
			return err
		}
		to := fmt.Sprintf(".replfs-removing-%d", rm.hoisted)
		rm.hoisted++
		err := unix.Renameat2(fd, name, rm.top, to, unix.RENAME_NOREPLACE)
		switch err {
		case nil, unix.ENOENT:
			return nil
		case unix.EEXIST, unix.EINTR:
		default:
			return &os.LinkError{Op: "rename", Old: name, New: to, Err: err}
		}
	}
}

func (rm *remover) unlink(fd int, name string, flags int) error {
	if err := rm.before(); err != nil {
		return err
	}
	for {
		err := unix.Unlinkat(fd, name, flags)
		switch err {
		case nil, unix.ENOENT:
			return nil
		case unix.EINTR:
		default:
			return &os.PathError{Op: "unlink", Path: name, Err: err}
		}
	}
}

func (rm *remover) before() error {
	if rm.opts.Before == nil {
		return nil
	}
	return rm.opts.Before()
}
