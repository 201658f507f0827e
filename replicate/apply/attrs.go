package apply

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/beneath"
	"github.com/replfs/replfs/replicate/record"
)

const capability = "security.capability"

// fileTimes are the record's times for Path.
func fileTimes(rec *record.Record) (atime, mtime unix.Timespec, any bool) {
	atime, mtime = omit, omit
	if rec.Has(record.FieldAtime) {
		atime, any = timespec(rec.Atime), true
	}
	if rec.Has(record.FieldMtime) {
		mtime, any = timespec(rec.Mtime), true
	}
	return atime, mtime, any
}

func timespec(t record.Timespec) unix.Timespec {
	return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
}

// times sets the record's times for Path; to come after all else, which
// changes them.
func (a *Applier) times(l beneath.Loc, rec *record.Record) error {
	if atime, mtime, any := fileTimes(rec); any {
		return a.k.utimes(l, atime, mtime)
	}
	return nil
}

func (a *Applier) fdTimes(fd int, rec *record.Record) error {
	if atime, mtime, any := fileTimes(rec); any {
		return a.k.futimes("utimens", fd, atime, mtime)
	}
	return nil
}

// parentTime sets the time of the directory of Path, which is l's.
func (a *Applier) parentTime(l beneath.Loc, rec *record.Record) error {
	if !rec.Has(record.FieldParentMtime) {
		return nil
	}
	return a.k.futimes("utimens.parent", l.FD, omit, timespec(rec.ParentMtime))
}

// bothParentTimes sets the times of the directories of Path2 and Path.
func (a *Applier) bothParentTimes(from, to beneath.Loc, rec *record.Record) error {
	if rec.Has(record.FieldParent2Mtime) && from.FD != to.FD {
		err := a.k.futimes("utimens.parent2", from.FD, omit, timespec(rec.Parent2Mtime))
		if err != nil {
			return err
		}
	}
	return a.parentTime(to, rec)
}

// setAttr sets size, owner, mode and times, in this order: truncating and
// chown change modes and times.
func (a *Applier) setAttr(rec *record.Record) error {
	if rec.Has(record.FieldSize) {
		h, err := a.file(rec.FileID, rec.Path)
		if err != nil {
			return err
		}
		err = a.k.truncate(h.fd, rec.Size)
		h.release()
		if err != nil {
			return err
		}
	}
	l, err := a.root.At(rec.Path)
	if err != nil {
		return err
	}
	defer l.Release()
	if rec.Has(record.FieldOwner) {
		if err := a.k.chown(l, rec.UID, rec.GID); err != nil {
			return err
		}
	}
	if rec.Has(record.FieldMode) {
		if err := a.k.chmod(l, rec.Mode); err != nil {
			return err
		}
	}
	return a.times(l, rec)
}

// xattr sets or removes an extended attribute.
func (a *Applier) xattr(rec *record.Record) error {
	l, err := a.root.At(rec.Path)
	if err != nil {
		return err
	}
	defer l.Release()
	if rec.Op == record.OpSetXattr {
		err = a.setXattr(l, rec.Name, rec.Data)
	} else {
		err = a.k.removexattr(l, rec.Name)
		// The kernel removes capabilities by itself when the file is written
		// to or changes its owner, here as on the primary.
		if errors.Is(err, unix.ENODATA) && (a.redo || rec.Name == capability) {
			err = nil
		}
		err = xattrHint(rec.Name, err)
	}
	if err != nil {
		return err
	}
	if rec.Has(record.FieldMode) {
		if err := a.k.chmod(l, rec.Mode); err != nil {
			return err
		}
	}
	return a.times(l, rec)
}

func (a *Applier) setXattr(l beneath.Loc, name string, value []byte) error {
	return xattrHint(name, a.k.setxattr(l, name, value))
}

func xattrHint(name string, err error) error {
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return fmt.Errorf("extended attribute %q: %w by the filesystem of the standby's store; "+
		"mount it with that support (user_xattr, acl) or move the store to one that has it", name, err)
}

// replaceXattrs makes the extended attributes of l exactly those given. What
// a security module keeps there for this machine stays.
func (a *Applier) replaceXattrs(l beneath.Loc, want []record.Xattr) error {
	have, err := xattrNames(l)
	if err != nil {
		return fmt.Errorf("list extended attributes of %q: %w", l.Name, err)
	}
	wanted := make(map[string]bool, len(want))
	for _, x := range want {
		wanted[x.Name] = true
	}
	for _, name := range have {
		local := len(name) > 9 && name[:9] == "security." && name != capability
		if wanted[name] || local {
			continue
		}
		if err := a.k.removexattr(l, name); err != nil && !errors.Is(err, unix.ENODATA) {
			return xattrHint(name, err)
		}
	}
	for _, x := range want {
		if err := a.setXattr(l, x.Name, x.Value); err != nil {
			return err
		}
	}
	return nil
}

func xattrNames(l beneath.Loc) (names []string, err error) {
	err = withPath(l, func(path string, _ *unix.Stat_t) error {
		for size := 1024; ; size *= 4 {
			buf := make([]byte, size)
			n, err := unix.Listxattr(path, buf)
			switch {
			case err == nil:
				names = splitNames(buf[:n])
				return nil
			case err == unix.EOPNOTSUPP:
				return nil
			case err != unix.ERANGE || size > 1<<20:
				return err
			}
		}
	})
	return names, err
}

func splitNames(b []byte) (names []string) {
	for start, i := 0, 0; i < len(b); i++ {
		if b[i] == 0 {
			names = append(names, string(b[start:i]))
			start = i + 1
		}
	}
	return names
}
