package apply

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// primary is a tree that is changed with real system calls, each giving the
// record that a primary would log for it.
type primary struct {
	t     testing.TB
	dir   string
	lsn   uint64
	epoch uint64
	ids   map[uint64]uint64 // file id by inode number
	next  uint64
	log   []*record.Record
}

func newPrimary(t testing.TB, dir string) *primary {
	return &primary{t: t, dir: dir, epoch: 1, ids: map[uint64]uint64{}}
}

func (p *primary) at(path string) string { return filepath.Join(p.dir, path) }

func (p *primary) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("primary: %v", err)
	}
}

func (p *primary) stat(path string) unix.Stat_t {
	p.t.Helper()
	var st unix.Stat_t
	p.must(unix.Lstat(p.at(path), &st))
	return st
}

func (p *primary) exists(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(p.at(path), &st) == nil
}

func (p *primary) id(ino uint64) uint64 {
	if p.ids[ino] == 0 {
		p.next++
		p.ids[ino] = p.next
	}
	return p.ids[ino]
}

func (p *primary) idOf(path string) uint64 { return p.id(p.stat(path).Ino) }

func parentOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return ""
}

func times(t unix.Timespec) record.Timespec {
	return record.Timespec{Sec: t.Sec, Nsec: uint32(t.Nsec)}
}

// add logs a record; path is what it is about.
func (p *primary) add(op record.Op, path string, change func(*record.Record)) *record.Record {
	p.lsn++
	r := &record.Record{LSN: p.lsn, Epoch: p.epoch, Op: op, Path: path, Fields: record.FieldPath}
	if change != nil {
		change(r)
	}
	p.log = append(p.log, r)
	return r
}

func (p *primary) mtime(r *record.Record) {
	r.Mtime = times(p.stat(r.Path).Mtim)
	r.Fields |= record.FieldMtime
}

func (p *primary) parent(r *record.Record) {
	r.ParentMtime = times(p.stat(parentOf(r.Path)).Mtim)
	r.Fields |= record.FieldParentMtime
}

func (p *primary) attrs(r *record.Record, perm uint32) {
	st := p.stat(r.Path)
	r.Mode, r.Perm, r.UID, r.GID = st.Mode, perm, st.Uid, st.Gid
	r.Mtime, r.FileID = times(st.Mtim), p.id(st.Ino)
	r.Fields |= record.FieldMode | record.FieldPerm | record.FieldOwner | record.FieldMtime | record.FieldFileID
	p.parent(r)
}

// Some of what applications do. The owners vary as an application's would.
func (p *primary) own(path string) {
	p.must(unix.Lchown(p.at(path), int(p.lsn%3), int(p.lsn%5)))
}

func (p *primary) create(path string, perm uint32) *record.Record {
	p.t.Helper()
	fd, err := unix.Open(p.at(path), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, perm)
	p.must(err)
	p.must(unix.Close(fd))
	p.own(path)
	if perm&0o6000 != 0 {
		p.must(unix.Chmod(p.at(path), perm)) // chown cleared it
	}
	return p.add(record.OpCreate, path, func(r *record.Record) { p.attrs(r, perm) })
}

func (p *primary) mknod(path string, mode uint32, dev uint64) *record.Record {
	p.t.Helper()
	p.must(unix.Mknod(p.at(path), mode, int(dev)))
	p.own(path)
	return p.add(record.OpCreate, path, func(r *record.Record) {
		p.attrs(r, mode&0o7777)
		r.Rdev = dev
		r.Fields |= record.FieldRdev
	})
}

func (p *primary) mkdir(path string, perm uint32) *record.Record {
	p.t.Helper()
	p.must(unix.Mkdir(p.at(path), perm))
	p.own(path)
	return p.add(record.OpMkdir, path, func(r *record.Record) { p.attrs(r, perm) })
}

func (p *primary) symlink(target, path string) *record.Record {
	p.t.Helper()
	p.must(unix.Symlink(target, p.at(path)))
	p.own(path)
	return p.add(record.OpSymlink, path, func(r *record.Record) {
		p.attrs(r, 0o777)
		r.Path2 = target
		r.Fields |= record.FieldPath2
	})
}

func (p *primary) link(old, path string) *record.Record {
	p.t.Helper()
	p.must(unix.Link(p.at(old), p.at(path)))
	return p.add(record.OpLink, path, func(r *record.Record) {
		r.Path2, r.FileID = old, p.idOf(path)
		r.Fields |= record.FieldPath2 | record.FieldFileID
		p.parent(r)
	})
}

func (p *primary) remove(op record.Op, path string) *record.Record {
	p.t.Helper()
	st := p.stat(path)
	id := p.id(st.Ino)
	switch op {
	case record.OpUnlink:
		p.must(unix.Unlink(p.at(path)))
	case record.OpRmdir:
		p.must(unix.Rmdir(p.at(path)))
	default:
		p.forgetTree(path)
		p.must(os.RemoveAll(p.at(path)))
	}
	return p.add(op, path, func(r *record.Record) {
		r.FileID = id
		r.Fields |= record.FieldFileID
		p.last(r, st)
		p.parent(r)
	})
}

// forgetTree drops the ids of the files that are gone with a tree: their
// inodes may be used again.
func (p *primary) forgetTree(path string) {
	names := map[uint64]uint64{}
	p.must(filepath.WalkDir(p.at(path), func(path string, d fs.DirEntry, err error) error {
		p.must(err)
		var st unix.Stat_t
		p.must(unix.Lstat(path, &st))
		if names[st.Ino]++; d.IsDir() || names[st.Ino] == st.Nlink {
			delete(p.ids, st.Ino)
		}
		return nil
	}))
}

func (p *primary) last(r *record.Record, st unix.Stat_t) {
	if st.Nlink == 1 || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		r.Flags |= record.FlagLast
		delete(p.ids, st.Ino)
	}
}

func (p *primary) rename(old, path string, flags uint) *record.Record {
	p.t.Helper()
	var replaced *unix.Stat_t
	if flags == 0 && p.exists(path) {
		st := p.stat(path)
		replaced = &st
	}
	id := p.idOf(old)
	p.must(unix.Renameat2(unix.AT_FDCWD, p.at(old), unix.AT_FDCWD, p.at(path), flags))
	return p.add(record.OpRename, path, func(r *record.Record) {
		r.Path2, r.FileID = old, id
		r.Fields |= record.FieldPath2 | record.FieldFileID | record.FieldParent2Mtime
		if flags&unix.RENAME_EXCHANGE != 0 {
			r.Flags |= record.FlagExchange
		}
		if replaced != nil {
			r.FileID2 = p.id(replaced.Ino)
			r.Fields |= record.FieldFileID2
			p.last(r, *replaced)
		}
		r.Parent2Mtime = times(p.stat(parentOf(old)).Mtim)
		p.parent(r)
	})
}

// file opens a file of the primary for f, and logs the record that f fills.
func (p *primary) file(op record.Op, path string, f func(fd int, r *record.Record)) *record.Record {
	p.t.Helper()
	fd, err := unix.Open(p.at(path), unix.O_RDWR|unix.O_CLOEXEC, 0)
	p.must(err)
	defer func() { p.must(unix.Close(fd)) }()
	return p.add(op, path, func(r *record.Record) {
		r.FileID = p.idOf(path)
		r.Fields |= record.FieldFileID
		f(fd, r)
		p.mtime(r)
	})
}

func (p *primary) write(path string, data []byte, off int64) *record.Record {
	p.t.Helper()
	return p.file(record.OpWrite, path, func(fd int, r *record.Record) {
		_, err := unix.Pwrite(fd, data, off)
		p.must(err)
		r.Data, r.Offset = data, off
		r.Fields |= record.FieldData | record.FieldOffset
	})
}

func (p *primary) fallocate(path string, mode uint32, off, n int64) *record.Record {
	p.t.Helper()
	return p.file(record.OpFallocate, path, func(fd int, r *record.Record) {
		err := unix.Fallocate(fd, mode, off, n)
		if err == unix.EOPNOTSUPP {
			p.t.Skipf("the filesystem of %s lacks fallocate mode %#x", p.dir, mode)
		}
		p.must(err)
		r.Perm, r.Offset, r.Length = mode, off, n
		r.Fields |= record.FieldPerm | record.FieldOffset | record.FieldLength
	})
}

func (p *primary) copyRange(src string, srcOff int64, path string, off, n int64) *record.Record {
	p.t.Helper()
	return p.file(record.OpCopyRange, path, func(fd int, r *record.Record) {
		b := make([]byte, n)
		in, err := os.Open(p.at(src))
		p.must(err)
		_, err = in.ReadAt(b, srcOff)
		p.must(err)
		p.must(in.Close())
		_, err = unix.Pwrite(fd, b, off)
		p.must(err)
		r.Path2, r.FileID2, r.Offset2, r.Offset, r.Length = src, p.idOf(src), srcOff, off, n
		r.Fields |= record.FieldPath2 | record.FieldFileID2 | record.FieldOffset2 |
			record.FieldOffset | record.FieldLength
	})
}

func (p *primary) setattr(path string, change func(path string, r *record.Record) error) *record.Record {
	p.t.Helper()
	return p.add(record.OpSetAttr, path, func(r *record.Record) {
		p.must(change(p.at(path), r))
		p.mtime(r)
		r.FileID = p.idOf(path)
		r.Fields |= record.FieldFileID
	})
}

func (p *primary) truncate(path string, size int64) *record.Record {
	p.t.Helper()
	return p.setattr(path, func(path string, r *record.Record) error {
		r.Size = size
		r.Fields |= record.FieldSize
		return unix.Truncate(path, size)
	})
}

func (p *primary) chmod(path string, mode uint32) *record.Record {
	p.t.Helper()
	return p.setattr(path, func(path string, r *record.Record) error {
		r.Mode = mode
		r.Fields |= record.FieldMode
		return unix.Chmod(path, mode)
	})
}

func (p *primary) chown(path string, uid, gid uint32) *record.Record {
	p.t.Helper()
	r := p.setattr(path, func(path string, r *record.Record) error {
		r.UID, r.GID = uid, gid
		r.Fields |= record.FieldOwner
		return unix.Lchown(path, int(uid), int(gid))
	})
	if st := p.stat(path); st.Mode&unix.S_IFMT != unix.S_IFLNK {
		r.Mode = st.Mode
		r.Fields |= record.FieldMode
	}
	return r
}

func (p *primary) utimes(path string, atime, mtime record.Timespec) *record.Record {
	p.t.Helper()
	return p.setattr(path, func(path string, r *record.Record) error {
		r.Atime = atime
		r.Fields |= record.FieldAtime
		return unix.UtimesNanoAt(unix.AT_FDCWD, path,
			[]unix.Timespec{timespec(atime), timespec(mtime)}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (p *primary) setxattr(path, name, value string) *record.Record {
	p.t.Helper()
	p.must(unix.Lsetxattr(p.at(path), name, []byte(value), 0))
	return p.add(record.OpSetXattr, path, func(r *record.Record) {
		r.Name, r.Data, r.FileID = name, []byte(value), p.idOf(path)
		r.Fields |= record.FieldName | record.FieldData | record.FieldFileID
	})
}

func (p *primary) removexattr(path, name string) *record.Record {
	p.t.Helper()
	p.must(unix.Lremovexattr(p.at(path), name))
	return p.add(record.OpRemoveXattr, path, func(r *record.Record) {
		r.Name, r.FileID = name, p.idOf(path)
		r.Fields |= record.FieldName | record.FieldFileID
	})
}

func (p *primary) fsync(path string, flags record.Flags) *record.Record {
	return p.add(record.OpFsync, path, func(r *record.Record) {
		r.Flags = flags
		if path != "" && p.exists(path) {
			r.FileID = p.idOf(path)
			r.Fields |= record.FieldFileID
		}
	})
}
