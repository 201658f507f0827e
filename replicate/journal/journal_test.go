package journal

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

func TestAppendAndRead(t *testing.T) {
	j, rec := open(t, t.TempDir(), options())
	if rec.Last != 0 || !j.Empty() {
		t.Fatalf("a new journal holds something: %+v", rec)
	}
	if _, err := j.NewReader(1); !errors.Is(err, ErrGone) {
		t.Errorf("reading an empty journal: %v", err)
	}
	const n, size = 200, 50 << 10 // several segments
	fill(t, j, 41, n, size)
	if j.First() != 41 || j.Last() != 240 {
		t.Errorf("holds %d to %d", j.First(), j.Last())
	}
	if s := segments(t, j.dir); len(s) < 3 {
		t.Errorf("%d segments", len(s))
	}
	for _, from := range []uint64{41, 42, 100, 239, 240} {
		same(t, j, from, int(241-from), size)
	}
	if b, err := readAll(j, 241, 1<<20); err != nil || len(b) != 0 {
		t.Errorf("at the end: %d records, %v", len(b), err)
	}
	for _, from := range []uint64{0, 40, 242} {
		if _, err := j.NewReader(from); !errors.Is(err, ErrGone) {
			t.Errorf("from %d: %v", from, err)
		}
	}
	if err := j.Append(encoded(240, 1, 1), 240, 240); !errors.Is(err, ErrOrder) {
		t.Errorf("an old record: %v", err)
	}
	if err := j.Append(encoded(242, 1, 1), 242, 242); !errors.Is(err, ErrOrder) {
		t.Errorf("after a gap: %v", err)
	}
	if h, ok := j.Header(100); !ok || h.LSN != 100 || h.Time != 100 {
		t.Errorf("Header: %+v %v", h, ok)
	}
	whole := j.BytesAfter(0)
	one := int64(len(encoded(100, 1, size)))
	if got := j.BytesAfter(140); got < 99*one || got > 101*one+j.segmentSize/indexEntries {
		t.Errorf("BytesAfter(140) is %d, want about %d", got, 100*one)
	}
	if whole < n*one-1000 || whole > n*one {
		t.Errorf("BytesAfter(0) is %d, want %d", whole, n*one)
	}
}

// TestReadingFollowsAppending reads what comes while segments change.
func TestReadingFollowsAppending(t *testing.T) {
	j, _ := open(t, t.TempDir(), options())
	fill(t, j, 1, 1, 10)
	r, err := j.NewReader(1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	next := uint64(1)
	for lsn := uint64(2); lsn < 60; lsn++ {
		fill(t, j, lsn, 1, 200<<10)
		for {
			batch, first, last, err := r.Read(make([]byte, 0, 300<<10))
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || first != next || len(batch) == 0 {
				t.Fatalf("LSN %d to %d, want %d: %v", first, last, next, err)
			}
			next = last + 1
			if err := j.TrimBefore(next); err != nil {
				t.Fatal(err)
			}
		}
		if next != lsn+1 {
			t.Fatalf("read up to %d of %d", next-1, lsn)
		}
	}
	if s := segments(t, j.dir); len(s) != 1 {
		t.Errorf("%d segments are left", len(s))
	}
}

func TestLargestRecord(t *testing.T) {
	j, _ := open(t, t.TempDir(), options())
	fill(t, j, 1, 2, 10)
	fill(t, j, 3, 1, record.MaxData)
	fill(t, j, 4, 2, 10)
	got, err := readAll(j, 1, 100)
	if err != nil || len(got) != 5 || !bytes.Equal(got[2], encoded(3, 1, record.MaxData)) {
		t.Errorf("%d records, %v", len(got), err)
	}
}

func TestBoundIsKept(t *testing.T) {
	o := options()
	o.MaxBytes = MinBytes
	j, _ := open(t, t.TempDir(), o)
	lsn := uint64(1)
	var err error
	for err == nil {
		err = j.Append(encoded(lsn, 1, 100<<10), lsn, lsn)
		lsn++
	}
	if !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	var onDisk int64
	for _, s := range segments(t, j.dir) {
		st, err := os.Stat(s)
		if err != nil {
			t.Fatal(err)
		}
		onDisk += st.Size()
	}
	if onDisk > MinBytes || onDisk != j.Size() || onDisk < MinBytes-200<<10 {
		t.Errorf("%d bytes on disk, %d said, bound %d", onDisk, j.Size(), MinBytes)
	}
	// A full journal goes on when something was given back.
	same(t, j, 1, int(lsn-2), 100<<10)
	if !j.Trimmable(lsn / 2) {
		t.Fatal("not trimmable")
	}
	if err := j.TrimBefore(lsn / 2); err != nil {
		t.Fatal(err)
	}
	if j.First() > lsn/2 || j.Trimmable(lsn/2) {
		t.Errorf("begins at %d, trimmed before %d", j.First(), lsn/2)
	}
	fill(t, j, lsn-1, 1, 100<<10)
}

func TestDropMakesReadersStop(t *testing.T) {
	j, _ := open(t, t.TempDir(), options())
	fill(t, j, 1, 100, 100<<10)
	r, err := j.NewReader(1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, _, _, err := r.Read(make([]byte, 0, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := j.Drop(); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := r.Read(make([]byte, 0, 1<<20)); !errors.Is(err, ErrGone) {
		t.Errorf("reading a dropped journal: %v", err)
	}
	if !j.Empty() || j.Size() != 0 || len(segments(t, j.dir)) != 0 {
		t.Error("something is left")
	}
	fill(t, j, 500, 3, 10)
	if _, _, _, err := r.Read(make([]byte, 0, 1<<20)); !errors.Is(err, ErrGone) {
		t.Errorf("reading a journal that was begun anew: %v", err)
	}
	same(t, j, 500, 3, 10)
}

func TestReopenAfterAKill(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir, options())
	fill(t, j, 7, 120, 100<<10)
	j2, rec := open(t, dir, options()) // the first one was not closed
	if rec.First != 7 || rec.Last != 126 || rec.LastEpoch != 1 || len(rec.Problems) != 0 || rec.Bytes != j.Size() {
		t.Fatalf("%+v", rec)
	}
	same(t, j2, 7, 120, 100<<10)
	fill(t, j2, 127, 60, 100<<10)
	_, rec = open(t, dir, options())
	if rec.First != 7 || rec.Last != 186 || len(rec.Problems) != 0 {
		t.Fatalf("%+v", rec)
	}
}

func TestAnotherBootBelievesOnlyWhatWasSealed(t *testing.T) {
	dir := t.TempDir()
	boot2, boot3 := options(), options()
	boot2.BootID, boot3.BootID = "boot-2", "boot-3"

	j, _ := open(t, dir, options())
	fill(t, j, 1, 100, 100<<10)
	_, rec := open(t, dir, boot2)
	if rec.Last != 0 || len(rec.Problems) == 0 || len(segments(t, dir)) != 0 {
		t.Fatalf("not sealed: %+v", rec)
	}

	j, _ = open(t, dir, options())
	fill(t, j, 1, 100, 100<<10)
	if err := j.Seal(); err != nil {
		t.Fatal(err)
	}
	j, rec = open(t, dir, boot2)
	if rec.First != 1 || rec.Last != 100 || len(rec.Problems) != 0 {
		t.Fatalf("sealed: %+v", rec)
	}
	same(t, j, 1, 100, 100<<10)
	// In this boot it is believed again without a seal, in the next one not.
	fill(t, j, 101, 1, 10)
	if _, rec = open(t, dir, boot2); rec.Last != 101 {
		t.Fatalf("same boot: %+v", rec)
	}
	if _, rec = open(t, dir, boot3); rec.Last != 0 || len(rec.Problems) == 0 {
		t.Fatalf("next boot: %+v", rec)
	}

	// A seal that is not that of what is there counts for nothing.
	j, _ = open(t, dir, options())
	fill(t, j, 1, 10, 10)
	if err := j.Seal(); err != nil {
		t.Fatal(err)
	}
	seal, err := os.ReadFile(filepath.Join(dir, sealName))
	if err != nil {
		t.Fatal(err)
	}
	fill(t, j, 11, 1, 10)
	if _, rec = open(t, dir, boot2); rec.Last != 0 {
		t.Fatalf("more than was sealed: %+v", rec)
	}
	j, _ = open(t, dir, options())
	fill(t, j, 1, 10, 10)
	seal[3] ^= 1
	if err := os.WriteFile(filepath.Join(dir, sealName), seal, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, rec = open(t, dir, boot2); rec.Last != 0 || !strings.Contains(strings.Join(rec.Problems, " "), "checksum") {
		t.Fatalf("damaged seal: %+v", rec)
	}
}

// TestDamage says of each kind of damage what is kept.
func TestDamage(t *testing.T) {
	const n, size = 120, 100 << 10
	first := func(t *testing.T, file string) uint64 {
		lsn, ok := parseName(filepath.Base(file))
		if !ok {
			t.Fatal(file)
		}
		return lsn
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	type want struct{ first, last uint64 }
	for name, damage := range map[string]func(t *testing.T, dir string, segs []string) want{
		"torn tail": func(t *testing.T, _ string, segs []string) want {
			tail := segs[len(segs)-1]
			st, err := os.Stat(tail)
			must(t, err)
			must(t, os.Truncate(tail, st.Size()-5))
			return want{1, n - 1}
		},
		"flipped bit in the tail": func(t *testing.T, _ string, segs []string) want {
			tail := segs[len(segs)-1]
			flip(t, tail, headerSize+int64(len(encoded(1, 1, size)))+2000)
			return want{1, first(t, tail)}
		},
		"zeros behind the tail": func(t *testing.T, _ string, segs []string) want {
			tail := segs[len(segs)-1]
			st, err := os.Stat(tail)
			must(t, err)
			must(t, os.Truncate(tail, st.Size()+5000))
			return want{1, n}
		},
		"tail without a record": func(t *testing.T, _ string, segs []string) want {
			tail := segs[len(segs)-1]
			must(t, os.Truncate(tail, headerSize+3))
			return want{1, first(t, tail) - 1}
		},
		"tail without a header": func(t *testing.T, _ string, segs []string) want {
			tail := segs[len(segs)-1]
			must(t, os.Truncate(tail, 0))
			return want{1, first(t, tail) - 1}
		},
		"missing in the middle": func(t *testing.T, _ string, segs []string) want {
			must(t, os.Remove(segs[1]))
			return want{first(t, segs[2]), n}
		},
		"missing at the end": func(t *testing.T, _ string, segs []string) want {
			must(t, os.Remove(segs[len(segs)-1]))
			return want{1, first(t, segs[len(segs)-1]) - 1}
		},
		"cut in the middle": func(t *testing.T, _ string, segs []string) want {
			st, err := os.Stat(segs[1])
			must(t, err)
			must(t, os.Truncate(segs[1], st.Size()-1))
			return want{first(t, segs[2]), n}
		},
		"flipped bit in a header": func(t *testing.T, _ string, segs []string) want {
			flip(t, segs[0], 20)
			return want{first(t, segs[1]), n}
		},
		"renamed": func(t *testing.T, dir string, segs []string) want {
			must(t, os.Rename(segs[0], filepath.Join(dir, segmentName(2))))
			return want{first(t, segs[1]), n}
		},
		"renamed over another": func(t *testing.T, _ string, segs []string) want {
			must(t, os.Rename(segs[0], segs[1]))
			return want{first(t, segs[2]), n}
		},
		"of another cluster": func(t *testing.T, _ string, segs []string) want {
			b, err := os.ReadFile(segs[1])
			must(t, err)
			h, err := decodeHeader(b)
			must(t, err)
			h.cluster = "c-2"
			copy(b, h.encode())
			must(t, os.WriteFile(segs[1], b, 0o600))
			return want{first(t, segs[2]), n}
		},
		"of a later version": func(t *testing.T, _ string, segs []string) want {
			flip(t, segs[len(segs)-1], 8)
			return want{1, first(t, segs[len(segs)-1]) - 1}
		},
		"a segment from before": func(t *testing.T, dir string, segs []string) want {
			// The same name and cluster, but not what was continued.
			must(t, os.Remove(segs[0]))
			old, _ := open(t, t.TempDir(), options())
			fill(t, old, 1, 3, 100)
			b, err := os.ReadFile(segments(t, old.dir)[0])
			must(t, err)
			must(t, os.WriteFile(segs[0], b, 0o600))
			return want{first(t, segs[1]), n}
		},
		"everything": func(t *testing.T, _ string, segs []string) want {
			for _, s := range segs {
				flip(t, s, 30)
			}
			return want{0, 0}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j, _ := open(t, dir, options())
			fill(t, j, 1, n, size)
			segs := segments(t, dir)
			if len(segs) < 3 {
				t.Fatalf("%d segments", len(segs))
			}
			w := damage(t, dir, segs)
			j, rec := open(t, dir, options())
			if rec.First != w.first || rec.Last != w.last {
				t.Fatalf("kept %d to %d, want %d to %d: %q", rec.First, rec.Last, w.first, w.last, rec.Problems)
			}
			silent := name == "missing at the end" // cannot be seen here: the log's end is compared
			if silent == (len(rec.Problems) > 0) {
				t.Errorf("problems: %q", rec.Problems)
			}
			next := uint64(1)
			if w.last != 0 {
				same(t, j, w.first, int(w.last-w.first+1), size)
				next = w.last + 1
			}
			// It goes on, and a second look finds nothing wrong.
			fill(t, j, next, 50, size)
			_, rec = open(t, dir, options())
			if rec.Last != next+49 || len(rec.Problems) != 0 {
				t.Errorf("afterwards: %+v", rec)
			}
		})
	}
}

// TestDamageIsFoundByReading flips bits where Open does not look.
func TestDamageIsFoundByReading(t *testing.T) {
	for _, off := range []int64{headerSize, headerSize + 1, headerSize + 2, headerSize + 9, headerSize + 60, headerSize + 90<<10} {
		dir := t.TempDir()
		j, _ := open(t, dir, options())
		fill(t, j, 1, 120, 100<<10)
		flip(t, segments(t, dir)[1], off)
		begin, _ := parseName(filepath.Base(segments(t, dir)[1]))
		j, rec := open(t, dir, options())
		if rec.First != 1 || rec.Last != 120 {
			t.Fatalf("%+v", rec)
		}
		for _, from := range []uint64{1, begin} {
			got, err := readAll(j, from, 256<<10)
			var damage *DamageError
			if !errors.As(err, &damage) || damage.LSN != begin || damage.Offset != headerSize || uint64(len(got)) != begin-from {
				t.Errorf("byte %d, from %d: %d records, %v", off, from, len(got), err)
			}
		}
	}
}

func TestForeignFilesAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"notes.txt", "123.seg", "0000000000000000000x.seg"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j, rec := open(t, dir, options())
	fill(t, j, 1, 3, 10)
	if len(rec.Problems) != 3 || rec.Last != 0 {
		t.Errorf("%+v", rec)
	}
	if err := j.Drop(); err != nil {
		t.Fatal(err)
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	names, err := realOS{}.List(dir)
	if err != nil || len(names) != 3 {
		t.Errorf("%v %v", names, err)
	}
	if err := Remove(filepath.Join(dir, "missing")); err != nil {
		t.Error(err)
	}
}

// TestEveryCallFails fails each system call in turn, in a life of a journal:
// an error is said, and what the next life finds is a part of what was
// appended.
func TestEveryCallFails(t *testing.T) {
	const size = 3 << 10
	life := func(dir string, o Options) (appended uint64, err error) {
		for _, n := range []uint64{20, 40} {
			j, rec, err := Open(dir, o)
			if err != nil {
				return appended, err
			}
			if rec.Last != appended {
				return appended, errors.New("lost something")
			}
			for lsn := appended + 1; lsn <= n && err == nil; lsn++ {
				if err = j.Append(encoded(lsn, 1, size), lsn, lsn); err == nil {
					appended = lsn
				}
			}
			if err == nil {
				err = j.TrimBefore(15)
			}
			if err == nil && n == 20 {
				err = j.Seal()
			}
			if err != nil {
				return appended, errors.Join(err, j.Close())
			}
			if err := j.Close(); err != nil {
				return appended, err
			}
			o.BootID += "+"
		}
		return appended, nil
	}
	faulty := newFaultyOS()
	o := options()
	o.OS, o.segment = faulty, 14*size
	if n, err := life(t.TempDir(), o); err != nil || n != 40 {
		t.Fatalf("%d, %v", n, err)
	}
	calls := slices.Clone(faulty.calls)
	if len(calls) < 50 {
		t.Fatalf("only %d calls: %q", len(calls), calls)
	}
	for i, call := range calls {
		errno := []error{unix.ENOSPC, unix.EIO, unix.EROFS}[i%3]
		dir := t.TempDir()
		faulty.arm("", i, errno)
		appended, err := life(dir, o)
		faulty.arm("", 0, nil)
		var ioErr *IOError
		// A seal that cannot be read is no seal, a segment's header no header.
		unread := strings.HasPrefix(call, "read ") || strings.HasPrefix(call, "open ") || strings.HasPrefix(call, "size ")
		if err == nil || !errors.As(err, &ioErr) && !unread {
			t.Fatalf("%v at call %d (%s): %v", errno, i, call, err)
		}
		if !errors.Is(err, errno) && !unread {
			t.Errorf("%v at call %d (%s): %v", errno, i, call, err)
		}
		next := options()
		next.segment = o.segment
		if i > len(calls)/2 {
			next.BootID += "+"
		}
		j, rec, err := Open(dir, next)
		if err != nil {
			t.Fatalf("%v at call %d (%s): open again: %v", errno, i, call, err)
		}
		// A record that was written although its append failed may be there.
		if rec.Last > appended+1 {
			t.Fatalf("%v at call %d (%s): %d appended, found %d", errno, i, call, appended, rec.Last)
		}
		if rec.Last != 0 {
			same(t, j, rec.First, int(rec.Last-rec.First+1), size)
		}
		if err := j.Drop(); err != nil {
			t.Fatal(err)
		}
		fill(t, j, 1000, 20, size)
		same(t, j, 1000, 20, size)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWhatCannotBeRemovedDoesNotComeBack drops a journal whose files stay, and
// begins it anew where the old one began.
func TestWhatCannotBeRemovedDoesNotComeBack(t *testing.T) {
	dir := t.TempDir()
	faulty := newFaultyOS()
	o := options()
	o.OS = faulty
	j, _ := open(t, dir, o)
	fill(t, j, 1, 100, 100<<10)
	faulty.arm("remove", 0, unix.EROFS)
	if err := j.Drop(); !errors.Is(err, unix.EROFS) {
		t.Fatalf("Drop: %v", err)
	}
	if err := j.Append(encoded(1, 2, 10), 1, 1); !errors.Is(err, unix.EROFS) {
		t.Fatalf("Append beside the old files: %v", err)
	}
	faulty.arm("", 0, nil)
	if err := j.Append(encoded(1, 2, 10), 1, 1); err != nil {
		t.Fatal(err)
	}
	if s := segments(t, dir); len(s) != 1 {
		t.Errorf("segments: %v", s)
	}
	if _, rec := open(t, dir, options()); rec.First != 1 || rec.Last != 1 || rec.LastEpoch != 2 {
		t.Errorf("%+v", rec)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, o := range []Options{
		{Cluster: "c", BootID: "b", MaxBytes: MinBytes - 1},
		{Cluster: "c", MaxBytes: MinBytes},
		{Cluster: strings.Repeat("c", idSize+1), BootID: "b", MaxBytes: MinBytes},
	} {
		if _, _, err := Open(t.TempDir(), o); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}
