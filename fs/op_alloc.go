package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// Fallocate reserves, punches, zeroes, collapses or inserts a range.
func (fs *FS) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) (s fuse.Status) {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	p := passage{fs: fs}
	if s := p.enter(recordSize); !s.Ok() {
		return s
	}
	defer func() { s = p.leave(s) }()
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	n := h.inode
	n.mu.Lock()
	defer n.mu.Unlock()

	var st unix.Stat_t
	if err := unix.Fstat(h.fd, &st); err != nil {
		return errStatus(err)
	}
	r := fs.newRecord(record.OpFallocate)
	r.Request = in.Unique
	path, tracked := fs.named(n, h)
	if tracked {
		r.Path, r.FileID = path, n.id
		r.Perm, r.Offset, r.Length, r.Size = in.Mode, int64(in.Offset), int64(in.Length), st.Size
		// The size before tells a recovery whether content was shifted.
		r.Fields = record.FieldPath | record.FieldFileID | record.FieldPerm |
			record.FieldOffset | record.FieldLength | record.FieldSize
		p.changes(n)
	}
	m := fs.begin(r)
	m.touch(n)
	defer m.end()
	if err := unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length)); err != nil {
		m.failed(h.fd, &st)
		return errStatus(err)
	}
	if in.Mode&(unix.FALLOC_FL_COLLAPSE_RANGE|unix.FALLOC_FL_INSERT_RANGE) != 0 {
		n.layout++
	}
	if err := unix.Fstat(h.fd, &st); err != nil {
		return errStatus(err)
	}
	if !keepsSetID(&st, &in.Caller) {
		fs.killPriv(n, h.fd, &st, &in.Caller, r)
	}
	if !tracked {
		return fuse.OK
	}
	r.Mtime = mtimeOf(&st)
	r.Fields = r.Fields&^record.FieldSize | record.FieldMtime
	_, s = m.commit(nil)
	return s
}

const (
	// maxCopy bounds one copy_file_range, which holds two inodes' locks.
	maxCopy = 64 << 20
)

// CopyFileRange copies between files of the mount, recorded as the copy. What
// comes from a file that the standbys do not have is recorded as data.
func (fs *FS) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (copied uint32, s fuse.Status) {
	src, dst := fs.handles.get(in.FhIn), fs.handles.get(in.FhOut)
	if src == nil || dst == nil {
		return 0, fuse.EBADF
	}
	p := passage{fs: fs}
	if s := p.enter(recordSize); !s.Ok() {
		return 0, s
	}
	defer func() { s = p.leave(s) }()
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	defer lockInodes(src.inode, dst.inode)()

	dstPath, tracked := fs.named(dst.inode, dst)
	srcPath, srcTracked := fs.named(src.inode, src)
	length := min(in.Len, maxCopy)
	asData := tracked && !srcTracked
	if asData {
		length = min(length, record.MaxData)
	}
	r := fs.newRecord(record.OpCopyRange)
	r.Request = in.Unique
	if tracked {
		r.Path, r.Path2, r.FileID, r.FileID2 = dstPath, srcPath, dst.inode.id, src.inode.id
		r.Offset, r.Offset2, r.Length = int64(in.OffOut), int64(in.OffIn), int64(length)
		r.Fields = record.FieldPath | record.FieldPath2 | record.FieldFileID | record.FieldFileID2 |
			record.FieldOffset | record.FieldOffset2 | record.FieldLength
		p.changes(dst.inode)
	}
	m := fs.begin(r)
	m.touch(dst.inode)
	defer m.end()

	var st unix.Stat_t
	if err := unix.Fstat(dst.fd, &st); err != nil {
		return 0, errStatus(err)
	}
	offIn, offOut := int64(in.OffIn), int64(in.OffOut)
	k, err := unix.CopyFileRange(src.fd, &offIn, dst.fd, &offOut, int(length), 0)
	if err != nil {
		m.failed(dst.fd, &st)
		return 0, errStatus(err)
	}
	if k == 0 {
		return 0, fuse.OK
	}
	if err := unix.Fstat(dst.fd, &st); err != nil {
		return 0, errStatus(err)
	}
	if !keepsSetID(&st, &in.Caller) {
		fs.killPriv(dst.inode, dst.fd, &st, &in.Caller, r)
	}
	if !tracked {
		return uint32(k), fuse.OK
	}
	r.Mtime, r.Length = mtimeOf(&st), int64(k)
	r.Fields |= record.FieldMtime
	var data []byte
	if asData {
		data = make([]byte, k)
		if _, err := unix.Pread(src.fd, data, int64(in.OffIn)); err != nil {
			return 0, errStatus(err)
		}
		r.Op = record.OpWrite
		r.Fields &^= record.FieldPath2 | record.FieldFileID2 | record.FieldOffset2 | record.FieldLength
	}
	if _, s := m.commit(data); !s.Ok() {
		return 0, s
	}
	return uint32(k), fuse.OK
}
