// Package fs is the FUSE front end: kernel requests become system calls on
// the store and records in the log.
//
// Every mutating request takes the same steps: pass the role gate, take the
// locks its records need to be ordered by, note the intent, run the system
// call, append one record, let go. It knows nothing of the network.
package fs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// Intent is an operation under way that a crash of the process would leave
// in doubt. End is called when it is not: appended, or failed.
type Intent interface{ End() }

// Log is the one ordered log that mutations go to.
type Log interface {
	// Begin notes an operation before its system call, where a later process
	// can find it.
	Begin(r *record.Record) Intent
	// Append gives the record its LSN. It copies what r and data hold, and
	// may wait for space. in may be nil.
	Append(r *record.Record, data []byte, in Intent) (lsn uint64, err error)
	// WaitDurable returns when the fsync at lsn is done on every standby in
	// sync, and an error when that cannot come true.
	WaitDurable(lsn uint64) error
	// WaitReceived is the same for their memory.
	WaitReceived(lsn uint64) error
	// WaitApplied returns when they show all that is in the log now.
	WaitApplied() error
}

// Config is what a file system needs.
type Config struct {
	// Store is the backing directory.
	Store string
	Log   Log
	// Excluded says of a path relative to the store whether it stays out of
	// replication, with everything below it.
	Excluded func(path string) bool
	// DeepExcludes says whether anything below a path that is not excluded
	// itself could be. May be nil for never.
	DeepExcludes func(path string) bool
	// Durability is that of everything that Paths, of which the first that
	// matches counts, say nothing about.
	Durability Durability
	Paths      []PathDurability
	// Position gives the position of the record lsn, or with 0 the last one that
	// the store shows: on a primary the end of the log, on a standby what is
	// applied. Not ok: the store is not at any. May be nil for never.
	Position func(lsn uint64) (epoch, at uint64, ok bool)
	Logger   *zap.Logger
	// Suspect is called when the mount and the log may have come apart: a
	// handler panicked, or a mutation could not be recorded.
	Suspect func(reason string)
	// Busy, if not nil, is called for every request, concurrently.
	Busy func()
}

// FS serves one store. Create it with New; Mount attaches it.
type FS struct {
	fuse.RawFileSystem
	cfg     Config
	log     *zap.Logger
	storeFd int
	dev     uint64
	// generation goes with every node id. The next process gives the same ids
	// to other files, which an old file handle (name_to_handle_at) must not open.
	generation uint32

	gate gate
	// tree is held shared by every request, exclusively by what changes the
	// paths of more than one inode and by the closing of directory fds.
	tree    sync.RWMutex
	table   table
	handles handleTable
	janitor janitor
	lost    lostPages

	// syncs says that some mutations wait for the standbys.
	syncs bool
	// ttl is how long the kernel may cache, in nanoseconds; 0 on a standby,
	// whose store changes underneath.
	ttl atomic.Int64
	// requests are what the kernel has sent.
	requests requestCounts
	// role counts the times that this became a primary's: what the kernel
	// cached of a file before is void.
	role atomic.Uint64
	srv  atomic.Pointer[fuse.Server]
	recs sync.Pool

	// syncStore is fsync(2), or fdatasync(2); tests have slow ones.
	syncStore func(fd int, dataOnly bool) error

	completed completed
	// inherited is what an earlier process had carried out and perhaps not
	// answered, by request.
	inherited atomic.Pointer[map[uint64]carriedOut]
	// unbroken says that the predecessor was a primary, and nobody else has
	// changed the store since: what the table and the kernel know is true.
	unbroken atomic.Bool
}

// primaryTTL is the kernel's cache time on a primary, whose mount is the only
// way to change the store.
const primaryTTL = time.Hour

// New opens the store. The file system starts read-only; SetWritable opens
// it.
func New(cfg Config) (*FS, error) {
	fd, err := unix.Open(cfg.Store, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("store %s does not exist: create it (mkdir -m 700 %s) or correct `store` in the config", cfg.Store, cfg.Store)
		}
		return nil, fmt.Errorf("open store %s: %w", cfg.Store, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("stat store %s: %w", cfg.Store, err)
	}
	if cfg.Excluded == nil {
		cfg.Excluded = func(string) bool { return false }
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.Suspect == nil {
		cfg.Suspect = func(string) {}
	}
	fs := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		cfg:           cfg,
		log:           cfg.Logger,
		storeFd:       fd,
		dev:           st.Dev,
		generation:    rand.Uint32(),
		syncs:         cfg.syncsAnywhere(),
		syncStore:     syncStore,
	}
	fs.recs.New = func() any { return new(record.Record) }
	fs.gate.init()
	fs.table.init(fs, fd, &st)
	fs.handles.init()
	fs.janitor.start(fs)
	return fs, nil
}

// Close gives back what New took. The mount must be gone.
func (fs *FS) Close() error {
	fs.janitor.stop()
	fs.tree.Lock()
	defer fs.tree.Unlock()
	fs.handles.closeAll()
	fs.table.closeAll()
	if err := unix.Close(fs.storeFd); err != nil {
		return os.NewSyscallError("close", err)
	}
	return nil
}

// String names the file system for go-fuse.
func (fs *FS) String() string { return "replfs" }

// newRecord takes a cleared record from the pool.
func (fs *FS) newRecord(op record.Op) *record.Record {
	r := fs.recs.Get().(*record.Record)
	*r = record.Record{Op: op}
	return r
}

func (fs *FS) putRecord(r *record.Record) { fs.recs.Put(r) }

// mutation is one mutating request between its locks and its reply.
type mutation struct {
	fs  *FS
	rec *record.Record
	in  Intent
	// about are the inodes whose last record it is; see position.go.
	about   [4]*inode
	touched int
}

// begin notes the intent. The record's path fields must be set.
func (fs *FS) begin(r *record.Record) mutation {
	if r.Fields == 0 {
		return mutation{fs: fs, rec: r} // nothing that travels
	}
	return mutation{fs: fs, rec: r, in: fs.cfg.Log.Begin(r)}
}

// commit appends the record of a mutation that was applied. When the log
// cannot take it the store is ahead of the log: the node is suspect, and the
// caller hears EIO.
func (m *mutation) commit(data []byte) (uint64, fuse.Status) {
	lsn, err := m.fs.cfg.Log.Append(m.rec, data, m.in)
	if err != nil {
		m.fs.log.Error("mutation applied but not recorded", zap.Error(err), zap.Stringer("record", m.rec))
		m.fs.cfg.Suspect("a mutation was applied but could not be recorded: " + err.Error())
		return 0, fuse.EIO
	}
	size := len(data)
	if m.rec.Op == record.OpCopyRange {
		size = int(m.rec.Length)
	}
	m.fs.completed.note(m.rec.Request, m.rec.FileID, size)
	m.noteRecord(lsn)
	return lsn, fuse.OK
}

// failed records what an operation on the content of fd did although it
// failed: a full store has moved the mtime, and fallocate(2) may have grown
// the file. before is its state before, nil if that is not known.
func (m *mutation) failed(fd int, before *unix.Stat_t) {
	var st unix.Stat_t
	if m.rec.Fields == 0 || unix.Fstat(fd, &st) != nil {
		return
	}
	if before != nil && before.Mtim == st.Mtim && before.Size == st.Size {
		return
	}
	*m.rec = record.Record{
		Op: record.OpSetAttr, Path: m.rec.Path, FileID: m.rec.FileID, Size: st.Size, Mtime: mtimeOf(&st),
		Fields: record.FieldPath | record.FieldFileID | record.FieldSize | record.FieldMtime,
	}
	m.commit(nil)
}

// end forgets the intent; it runs after commit, or after nothing happened.
func (m *mutation) end() {
	if m.in != nil {
		m.in.End()
	}
	m.fs.putRecord(m.rec)
}

// fileRef is a way to name an inode to system calls: an entry of a directory,
// or with name "" an open file.
type fileRef struct {
	dirfd int
	name  string
	// path: the file was opened with O_PATH.
	path bool
}

func (r fileRef) stat(st *unix.Stat_t) error {
	if r.name == "" {
		return unix.Fstat(r.dirfd, st)
	}
	return unix.Fstatat(r.dirfd, r.name, st, unix.AT_SYMLINK_NOFOLLOW)
}

// statx asks for the time of birth only.
func (r fileRef) statx(x *unix.Statx_t) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if r.name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return unix.Statx(r.dirfd, r.name, flags, unix.STATX_BTIME|unix.STATX_INO, x)
}

// proc is a path for the calls that have no *at form. Its last component is
// not a symlink to follow: use the l… variants, but for an open file itself.
func (r fileRef) proc() string {
	if r.name == "" {
		return fmt.Sprintf("/proc/self/fd/%d", r.dirfd)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", r.dirfd, r.name)
}

func errStatus(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var en unix.Errno
	if errors.As(err, &en) {
		if en == unix.EBADF {
			// Of a directory that could not be opened again (dirfd): what the
			// kernel knows of it is out of date.
			en = unix.ESTALE
		}
		return fuse.Status(en)
	}
	return fuse.EIO
}

func mtimeOf(st *unix.Stat_t) record.Timespec {
	return record.Timespec{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}
}

func atimeOf(st *unix.Stat_t) record.Timespec {
	return record.Timespec{Sec: st.Atim.Sec, Nsec: uint32(st.Atim.Nsec)}
}

func fillAttr(a *fuse.Attr, st *unix.Stat_t) {
	a.Ino = st.Ino
	a.Size = uint64(st.Size)
	a.Blocks = uint64(st.Blocks)
	a.Atime, a.Atimensec = uint64(st.Atim.Sec), uint32(st.Atim.Nsec)
	a.Mtime, a.Mtimensec = uint64(st.Mtim.Sec), uint32(st.Mtim.Nsec)
	a.Ctime, a.Ctimensec = uint64(st.Ctim.Sec), uint32(st.Ctim.Nsec)
	a.Mode = st.Mode
	a.Nlink = uint32(st.Nlink)
	a.Uid, a.Gid = st.Uid, st.Gid
	a.Rdev = fuseDev(st.Rdev)
	a.Blksize = uint32(st.Blksize)
}

// fillStatx is fillAttr for statx(2).
func fillStatx(x *fuse.Statx, st *unix.Stat_t) {
	stamp := func(ts unix.Timespec) fuse.SxTime { return fuse.SxTime{Sec: uint64(ts.Sec), Nsec: uint32(ts.Nsec)} }
	*x = fuse.Statx{
		Mask: unix.STATX_BASIC_STATS, Blksize: uint32(st.Blksize), Nlink: uint32(st.Nlink), Uid: st.Uid, Gid: st.Gid,
		Mode: uint16(st.Mode), Ino: st.Ino, Size: uint64(st.Size), Blocks: uint64(st.Blocks),
		Atime: stamp(st.Atim), Mtime: stamp(st.Mtim), Ctime: stamp(st.Ctim),
		RdevMajor: unix.Major(st.Rdev), RdevMinor: unix.Minor(st.Rdev),
	}
}

// fuseDev is the kernel's new_encode_dev, which struct fuse_attr carries.
func fuseDev(dev uint64) uint32 {
	major, minor := unix.Major(dev), unix.Minor(dev)
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

// storeDev undoes fuseDev.
func storeDev(dev uint32) uint64 {
	return unix.Mkdev((dev&0xfff00)>>8, dev&0xff|(dev>>12)&0xfff00)
}
