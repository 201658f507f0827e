package apply

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// stateOf logs an OpState of path.
func (p *primary) stateOf(path string, flags record.Flags, names ...string) *record.Record {
	p.t.Helper()
	return p.add(record.OpState, path, func(r *record.Record) {
		st := p.stat(path)
		r.Flags, r.Mode, r.UID, r.GID, r.Rdev, r.Size = flags, st.Mode, st.Uid, st.Gid, st.Rdev, st.Size
		r.Mtime, r.FileID, r.Names = times(st.Mtim), p.id(st.Ino), names
		r.Fields |= record.FieldMode | record.FieldOwner | record.FieldRdev | record.FieldSize |
			record.FieldMtime | record.FieldFileID | record.FieldXattrs
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			target, err := os.Readlink(p.at(path))
			p.must(err)
			r.Path2 = target
			r.Fields |= record.FieldPath2
		}
		if len(names) > 0 {
			r.Fields |= record.FieldNames
		}
		buf := make([]byte, 4096)
		n, err := unix.Llistxattr(p.at(path), buf)
		p.must(err)
		for _, name := range splitNames(buf[:n]) {
			v := make([]byte, 4096)
			n, err := unix.Lgetxattr(p.at(path), name, v)
			p.must(err)
			r.Xattrs = append(r.Xattrs, record.Xattr{Name: name, Value: v[:n]})
		}
		if path != "" {
			p.parent(r)
		}
	})
}

// stateData logs up to n bytes of a file; it returns how many there were.
func (p *primary) stateData(path string, off, n int64) int64 {
	p.t.Helper()
	b, err := os.ReadFile(p.at(path))
	p.must(err)
	b = b[min(off, int64(len(b))):]
	b = b[:min(n, int64(len(b)))]
	if len(b) == 0 {
		return 0
	}
	p.add(record.OpStateData, path, func(r *record.Record) {
		r.Data, r.Offset, r.FileID = b, off, p.idOf(path)
		r.Fields |= record.FieldData | record.FieldOffset | record.FieldFileID
		p.mtime(r)
	})
	return int64(len(b))
}

func (p *primary) stateEnd(path string) *record.Record {
	p.t.Helper()
	return p.add(record.OpStateEnd, path, func(r *record.Record) {
		r.Size, r.FileID = p.stat(path).Size, p.idOf(path)
		r.Fields |= record.FieldSize | record.FieldFileID
		p.mtime(r)
	})
}

// whole logs all of a file.
func (p *primary) whole(path string, flags record.Flags, names ...string) {
	p.t.Helper()
	p.stateOf(path, flags|record.FlagMore, names...)
	for off := int64(0); ; {
		n := p.stateData(path, off, 4096)
		if off += n; n == 0 {
			break
		}
	}
	p.stateEnd(path)
}

func (p *primary) syncRecord(op record.Op, node, id string) *record.Record {
	return p.add(op, node, func(r *record.Record) {
		r.Path2 = id
		r.Fields |= record.FieldPath2
	})
}

// walker logs the primary's tree piece by piece, while others change it. It
// knows inodes by an open descriptor, and looks for their names when it comes
// to them, as a primary does with its inode table.
type walker struct {
	p     *primary
	todo  []visit
	emits []*emission
}

type visit struct {
	f        *os.File
	contents bool
}

type emission struct {
	f       *os.File
	off     int64
	restart bool
}

func inodeOfFile(p *primary, f *os.File) unix.Stat_t {
	var st unix.Stat_t
	p.must(unix.Fstat(int(f.Fd()), &st))
	return st
}

func (w *walker) push(path string, contents bool) {
	if !w.p.exists(path) {
		return
	}
	fd, err := unix.Open(w.p.at(path), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	w.p.must(err)
	w.todo = append(w.todo, visit{os.NewFile(uintptr(fd), path), contents})
}

func (w *walker) done() bool { return len(w.todo)+len(w.emits) == 0 }

func (w *walker) step(rng *rand.Rand) {
	n := len(w.todo) + len(w.emits)
	if i := rng.IntN(n); i >= len(w.todo) {
		w.emit(i - len(w.todo))
	} else {
		w.todo[i], w.todo[0] = w.todo[0], w.todo[i]
		v := w.todo[0]
		w.todo = w.todo[1:]
		w.visit(v)
	}
}

// names finds what an inode is called now.
func (w *walker) names(f *os.File) (names []string) {
	ino := inodeOfFile(w.p, f).Ino
	w.p.must(filepath.WalkDir(w.p.dir, func(path string, _ fs.DirEntry, err error) error {
		w.p.must(err)
		rel, err := filepath.Rel(w.p.dir, path)
		w.p.must(err)
		if rel == "." {
			rel = ""
		}
		if w.p.stat(rel).Ino == ino {
			names = append(names, rel)
		}
		return nil
	}))
	return names
}

func (w *walker) visit(v visit) {
	names := w.names(v.f)
	st := inodeOfFile(w.p, v.f)
	format := st.Mode & unix.S_IFMT
	if len(names) == 0 {
		w.p.must(v.f.Close())
		return
	}
	all := names
	if len(names) == 1 {
		all = nil
	}
	var flags record.Flags
	more := format == unix.S_IFREG && st.Size > 0
	if v.contents {
		flags |= record.FlagContents
	}
	for i, name := range names {
		if i == 0 && more {
			w.p.stateOf(name, flags|record.FlagMore, all...)
		} else if i == 0 {
			w.p.stateOf(name, flags, all...)
		} else {
			w.p.stateOf(name, 0, all...)
		}
	}
	if format == unix.S_IFDIR {
		entries, err := os.ReadDir(w.p.at(names[0]))
		w.p.must(err)
		for _, e := range entries {
			w.push(filepath.Join(names[0], e.Name()), false)
		}
	}
	if more {
		w.begin(v.f, st.Ino)
	} else {
		w.p.must(v.f.Close())
	}
}

// begin starts to log contents, from their start if it was under way.
func (w *walker) begin(f *os.File, ino uint64) {
	for _, e := range w.emits {
		if inodeOfFile(w.p, e.f).Ino == ino {
			e.off, e.restart = 0, false
			w.p.must(f.Close())
			return
		}
	}
	w.emits = append(w.emits, &emission{f: f})
}

func (w *walker) emit(i int) {
	e := w.emits[i]
	names := w.names(e.f)
	if len(names) > 0 {
		if e.restart {
			all := names
			if len(names) == 1 {
				all = nil
			}
			w.p.stateOf(names[0], record.FlagContents|record.FlagMore, all...)
			e.off, e.restart = 0, false
			return
		}
		n := w.p.stateData(names[0], e.off, 4096)
		if e.off += n; n > 0 {
			return
		}
		w.p.stateEnd(names[0])
	}
	w.p.must(e.f.Close())
	w.emits = append(w.emits[:i], w.emits[i+1:]...)
}

// shifted restarts the emission of a file whose contents moved.
func (w *walker) shifted(rec *record.Record) {
	const shift = unix.FALLOC_FL_COLLAPSE_RANGE | unix.FALLOC_FL_INSERT_RANGE
	if rec.Op != record.OpFallocate || rec.Perm&shift == 0 {
		return
	}
	for _, e := range w.emits {
		if inodeOfFile(w.p, e.f).Ino == w.p.stat(rec.Path).Ino {
			e.restart = true
		}
	}
}
