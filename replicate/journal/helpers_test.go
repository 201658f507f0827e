package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/replfs/replfs/replicate/record"
)

const (
	testCluster = "c-1"
	testBoot    = "boot-1"
)

func options() Options {
	return Options{Cluster: testCluster, BootID: testBoot, MaxBytes: 4 * MinBytes}
}

func open(t testing.TB, dir string, o Options) (*Journal, Recovered) {
	t.Helper()
	j, rec, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j, rec
}

// encoded is one record, whose content depends on its LSN and epoch.
func encoded(lsn, epoch uint64, size int) []byte {
	r := record.Record{
		LSN: lsn, Epoch: epoch, Time: int64(lsn), Op: record.OpWrite, Path: fmt.Sprintf("f%d", lsn),
		Fields: record.FieldPath | record.FieldData, Data: bytes.Repeat([]byte{byte(lsn), byte(epoch), byte(lsn >> 8)}, size/3+1)[:size],
	}
	return r.Append(nil)
}

// fill appends n records of size bytes of data, one a batch.
func fill(t testing.TB, j *Journal, from uint64, n, size int) {
	t.Helper()
	for lsn := from; lsn < from+uint64(n); lsn++ {
		if err := j.Append(encoded(lsn, 1, size), lsn, lsn); err != nil {
			t.Fatal(err)
		}
	}
}

// readAll reads from an LSN to the end, and checks that the records are dense.
func readAll(j *Journal, from uint64, buf int) ([][]byte, error) {
	r, err := j.NewReader(from)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var out [][]byte
	next := from
	for {
		batch, first, last, err := r.Read(make([]byte, 0, buf))
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if first != next || last < first {
			return out, fmt.Errorf("a batch of LSN %d to %d, %d is next", first, last, next)
		}
		for len(batch) > 0 {
			h, err := record.Check(batch)
			if err != nil {
				return out, err
			}
			if h.LSN != next {
				return out, fmt.Errorf("LSN %d where %d should be", h.LSN, next)
			}
			out = append(out, bytes.Clone(batch[:h.Size]))
			batch = batch[h.Size:]
			next++
		}
		if next != last+1 {
			return out, fmt.Errorf("a batch said to end at %d ends at %d", last, next-1)
		}
	}
}

// same checks what a journal holds from an LSN on.
func same(t testing.TB, j *Journal, from uint64, n, size int) {
	t.Helper()
	got, err := readAll(j, from, 64<<10)
	if err != nil {
		t.Fatalf("after %d records: %v", len(got), err)
	}
	if len(got) != n {
		t.Fatalf("%d records from LSN %d, want %d", len(got), from, n)
	}
	for i, b := range got {
		if !bytes.Equal(b, encoded(from+uint64(i), 1, size)) {
			t.Fatalf("record %d is another", from+uint64(i))
		}
	}
}

func segments(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func flip(t testing.TB, path string, off int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		b[off] ^= 0x10
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// faultyOS fails calls whose label, "call name", contains what is armed.
type faultyOS struct {
	OS
	mu    sync.Mutex
	label string
	after int // how many such calls succeed before
	err   error
	calls []string
}

func newFaultyOS() *faultyOS { return &faultyOS{OS: realOS{}} }

func (o *faultyOS) arm(label string, after int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.label, o.after, o.err, o.calls = label, after, err, nil
}

func (o *faultyOS) call(call, path string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	label := call + " " + filepath.Base(path)
	o.calls = append(o.calls, label)
	if o.err == nil || !strings.Contains(label, o.label) {
		return nil
	}
	if o.after--; o.after >= 0 {
		return nil
	}
	return &os.PathError{Op: call, Path: path, Err: o.err}
}

func (o *faultyOS) file(f File, path string, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return &faultyFile{f, o, path}, nil
}

func (o *faultyOS) Create(path string) (File, error) {
	if err := o.call("create", path); err != nil {
		return nil, err
	}
	f, err := o.OS.Create(path)
	return o.file(f, path, err)
}

func (o *faultyOS) Open(path string, write bool) (File, error) {
	if err := o.call("open", path); err != nil {
		return nil, err
	}
	f, err := o.OS.Open(path, write)
	return o.file(f, path, err)
}

func (o *faultyOS) Remove(path string) error {
	if err := o.call("remove", path); err != nil {
		return err
	}
	return o.OS.Remove(path)
}

func (o *faultyOS) List(dir string) ([]string, error) {
	if err := o.call("list", dir); err != nil {
		return nil, err
	}
	return o.OS.List(dir)
}

func (o *faultyOS) MakeDir(dir string) error {
	if err := o.call("mkdir", dir); err != nil {
		return err
	}
	return o.OS.MakeDir(dir)
}

func (o *faultyOS) SyncDir(dir string) error {
	if err := o.call("syncdir", dir); err != nil {
		return err
	}
	return o.OS.SyncDir(dir)
}

type faultyFile struct {
	File
	os   *faultyOS
	path string
}

func (f *faultyFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.os.call("read", f.path); err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, off)
}

// WriteAt that fails has written half, as a full disk does.
func (f *faultyFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.os.call("write", f.path); err != nil {
		n, _ := f.File.WriteAt(b[:len(b)/2], off)
		return n, err
	}
	return f.File.WriteAt(b, off)
}

func (f *faultyFile) Truncate(size int64) error {
	if err := f.os.call("truncate", f.path); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *faultyFile) Size() (int64, error) {
	if err := f.os.call("size", f.path); err != nil {
		return 0, err
	}
	return f.File.Size()
}

func (f *faultyFile) Sync() error {
	if err := f.os.call("sync", f.path); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *faultyFile) Close() error {
	if err := f.os.call("close", f.path); err != nil {
		_ = f.File.Close()
		return err
	}
	return f.File.Close()
}
