package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// front is what the kernel talks to: FS, but for requests that an earlier
// process has read and not answered. Those that it had carried out are
// answered from what is there; the others are done now.
type front struct{ *FS }

// newFront is what a server serves; tests put theirs before it.
var newFront = func(fs *FS) fuse.RawFileSystem { return counted{front{fs}} }

// resent tells whether the request was carried out before, what it did, and
// whether that may be answered.
func (f front) resent(in *fuse.InHeader) (o carriedOut, s fuse.Status, ok bool) {
	if in.Unique&uniqueResend == 0 {
		return o, fuse.OK, false
	}
	was := f.inherited.Load()
	if was == nil {
		return o, fuse.OK, false
	}
	if o, ok = (*was)[in.Unique&^uniqueResend]; ok && f.syncs {
		// What durability it was to have is not known any more.
		return o, f.awaitApplied(), true
	}
	return o, fuse.OK, ok
}

// entry answers a request that has made the entry name. The inode has the
// kernel's reference from the first time. s says whether it may be answered.
func (f front) entry(o carriedOut, s fuse.Status, dir uint64, name string, typ uint32, out *fuse.EntryOut) fuse.Status {
	if !s.Ok() {
		return s
	}
	f.tree.RLock()
	defer f.tree.RUnlock()
	var st unix.Stat_t
	// The record of what is not replicated is its directory's.
	if n := f.table.get(o.File); n != nil && o.File != dir && (typ == 0 || n.typ == typ) {
		if err := f.statInode(n, nil, &st); err != nil {
			return errStatus(err)
		}
		f.fillEntry(out, n, &st)
		return fuse.OK
	}
	p := f.table.get(dir)
	if p == nil {
		return fuse.Status(unix.ESTALE)
	}
	n, err := f.table.lookup(p, name, &st, refKernel)
	if err != nil {
		return errStatus(err)
	}
	f.fillEntry(out, n, &st)
	return fuse.OK
}

func (f front) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if o, s, ok := f.resent(&in.InHeader); ok {
		return f.entry(o, s, in.NodeId, name, in.Mode&unix.S_IFMT, out)
	}
	return f.FS.Mknod(cancel, in, name, out)
}

func (f front) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if o, s, ok := f.resent(&in.InHeader); ok {
		return f.entry(o, s, in.NodeId, name, unix.S_IFDIR, out)
	}
	return f.FS.Mkdir(cancel, in, name, out)
}

func (f front) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if o, s, ok := f.resent(in); ok {
		return f.entry(o, s, in.NodeId, name, unix.S_IFLNK, out)
	}
	return f.FS.Symlink(cancel, in, target, name, out)
}

func (f front) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if _, s, ok := f.resent(&in.InHeader); ok {
		return f.entry(carriedOut{File: in.Oldnodeid}, s, in.NodeId, name, 0, out)
	}
	return f.FS.Link(cancel, in, name, out)
}

func (f front) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if _, s, ok := f.resent(in); ok {
		return s
	}
	return f.FS.Unlink(cancel, in, name)
}

func (f front) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if _, s, ok := f.resent(in); ok {
		return s
	}
	return f.FS.Rmdir(cancel, in, name)
}

func (f front) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if _, s, ok := f.resent(&in.InHeader); ok {
		return s
	}
	return f.FS.Rename(cancel, in, oldName, newName)
}

// Create made the file, and perhaps its handle: the successor opens its own.
func (f front) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	o, s, ok := f.resent(&in.InHeader)
	if !ok {
		return f.FS.Create(cancel, in, name, out)
	}
	if s := f.entry(o, s, in.NodeId, name, unix.S_IFREG, &out.EntryOut); !s.Ok() {
		return s
	}
	open := fuse.OpenIn{InHeader: in.InHeader, Flags: in.Flags &^ unix.O_TRUNC}
	open.NodeId = out.NodeId
	return f.FS.Open(cancel, &open, &out.OpenOut)
}

// Open is a mutation when it truncates.
func (f front) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if _, s, ok := f.resent(&in.InHeader); ok {
		if !s.Ok() {
			return s
		}
		in.Flags &^= unix.O_TRUNC
	}
	return f.FS.Open(cancel, in, out)
}

func (f front) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if _, s, ok := f.resent(&in.InHeader); ok {
		if !s.Ok() {
			return s
		}
		return f.GetAttr(cancel, &fuse.GetAttrIn{InHeader: in.InHeader}, out)
	}
	return f.FS.SetAttr(cancel, in, out)
}

func (f front) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	if _, s, ok := f.resent(&in.InHeader); ok {
		return s
	}
	return f.FS.SetXAttr(cancel, in, attr, data)
}

func (f front) RemoveXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string) fuse.Status {
	if _, s, ok := f.resent(in); ok {
		return s
	}
	return f.FS.RemoveXAttr(cancel, in, attr)
}

func (f front) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if _, s, ok := f.resent(&in.InHeader); ok {
		return s
	}
	return f.FS.Fallocate(cancel, in)
}

func (f front) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if o, s, ok := f.resent(&in.InHeader); ok {
		return uint32(o.Size), s
	}
	return f.FS.CopyFileRange(cancel, in)
}

// Write with O_SYNC was perhaps not durable yet.
func (f front) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	o, s, ok := f.resent(&in.InHeader)
	if !ok {
		return f.FS.Write(cancel, in, data)
	}
	if !s.Ok() {
		return 0, s
	}
	if h := f.handles.get(in.Fh); h != nil && h.syncs(in) {
		if s := f.sync(h.inode, h, h.fd, in.Flags&unix.O_SYNC != unix.O_SYNC); !s.Ok() {
			return 0, s
		}
	}
	return uint32(o.Size), fuse.OK
}
