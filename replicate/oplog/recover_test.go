package oplog

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

func TestReopen(t *testing.T) {
	path := ringPath(t)
	l, _ := openLog(t, path, testSize)
	l.SetEpoch(3)
	// Several laps.
	appendN(t, l, 30000, 600)
	first, last, want := l.First(), l.Last(), content(t, l)
	closeLog(t, l)
	for range 2 {
		l, rec := openLog(t, path, testSize)
		if rec.Fresh || rec.First != first || rec.Last != last || rec.LastEpoch != 3 {
			t.Fatalf("Recovered = %+v, want %d to %d", rec, first, last)
		}
		got := content(t, l)
		if len(got) != len(want) || got[0].Time != want[0].Time {
			t.Fatalf("%d records, want %d", len(got), len(want))
		}
		for _, lsn := range []uint64{first, first + 1, (first + last) / 2, last} {
			h, ok := l.header(lsn)
			if !ok || h.LSN != lsn {
				t.Fatalf("LSN %d is found as %d, %v", lsn, h.LSN, ok)
			}
		}
		closeLog(t, l)
	}
	// An append after Open keeps the last epoch and the order.
	l, _ = openLog(t, path, testSize)
	appendN(t, l, 1, 1)
	if e, ok := l.EpochOf(last + 1); !ok || e != 3 {
		t.Fatalf("epoch %d, %v", e, ok)
	}
}

func TestFreshUntilUsed(t *testing.T) {
	path := ringPath(t)
	for _, want := range []string{"no log file", "not used since it was made", "not used since it was made"} {
		l, rec := openLog(t, path, testSize)
		if !rec.Fresh || rec.Reason != want {
			t.Fatalf("Recovered = %+v, want %s", rec, want)
		}
		crash(t, l)
	}
	l, _ := openLog(t, path, testSize)
	if err := l.Reset(1); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	if _, rec := openLog(t, path, testSize); rec.Fresh || rec.First != 1 || rec.Last != 0 {
		t.Fatalf("Recovered = %+v", rec)
	}
}

func TestOtherBootAndSize(t *testing.T) {
	path := ringPath(t)
	open := func(size int64, boot string) Recovered {
		l, rec, err := Open(path, Options{Size: size, BootID: boot})
		if err != nil {
			t.Fatal(err)
		}
		appendN(t, l, 5, 100)
		l.Begin(intent("x"))
		crash(t, l)
		return rec
	}
	open(testSize, "boot-1")
	if rec := open(testSize, "boot-1"); rec.Fresh || rec.Last != 5 || len(rec.Intents) != 1 {
		t.Fatalf("Recovered = %+v", rec)
	}
	if rec := open(testSize, "boot-11"); !rec.Fresh || rec.Reason != "another boot" || len(rec.Intents) != 0 || rec.IntentsLost {
		t.Fatalf("Recovered = %+v", rec)
	}
	for _, size := range []int64{2*testSize - 1, testSize} {
		if rec := open(size, "boot-11"); !rec.Fresh || rec.Reason != "size changed" {
			t.Fatalf("Recovered = %+v", rec)
		}
		if rec := open(size, "boot-11"); rec.Fresh || rec.Last != 5 || len(rec.Intents) != 1 {
			t.Fatalf("Recovered = %+v", rec)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("elsewhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"small": {Size: MinSize - 1}, "negative": {Size: -1}, "huge": {Size: 1<<40 + 1},
		"boot": {Size: MinSize, BootID: strings.Repeat("b", bootIDSize+1)},
		"link": {Size: MinSize}, "fifo": {Size: MinSize}, "no/dir": {Size: MinSize}, ".": {Size: MinSize},
	} {
		if _, _, err := Open(filepath.Join(dir, name), o); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "elsewhere")); err == nil {
		t.Error("followed a symbolic link")
	}
}

func TestFileMode(t *testing.T) {
	path := ringPath(t)
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	openLog(t, path, testSize)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
}

// A filesystem without room must give an error at Open, not a SIGBUS later.
func TestNoSpace(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("mounting a tmpfs: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	path := filepath.Join(dir, "ring")
	_, _, err := Open(path, Options{Size: testSize})
	wantErr(t, "Open", err, unix.ENOSPC)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Bfree != st.Blocks {
		t.Fatalf("%d of %d blocks free, %v", st.Bfree, st.Blocks, err)
	}
}

// Every damage means Fresh, a reason, and a log that works.
func TestDamage(t *testing.T) {
	word := func(off int, v uint64) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint64(b[off:], v) }
	}
	add := func(off int, v uint64) func([]byte) {
		return func(b []byte) {
			binary.LittleEndian.PutUint64(b[off:], binary.LittleEndian.Uint64(b[off:])+v)
		}
	}
	const minus1 = 1<<64 - 1
	for name, damage := range map[string]func([]byte){
		"magic":           word(wordMagic, 0),
		"version":         word(wordVersion, 99),
		"size":            word(wordSize, testSize/2),
		"head far":        word(wordHead, 1<<63),
		"head over":       add(wordHead, testSize),
		"head inside":     add(wordHead, minus1),
		"tail after head": add(wordTail, testSize),
		"tail zero":       word(wordTail, 0),
		"tail inside":     add(wordTail, 1),
		"first zero":      word(wordFirst, 0),
		"first late":      add(wordFirst, 1),
		"first huge":      word(wordFirst, 1<<63),
		"reset huge":      word(wordResetTo, 1<<63),
		"record":          func(b []byte) { b[dataOffset+testSize/2] ^= 4 },
		"all zeros":       func(b []byte) { clear(b) },
		"ring zeros":      func(b []byte) { clear(b[dataOffset:]) },
		"all ones": func(b []byte) {
			for i := range b {
				b[i] = 0xff
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := ringPath(t)
			l, _ := openLog(t, path, testSize)
			appendN(t, l, 1000, 5000)
			l.Begin(intent("x"))
			crash(t, l)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			damage(b)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			l, rec := openLog(t, path, testSize)
			if !rec.Fresh || !strings.HasPrefix(rec.Reason, "corrupt: ") || rec.Intents != nil {
				t.Fatalf("Recovered = %+v", rec)
			}
			if l.First() != 1 || l.Last() != 0 {
				t.Fatalf("first %d, last %d", l.First(), l.Last())
			}
			appendN(t, l, 1000, 5000)
			content(t, l)
			closeLog(t, l)
			if _, rec := openLog(t, path, testSize); rec.Fresh || rec.Last != 1000 {
				t.Fatalf("Recovered = %+v", rec)
			}
		})
	}
}

// Stopping between any two stores of a change leaves the log before or after it.
func TestHalfDone(t *testing.T) {
	for name, c := range map[string]struct {
		stop        func(*Log)
		first, last uint64
	}{
		"bytes without head": {func(l *Log) {
			copy(l.m.at(l.head, 100), pattern(1, 100))
		}, 1, 10},
		"head without last": {func(l *Log) { l.m.last.Store(9) }, 1, 10},
		"tail without first": {func(l *Log) {
			l.m.tail.Store(l.offset(3))
		}, 3, 10},
		"cut without last": {func(l *Log) { l.m.head.Store(l.offset(6)) }, 1, 5},
		"cut to nothing":   {func(l *Log) { l.m.head.Store(0) }, 1, 0},
		"reset announced":  {func(l *Log) { l.m.resetTo.Store(50) }, 50, 49},
		"reset begun": {func(l *Log) {
			l.m.resetTo.Store(50)
			l.m.tail.Store(l.head)
		}, 50, 49},
		"reset done": {func(l *Log) {
			l.m.resetTo.Store(50)
			l.applyReset(50)
		}, 50, 49},
	} {
		t.Run(name, func(t *testing.T) {
			path := ringPath(t)
			l, _ := openLog(t, path, testSize)
			appendN(t, l, 10, 100)
			c.stop(l)
			crash(t, l)
			for range 2 {
				l, rec := openLog(t, path, testSize)
				if rec.Fresh || rec.First != c.first || rec.Last != c.last {
					t.Fatalf("Recovered = %+v, want %d to %d", rec, c.first, c.last)
				}
				if got := content(t, l); uint64(len(got)) != c.last+1-c.first {
					t.Fatalf("%d records", len(got))
				}
				crash(t, l)
			}
		})
	}
}

// Records at or over the indexing distance must not outgrow the index.
func TestIndexBounds(t *testing.T) {
	l := newLog(t)
	for _, size := range []int{indexStep, indexStep - 60, indexStep / 2, record.MaxData, 10} {
		for range 3 * testSize / (size + 100) {
			appendN(t, l, 1, size)
			if l.index.n > len(l.index.buf) {
				t.Fatalf("%d index entries in %d places", l.index.n, len(l.index.buf))
			}
		}
		for lsn := l.First(); lsn <= l.Last(); lsn += 1 + (l.Last()-l.First())/100 {
			if h, ok := l.header(lsn); !ok || h.LSN != lsn {
				t.Fatalf("LSN %d is found as %d, %v", lsn, h.LSN, ok)
			}
		}
	}
}

// Reset announces itself before it changes anything, so that recovery can
// finish it.
func TestResetAnnounced(t *testing.T) {
	l := newLog(t)
	stop, seen := make(chan struct{}), make(chan struct{})
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() {
		for l.m.resetTo.Load() == 0 {
			select {
			case <-stop:
				return
			default:
			}
		}
		close(seen)
	})
	defer close(stop)
	for deadline := time.Now().Add(20 * time.Second); ; {
		if err := l.Reset(5); err != nil {
			t.Fatal(err)
		}
		select {
		case <-seen:
			if got := l.m.resetTo.Load(); got != 0 {
				t.Fatalf("still announced: %d", got)
			}
			return
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("never announced")
		}
	}
}
