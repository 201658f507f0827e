package fs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// Recover settles the operations that were under way when an earlier process
// died: each may or may not have changed the store, and none is in the log.
// The store says which; what it shows is recorded now, so that the standbys
// end equal. They exclude each other (the locks they held saw to that), so
// their order does not matter. Call it before the first mutation.
func (fs *FS) Recover(intents []record.Record) error {
	fs.table.holdDirs(true)
	defer fs.table.holdDirs(false)
	for i := range intents {
		in := &intents[i]
		fs.log.Info("settling an interrupted operation", zap.Stringer("op", in.Op), zap.String("path", in.Path), zap.String("path2", in.Path2))
		if err := fs.recover1(in); err != nil {
			return fmt.Errorf("settle an interrupted %s of %q: %w", in.Op, in.Path, err)
		}
	}
	return nil
}

// place is an entry that a recovered record speaks of.
type place struct {
	dir  *inode
	name string
	path string
	st   unix.Stat_t
	// exists: st is valid.
	exists bool
}

func (fs *FS) placeRef(p *place) fileRef { return fileRef{dirfd: fs.dirfd(p.dir), name: p.name} }

// locate finds the entry of a path; a missing parent is a missing entry. The
// root is its own entry ".".
func (fs *FS) locate(path string) (*place, func(), error) {
	p := &place{dir: fs.table.root, name: ".", path: path}
	release := func() { fs.table.unpin(p.dir) }
	fs.table.pin(p.dir)
	if path != "" {
		parts := strings.Split(path, "/")
		for _, name := range parts[:len(parts)-1] {
			var st unix.Stat_t
			child, err := fs.table.lookup(p.dir, name, &st, refPin)
			if errors.Is(err, unix.ENOENT) {
				return p, release, nil
			}
			if err != nil {
				release()
				return nil, nil, err
			}
			fs.table.unpin(p.dir)
			p.dir = child
		}
		p.name = parts[len(parts)-1]
	}
	err := unix.Fstatat(fs.dirfd(p.dir), p.name, &p.st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		release()
		return nil, nil, err
	}
	p.exists = err == nil
	return p, release, nil
}

func (fs *FS) recover1(in *record.Record) error {
	p, release, err := fs.locate(in.Path)
	if err != nil {
		return err
	}
	defer release()
	// File ids died with the process.
	in.Fields &^= record.FieldFileID | record.FieldFileID2
	in.Flags &^= record.FlagLast
	switch in.Op {
	case record.OpCreate, record.OpMkdir, record.OpSymlink:
		return fs.recoverCreate(in, p)
	case record.OpLink:
		return fs.recoverLink(in, p)
	case record.OpUnlink, record.OpRmdir:
		if p.exists {
			return nil
		}
		in.Flags |= record.FlagRedo
		fs.setParentTime(in, p.dir)
		return fs.append(in, nil)
	case record.OpRename:
		return fs.recoverRename(in, p)
	case record.OpWrite, record.OpCopyRange:
		return fs.recoverContent(in, p)
	case record.OpSetAttr:
		return fs.recoverAttr(in, p)
	case record.OpFallocate:
		return fs.recoverFallocate(in, p)
	case record.OpSetXattr, record.OpRemoveXattr:
		return fs.recoverXattr(in, p)
	}
	return fmt.Errorf("no way to settle a %s", in.Op)
}

func (fs *FS) append(r *record.Record, data []byte) error {
	_, err := fs.cfg.Log.Append(r, data, nil)
	return err
}

func (fs *FS) recoverCreate(in *record.Record, p *place) error {
	typ := p.st.Mode & unix.S_IFMT
	wantDir, wantLink := in.Op == record.OpMkdir, in.Op == record.OpSymlink
	if !p.exists || wantDir != (typ == unix.S_IFDIR) || wantLink != (typ == unix.S_IFLNK) {
		return nil
	}
	in.Flags |= record.FlagRedo
	in.Mode, in.UID, in.GID, in.Mtime = p.st.Mode, p.st.Uid, p.st.Gid, mtimeOf(&p.st)
	in.Fields |= record.FieldMode | record.FieldOwner | record.FieldMtime
	fs.setParentTime(in, p.dir)
	return fs.append(in, nil)
}

func (fs *FS) recoverLink(in *record.Record, p *place) error {
	if in.Path2 == "" { // from outside of what is replicated
		if !p.exists {
			return nil
		}
		return fs.restate(p)
	}
	old, release, err := fs.locate(in.Path2)
	if err != nil {
		return err
	}
	defer release()
	if !p.exists || !old.exists || keyOf(&p.st) != keyOf(&old.st) {
		return nil
	}
	in.Flags |= record.FlagRedo
	fs.setParentTime(in, p.dir)
	return fs.append(in, nil)
}

func (fs *FS) recoverRename(in *record.Record, to *place) error {
	from, release, err := fs.locate(in.Path2)
	if err != nil {
		return err
	}
	defer release()
	srcIno, dstIno := uint64(in.Size), uint64(in.Length)
	in.Fields &^= record.FieldSize | record.FieldLength
	in.Size, in.Length = 0, 0
	exchange := in.Flags.Has(record.FlagExchange)
	if !to.exists || to.st.Ino != srcIno {
		return nil
	}
	if exchange && (!from.exists || from.st.Ino != dstIno) || !exchange && from.exists && from.st.Ino == srcIno {
		return nil
	}
	travels := func(p *place, st *unix.Stat_t) bool {
		_, ok := fs.table.entryPath(p.dir, p.name)
		return ok && st.Mode&unix.S_IFMT != unix.S_IFSOCK
	}
	switch fromIn, toIn := travels(from, &to.st), travels(to, &to.st); {
	case fromIn && toIn && (!exchange || travels(from, &from.st)):
		if !exchange {
			in.Flags |= record.FlagRedo
		}
		if to.st.Mode&unix.S_IFMT == unix.S_IFDIR {
			in.Mtime = mtimeOf(&to.st)
			in.Fields |= record.FieldMtime
		}
		fs.setParentTime(in, to.dir)
		if err := fs.append(in, nil); err != nil {
			return err
		}
		if exchange && from.st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := fs.append(&record.Record{
				Op: record.OpSetAttr, Path: from.path, Mtime: mtimeOf(&from.st), Fields: record.FieldPath | record.FieldMtime,
			}, nil); err != nil {
				return err
			}
		}
	default:
		// The border of what is replicated was crossed: say what is there.
		if err := fs.restate(from); err != nil {
			return err
		}
		if err := fs.restate(to); err != nil {
			return err
		}
	}
	for _, p := range []*place{from, to} {
		if err := fs.recoverDirTimes(p.dir); err != nil {
			return err
		}
	}
	return nil
}

// restate replaces what the standbys have at a path by what is there now.
func (fs *FS) restate(p *place) error {
	path, ok := fs.table.entryPath(p.dir, p.name)
	if !ok {
		return nil
	}
	r := &record.Record{Op: record.OpRemoveTree, Flags: record.FlagRedo, Path: path, Fields: record.FieldPath}
	fs.setParentTime(r, p.dir)
	if err := fs.append(r, nil); err != nil {
		return err
	}
	e := fs.NewEmission()
	defer e.Close()
	e.flags = record.FlagLive
	return e.entry(context.Background(), p.dir, p.name, false)
}

func (fs *FS) recoverDirTimes(dir *inode) error {
	path, tracked := fs.table.path(dir)
	var st unix.Stat_t
	if !tracked || unix.Fstat(fs.dirfd(dir), &st) != nil {
		return nil
	}
	return fs.append(&record.Record{
		Op: record.OpSetAttr, Path: path, Mtime: mtimeOf(&st),
		Fields: record.FieldPath | record.FieldMtime,
	}, nil)
}

// recoverContent records what the range holds now.
func (fs *FS) recoverContent(in *record.Record, p *place) error {
	if !p.exists || p.st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	fd, err := unix.Openat(fs.dirfd(p.dir), p.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	end := min(in.Offset+in.Length, p.st.Size)
	buf := make([]byte, record.MaxData)
	for off := in.Offset; off < end; {
		k, err := unix.Pread(fd, buf[:min(int64(len(buf)), end-off)], off)
		if err != nil {
			return err
		}
		if k == 0 {
			break
		}
		r := &record.Record{
			Op: record.OpWrite, Path: in.Path, Offset: off, Mtime: mtimeOf(&p.st), Mode: p.st.Mode,
			Fields: record.FieldPath | record.FieldOffset | record.FieldMtime | record.FieldMode,
		}
		if err := fs.append(r, buf[:k]); err != nil {
			return err
		}
		off += int64(k)
	}
	return fs.recoverAttr(&record.Record{Op: record.OpSetAttr, Path: in.Path}, p)
}

// recoverAttr records the attributes that are there, with what a standby's
// kernel clears meanwhile (suid, capabilities).
func (fs *FS) recoverAttr(in *record.Record, p *place) error {
	if !p.exists {
		return nil
	}
	changed := record.FieldOwner | record.FieldMode | record.FieldAtime | record.FieldMtime
	if p.st.Mode&unix.S_IFMT == unix.S_IFREG {
		changed |= record.FieldSize
	}
	in.Fields = record.FieldPath
	setResult(in, changed, &p.st)
	if err := fs.append(in, nil); err != nil || p.st.Mode&unix.S_IFMT != unix.S_IFREG {
		return err
	}
	return fs.recoverXattr(&record.Record{
		Path: in.Path, Name: capability, Fields: record.FieldPath | record.FieldName,
	}, p)
}

func (fs *FS) recoverFallocate(in *record.Record, p *place) error {
	if !p.exists {
		return nil
	}
	before := in.Size
	in.Fields &^= record.FieldSize
	switch {
	case in.Perm&unix.FALLOC_FL_COLLAPSE_RANGE != 0:
		if p.st.Size != before-in.Length {
			return fs.recoverAttr(&record.Record{Op: record.OpSetAttr, Path: in.Path}, p)
		}
	case in.Perm&unix.FALLOC_FL_INSERT_RANGE != 0:
		if p.st.Size != before+in.Length {
			return fs.recoverAttr(&record.Record{Op: record.OpSetAttr, Path: in.Path}, p)
		}
	default:
		// The others may be done once more.
		fd, err := unix.Openat(fs.dirfd(p.dir), p.name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		again := unix.Fallocate(fd, in.Perm, in.Offset, in.Length)
		if err := unix.Fstat(fd, &p.st); err != nil {
			return err
		}
		if again != nil {
			// As it failed then, or the store is full: what is there counts.
			fs.log.Info("an interrupted fallocate cannot be repeated", logPath(in.Path), logErr(again))
			return fs.recoverAttr(&record.Record{Op: record.OpSetAttr, Path: in.Path}, p)
		}
	}
	in.Mtime = mtimeOf(&p.st)
	in.Fields |= record.FieldMtime
	return fs.append(in, nil)
}

// recoverable: an operation that the store refuses now, it refused then.
func recoverable(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

func (fs *FS) recoverXattr(in *record.Record, p *place) error {
	if !p.exists {
		return nil
	}
	val := make([]byte, 64<<10)
	k, err := fs.placeRef(p).getxattr(in.Name, val)
	switch {
	case errors.Is(err, unix.ENODATA):
		in.Op, in.Flags = record.OpRemoveXattr, in.Flags|record.FlagRedo
		return fs.append(in, nil)
	case err != nil:
		return recoverable(err)
	}
	in.Op = record.OpSetXattr
	return fs.append(in, val[:k])
}
