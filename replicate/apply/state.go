package apply

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/beneath"
	"github.com/replfs/replfs/replicate/record"
)

// stateRecord applies what the primary's walk found: part of a complete copy,
// or (FlagLive) what entered the replicated part of the tree.
func (a *Applier) stateRecord(rec *record.Record) error {
	var err error
	switch rec.Op {
	case record.OpState:
		err = a.stateOf(rec)
	case record.OpStateData:
		err = a.stateData(rec)
	default:
		err = a.stateEnd(rec)
	}
	if a.syncing && errors.Is(err, unix.ENOENT) {
		return nil // gone, or the walk comes to it again
	}
	return err
}

// stateOf makes what is missing.
func (a *Applier) stateOf(rec *record.Record) error {
	l, err := a.root.At(rec.Path)
	if err != nil {
		return err
	}
	defer l.Release()
	a.answered(rec.Path)
	var st unix.Stat_t
	err = l.Stat(&st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		// This node's own, from when it was primary: it does not travel.
		if err = a.k.unlink(l, 0); err == nil {
			err = unix.ENOENT
		}
	}
	switch {
	case l.IsRoot():
		// There before anything was copied, so that it is right only now.
		if err != nil {
			return err
		}
		return a.stateAttrs(l, &st, rec)
	case err == nil:
		return a.statePresent(rec, l, &st)
	case !errors.Is(err, unix.ENOENT):
		return err
	}
	if len(rec.Names) > 0 {
		linked, err := a.stateLink(rec, l, &st)
		switch {
		case err != nil:
			return err
		case linked && rec.Flags.Has(record.FlagContents):
			return a.statePresent(rec, l, &st)
		case linked:
			return a.parentTime(l, rec)
		case !a.complete(rec):
			if !a.syncing {
				return diverged("none of the other names of %q exists", rec.Path)
			}
			a.need(rec.Path, false)
			return nil
		}
	}
	if begun, err := a.enter(rec, l); begun || err != nil {
		return err
	}
	if err := a.stateMake(rec, l); err != nil {
		return err
	}
	return a.parentTime(l, rec)
}

// statePresent leaves alone what is there, unless its contents are to come
// anew or an earlier try may have left it unfinished.
func (a *Applier) statePresent(rec *record.Record, l beneath.Loc, st *unix.Stat_t) error {
	if len(rec.Names) > 0 {
		a.hasNames(rec.FileID, inodeOf(st))
	}
	contents := rec.Flags.Has(record.FlagContents)
	if !contents && !a.redo {
		return nil
	}
	if (st.Mode^rec.Mode)&unix.S_IFMT != 0 {
		return diverged("%q exists and is something else", rec.Path)
	}
	if contents {
		a.copy.begins(inodeOf(st), rec.Flags.Has(record.FlagMore))
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		f, err := openRegular(l)
		if err != nil {
			return err
		}
		h := a.keep(rec.FileID, f)
		defer h.release()
		if contents {
			if err := a.k.truncate(h.fd, 0); err != nil {
				return err
			}
		}
		if err := a.stateSize(h, rec); err != nil {
			return err
		}
	}
	if err := a.stateAttrs(l, st, rec); err != nil {
		return err
	}
	return a.parentTime(l, rec)
}

// complete reports whether the record, of a file with several names, and what
// follows it say all that making the file takes.
func (a *Applier) complete(rec *record.Record) bool {
	return rec.Flags.Has(record.FlagMore) || rec.Mode&unix.S_IFMT != unix.S_IFREG || rec.Size == 0
}

// stateLink gives a file that is here under another of its names, and is then
// st, this name too.
func (a *Applier) stateLink(rec *record.Record, l beneath.Loc, st *unix.Stat_t) (bool, error) {
	for _, name := range rec.Names {
		if name == rec.Path {
			continue
		}
		p, err := a.present(name)
		if err != nil {
			return false, err
		}
		if !p.itself || (p.st.Mode^rec.Mode)&unix.S_IFMT != 0 {
			continue
		}
		from, err := a.root.At(name)
		if err != nil {
			return false, err
		}
		err = a.k.link(from, l)
		from.Release()
		if err != nil {
			return false, err
		}
		*st = p.st
		a.hasNames(rec.FileID, inodeOf(st))
		return true, nil
	}
	return false, nil
}

// stateMake makes a new object.
func (a *Applier) stateMake(rec *record.Record, l beneath.Loc) error {
	var err error
	switch rec.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return a.stateMakeRegular(rec, l)
	case unix.S_IFDIR:
		err = a.k.mkdir(l, 0o700)
	case unix.S_IFLNK:
		err = a.k.symlink(rec.Path2, l)
	case unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK:
		err = a.k.mknod(l, rec.Mode&unix.S_IFMT|0o600, rec.Rdev)
	default:
		err = diverged("cannot make a file of mode %o", rec.Mode)
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := l.Stat(&st); err != nil {
		return err
	}
	if len(rec.Names) > 0 {
		a.hasNames(rec.FileID, inodeOf(&st))
	}
	return a.stateAttrs(l, &st, rec)
}

func (a *Applier) stateMakeRegular(rec *record.Record, l beneath.Loc) error {
	fd, err := a.k.create(l, 0o600)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("stat: %w", err)
	}
	h := a.keep(rec.FileID, openFile{fd: fd, file: inodeOf(&st)})
	defer h.release()
	a.copy.begins(h.file, false)
	if len(rec.Names) > 0 {
		a.hasNames(rec.FileID, h.file)
	}
	if err := a.stateSize(h, rec); err != nil {
		return err
	}
	return a.stateAttrs(l, &st, rec)
}

// stateSize gives the file its size, and notes whether contents follow.
func (a *Applier) stateSize(h handle, rec *record.Record) error {
	if rec.Flags.Has(record.FlagMore) {
		mark(&a.copy.incomplete, h.file)
	}
	if !rec.Has(record.FieldSize) {
		return nil
	}
	return a.resize(h.fd, rec.Size)
}

// resize truncates or extends the file unless it has the size.
func (a *Applier) resize(fd int, size int64) error {
	have, err := fileSize(fd)
	if err != nil || have == size {
		return err
	}
	return a.k.truncate(fd, size)
}

// stateAttrs sets owner, extended attributes, mode and times, in this order:
// chown clears capabilities and mode bits, an ACL changes the mode.
func (a *Applier) stateAttrs(l beneath.Loc, st *unix.Stat_t, rec *record.Record) error {
	if rec.Has(record.FieldOwner) && (st.Uid != rec.UID || st.Gid != rec.GID) {
		if err := a.k.chown(l, rec.UID, rec.GID); err != nil {
			return err
		}
	}
	if rec.Has(record.FieldXattrs) {
		if err := a.replaceXattrs(l, rec.Xattrs); err != nil {
			return err
		}
	}
	if rec.Has(record.FieldMode) && st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := a.k.chmod(l, rec.Mode); err != nil {
			return err
		}
	}
	return a.times(l, rec)
}

// stateData stores contents.
func (a *Applier) stateData(rec *record.Record) error {
	if e := a.entering[rec.Path]; e != nil {
		return a.k.pwrite(e.fd, rec.Data, rec.Offset)
	}
	h, err := a.file(rec.FileID, rec.Path)
	if err != nil {
		return err
	}
	defer h.release()
	if len(rec.Data) > 0 {
		err := a.keepingCapability(h.fd, func() error {
			return a.k.pwrite(h.fd, rec.Data, rec.Offset)
		})
		if err != nil {
			return err
		}
	}
	return a.wrote(h, rec)
}

// stateEnd says that the contents have all come.
func (a *Applier) stateEnd(rec *record.Record) error {
	if e := a.entering[rec.Path]; e != nil {
		return a.entered(e, rec)
	}
	h, err := a.file(rec.FileID, rec.Path)
	if err != nil {
		return err
	}
	defer h.release()
	if rec.Has(record.FieldSize) {
		err := a.keepingCapability(h.fd, func() error { return a.resize(h.fd, rec.Size) })
		if err != nil {
			return err
		}
	}
	if err := a.wrote(h, rec); err != nil {
		return err
	}
	delete(a.copy.incomplete, h.file)
	if !rec.Has(record.FieldParentMtime) {
		return nil
	}
	l, err := a.root.At(rec.Path)
	if err != nil {
		return err
	}
	defer l.Release()
	return a.parentTime(l, rec)
}

// keepingCapability sets the file's capabilities again after change, which
// makes the kernel remove them: they are the file's as of this LSN, and these
// writes are not the primary's.
func (a *Applier) keepingCapability(fd int, change func() error) error {
	buf := make([]byte, 64)
	n, err := unix.Fgetxattr(fd, capability, buf)
	if err != nil {
		return change() // there is none
	}
	if err := change(); err != nil {
		return err
	}
	return a.k.fsetxattr(fd, capability, buf[:n])
}
