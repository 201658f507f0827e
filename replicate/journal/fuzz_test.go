package journal

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"
)

// memoryOS is a directory in memory: a fuzz target opens thousands a second.
type memoryOS map[string]*memoryFile

type memoryFile struct{ b []byte }

func (o memoryOS) Create(path string) (File, error) {
	if o[path] != nil {
		return nil, fs.ErrExist
	}
	o[path] = &memoryFile{}
	return o[path], nil
}

func (o memoryOS) Open(path string, _ bool) (File, error) {
	if o[path] == nil {
		return nil, fs.ErrNotExist
	}
	return o[path], nil
}

func (o memoryOS) Remove(path string) error {
	if o[path] == nil {
		return fs.ErrNotExist
	}
	delete(o, path)
	return nil
}

func (o memoryOS) List(string) (names []string, err error) {
	for path := range o {
		names = append(names, filepath.Base(path))
	}
	slices.Sort(names)
	return names, nil
}

func (memoryOS) MakeDir(string) error { return nil }
func (memoryOS) SyncDir(string) error { return nil }

func (f *memoryFile) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(f.b).ReadAt(b, off)
}

func (f *memoryFile) WriteAt(b []byte, off int64) (int, error) {
	if end := off + int64(len(b)); end > int64(len(f.b)) {
		f.b = append(f.b, make([]byte, end-int64(len(f.b)))...)
	}
	return copy(f.b[off:], b), nil
}

func (f *memoryFile) Truncate(n int64) error {
	f.b = f.b[:n]
	return nil
}

func (f *memoryFile) Size() (int64, error)       { return int64(len(f.b)), nil }
func (*memoryFile) StartWriteback(int64, int64)  {}
func (*memoryFile) Sync() error                  { return nil }
func (*memoryFile) Close() error                 { return nil }
func (f *memoryFile) set(b []byte) *memoryFile   { f.b = bytes.Clone(b); return f }
func named(first uint64) string                  { return filepath.Join("j", segmentName(first)) }
func (o memoryOS) put(first uint64, b []byte)    { o[named(first)] = new(memoryFile).set(b) }
func small(lsn uint64) []byte                    { return encoded(lsn, 1, 20) }
func sealed(o memoryOS, b []byte)                { o[filepath.Join("j", sealName)] = new(memoryFile).set(b) }
func contents(o memoryOS, first uint64) []byte   { return o[named(first)].b }
func sealOf(o memoryOS) []byte                   { return o[filepath.Join("j", sealName)].b }
func memoryOptions(o memoryOS) (string, Options) { p := options(); p.OS = o; return "j", p }

// FuzzOpen opens a journal of two segments and a seal with any contents: what
// it keeps are sound, dense records, and it can be used.
func FuzzOpen(f *testing.F) {
	seeds := memoryOS{}
	dir, o := memoryOptions(seeds)
	j, _, err := Open(dir, o)
	if err != nil {
		f.Fatal(err)
	}
	j.segmentSize = 200 // two segments of a few records
	for lsn := uint64(1); lsn < 4; lsn++ {
		if err := j.Append(small(lsn), lsn, lsn); err != nil {
			f.Fatal(err)
		}
	}
	if err := j.Seal(); err != nil {
		f.Fatal(err)
	}
	var firsts []uint64
	for _, s := range j.segs {
		firsts = append(firsts, s.first)
	}
	if len(firsts) < 2 {
		f.Fatal(firsts)
	}
	a, b := contents(seeds, firsts[0]), contents(seeds, firsts[1])
	f.Add(a, b, sealOf(seeds), firsts[0], firsts[1], true)
	f.Add(a, b, []byte(nil), firsts[0], firsts[1], false)
	f.Add(b, a, sealOf(seeds), firsts[1], firsts[0], false)
	f.Add(a[:len(a)-3], []byte{}, []byte("{}\n00000000\n"), uint64(1), uint64(3), true)
	f.Fuzz(func(t *testing.T, a, b, seal []byte, first, second uint64, reboot bool) {
		mem := memoryOS{}
		mem.put(first, a)
		mem.put(second, b)
		if len(seal) > 0 {
			sealed(mem, seal)
		}
		dir, o := memoryOptions(mem)
		if reboot {
			o.BootID = "boot-2"
		}
		j, rec, err := Open(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		next := uint64(1000)
		if rec.Last != 0 {
			got, err := readAll(j, rec.First, 4<<10)
			var damage *DamageError
			if err != nil && !errors.As(err, &damage) {
				t.Fatal(err)
			}
			if err == nil && uint64(len(got)) != rec.Last-rec.First+1 {
				t.Fatalf("%d records of %d to %d", len(got), rec.First, rec.Last)
			}
			if next = rec.Last + 1; next > maxLSN {
				return
			}
		}
		if err := j.Append(small(next), next, next); err != nil {
			t.Fatal(err)
		}
		r, err := j.NewReader(next)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, _, _, err := r.Read(nil); err != nil && !errors.As(err, new(*DamageError)) || err == nil && !bytes.Equal(got, small(next)) {
			t.Fatalf("what was appended is not there: %v", err)
		}
		if _, _, _, err := r.Read(nil); err == nil {
			t.Fatal("more than was appended")
		} else if !errors.Is(err, io.EOF) && !errors.As(err, new(*DamageError)) {
			t.Fatal(err)
		}
	})
}
