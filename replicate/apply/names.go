package apply

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/beneath"
	"github.com/replfs/replfs/replicate/record"
)

// create makes a regular file, FIFO or device.
func (a *Applier) create(rec *record.Record) error {
	l, err := a.root.At(rec.Path)
	if err != nil {
		return err
	}
	defer l.Release()
	if rec.Mode&unix.S_IFMT == unix.S_IFREG {
		err = a.createRegular(rec, l)
	} else {
		err = a.createSpecial(rec, l)
	}
	if err != nil {
		return err
	}
	return a.parentTime(l, rec)
}

// perm is the mode to create with: default ACLs are computed from it.
func perm(rec *record.Record) uint32 {
	if rec.Has(record.FieldPerm) {
		return rec.Perm & 0o7777
	}
	return rec.Mode & 0o7777
}

func (a *Applier) createRegular(rec *record.Record, l beneath.Loc) error {
	var st unix.Stat_t
	fd, err := a.k.create(l, perm(rec))
	if a.redo && errors.Is(err, unix.EEXIST) {
		f, err := openRegular(l)
		if err != nil {
			return err
		}
		fd = f.fd
	} else if err != nil {
		return err
	}
	h := handle{openFile: openFile{fd: fd}, own: true}
	if err = unix.Fstat(fd, &st); err == nil {
		h.file = inodeOf(&st)
		if a.resumed && st.Size != 0 {
			// A file that this record made is empty yet.
			err = diverged("%q exists and is not empty", rec.Path)
		}
	}
	a.copy.begins(h.file, false)
	if err == nil {
		err = a.fdAttrs(fd, &st, rec)
	}
	if err != nil {
		h.release()
		return err
	}
	a.keep(rec.FileID, h.openFile).release()
	return nil
}

// fdAttrs gives an open file the owner, mode and time of the record, as far
// as they are not what st says.
func (a *Applier) fdAttrs(fd int, st *unix.Stat_t, rec *record.Record) error {
	chown := rec.Has(record.FieldOwner) && (st.Uid != rec.UID || st.Gid != rec.GID)
	if chown {
		if err := a.k.fchown(fd, rec.UID, rec.GID); err != nil {
			return err
		}
	}
	// chown clears suid and sgid.
	if rec.Has(record.FieldMode) && (chown || (st.Mode^rec.Mode)&0o7777 != 0) {
		if err := a.k.fchmod(fd, rec.Mode); err != nil {
			return err
		}
	}
	return a.fdTimes(fd, rec)
}

func (a *Applier) createSpecial(rec *record.Record, l beneath.Loc) error {
	switch rec.Mode & unix.S_IFMT {
	case unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK:
	default:
		return diverged("create cannot make a file of mode %o", rec.Mode)
	}
	err := a.k.mknod(l, rec.Mode&unix.S_IFMT|perm(rec), rec.Rdev)
	return a.made(rec, l, err, rec.Rdev)
}

func (a *Applier) mkdir(rec *record.Record) error {
	l, err := a.root.At(rec.Path)
	if err != nil {
		return err
	}
	defer l.Release()
	if err := a.made(rec, l, a.k.mkdir(l, perm(rec)), 0); err != nil {
		return err
	}
	return a.parentTime(l, rec)
}

// made finishes what mknod or mkdir, which ended in err, began.
func (a *Applier) made(rec *record.Record, l beneath.Loc, err error, rdev uint64) error {
	existed := a.redo && errors.Is(err, unix.EEXIST)
	if err != nil && !existed {
		return err
	}
	var st unix.Stat_t
	if err := l.Stat(&st); err != nil {
		return err
	}
	if existed && ((st.Mode^rec.Mode)&unix.S_IFMT != 0 || st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Rdev != rdev) {
		return diverged("%q exists and is something else", rec.Path)
	}
	return a.attrs(l, &st, rec)
}

// attrs is fdAttrs for what is not to be opened.
func (a *Applier) attrs(l beneath.Loc, st *unix.Stat_t, rec *record.Record) error {
	chown := rec.Has(record.FieldOwner) && (st.Uid != rec.UID || st.Gid != rec.GID)
	if chown {
		if err := a.k.chown(l, rec.UID, rec.GID); err != nil {
			return err
		}
	}
	if rec.Has(record.FieldMode) && st.Mode&unix.S_IFMT != unix.S_IFLNK &&
		(chown || (st.Mode^rec.Mode)&0o7777 != 0) {
		if err := a.k.chmod(l, rec.Mode); err != nil {
			return err
		}
	}
	return a.times(l, rec)
}

func (a *Applier) symlink(rec *record.Record) error {
	l, err := a.root.At(rec.Path)
	if err != nil {
		return err
	}
	defer l.Release()
	err = a.k.symlink(rec.Path2, l)
	if err != nil {
		if !a.redo || !errors.Is(err, unix.EEXIST) {
			return err
		}
		if target, err := readlink(l); err != nil || target != rec.Path2 {
			return diverged("%q exists and is something else (%q, %v)", rec.Path, target, err)
		}
	}
	var st unix.Stat_t
	if err := l.Stat(&st); err != nil {
		return err
	}
	if err := a.attrs(l, &st, rec); err != nil {
		return err
	}
	return a.parentTime(l, rec)
}

func readlink(l beneath.Loc) (string, error) {
	buf := make([]byte, unix.PathMax+1)
	n, err := unix.Readlinkat(l.FD, l.Name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func (a *Applier) link(rec *record.Record) error {
	from, err := a.root.At(rec.Path2)
	if err != nil {
		return err
	}
	defer from.Release()
	to, err := a.root.At(rec.Path)
	if err != nil {
		return err
	}
	defer to.Release()
	if err = a.k.link(from, to); err != nil {
		if !a.redo || !errors.Is(err, unix.EEXIST) {
			return err
		}
		var x, y unix.Stat_t
		if err := errors.Join(from.Stat(&x), to.Stat(&y)); err != nil {
			return err
		}
		if inodeOf(&x) != inodeOf(&y) {
			return diverged("%q exists and is not %q", rec.Path, rec.Path2)
		}
	}
	if err := a.times(to, rec); err != nil {
		return err
	}
	return a.parentTime(to, rec)
}

// remove is unlink, rmdir and the removal of a tree.
func (a *Applier) remove(rec *record.Record) error {
	l, err := a.root.At(rec.Path)
	if err != nil {
		return err
	}
	defer l.Release()
	if l.IsRoot() {
		return diverged("the root cannot be removed")
	}
	switch rec.Op {
	case record.OpUnlink:
		err = a.k.unlink(l, 0)
	case record.OpRmdir:
		err = a.k.unlink(l, unix.AT_REMOVEDIR)
		a.root.Forget(rec.Path)
	default:
		err = a.removeTree(l, rec.Path)
	}
	if a.redo && errors.Is(err, unix.ENOENT) {
		err = nil
	}
	if err != nil {
		return err
	}
	a.dropLast(rec, rec.FileID)
	return a.parentTime(l, rec)
}

// dropLast closes a file whose last name is gone: an open descriptor would
// keep its space.
func (a *Applier) dropLast(rec *record.Record, id uint64) {
	if id != 0 && rec.Flags.Has(record.FlagLast) {
		a.files.lru.Remove(id)
	}
}

// removeTree removes what is at l, whose path is path.
func (a *Applier) removeTree(l beneath.Loc, path string) error {
	a.root.Forget(path)
	defer a.root.Forget(path)
	// Which files were in it is not known.
	a.files.lru.Purge()
	_, err := beneath.RemoveTree(l.FD, l.Name, beneath.RemoveOptions{Before: func() error {
		if err := a.k.at("remove"); err != nil {
			return err
		}
		a.k.changed = true
		return nil
	}})
	return err
}

// rename moves Path2 to Path or swaps them.
func (a *Applier) rename(rec *record.Record) error {
	from, err := a.root.At(rec.Path2)
	if err != nil {
		return err
	}
	defer from.Release()
	to, err := a.root.At(rec.Path)
	if err != nil {
		return err
	}
	defer to.Release()
	if from.IsRoot() || to.IsRoot() {
		return diverged("the root cannot be renamed")
	}
	if rec.Flags.Has(record.FlagExchange) {
		err = a.exchange(rec, from, to)
	} else {
		err = a.move(rec, from, to)
	}
	a.root.Forget(rec.Path)
	a.root.Forget(rec.Path2)
	if err != nil {
		return err
	}
	a.dropLast(rec, rec.FileID2)
	if err := a.times(to, rec); err != nil {
		return err
	}
	return a.bothParentTimes(from, to, rec)
}

func (a *Applier) move(rec *record.Record, from, to beneath.Loc) error {
	err := a.k.rename(from, to, 0)
	if a.redo && errors.Is(err, unix.ENOENT) {
		var st unix.Stat_t
		if e := from.Stat(&st); !errors.Is(e, unix.ENOENT) {
			return errors.Join(err, e)
		}
		return to.Stat(&st) // there: it was done before
	}
	return err
}

// exchange notes which file has which name before it swaps them: done twice it
// would be undone, and the names look the same either way.
func (a *Applier) exchange(rec *record.Record, from, to beneath.Loc) error {
	var x, y unix.Stat_t
	if err := from.Stat(&x); err != nil {
		return err
	}
	if err := to.Stat(&y); err != nil {
		return err
	}
	before, known := a.st.facts(rec.LSN)
	switch {
	case known && before[0] == y.Ino && before[1] == x.Ino && x.Ino != y.Ino:
		return nil
	case known && (before[0] != x.Ino || before[1] != y.Ino):
		return diverged("%q and %q are not the files they were", rec.Path2, rec.Path)
	case !known && !a.resumed && a.redo && a.sameParentTimes(rec, from, to):
		// The last step of a former time was done.
		return nil
	}
	a.st.setFacts(rec.LSN, facts{x.Ino, y.Ino})
	if err := a.k.at("facts"); err != nil {
		return err
	}
	return a.k.rename(from, to, unix.RENAME_EXCHANGE)
}

// sameParentTimes reports whether both directories have the times that the
// record gives them.
func (a *Applier) sameParentTimes(rec *record.Record, from, to beneath.Loc) bool {
	same := func(fd int, t record.Timespec) bool {
		var st unix.Stat_t
		return unix.Fstat(fd, &st) == nil && st.Mtim.Sec == t.Sec && st.Mtim.Nsec == int64(t.Nsec)
	}
	return rec.Has(record.FieldParentMtime|record.FieldParent2Mtime) &&
		same(to.FD, rec.ParentMtime) && same(from.FD, rec.Parent2Mtime)
}
