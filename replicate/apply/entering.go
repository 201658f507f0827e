package apply

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/beneath"
	"github.com/replfs/replfs/replicate/record"
)

// entering is a file that enters the replicated part of the tree while its
// contents are still coming. It has no name until all is there: on the primary
// link(2) or rename(2) made it appear in one, and a node that is promoted
// meanwhile must not have a part of it. It does not outlive the process; its
// records then find nothing, and a complete copy follows.
type entering struct {
	openFile
	state record.Record
}

// enter begins with a file that is not here yet. It tells whether it did: not
// while copying, when nobody promotes this node, nor for a file that enters with
// several names, nor if the store's file system knows no files without one.
func (a *Applier) enter(rec *record.Record, l beneath.Loc) (bool, error) {
	if a.syncing || !rec.Flags.Has(record.FlagLive|record.FlagMore) || len(rec.Names) > 1 {
		return false, nil
	}
	var fd int
	err := a.k.do("tmpfile", func() (err error) {
		fd, err = unix.Openat(l.FD, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOATIME, 0o600)
		return err
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return false, fmt.Errorf("stat: %w", err)
	}
	e := &entering{openFile: openFile{fd: fd, file: inodeOf(&st)}, state: *rec}
	e.state.Xattrs = slices.Clone(rec.Xattrs)
	for i, x := range e.state.Xattrs {
		e.state.Xattrs[i].Value = slices.Clone(x.Value)
	}
	if former := a.entering[rec.Path]; former != nil {
		_ = unix.Close(former.fd)
	}
	if a.entering == nil {
		a.entering = map[string]*entering{}
	}
	a.entering[rec.Path] = e
	return true, nil
}

// entered gives a file that is complete what it is to have, its name last.
func (a *Applier) entered(e *entering, rec *record.Record) error {
	l, err := a.root.At(rec.Path)
	if err != nil {
		return err
	}
	defer l.Release()
	if err := a.enteredAttrs(e, rec); err != nil {
		return err
	}
	err = a.k.do("link", func() error {
		return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", e.fd), l.FD, l.Name, unix.AT_SYMLINK_FOLLOW)
	})
	if err != nil {
		var st unix.Stat_t
		if !a.resumed || !errors.Is(err, unix.EEXIST) || l.Stat(&st) != nil || inodeOf(&st) != e.file {
			return err
		}
	}
	if err := a.parentTime(l, rec); err != nil {
		return err
	}
	delete(a.entering, rec.Path)
	a.keep(rec.FileID, e.openFile).release()
	return nil
}

// enteredAttrs sets what the OpState said, in the order of stateAttrs.
func (a *Applier) enteredAttrs(e *entering, end *record.Record) error {
	if end.Has(record.FieldSize) {
		if err := a.resize(e.fd, end.Size); err != nil {
			return err
		}
	}
	s := &e.state
	if s.Has(record.FieldOwner) {
		if err := a.k.fchown(e.fd, s.UID, s.GID); err != nil {
			return err
		}
	}
	if s.Has(record.FieldXattrs) {
		// All that it can have got from its directory is an ACL.
		err := a.k.do("removexattr", func() error { return unix.Fremovexattr(e.fd, "system.posix_acl_access") })
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
		for _, x := range s.Xattrs {
			if err := xattrHint(x.Name, a.k.fsetxattr(e.fd, x.Name, x.Value)); err != nil {
				return err
			}
		}
	}
	if s.Has(record.FieldMode) {
		if err := a.k.fchmod(e.fd, s.Mode); err != nil {
			return err
		}
	}
	if err := a.fdTimes(e.fd, s); err != nil {
		return err
	}
	return a.fdTimes(e.fd, end)
}

// dropEntering forgets files of which no more will come.
func (a *Applier) dropEntering() {
	for _, e := range a.entering {
		_ = unix.Close(e.fd)
	}
	clear(a.entering)
}
