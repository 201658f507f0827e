package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

func logPath(p string) zap.Field { return zap.String("path", p) }
func logErr(err error) zap.Field { return zap.Error(err) }

// storeFlags are the flags for the store's descriptor: the kernel places
// appends, we see to O_SYNC ourselves and together with the standby, and
// O_DIRECT would ask for aligned buffers.
func storeFlags(flags uint32) int {
	keep := uint32(unix.O_ACCMODE | unix.O_NOATIME)
	// O_NONBLOCK is for a FIFO that took the file's name meanwhile.
	return int(flags&keep) | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_LARGEFILE
}

// openMode is how the kernel treats an open file. A standby's store changes
// underneath, so nothing is kept there.
func (fs *FS) openMode(n *inode, flags uint32) uint32 {
	switch {
	case fs.cacheTime() == 0:
		return fuse.FOPEN_DIRECT_IO
	case flags&unix.O_ACCMODE == unix.O_WRONLY, flags&unix.O_DIRECT != 0:
		return fuse.FOPEN_DIRECT_IO
	case fs.keepsPages(n):
		return fuse.FOPEN_KEEP_CACHE
	default:
		return 0
	}
}

// createMode is openMode for a file that was made by this open. One that nobody
// may open for writing is written once, from front to end, by who made it, such
// as git's packs and objects; with the page cache between, the kernel would send
// each write of part of a page on its own.
func (fs *FS) createMode(n *inode, flags, perm uint32) uint32 {
	if perm&0o222 == 0 {
		return fuse.FOPEN_DIRECT_IO
	}
	return fs.openMode(n, flags)
}

// keepsPages says whether the kernel may use the pages, or the listing, that
// it has of n: not those from before the store became a primary's.
func (fs *FS) keepsPages(n *inode) bool {
	role := fs.role.Load()
	fs.table.mu.Lock()
	defer fs.table.mu.Unlock()
	keeps := n.role == role
	n.role = role
	return keeps
}

// Open opens a regular file, truncating it if asked to.
func (fs *FS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) (s fuse.Status) {
	n := fs.table.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	writes := in.Flags&unix.O_ACCMODE != unix.O_RDONLY
	trunc := in.Flags&unix.O_TRUNC != 0
	p := passage{fs: fs}
	var h *handle
	if writes || trunc {
		size := 0
		if trunc {
			size = recordSize
		}
		if s := p.enter(size); !s.Ok() {
			return s
		}
		defer func() {
			if s = p.leave(s); !s.Ok() && h != nil {
				fs.closeHandle(h.id)
			}
		}()
	}
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	n.mu.Lock() // the name stays n's
	defer n.mu.Unlock()
	fd, err := fs.openInode(n, storeFlags(in.Flags))
	if err != nil {
		return errStatus(err)
	}
	kept := false
	defer func() {
		if !kept {
			unix.Close(fd)
		}
	}()
	if trunc {
		if s := fs.truncateOpened(n, fd, writes, in); !s.Ok() {
			return s
		}
		p.changes(n)
	}
	kept = true
	h = fs.openHandle(n, fd, writes)
	out.Fh = h.id
	out.OpenFlags = fs.openMode(n, in.Flags)
	h.direct = out.OpenFlags&fuse.FOPEN_DIRECT_IO != 0
	return fuse.OK
}

// openInode opens n anew. The name that led to it may be another file's by
// the time that it is opened: what was opened must be n.
func (fs *FS) openInode(n *inode, flags int) (int, error) {
	for range 16 {
		ref, ok := fs.table.ref(n)
		if !ok {
			return -1, unix.ESTALE
		}
		var fd int
		var err error
		if ref.name == "" {
			fd, err = unix.Open(ref.proc(), flags&^unix.O_NOFOLLOW, 0)
		} else {
			fd, err = unix.Openat(ref.dirfd, ref.name, flags, 0)
		}
		if err == unix.ENOENT || err == unix.ELOOP && flags&unix.O_PATH == 0 {
			fs.dropStale(n, ref)
			continue
		}
		if err != nil {
			return -1, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil && keyOf(&st) == n.key {
			return fd, nil
		}
		unix.Close(fd)
		fs.dropStale(n, ref)
	}
	return -1, unix.ESTALE
}

// truncateOpened is the O_TRUNC of an open, one record.
func (fs *FS) truncateOpened(n *inode, fd int, writable bool, in *fuse.OpenIn) fuse.Status {
	r := fs.newRecord(record.OpSetAttr)
	r.Request = in.Unique
	if path, ok := fs.named(n, &handle{fd: fd, inode: n}); ok {
		r.Path, r.FileID = path, n.id
		r.Fields = record.FieldPath | record.FieldFileID | record.FieldSize
	}
	m := fs.begin(r)
	m.touch(n)
	defer m.end()
	if err := fs.truncateFd(n, fd, writable); err != nil {
		return errStatus(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errStatus(err)
	}
	if in.Mode&fuse.OPEN_KILL_SUIDGID != 0 {
		fs.killPriv(n, fd, &st, &in.Caller, r)
	}
	if r.Fields == 0 {
		return fuse.OK
	}
	r.Mtime = mtimeOf(&st)
	r.Fields |= record.FieldMtime
	_, s := m.commit(nil)
	return s
}

// truncateFd empties an open file; O_RDONLY | O_TRUNC does so as well.
func (fs *FS) truncateFd(n *inode, fd int, writable bool) error {
	if writable {
		return unix.Ftruncate(fd, 0)
	}
	other, err := fs.openInode(n, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(other)
	return unix.Ftruncate(other, 0)
}

// killPriv clears suid and sgid as the kernel would have for the caller
// (HANDLE_KILLPRIV_V2 leaves it to us), and notes the mode in r. It drops
// security.capability by itself when the store is written to.
func (fs *FS) killPriv(n *inode, fd int, st *unix.Stat_t, c *fuse.Caller, r *record.Record) {
	mode := withoutSetID(st, c)
	if mode == st.Mode || unix.Fchmod(fd, mode&0o7777) != nil {
		return
	}
	st.Mode = mode
	r.Mode = mode
	if r.Fields != 0 {
		r.Fields |= record.FieldMode
	}
	// The kernel would run the file by the mode that it has cached. Of the
	// notices this one, for attributes only, takes no lock that we could hold.
	if srv := fs.srv.Load(); srv != nil {
		srv.InodeNotify(n.id, -1, 0)
	}
}

// Read reads at an offset.
func (fs *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	return fuse.ReadResultFd(uintptr(h.fd), int64(in.Offset), len(buf)), fuse.OK
}

// Write stores data at an offset and records it.
func (fs *FS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	written, synced, s := fs.write(cancel, in, h, data)
	if !s.Ok() {
		return written, s
	}
	if h.syncs(in) {
		s = fs.finishSync(h.fd, in.Flags&unix.O_SYNC != unix.O_SYNC, synced)
	}
	return written, s
}

// synced is an fsync that was recorded, and what it waits for. The zero one was
// not: it concerns this node alone.
type synced struct {
	lsn        uint64
	durability Durability
}

// write returns the fsync that an O_SYNC write asks for.
func (fs *FS) write(cancel <-chan struct{}, in *fuse.WriteIn, h *handle, data []byte) (written uint32, sync synced, s fuse.Status) {
	p := passage{fs: fs}
	if s := p.enter(recordSize + len(data)); !s.Ok() {
		if in.WriteFlags&fuse.WRITE_CACHE != 0 {
			fs.refuse(h, len(data))
		}
		return 0, sync, s
	}
	defer func() {
		if sync.lsn == 0 { // an fsync waits for more
			s = p.leave(s)
		} else {
			fs.gate.leave()
		}
	}()
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	n := h.inode
	n.mu.Lock()
	defer n.mu.Unlock()

	offset := int64(in.Offset)
	if in.Flags&unix.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0 {
		// The kernel may have the size from before this node was a standby.
		var st unix.Stat_t
		if err := unix.Fstat(h.fd, &st); err != nil {
			return 0, sync, errStatus(err)
		}
		offset = st.Size
	}
	r := fs.newRecord(record.OpWrite)
	r.Request = in.Unique
	path, tracked := fs.named(n, h)
	if tracked {
		r.Path, r.FileID = path, n.id
		r.Offset, r.Length = offset, int64(len(data))
		r.Fields = record.FieldPath | record.FieldFileID | record.FieldOffset | record.FieldLength
		p.changes(n)
	}
	m := fs.begin(r)
	m.touch(n)
	defer m.end()

	done, err := pwriteFull(h.fd, data, offset)
	if done == 0 && len(data) > 0 {
		m.failed(h.fd, nil)
		return 0, sync, errStatus(err)
	}
	var st unix.Stat_t
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 || tracked {
		if err := unix.Fstat(h.fd, &st); err != nil {
			return 0, sync, errStatus(err)
		}
	}
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		fs.killPriv(n, h.fd, &st, &in.Caller, r)
	}
	if !tracked {
		fs.completed.note(in.Unique, n.id, done)
		return uint32(done), sync, fuse.OK
	}
	r.Mtime = mtimeOf(&st)
	r.Fields = r.Fields&^record.FieldLength | record.FieldMtime
	if _, s := m.commit(data[:done]); !s.Ok() {
		return 0, sync, s
	}
	if !h.syncs(in) {
		return uint32(done), sync, fuse.OK
	}
	sync, s = fs.appendSync(n, path, in.Flags&unix.O_SYNC != unix.O_SYNC)
	return uint32(done), sync, s
}

// syncs tells whether a write has to be durable when it is answered. What
// passes the page cache the kernel follows up with an fsync of its own.
func (h *handle) syncs(in *fuse.WriteIn) bool {
	return h.direct && in.Flags&unix.O_DSYNC != 0 // O_SYNC includes it
}

// pwriteFull writes all it can: short only with an error.
func pwriteFull(fd int, data []byte, off int64) (int, error) {
	done := 0
	for done < len(data) {
		k, err := unix.Pwrite(fd, data[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		if k == 0 {
			return done, unix.EIO
		}
		done += k
	}
	return done, nil
}

// appendSync records that an fsync is asked for. The inode's lock is held,
// so that the path is right at its LSN.
func (fs *FS) appendSync(n *inode, path string, dataOnly bool) (synced, fuse.Status) {
	r := fs.newRecord(record.OpFsync)
	defer fs.putRecord(r)
	r.Path, r.FileID = path, n.id
	r.Fields = record.FieldPath | record.FieldFileID
	if dataOnly {
		r.Flags |= record.FlagDataOnly
	}
	m := mutation{fs: fs, rec: r}
	m.touch(n)
	lsn, s := m.commit(nil)
	return synced{lsn, fs.durability(n)}, s
}

func syncStore(fd int, dataOnly bool) error {
	if dataOnly {
		return unix.Fdatasync(fd)
	}
	return unix.Fsync(fd)
}

// finishSync makes the store durable while the standbys do the same, and
// waits for them. Nothing is locked meanwhile.
func (fs *FS) finishSync(fd int, dataOnly bool, sync synced) fuse.Status {
	if err := fs.syncStore(fd, dataOnly); err != nil {
		return errStatus(err)
	}
	if sync.lsn == 0 {
		return fuse.OK
	}
	return fs.awaitSynced(sync.lsn, sync.durability)
}

// sync is fsync for files and directories. Behind a closed gate a handle that
// only reads syncs the store; one that has written cannot be promised that the
// standbys, one of which is primary now, have its writes on disk.
func (fs *FS) sync(n *inode, h *handle, fd int, dataOnly bool) fuse.Status {
	var sync synced
	if s := fs.gate.enter(recordSize); !s.Ok() {
		if h.writable {
			return s
		}
	} else {
		var s fuse.Status
		sync, s = func() (synced, fuse.Status) {
			defer fs.gate.leave()
			fs.tree.RLock()
			defer fs.tree.RUnlock()
			n.mu.Lock()
			defer n.mu.Unlock()
			path, tracked := fs.named(n, h)
			if !tracked {
				return synced{}, fuse.OK
			}
			return fs.appendSync(n, path, dataOnly)
		}()
		if !s.Ok() {
			return s
		}
	}
	return fs.finishSync(fd, dataOnly, sync)
}

// Fsync returns when the file is durable here and on every standby in sync.
func (fs *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	return fs.sync(h.inode, h, h.fd, in.FsyncFlags&1 != 0)
}

// Flush has nothing to do; the kernel does not ask again.
func (fs *FS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Release closes a file.
func (fs *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { fs.closeHandle(in.Fh) }

// Lseek finds data and holes.
func (fs *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	off, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
	if err != nil {
		return errStatus(err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}
