package workload

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func (w *writer) chmod() error {
	path, err := w.existing(regular, regular, special)
	if err != nil {
		return err
	}
	// With the flag, because root must not follow what became a symlink.
	mode := w.rng.Uint32N(0o10000)
	if err := unix.Fchmodat(w.root, path, mode, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chmod to %#o: %w", mode, err)
	}
	return nil
}

func (w *writer) chmodDir() error {
	path, err := w.existing(directory)
	if err != nil {
		return err
	}
	mode := w.rng.Uint32N(0o10000)
	if err := unix.Fchmodat(w.root, path, mode, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chmod to %#o: %w", mode, err)
	}
	return nil
}

func (w *writer) chown() error {
	path, err := w.existing(regular, regular, special, directory)
	if err != nil {
		return err
	}
	return w.chownAt(path)
}

func (w *writer) lchown() error {
	path, err := w.existing(link)
	if err != nil {
		return err
	}
	return w.chownAt(path)
}

func (w *writer) chownAt(path string) error {
	ids := []int{-1, 0, 1, 1000, 65534, 100_000}
	uid, gid := ids[w.rng.IntN(len(ids))], ids[w.rng.IntN(len(ids))]
	if err := unix.Fchownat(w.root, path, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown to %d:%d: %w", uid, gid, err)
	}
	return nil
}

// someTime is a random time, to the nanosecond, seldom before 1970.
func (w *writer) someTime() unix.Timespec {
	sec := w.rng.Int64N(4_000_000_000)
	if w.oneIn(16) {
		sec = -w.rng.Int64N(1_000_000_000)
	}
	return unix.NsecToTimespec(sec*1_000_000_000 + w.rng.Int64N(1_000_000_000))
}

func (w *writer) utimens() error {
	path, err := w.existing(regular, special, directory)
	if err != nil {
		return err
	}
	return w.utimensAt(path, w.someTime(), w.someTime())
}

func (w *writer) utimensNow() error {
	path, err := w.existing(regular, link, special, directory)
	if err != nil {
		return err
	}
	now, omit := unix.Timespec{Nsec: unix.UTIME_NOW}, unix.Timespec{Nsec: unix.UTIME_OMIT}
	pairs := [][2]unix.Timespec{
		{now, now}, {now, omit}, {omit, now}, {omit, omit},
		{omit, w.someTime()}, {w.someTime(), omit}, {now, w.someTime()}, {w.someTime(), now},
	}
	pair := pairs[w.rng.IntN(len(pairs))]
	return w.utimensAt(path, pair[0], pair[1])
}

func (w *writer) utimensSymlink() error {
	path, err := w.existing(link)
	if err != nil {
		return err
	}
	return w.utimensAt(path, w.someTime(), w.someTime())
}

func (w *writer) utimensAt(path string, atime, mtime unix.Timespec) error {
	err := unix.UtimesNanoAt(w.root, path, []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("utimens to %v, %v: %w", atime, mtime, err)
	}
	return nil
}

func (w *writer) setxattrUser() error {
	path, err := w.existing(regular, regular, directory)
	if err != nil {
		return err
	}
	return w.setxattr(path, "user.")
}

func (w *writer) setxattrTrusted() error {
	path, err := w.existing(regular, special, directory)
	if err != nil {
		return err
	}
	return w.setxattr(path, "trusted.")
}

// setxattrSymlink sets a trusted attribute: symlinks have no user ones.
func (w *writer) setxattrSymlink() error {
	path, err := w.existing(link)
	if err != nil {
		return err
	}
	return w.setxattr(path, "trusted.")
}

func (w *writer) setxattr(path, prefix string) error {
	name := prefix + string(rune('a'+w.rng.IntN(4)))
	n := w.upTo(64)
	if w.oneIn(4) {
		n = 1900 + w.upTo(200)
	}
	flags := []int{0, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE}[w.rng.IntN(5)]
	w.takes(0)
	if err := unix.Lsetxattr(w.abs+path, name, w.some(n), flags); err != nil {
		return fmt.Errorf("setxattr of %s, %d bytes, flags %d: %w", name, n, flags, err)
	}
	return nil
}

// removexattr removes an attribute that is there; a few tries find one.
func (w *writer) removexattr() error {
	for range 4 {
		path, err := w.existing(regular, link, special, directory)
		if err != nil {
			return err
		}
		buf := make([]byte, 4096)
		n, err := unix.Llistxattr(w.abs+path, buf)
		if err != nil {
			return fmt.Errorf("listxattr: %w", err)
		}
		names := slices.DeleteFunc(strings.Split(string(buf[:n]), "\x00"), func(name string) bool {
			return !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "trusted.")
		})
		if len(names) == 0 {
			continue
		}
		name := names[w.rng.IntN(len(names))]
		if err := unix.Lremovexattr(w.abs+path, name); err != nil {
			return fmt.Errorf("removexattr of %s: %w", name, err)
		}
		return nil
	}
	return fmt.Errorf("no attribute found: %w", errConflict)
}

const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

func (w *writer) setACL() error {
	path, err := w.existing(regular, directory)
	if err != nil {
		return err
	}
	return w.aclAt(path, accessACL)
}

func (w *writer) setDefaultACL() error {
	path, err := w.existing(directory)
	if err != nil {
		return err
	}
	return w.aclAt(path, defaultACL)
}

func (w *writer) aclAt(path, name string) error {
	if err := unix.Lsetxattr(w.abs+path, name, w.someACL(), 0); err != nil {
		return fmt.Errorf("setxattr of %s: %w", name, err)
	}
	return nil
}

// removeACL removes an ACL that is there; a few tries find one.
func (w *writer) removeACL() error {
	for range 8 {
		path, err := w.existing(regular, directory)
		if err != nil {
			return err
		}
		for _, name := range []string{accessACL, defaultACL} {
			if _, err := unix.Lgetxattr(w.abs+path, name, nil); err != nil {
				continue
			}
			if err := unix.Lremovexattr(w.abs+path, name); err != nil {
				return fmt.Errorf("removexattr of %s: %w", name, err)
			}
			return nil
		}
	}
	return fmt.Errorf("no ACL found: %w", errConflict)
}

// someACL is a valid ACL, as the kernel's xattr encodes it, that names one
// user and one group.
func (w *writer) someACL() []byte {
	const undefined = ^uint32(0)
	raw := binary.LittleEndian.AppendUint32(nil, 2)
	entry := func(tag uint16, id uint32) {
		raw = binary.LittleEndian.AppendUint16(raw, tag)
		raw = binary.LittleEndian.AppendUint16(raw, uint16(w.rng.IntN(8)))
		raw = binary.LittleEndian.AppendUint32(raw, id)
	}
	entry(0x01, undefined) // the owner
	entry(0x02, 1000+w.rng.Uint32N(3))
	entry(0x04, undefined) // the owning group
	entry(0x08, 1000+w.rng.Uint32N(3))
	entry(0x10, undefined) // mask
	entry(0x20, undefined) // others
	return raw
}
