package fs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// A copy for a standby travels as records in the same log as the live
// mutations: each piece is read under the locks that order them, so that it
// is exact at its LSN (DESIGN 4.3). The walk may be slow and the tree may
// change under it: what is renamed meanwhile and missed, the standby asks for.

const emitChunk = 256 << 10

// Emission is one walk.
type Emission struct {
	fs *FS
	// Throttle is called between pieces, with nothing locked; its error ends
	// the walk.
	Throttle func(ctx context.Context) error
	// Progress counts what was emitted.
	Progress func(files int, bytes int64)
	// flags are added to every record.
	flags record.Flags
	// linked are the hard-linked files that were emitted. They stay pinned,
	// so that their names are known.
	linked map[*inode]struct{}
	// sent are those whose content was, since the caller last asked for
	// something: their further names need none.
	sent map[*inode]struct{}
	// asked: the standby named the path. If it has none of a hard-linked file's
	// names by now, it needs the content again.
	asked bool
	// locked: the caller holds the tree exclusively, or the locks needed.
	locked bool
	buf    []byte
}

// NewEmission prepares a walk. Close it.
func (fs *FS) NewEmission() *Emission {
	return &Emission{
		fs:       fs,
		Throttle: func(ctx context.Context) error { return ctx.Err() },
		Progress: func(int, int64) {},
		linked:   make(map[*inode]struct{}),
		sent:     make(map[*inode]struct{}),
	}
}

// Close lets go of what the walk kept.
func (e *Emission) Close() {
	for n := range e.linked {
		e.fs.table.unpin(n)
	}
	clear(e.linked)
}

// Tree emits everything: the root's own attributes and all below it.
func (e *Emission) Tree(ctx context.Context) error {
	if err := e.rootState(); err != nil {
		return err
	}
	return e.dir(ctx, e.fs.table.root)
}

// Path emits what is at a path now, with all below it; nothing if there is
// nothing. With contents a file's content is sent even if its other names
// have it already.
func (e *Emission) Path(ctx context.Context, path string, contents bool) error {
	// What was sent before the standby may have lost, with its only name.
	clear(e.sent)
	if err := record.CheckPath(path); err != nil {
		return fmt.Errorf("emit: %w", err)
	}
	if path == "" {
		return e.Tree(ctx)
	}
	e.asked = true
	defer func() { e.asked = false }()
	dir := e.fs.table.root
	e.fs.table.pin(dir)
	defer func() { e.fs.table.unpin(dir) }()
	parts := strings.Split(path, "/")
	for _, name := range parts[:len(parts)-1] {
		child, err := e.step(dir, name)
		if child == nil || err != nil {
			return err
		}
		e.fs.table.unpin(dir)
		dir = child
	}
	return e.entry(ctx, dir, parts[len(parts)-1], contents)
}

func (e *Emission) step(dir *inode, name string) (*inode, error) {
	defer e.enter()()
	var st unix.Stat_t
	n, err := e.fs.table.lookup(dir, name, &st, refPin)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up %q: %w", name, err)
	}
	if !n.isDir() {
		e.fs.table.unpin(n)
		return nil, nil
	}
	return n, nil
}

// sync records that what has entered is to be made durable: an fsync that was
// answered before it entered was for this node alone. Nobody waits for it, but
// whoever waits for a later one waits for this as well.
func (e *Emission) sync(n *inode, as dirName) error {
	if e.flags&record.FlagLive == 0 {
		return nil
	}
	path, tracked := e.fs.table.pathAs(n, as)
	if !tracked {
		return nil
	}
	r := e.fs.newRecord(record.OpFsync)
	defer e.fs.putRecord(r)
	r.Path, r.FileID, r.Flags = path, n.id, e.flags
	r.Fields = record.FieldPath | record.FieldFileID
	if _, err := e.fs.cfg.Log.Append(r, nil, nil); err != nil {
		return fmt.Errorf("append an fsync of %q: %w", path, err)
	}
	return nil
}

// enter takes the tree's lock unless the caller of the emission has it.
func (e *Emission) enter() func() {
	if e.locked {
		return func() {}
	}
	e.fs.tree.RLock()
	return e.fs.tree.RUnlock
}

func (e *Emission) lock(ns ...*inode) func() {
	if e.locked {
		return func() {}
	}
	return lockInodes(ns...)
}

func (e *Emission) dir(ctx context.Context, dir *inode) error {
	names, err := func() ([]string, error) {
		defer e.enter()()
		return readNames(e.fs.dirfd(dir))
	}()
	if errors.Is(err, unix.ENOENT) {
		return nil // removed meanwhile, as a mutation of its own
	}
	if err != nil {
		return fmt.Errorf("list a directory: %w", err)
	}
	for _, name := range names {
		if err := e.entry(ctx, dir, name, false); err != nil {
			return err
		}
	}
	return nil
}

// entry emits one entry of dir and all below it.
func (e *Emission) entry(ctx context.Context, dir *inode, name string, contents bool) error {
	if err := e.Throttle(ctx); err != nil {
		return err
	}
	n, fd, err := e.state(dir, name, contents)
	if err != nil || n == nil {
		return err
	}
	defer e.fs.table.unpin(n)
	switch {
	case n.isDir():
		err = e.dir(ctx, n)
	case fd >= 0:
		err = e.content(ctx, n, dirName{dir, name}, fd)
		unix.Close(fd)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	return e.sync(n, dirName{dir, name})
}

// state emits the attributes of an entry, pins its inode, and returns an open
// descriptor if content has to follow. No inode: nothing there, or nothing
// that travels.
func (e *Emission) state(dir *inode, name string, contents bool) (n *inode, fd int, err error) {
	defer e.enter()()
	fs := e.fs
	var st unix.Stat_t
	n, err = fs.table.lookup(dir, name, &st, refPin)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil, -1, nil
	}
	if err != nil {
		return nil, -1, fmt.Errorf("look up %q: %w", name, err)
	}
	unlock := e.lock(dir, n)
	defer unlock()
	keep := false
	defer func() {
		if !keep {
			fs.table.unpin(n)
			n = nil
		}
	}()
	path, tracked := fs.table.entryPath(dir, name)
	if !tracked || n.typ == unix.S_IFSOCK {
		return n, -1, nil
	}
	// Once more, now that nothing can change it.
	err = unix.Fstatat(fs.dirfd(dir), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT || err == nil && (keyOf(&st) != n.key || fs.table.getKey(n.key) != n) {
		// Whoever took it away did so as a mutation of its own.
		return n, -1, nil
	}
	if err != nil {
		return n, -1, fmt.Errorf("stat %q: %w", path, err)
	}
	r := fs.newRecord(record.OpState)
	defer fs.putRecord(r)
	r.Path, r.FileID = path, n.id
	if err := fillState(r, fileRef{dirfd: fs.dirfd(dir), name: name}, &st); err != nil {
		return n, -1, fmt.Errorf("read attributes of %q: %w", path, err)
	}
	fs.setParentTime(r, dir)
	if contents {
		r.Flags |= record.FlagContents // of every type: what is there is out of date
	}
	fd = -1
	known := e.otherNames(r, n, &st)
	if n.typ == unix.S_IFREG {
		r.Size, r.Fields = st.Size, r.Fields|record.FieldSize
	}
	if n.typ == unix.S_IFREG && (contents || !known) {
		if fd, err = openContent(fs.dirfd(dir), name); err != nil {
			return n, -1, fmt.Errorf("open %q: %w", path, err)
		}
		r.Flags |= record.FlagMore
	}
	r.Flags |= e.flags
	if _, err := fs.cfg.Log.Append(r, nil, nil); err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return n, -1, fmt.Errorf("append the state of %q: %w", path, err)
	}
	if e.flags.Has(record.FlagLive) {
		n.lastRecord.Store(0) // more of it follows, and it may be from before
	}
	e.Progress(1, 0)
	keep = true
	return n, fd, nil
}

// otherNames tells the names of a file that has several, whatever its type,
// and whether the content was emitted with another one.
func (e *Emission) otherNames(r *record.Record, n *inode, st *unix.Stat_t) (known bool) {
	if st.Nlink <= 1 || n.isDir() {
		return false
	}
	r.Names = e.fs.table.allPaths(n)
	r.Fields |= record.FieldNames
	if _, pinned := e.linked[n]; !pinned {
		e.fs.table.pin(n)
		e.linked[n] = struct{}{}
	}
	_, known = e.sent[n]
	e.sent[n] = struct{}{}
	return known
}

// openContent opens a regular file to read what follows its attributes.
func openContent(dirfd int, name string) (int, error) {
	return unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
}

// fillState puts all attributes of a file into an OpState.
func fillState(r *record.Record, ref fileRef, st *unix.Stat_t) error {
	r.Mode, r.UID, r.GID, r.Mtime = st.Mode, st.Uid, st.Gid, mtimeOf(st)
	r.Fields |= record.FieldPath | record.FieldFileID | record.FieldMode | record.FieldOwner | record.FieldMtime
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := readlinkat(ref)
		if err != nil {
			return err
		}
		r.Path2 = string(target)
		r.Fields |= record.FieldPath2
	case unix.S_IFCHR, unix.S_IFBLK:
		r.Rdev = st.Rdev
		r.Fields |= record.FieldRdev
	}
	var err error
	r.Xattrs, err = readXattrs(ref)
	// None is said as well: a default ACL would give the standby's some.
	r.Fields |= record.FieldXattrs
	return err
}

func readXattrs(ref fileRef) ([]record.Xattr, error) {
	buf := make([]byte, 4<<10)
	k, err := ref.listxattr(buf)
	if err == unix.ERANGE {
		buf = make([]byte, 64<<10)
		k, err = ref.listxattr(buf)
	}
	if err == unix.EOPNOTSUPP {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []record.Xattr
	for _, name := range strings.Split(string(buf[:k]), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.SGI_ACL_") {
			continue // the latter is how XFS shows POSIX ACLs once more
		}
		val := make([]byte, 64<<10)
		k, err := ref.getxattr(name, val)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, record.Xattr{Name: name, Value: val[:k]})
	}
	return out, nil
}

// rootState emits the attributes of the store's root.
func (e *Emission) rootState() error {
	fs := e.fs
	defer e.enter()()
	defer e.lock(fs.table.root)()
	var st unix.Stat_t
	if err := unix.Fstat(fs.storeFd, &st); err != nil {
		return fmt.Errorf("stat the store: %w", err)
	}
	r := fs.newRecord(record.OpSetAttr)
	defer fs.putRecord(r)
	r.Path, r.FileID, r.Mode, r.UID, r.GID, r.Mtime = "", rootID, st.Mode, st.Uid, st.Gid, mtimeOf(&st)
	r.Fields = record.FieldPath | record.FieldFileID | record.FieldMode | record.FieldOwner | record.FieldMtime
	if _, err := fs.cfg.Log.Append(r, nil, nil); err != nil {
		return fmt.Errorf("append the root's state: %w", err)
	}
	xs, err := readXattrs(fileRef{dirfd: fs.storeFd, name: "."})
	if err != nil {
		return fmt.Errorf("read the root's attributes: %w", err)
	}
	for _, x := range xs {
		*r = record.Record{Op: record.OpSetXattr, Name: x.Name, FileID: rootID}
		r.Fields = record.FieldPath | record.FieldFileID | record.FieldName
		if _, err := fs.cfg.Log.Append(r, x.Value, nil); err != nil {
			return fmt.Errorf("append the root's attributes: %w", err)
		}
	}
	return nil
}

// content emits a file's data, hole by hole left out, and its end.
func (e *Emission) content(ctx context.Context, n *inode, as dirName, fd int) error {
	if e.buf == nil {
		e.buf = make([]byte, emitChunk)
	}
	var off int64
	layout := uint64(0)
	for first := true; ; first = false {
		next, done, err := e.chunk(n, as, fd, off, &layout, first)
		if err != nil || done {
			return err
		}
		off = next
		if err := e.Throttle(ctx); err != nil {
			return err
		}
	}
}

// chunk emits the data at or after off. When the content was shifted since
// the walk began on the file, it begins again.
func (e *Emission) chunk(n *inode, as dirName, fd int, off int64, layout *uint64, first bool) (next int64, done bool, err error) {
	fs := e.fs
	defer e.enter()()
	defer e.lock(n)()
	// By the name that was emitted: the standby may not have the others.
	path, tracked := fs.table.pathAs(n, as)
	if !tracked {
		path, tracked = fs.named(n, &handle{fd: fd, inode: n})
	}
	if !tracked {
		return 0, true, nil // unlinked meanwhile, or moved out
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, false, fmt.Errorf("stat %q: %w", path, err)
	}
	r := fs.newRecord(record.OpStateData)
	defer fs.putRecord(r)
	r.Path, r.FileID, r.Mtime, r.Flags = path, n.id, mtimeOf(&st), e.flags
	r.Fields = record.FieldPath | record.FieldFileID | record.FieldMtime
	if first {
		*layout = n.layout
	} else if *layout != n.layout {
		*layout = n.layout
		off = 0
	}
	start, err := unix.Seek(fd, off, unix.SEEK_DATA)
	if err != nil && err != unix.ENXIO {
		return 0, false, fmt.Errorf("find data of %q: %w", path, err)
	}
	k := 0
	if err == nil && start < st.Size {
		if k, err = unix.Pread(fd, e.buf[:min(emitChunk, st.Size-start)], start); err != nil {
			return 0, false, fmt.Errorf("read %q: %w", path, err)
		}
	}
	if k == 0 {
		r.Op, r.Size = record.OpStateEnd, st.Size
		r.Fields |= record.FieldSize
		if e.flags.Has(record.FlagLive) {
			fs.setParentTime(r, as.dir) // the standby makes the name now
		}
		_, err := fs.cfg.Log.Append(r, nil, nil)
		return 0, true, err
	}
	r.Offset = start
	r.Fields |= record.FieldOffset
	if _, err := fs.cfg.Log.Append(r, e.buf[:k], nil); err != nil {
		return 0, false, fmt.Errorf("append content of %q: %w", path, err)
	}
	e.Progress(0, int64(k))
	return start + int64(k), false, nil
}

// emitEntering records something that entered the replicated part of the
// tree: its whole state, applied by every standby. The caller holds the locks
// of dir and the inode, or the tree exclusively.
func (fs *FS) emitEntering(dir *inode, name string) fuse.Status {
	e := fs.NewEmission()
	defer e.Close()
	e.locked, e.flags = true, record.FlagLive
	dir.lastRecord.Store(0)
	if err := e.entry(context.Background(), dir, name, false); err != nil {
		fs.cfg.Suspect("the content of a file that entered replication could not be recorded: " + err.Error())
		return fuse.EIO
	}
	return fuse.OK
}
