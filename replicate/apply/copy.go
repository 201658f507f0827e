package apply

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/beneath"
	"github.com/replfs/replfs/replicate/record"
)

// While a complete copy runs, the store is at each LSN a part of the primary's
// tree: what is there has the right attributes, and the right contents but for
// the files that are incomplete. Mutations of what is not there are left out,
// as the primary's walk comes to it later; where it may have passed already,
// the path is needed.

// copyState is what is known about the copy under way. It is lost with the
// process, and the copy then starts again.
type copyState struct {
	needs int // since the last OpSyncEnd
	// wanted are the missing paths that were asked for. When a directory above
	// one is renamed before the answer, the primary finds nothing there.
	wanted map[string]bool
	// incomplete are the files whose contents have not all come.
	incomplete map[inode]bool
	// stale are the files that mutations passed by. That they come to their
	// end does not help them: all must come again.
	stale map[inode]bool
	// links are the files that have or had several names, by file id. A
	// mutation may come under a name that is not here while another is.
	links map[uint64]inode
}

// whole reports whether the file is as on the primary.
func (c *copyState) whole(f inode) bool { return !c.incomplete[f] && !c.stale[f] }

// begins says that the contents are to come, all of them.
func (c *copyState) begins(f inode, more bool) {
	delete(c.stale, f)
	delete(c.incomplete, f)
	if more {
		mark(&c.incomplete, f)
	}
}

func mark(m *map[inode]bool, f inode) {
	if *m == nil {
		*m = map[inode]bool{}
	}
	(*m)[f] = true
}

// hasNames notes a file of several names.
func (a *Applier) hasNames(id uint64, f inode) {
	if id == 0 || !a.syncing {
		return
	}
	if a.copy.links == nil {
		a.copy.links = map[uint64]inode{}
	}
	a.copy.links[id] = f
}

// need asks the primary for the state of path.
func (a *Applier) need(path string, contents bool) {
	a.copy.needs++
	if !contents {
		if a.copy.wanted == nil {
			a.copy.wanted = map[string]bool{}
		}
		a.copy.wanted[path] = true
	}
	if a.cfg.Need != nil {
		a.cfg.Need(path, contents)
	}
}

// answered says that the state of path came.
func (a *Applier) answered(path string) { delete(a.copy.wanted, path) }

// needsMoved asks again for what was wanted below a directory that has another
// path now. Both ways for an exchange, from one look at what is wanted.
func (a *Applier) needsMoved(moves ...[2]string) {
	var again []string
	for path := range a.copy.wanted {
		for _, m := range moves {
			if strings.HasPrefix(path, m[0]+"/") {
				delete(a.copy.wanted, path)
				again = append(again, m[1]+path[len(m[0]):])
				break
			}
		}
	}
	for _, path := range again {
		a.need(path, false)
	}
}

// beginsCopy tells whether rec begins a copy to this node.
func (a *Applier) beginsCopy(rec *record.Record) bool {
	if rec.Op != record.OpSyncBegin || rec.Path != a.cfg.Node {
		return false
	}
	return a.fresh || a.copyStale || a.resumed && a.syncing && a.State().SyncID == rec.Path2
}

// beginCopy starts a complete copy if it is this node's.
func (a *Applier) beginCopy(rec *record.Record) error {
	if !a.begins {
		return nil
	}
	if len(rec.Path2) > maxSyncID {
		return diverged("the copy's id has %d bytes", len(rec.Path2))
	}
	if err := a.checkEmpty(); err != nil {
		return err
	}
	a.settleSyncs()
	a.DropCaches()
	err := a.updateMeta(func(m *meta) {
		m.fresh, m.syncing, m.syncID = false, true, rec.Path2
		m.inSync, m.storeIno = false, a.storeIno
	})
	if err != nil {
		return err
	}
	durable, _ := a.sync.position()
	a.sync.moveTo(rec.LSN-1, min(durable, rec.LSN-1), true)
	a.st.store(offFactsLSN, 0) // the LSN may have been another record's
	a.fresh, a.syncing, a.copyStale = false, true, false
	a.copy = copyState{}
	a.dropEntering()
	return nil
}

func (a *Applier) checkEmpty() error {
	err := beneath.ReadDir(a.root.FD(), func(e beneath.Entry) error {
		if name := string(e.Name); a.cfg.Excluded == nil || !a.cfg.Excluded(name) {
			return diverged("the store must be empty for a complete copy, but has %q", name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("begin complete copy: %w", err)
	}
	return nil
}

// endCopy ends the copy if it is this node's and nothing is missing.
func (a *Applier) endCopy(rec *record.Record) error {
	if rec.Path != a.cfg.Node || a.State().SyncID != rec.Path2 {
		return nil
	}
	if a.syncing {
		if err := a.needIncomplete(); err != nil {
			return err
		}
		if a.copy.needs == 0 {
			if err := a.completeCopy(rec); err != nil {
				return err
			}
		}
		a.copy.needs = 0
	}
	if done := a.cfg.SyncDone; done != nil {
		// If the copy had ended before, it was killed before saying so.
		complete := !a.syncing
		a.report = func() { done(rec.Path2, complete) }
	}
	return nil
}

// completeCopy makes the copy durable, and only then counts it as one.
func (a *Applier) completeCopy(rec *record.Record) error {
	err := a.sync.wait(context.Background())
	if err == nil {
		err = a.k.syncfs(a.root.FD())
	}
	if err != nil {
		// What the kernel could not write may be lost: another syncfs would
		// not say so.
		a.copyStale = true
		err = fmt.Errorf("make the complete copy durable: %w", err)
		return errors.Join(err, a.MarkSuspect(err.Error()))
	}
	err = a.updateMeta(func(m *meta) {
		m.syncing, m.suspect, m.reason = false, false, ""
	})
	if err != nil {
		return err
	}
	a.syncing = false
	a.copy = copyState{}
	a.sync.moveTo(rec.LSN-1, rec.LSN-1, true)
	return nil
}

// needIncomplete asks again for the files that are not whole, unless they are
// gone.
func (a *Applier) needIncomplete() error {
	byIno := map[uint64]inode{}
	for _, m := range []map[inode]bool{a.copy.incomplete, a.copy.stale} {
		for f := range m {
			byIno[f.ino] = f
		}
	}
	if len(byIno) == 0 {
		return nil
	}
	dirs := []string{""}
	for len(dirs) > 0 {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		fd, err := a.root.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("look for incomplete files: %w", err)
		}
		err = beneath.ReadDir(fd, func(e beneath.Entry) error {
			path := string(e.Name)
			if dir != "" {
				path = dir + "/" + path
			}
			if e.Type == unix.DT_UNKNOWN {
				var st unix.Stat_t
				if err := a.root.Stat(path, &st); err != nil {
					return err
				}
				e.Type = uint8(st.Mode >> 12) // DT_ constants are S_IFMT's bits
			}
			if e.Type == unix.DT_DIR {
				dirs = append(dirs, path)
			} else if f, ok := byIno[e.Ino]; ok && a.isInode(path, f) {
				delete(byIno, e.Ino)
				a.need(path, true)
			}
			return nil
		})
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("look for incomplete files in %q: %w", dir, err)
		}
	}
	for _, f := range byIno {
		a.copy.begins(f, false)
	}
	return nil
}

func (a *Applier) isInode(path string, f inode) bool {
	var st unix.Stat_t
	return a.root.Stat(path, &st) == nil && inodeOf(&st) == f
}

// mutateCopy applies a mutation to a store that is being copied.
func (a *Applier) mutateCopy(rec *record.Record) error {
	switch rec.Op {
	case record.OpLink:
		return a.linkCopy(rec)
	case record.OpRename:
		return a.renameCopy(rec)
	case record.OpCopyRange:
		return a.copyRangeCopy(rec)
	}
	err := a.mutate(rec)
	if rec.Op == record.OpFallocate && errors.Is(err, errDiverged) {
		return a.shiftIncomplete(rec, err)
	}
	if rec.Op == record.OpRemoveXattr && errors.Is(err, unix.ENODATA) {
		return a.removeMissed(rec, err)
	}
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	switch rec.Op {
	case record.OpUnlink, record.OpRmdir, record.OpRemoveTree:
		a.dropLast(rec, rec.FileID)
	default:
		a.missed(rec)
	}
	return a.presentTimes(rec)
}

// missed notes that rec, which is left out as its path is not here, may be
// about a file that is here under another name.
func (a *Applier) missed(rec *record.Record) {
	if f, ok := a.copy.links[rec.FileID]; ok && rec.Op != record.OpFsync {
		mark(&a.copy.stale, f)
	}
}

// removeMissed leaves out the removal of an attribute that is not here since
// the file was passed by when it was set; all of the file's come again.
func (a *Applier) removeMissed(rec *record.Record, err error) error {
	p, e := a.present(rec.Path)
	if e != nil {
		return errors.Join(err, e)
	}
	if !p.itself || !a.copy.stale[inodeOf(&p.st)] {
		return err
	}
	return nil
}

// shiftIncomplete leaves out a shift of a file whose size is not right yet as
// mutations were missed; all of its contents come again.
func (a *Applier) shiftIncomplete(rec *record.Record, err error) error {
	h, e := a.file(rec.FileID, rec.Path)
	if e != nil {
		return errors.Join(err, e)
	}
	defer h.release()
	if a.copy.whole(h.file) {
		return err
	}
	mark(&a.copy.stale, h.file)
	a.need(rec.Path, true)
	return a.wrote(h, rec)
}

// presentTimes sets the times of those directories of the record that exist.
func (a *Applier) presentTimes(rec *record.Record) error {
	set := func(field record.Field, path string, t record.Timespec) error {
		if !rec.Has(field) || path == "" {
			return nil
		}
		l, err := a.root.At(path)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		defer l.Release()
		return a.k.futimes("utimens.parent", l.FD, omit, timespec(t))
	}
	if err := set(record.FieldParent2Mtime, rec.Path2, rec.Parent2Mtime); err != nil {
		return err
	}
	return set(record.FieldParentMtime, rec.Path, rec.ParentMtime)
}

// presence is what of a path is in the store.
type presence struct {
	parent, itself bool
	st             unix.Stat_t
}

func (a *Applier) present(path string) (p presence, err error) {
	l, err := a.root.At(path)
	if errors.Is(err, unix.ENOENT) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	defer l.Release()
	p.parent = true
	err = l.Stat(&p.st)
	if errors.Is(err, unix.ENOENT) {
		return p, nil
	}
	p.itself = err == nil
	return p, err
}

func (a *Applier) linkCopy(rec *record.Record) error {
	to, err := a.present(rec.Path)
	if err != nil {
		return err
	}
	from, err := a.present(rec.Path2)
	if err != nil {
		return err
	}
	if from.itself {
		a.hasNames(rec.FileID, inodeOf(&from.st)) // also if one is not made here
	}
	switch {
	case !to.parent:
		return nil
	case from.itself:
		return a.link(rec)
	}
	a.need(rec.Path, false)
	return a.presentTimes(rec)
}

func (a *Applier) renameCopy(rec *record.Record) error {
	from, err := a.present(rec.Path2)
	if err != nil {
		return err
	}
	to, err := a.present(rec.Path)
	if err != nil {
		return err
	}
	if rec.Flags.Has(record.FlagExchange) {
		return a.exchangeCopy(rec, from, to)
	}
	if from.itself && to.parent {
		if err := a.rename(rec); err != nil {
			return err
		}
		a.needsMoved([2]string{rec.Path2, rec.Path})
		return nil
	}
	if from.itself {
		err = a.removePath(rec.Path2) // the walk comes to its new place
	} else if to.itself {
		err = a.removePath(rec.Path) // it was replaced
	}
	if err != nil {
		return err
	}
	a.dropLast(rec, rec.FileID2)
	if to.parent {
		a.need(rec.Path, false)
	}
	return a.presentTimes(rec)
}

// halfExchange in the second fact says that only one side was there; the first
// is its inode number, the third tells whether its name was Path.
const halfExchange = ^uint64(0)

func (a *Applier) exchangeCopy(rec *record.Record, from, to presence) error {
	f, known := a.st.facts(rec.LSN)
	half := known && f[1] == halfExchange
	switch {
	case from.itself && to.itself:
		if err := a.rename(rec); err != nil {
			return err
		}
		a.needsMoved([2]string{rec.Path2, rec.Path}, [2]string{rec.Path, rec.Path2})
		return nil
	case !from.itself && !to.itself:
		// Where the directory is here, the walk may have meant to come to
		// what went elsewhere now.
		if from.parent {
			a.need(rec.Path2, false)
		}
		if to.parent {
			a.need(rec.Path, false)
		}
		return a.presentTimes(rec)
	}
	here, there, target := rec.Path2, rec.Path, to
	ino, wasPath := from.st.Ino, uint64(0)
	if to.itself {
		here, there, target = rec.Path, rec.Path2, from
		ino, wasPath = to.st.Ino, 1
	}
	if half && f[0] == ino && f[2] != wasPath {
		a.need(there, false) // moved before, the names are the other way round
		return a.presentTimes(rec)
	}
	a.st.setFacts(rec.LSN, facts{ino, halfExchange, wasPath})
	var err error
	if target.parent {
		if err = a.movePath(here, there); err == nil {
			a.needsMoved([2]string{here, there})
		}
	} else {
		err = a.removePath(here)
	}
	if err != nil {
		return err
	}
	a.need(here, false)
	return a.presentTimes(rec)
}

func (a *Applier) movePath(from, to string) error {
	x, err := a.root.At(from)
	if err != nil {
		return err
	}
	defer x.Release()
	y, err := a.root.At(to)
	if err != nil {
		return err
	}
	defer y.Release()
	err = a.k.rename(x, y, unix.RENAME_NOREPLACE)
	a.root.Forget(from)
	a.root.Forget(to)
	return err
}

func (a *Applier) removePath(path string) error {
	l, err := a.root.At(path)
	if err != nil {
		return err
	}
	defer l.Release()
	return a.removeTree(l, path)
}

func (a *Applier) copyRangeCopy(rec *record.Record) error {
	dst, err := a.file(rec.FileID, rec.Path)
	if errors.Is(err, unix.ENOENT) {
		a.missed(rec)
		return nil
	}
	if err != nil {
		return err
	}
	defer dst.release()
	src, err := a.file(rec.FileID2, rec.Path2)
	if err == nil {
		defer src.release()
		if a.copy.whole(src.file) {
			return a.copyRange(rec)
		}
	} else if !errors.Is(err, unix.ENOENT) {
		return err
	}
	mark(&a.copy.stale, dst.file)
	a.need(rec.Path, true)
	// The contents come later, but the size is what later records build on.
	size, err := fileSize(dst.fd)
	if err != nil {
		return err
	}
	if end := rec.Offset + rec.Length; size < end {
		if err := a.k.truncate(dst.fd, end); err != nil {
			return err
		}
	}
	return a.wrote(dst, rec)
}
