package apply

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/beneath"
	"github.com/replfs/replfs/replicate/record"
)

// A store may hold what does not travel: sockets and excluded paths, from when
// its node was primary. The primary of now does not know them, so they must
// not be in the way of what it sends.

// makeWay removes what does not travel from where rec has to put something,
// or from the directory that it has to remove or replace. It tells whether
// there was anything, so that rec is worth another try.
func (a *Applier) makeWay(rec *record.Record) (bool, error) {
	switch rec.Op {
	case record.OpCreate, record.OpMkdir, record.OpSymlink, record.OpLink, record.OpRename, record.OpRmdir:
	default:
		return false, nil
	}
	l, err := a.root.At(rec.Path)
	if err != nil {
		return false, nil //nolint:nilerr // the record's own error says it
	}
	defer l.Release()
	var st unix.Stat_t
	if l.IsRoot() || l.Stat(&st) != nil {
		return false, nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		if err := a.k.unlink(l, 0); err != nil {
			return false, fmt.Errorf("remove the socket %q: %w", rec.Path, err)
		}
		return true, nil
	case unix.S_IFDIR:
		if rec.Op == record.OpRmdir || rec.Op == record.OpRename {
			return a.emptyOfUntracked(l, rec.Path)
		}
	}
	return false, nil
}

var errTracked = errors.New("a replicated entry")

// emptyOfUntracked empties a directory in which nothing travels.
func (a *Applier) emptyOfUntracked(l beneath.Loc, path string) (bool, error) {
	fd, err := l.Open(unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, fmt.Errorf("look into %q: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var names []string
	err = beneath.ReadDir(fd, func(e beneath.Entry) error {
		name := string(e.Name)
		if e.Type != unix.DT_SOCK && (a.cfg.Excluded == nil || !a.cfg.Excluded(path+"/"+name)) {
			return errTracked
		}
		names = append(names, name)
		return nil
	})
	if errors.Is(err, errTracked) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look into %q: %w", path, err)
	}
	for _, name := range names {
		if err := a.removeTree(beneath.Loc{FD: fd, Name: name}, path+"/"+name); err != nil {
			return false, fmt.Errorf("remove %q: %w", path+"/"+name, err)
		}
	}
	return len(names) > 0, nil
}
