package replicate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
	"github.com/replfs/replfs/replicate/wire"
)

const clusterID = "life-1"

// shm is a directory on a tmpfs: speed, and a store with every feature. It is
// made in REPLFS_SHM, which scripts/fuzz removes: workers are killed in the end.
func shm(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(cmp.Or(os.Getenv("REPLFS_SHM"), "/dev/shm"), "replicate-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func openRing(t testing.TB, file string) *oplog.Log {
	t.Helper()
	l, _, err := oplog.Open(file, oplog.Options{Size: oplog.MinSize})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// primary makes changes to a directory with real system calls and records
// them, one after the other.
type primary struct {
	t         *testing.T
	name, dir string
	cluster   string
	clusterID string
	protocol  uint32
	log       *oplog.Log
	epoch     uint64

	mu      sync.Mutex // orders changes and the pieces of walks
	history History
	ids     map[uint64]uint64
	nextID  uint64
	trace   []record.Record // every mutation, with data

	walks  atomic.Int64
	during func() // called between the pieces of a walk
}

func newPrimary(t *testing.T, name string) *primary {
	t.Helper()
	base := shm(t)
	p := &primary{
		t: t, name: name, dir: filepath.Join(base, "store"), cluster: "gitlab", clusterID: clusterID, protocol: Protocol,
		log: openRing(t, filepath.Join(base, "ring")), ids: map[uint64]uint64{},
	}
	t.Cleanup(func() {
		if err := p.log.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p.begin(1)
	return p
}

// begin opens an epoch.
func (p *primary) begin(epoch uint64) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.epoch = epoch
	p.log.SetEpoch(epoch)
	lsn := p.append(&record.Record{
		Op: record.OpEpoch, Path: p.name, Path2: p.clusterID, Fields: record.FieldPath | record.FieldPath2,
	}, nil)
	p.history = p.history.With(Epoch{epoch, p.name, lsn})
}

func (p *primary) state() *wire.NodeState {
	p.mu.Lock()
	defer p.mu.Unlock()
	pos := &wire.Position{Epoch: p.log.LastEpoch(), Lsn: p.log.Last()}
	return &wire.NodeState{
		Identity: &wire.Identity{Cluster: p.cluster, Node: p.name, ClusterId: p.clusterID, Protocol: p.protocol},
		Role:     wire.Role_ROLE_PRIMARY, Epoch: p.epoch, Received: pos, Applied: pos, History: p.history.toWire(),
	}
}

func (p *primary) terms() History {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.history)
}

// append needs mu.
func (p *primary) append(r *record.Record, data []byte) uint64 {
	p.t.Helper()
	lsn, err := p.log.Append(r, data, nil)
	if err != nil {
		if !errors.Is(err, oplog.ErrClosed) {
			p.t.Error(err)
		}
		return 0
	}
	if !r.Op.SyncOnly() {
		c := *r
		c.Data = slices.Clone(data)
		p.trace = append(p.trace, c)
	}
	return lsn
}

func (p *primary) abs(rel string) string { return filepath.Join(p.dir, rel) }

func lstat(file string) (st unix.Stat_t, err error) {
	err = unix.Lstat(file, &st)
	return st, err
}

func mtime(st *unix.Stat_t) record.Timespec {
	return record.Timespec{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}
}

func parent(rel string) string {
	if d := path.Dir(rel); d != "." {
		return d
	}
	return ""
}

// id is the file's; one is forgotten with the file's last name.
func (p *primary) id(ino uint64) uint64 {
	if p.ids[ino] == 0 {
		p.nextID++
		p.ids[ino] = p.nextID
	}
	return p.ids[ino]
}

// about fills in what most records say of rel, after the change.
func (p *primary) about(r *record.Record, rel string, withParent bool) *record.Record {
	p.t.Helper()
	r.Path = rel
	r.Fields |= record.FieldPath
	if st, err := lstat(p.abs(rel)); err == nil {
		r.FileID, r.Mtime = p.id(st.Ino), mtime(&st)
		r.Fields |= record.FieldFileID | record.FieldMtime
		if r.Op >= record.OpCreate && r.Op <= record.OpSymlink {
			r.Mode, r.Perm, r.UID, r.GID = st.Mode, st.Mode&0o7777, st.Uid, st.Gid
			r.Fields |= record.FieldMode | record.FieldPerm | record.FieldOwner
		}
	}
	if withParent {
		st, err := lstat(p.abs(parent(rel)))
		if err != nil {
			p.t.Error(err)
		}
		r.ParentMtime = mtime(&st)
		r.Fields |= record.FieldParentMtime
	}
	return r
}

// do makes one change and, if it succeeded, its record.
func (p *primary) do(change func() error, rec func() (*record.Record, []byte)) (uint64, error) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := change(); err != nil {
		return 0, err
	}
	r, data := rec()
	return p.append(r, data), nil
}

func (p *primary) create(rel string) (uint64, error) {
	return p.do(func() error {
		f, err := os.OpenFile(p.abs(rel), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}, func() (*record.Record, []byte) {
		return p.about(&record.Record{Op: record.OpCreate}, rel, true), nil
	})
}

func (p *primary) mkdir(rel string) (uint64, error) {
	return p.do(func() error { return os.Mkdir(p.abs(rel), 0o755) }, func() (*record.Record, []byte) {
		return p.about(&record.Record{Op: record.OpMkdir}, rel, true), nil
	})
}

func (p *primary) symlink(target, rel string) (uint64, error) {
	return p.do(func() error { return os.Symlink(target, p.abs(rel)) }, func() (*record.Record, []byte) {
		return p.about(&record.Record{Op: record.OpSymlink, Path2: target, Fields: record.FieldPath2}, rel, true), nil
	})
}

func (p *primary) link(from, to string) (uint64, error) {
	return p.do(func() error {
		if st, err := lstat(p.abs(from)); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
			return unix.EPERM
		}
		return os.Link(p.abs(from), p.abs(to))
	}, func() (*record.Record, []byte) {
		return p.about(&record.Record{Op: record.OpLink, Path2: from, Fields: record.FieldPath2}, to, true), nil
	})
}

// gone notes that a name of st was taken away, and tells whether it was the
// last.
func (p *primary) gone(st *unix.Stat_t) (id uint64, last bool) {
	id = p.id(st.Ino)
	last = st.Nlink == 1 || st.Mode&unix.S_IFMT == unix.S_IFDIR
	if last {
		delete(p.ids, st.Ino)
	}
	return id, last
}

func (p *primary) remove(rel string, dir bool) (uint64, error) {
	var st unix.Stat_t
	op, flags := record.OpUnlink, 0
	if dir {
		op, flags = record.OpRmdir, unix.AT_REMOVEDIR
	}
	return p.do(func() (err error) {
		if st, err = lstat(p.abs(rel)); err != nil {
			return err
		}
		return unix.Unlinkat(unix.AT_FDCWD, p.abs(rel), flags)
	}, func() (*record.Record, []byte) {
		r := p.about(&record.Record{Op: op}, rel, true)
		var last bool
		if r.FileID, last = p.gone(&st); last {
			r.Flags |= record.FlagLast
		}
		r.Fields |= record.FieldFileID
		return r, nil
	})
}

func (p *primary) rename(from, to string, exchange bool) (uint64, error) {
	var old unix.Stat_t
	replaces := false
	flags, recFlags := uint(0), record.Flags(0)
	if exchange {
		flags, recFlags = unix.RENAME_EXCHANGE, record.FlagExchange
	}
	return p.do(func() error {
		src, err := lstat(p.abs(from))
		if err != nil {
			return err
		}
		old, err = lstat(p.abs(to))
		replaces = err == nil && !exchange
		if err == nil && old.Ino == src.Ino {
			return unix.EINVAL // rename(2) would do nothing
		}
		return unix.Renameat2(unix.AT_FDCWD, p.abs(from), unix.AT_FDCWD, p.abs(to), flags)
	}, func() (*record.Record, []byte) {
		r := p.about(&record.Record{Op: record.OpRename, Flags: recFlags, Path2: from, Fields: record.FieldPath2}, to, true)
		st, err := lstat(p.abs(parent(from)))
		if err != nil {
			p.t.Error(err)
		}
		r.Parent2Mtime = mtime(&st)
		r.Fields = r.Fields&^record.FieldMtime | record.FieldParent2Mtime
		r.Mtime = record.Timespec{}
		if replaces {
			var last bool
			if r.FileID2, last = p.gone(&old); last {
				r.Flags |= record.FlagLast
			}
			r.Fields |= record.FieldFileID2
		}
		return r, nil
	})
}

func regular(file string) error {
	if st, err := lstat(file); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.Join(unix.EINVAL, err)
	}
	return nil
}

func (p *primary) write(rel string, off int64, data []byte) (uint64, error) {
	return p.do(func() error {
		if err := regular(p.abs(rel)); err != nil {
			return err
		}
		f, err := os.OpenFile(p.abs(rel), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(data, off)
		return errors.Join(err, f.Close())
	}, func() (*record.Record, []byte) {
		return p.about(&record.Record{Op: record.OpWrite, Offset: off, Fields: record.FieldOffset}, rel, false), data
	})
}

func (p *primary) truncate(rel string, size int64) (uint64, error) {
	return p.do(func() error {
		if err := regular(p.abs(rel)); err != nil {
			return err
		}
		return os.Truncate(p.abs(rel), size)
	}, func() (*record.Record, []byte) {
		return p.about(&record.Record{Op: record.OpSetAttr, Size: size, Fields: record.FieldSize}, rel, false), nil
	})
}

func (p *primary) chmod(rel string, mode uint32) (uint64, error) {
	return p.do(func() error {
		st, err := lstat(p.abs(rel))
		if err != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return errors.Join(unix.EINVAL, err)
		}
		return unix.Chmod(p.abs(rel), mode)
	}, func() (*record.Record, []byte) {
		r := p.about(&record.Record{Op: record.OpSetAttr, Mode: mode, Fields: record.FieldMode}, rel, false)
		r.Fields &^= record.FieldMtime
		r.Mtime = record.Timespec{}
		return r, nil
	})
}

func (p *primary) setMtime(rel string, to record.Timespec) (uint64, error) {
	return p.do(func() error { return setMtime(p.abs(rel), to) }, func() (*record.Record, []byte) {
		return p.about(&record.Record{Op: record.OpSetAttr}, rel, false), nil
	})
}

// fsyncRecord asks the standbys to make rel durable.
func (p *primary) fsyncRecord(rel string) (uint64, error) {
	return p.do(func() error { _, err := lstat(p.abs(rel)); return err }, func() (*record.Record, []byte) {
		r := p.about(&record.Record{Op: record.OpFsync}, rel, false)
		r.Fields &^= record.FieldMtime
		r.Mtime = record.Timespec{}
		return r, nil
	})
}

// must takes the result of a change that has to succeed.
func (p *primary) must(lsn uint64, err error) uint64 {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
	return lsn
}

func randomPath(rng *rand.Rand) string {
	dirs := []string{"", "", "d0/", "d1/", "d0/d2/"}
	names := []string{"a", "b", "c", "d", "e", "f", "d0", "d1", "d2"}
	return dirs[rng.IntN(len(dirs))] + names[rng.IntN(len(names))]
}

// real: no component is a symbolic link, which a record's path never follows.
func (p *primary) real(dir string) bool {
	for ; dir != ""; dir = parent(dir) {
		if st, err := lstat(p.abs(dir)); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return false
		}
	}
	return true
}

// random makes one change, or none if it is impossible.
func (p *primary) random(rng *rand.Rand) {
	x, y := randomPath(rng), randomPath(rng)
	if !p.real(parent(x)) || !p.real(parent(y)) {
		return
	}
	switch rng.IntN(16) {
	case 0, 1, 2:
		_, _ = p.create(x)
	case 3, 4:
		_, _ = p.mkdir(x)
	case 5:
		_, _ = p.symlink(y, x)
	case 6:
		_, _ = p.link(x, y)
	case 7:
		_, _ = p.remove(x, false)
	case 8:
		_, _ = p.remove(x, true)
	case 9:
		_, _ = p.rename(x, y, false)
	case 10:
		_, _ = p.rename(x, y, true)
	case 11:
		_, _ = p.truncate(x, rng.Int64N(8<<10))
	case 12:
		_, _ = p.chmod(x, 0o600|uint32(rng.IntN(0o200)))
	case 13:
		_, _ = p.setMtime(x, record.Timespec{Sec: rng.Int64N(1 << 31), Nsec: uint32(rng.IntN(1e9))})
	default:
		data := make([]byte, 1+rng.IntN(4<<10))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		_, _ = p.write(x, rng.Int64N(8<<10), data)
	}
}

func setMtime(file string, to record.Timespec) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: to.Sec, Nsec: int64(to.Nsec)}}
	return unix.UtimesNanoAt(unix.AT_FDCWD, file, ts, unix.AT_SYMLINK_NOFOLLOW)
}

// model is a directory that the primary's records are replayed in, by other
// code than the applier's.
type model struct {
	dir  string
	next int // in the trace
}

func newModel(t *testing.T) *model {
	t.Helper()
	dir := filepath.Join(shm(t), "model")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &model{dir: dir}
}

// replay brings the model to lsn, which never goes back.
func (m *model) replay(t *testing.T, p *primary, lsn uint64) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for ; m.next < len(p.trace) && p.trace[m.next].LSN <= lsn; m.next++ {
		if err := m.apply(&p.trace[m.next]); err != nil {
			t.Fatalf("replaying %s: %v", &p.trace[m.next], err)
		}
	}
}

func (m *model) apply(r *record.Record) error {
	file, file2 := filepath.Join(m.dir, r.Path), filepath.Join(m.dir, r.Path2)
	var err error
	switch r.Op {
	case record.OpEpoch, record.OpFsync:
		return nil
	case record.OpCreate:
		err = os.WriteFile(file, nil, 0o600)
	case record.OpMkdir:
		err = os.Mkdir(file, 0o700)
	case record.OpSymlink:
		err = os.Symlink(r.Path2, file)
	case record.OpLink:
		err = os.Link(file2, file)
	case record.OpUnlink:
		err = unix.Unlink(file)
	case record.OpRmdir:
		err = unix.Rmdir(file)
	case record.OpRename:
		flags := uint(0)
		if r.Flags.Has(record.FlagExchange) {
			flags = unix.RENAME_EXCHANGE
		}
		err = unix.Renameat2(unix.AT_FDCWD, file2, unix.AT_FDCWD, file, flags)
	case record.OpWrite:
		var f *os.File
		if f, err = os.OpenFile(file, os.O_WRONLY, 0); err == nil {
			_, err = f.WriteAt(r.Data, r.Offset)
			err = errors.Join(err, f.Close())
		}
	case record.OpSetAttr:
		if r.Has(record.FieldSize) {
			err = os.Truncate(file, r.Size)
		}
	default:
		err = fmt.Errorf("the model knows no %s", r.Op)
	}
	if r.Has(record.FieldMode) && r.Mode&unix.S_IFMT != unix.S_IFLNK {
		err = errors.Join(err, unix.Chmod(file, r.Mode&0o7777))
	}
	set := func(f record.Field, file string, to record.Timespec) {
		if r.Has(f) {
			err = errors.Join(err, setMtime(file, to))
		}
	}
	removed := r.Op == record.OpUnlink || r.Op == record.OpRmdir
	if !removed {
		set(record.FieldMtime, file, r.Mtime)
	}
	set(record.FieldParent2Mtime, filepath.Dir(file2), r.Parent2Mtime)
	set(record.FieldParentMtime, filepath.Dir(file), r.ParentMtime)
	return err
}

// walker is a Walk over a primary's directory. As the real one does, it goes
// by the directories and files themselves, whatever their names become.
type walker struct {
	p        *primary
	throttle func(context.Context) error
	progress func(int, int64)
	linked   map[uint64]bool
}

func (p *primary) newWalk(throttle func(context.Context) error, progress func(int, int64)) Walk {
	p.walks.Add(1)
	return &walker{p: p, throttle: throttle, progress: progress, linked: map[uint64]bool{}}
}

func (w *walker) Close() {}

func (w *walker) Tree(ctx context.Context) error {
	w.p.mu.Lock()
	st, err := lstat(w.p.dir)
	if err == nil {
		r := &record.Record{Op: record.OpSetAttr, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: mtime(&st)}
		r.Fields = record.FieldPath | record.FieldMode | record.FieldOwner | record.FieldMtime
		w.p.append(r, nil)
	}
	w.p.mu.Unlock()
	if err != nil {
		return err
	}
	return w.below(ctx, st.Ino)
}

func (w *walker) Path(ctx context.Context, rel string, contents bool) error {
	w.p.mu.Lock()
	st, err := lstat(w.p.abs(parent(rel)))
	w.p.mu.Unlock()
	if err != nil {
		return nil // nothing there
	}
	return w.entry(ctx, st.Ino, path.Base(rel), contents)
}

// names are the paths of an inode; it needs mu.
func (w *walker) names(ino uint64) (names []string) {
	_ = filepath.WalkDir(w.p.dir, func(file string, _ fs.DirEntry, err error) error {
		if st, e := lstat(file); err == nil && e == nil && st.Ino == ino {
			names = append(names, strings.TrimPrefix(strings.TrimPrefix(file, w.p.dir), "/"))
		}
		return nil
	})
	return names
}

func (w *walker) below(ctx context.Context, dir uint64) error {
	w.p.mu.Lock()
	var entries []os.DirEntry
	if at := w.names(dir); len(at) > 0 {
		entries, _ = os.ReadDir(w.p.abs(at[0]))
	}
	w.p.mu.Unlock()
	for _, e := range entries {
		if err := w.entry(ctx, dir, e.Name(), false); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) entry(ctx context.Context, dir uint64, name string, contents bool) error {
	if err := w.pause(ctx); err != nil {
		return err
	}
	st, content, err := w.state(dir, name, contents)
	switch {
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return w.below(ctx, st.Ino)
	case content:
		return w.content(ctx, st.Ino)
	}
	return nil
}

func (w *walker) pause(ctx context.Context) error {
	if w.p.during != nil {
		w.p.during()
	}
	return w.throttle(ctx)
}

func (w *walker) state(dir uint64, name string, contents bool) (st unix.Stat_t, content bool, err error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	at := w.names(dir)
	if len(at) == 0 {
		return st, false, nil
	}
	rel := path.Join(at[0], name)
	if st, err = lstat(w.p.abs(rel)); err != nil {
		return unix.Stat_t{}, false, nil
	}
	r := w.p.about(&record.Record{Op: record.OpState}, rel, true)
	r.Mode, r.UID, r.GID = st.Mode, st.Uid, st.Gid
	r.Fields |= record.FieldMode | record.FieldOwner
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		r.Path2, err = os.Readlink(w.p.abs(rel))
		r.Fields |= record.FieldPath2
	case unix.S_IFREG:
		r.Size = st.Size
		r.Fields |= record.FieldSize
		known := w.linked[st.Ino]
		if st.Nlink > 1 {
			r.Names = w.names(st.Ino)
			r.Fields |= record.FieldNames
			w.linked[st.Ino] = true
		}
		if contents {
			r.Flags |= record.FlagContents
		}
		if content = contents || !known; content {
			r.Flags |= record.FlagMore
		}
	}
	w.p.append(r, nil)
	w.progress(1, 0)
	return st, content, err
}

func (w *walker) content(ctx context.Context, ino uint64) error {
	buf := make([]byte, 16<<10)
	for off := int64(0); ; {
		n, err := w.chunk(ino, buf, off)
		if err != nil || n == 0 {
			return err
		}
		off += int64(n)
		if err := w.pause(ctx); err != nil {
			return err
		}
	}
}

func (w *walker) chunk(ino uint64, buf []byte, off int64) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	at := w.names(ino)
	if len(at) == 0 {
		return 0, nil
	}
	f, err := os.Open(w.p.abs(at[0]))
	if err != nil {
		return 0, err
	}
	n, _ := f.ReadAt(buf, off)
	if err := f.Close(); err != nil {
		return 0, err
	}
	r := w.p.about(&record.Record{Op: record.OpStateData, Offset: off, Fields: record.FieldOffset}, at[0], false)
	if n == 0 {
		st, err := lstat(w.p.abs(at[0]))
		if err != nil {
			return 0, err
		}
		r.Op, r.Size, r.Offset = record.OpStateEnd, st.Size, 0
		r.Fields = r.Fields&^record.FieldOffset | record.FieldSize
		w.p.append(r, nil)
		return 0, nil
	}
	w.p.append(r, buf[:n])
	w.progress(0, int64(n))
	return n, nil
}
