package apply

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// catchUpInRuns is catchUp as a standby does it.
func (r *rig) catchUpInRuns() error {
	r.t.Helper()
	for _, rec := range r.p.log {
		if rec.LSN <= r.a.State().Applied {
			continue
		}
		if err := applyNext(r.a, rec); err != nil {
			return err
		}
	}
	return r.a.ApplyQueued()
}

func (r *rig) inRuns() {
	r.t.Helper()
	if err := r.catchUpInRuns(); err != nil {
		r.t.Fatal(err)
	}
}

// someFiles logs n empty files, and applies them.
func (r *rig) someFiles(n int) (names []string) {
	r.t.Helper()
	for i := range n {
		names = append(names, fmt.Sprintf("f%d", i))
		r.p.create(names[i], 0o644)
	}
	r.inRuns()
	return names
}

func TestRandomRuns(t *testing.T) {
	for fs, dir := range filesystems(t) {
		t.Run(fs, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			r := newRig(t, t.TempDir(), dir)
			r.cfg.OpenFiles = 8 // less than there are files
			r.restart()
			rng := rand.New(rand.NewPCG(seed, 0))
			workload(r.p, rng, 500)
			bursts(r.p, rng, 3000)
			r.inRuns()
			r.equal()
			if d := r.a.State(); d.Applied != r.p.lsn || d.Pending != 0 {
				t.Errorf("state %+v", d)
			}
			if err := r.a.Flush(t.Context()); err != nil || r.a.Durable() != r.p.lsn {
				t.Errorf("durable to %d, %v", r.a.Durable(), err)
			}
		})
	}
}

// Runs are what they are for: several files at a time. Nobody sees a position
// within one.
func TestFilesOfARunAreAppliedAtTheSameTime(t *testing.T) {
	r := tempRig(t)
	names := r.someFiles(4)
	before := r.a.State().Applied
	for i := range 40 {
		r.p.write(names[i%4], pattern(100, byte(i)), int64(i)*1000)
	}
	var calls, now atomic.Int32
	together := false
	var mu sync.Mutex
	r.probe = func(point string) error {
		if point != "pwrite" {
			return nil
		}
		if s := r.a.State(); s.Applied != before || s.Pending != r.p.lsn {
			t.Errorf("within the run: %+v, want applied %d and pending %d", s, before, r.p.lsn)
		}
		calls.Add(1)
		n := now.Add(1)
		time.Sleep(2 * time.Millisecond) // as a disk would
		now.Add(-1)
		mu.Lock()
		together = together || n > 1
		mu.Unlock()
		return nil
	}
	r.inRuns()
	if n := calls.Load(); n != 40 || !together {
		t.Errorf("%d writes, together: %v", n, together)
	}
	if s := r.a.State(); s.Applied != r.p.lsn || s.Pending != 0 {
		t.Errorf("afterwards: %+v", s)
	}
	r.equal()
}

// One small record costs what it must: no second goroutine, no wait for more.
func TestASmallRunIsAppliedAsItCame(t *testing.T) {
	r := tempRig(t)
	r.someFiles(1)
	r.p.write("f0", []byte("x"), 0)
	var points []string
	r.probe = func(point string) error {
		points = append(points, point) // no lock: the race detector would tell
		return nil
	}
	r.inRuns()
	if want := []string{"intent", "run", "pwrite", "pwrite+", "utimens", "utimens+", "applied"}; !slices.Equal(points, want) {
		t.Errorf("%v, want %v", points, want)
	}
}

func TestAppendsAreWrittenTogether(t *testing.T) {
	r := tempRig(t)
	r.someFiles(1)
	for i := range 2*vectorMax + 10 {
		r.p.write("f0", pattern(100, byte(i)), int64(i)*100)
	}
	calls := map[string]int{}
	r.cfg.ApplyWorkers = 1
	r.probe = func(point string) error {
		calls[point]++
		return nil
	}
	r.inRuns()
	if calls["pwritev"] != 3 || calls["pwrite"] != 0 || calls["utimens"] != 1 {
		t.Errorf("calls %v", calls)
	}
	r.equal()
}

// A record that fails leaves the store, once what can be retried was, as the
// primary's before that record, and the position says so.
func TestARecordOfARunFails(t *testing.T) {
	for seed := range uint64(30) {
		r := tempRig(t)
		rng := rand.New(rand.NewPCG(seed, 5))
		names := r.someFiles(6)
		start := r.a.State().Applied
		for range 200 {
			f := names[rng.IntN(6)]
			if rng.IntN(3) == 0 {
				r.p.truncate(f, rng.Int64N(9000))
			} else {
				r.p.write(f, pattern(1+rng.IntN(500), byte(rng.Uint32())), r.p.stat(f).Size)
			}
		}
		point := []string{"pwrite", "pwritev", "ftruncate", "utimens"}[seed%4]
		left := int32(rng.IntN(20))
		var count atomic.Int32
		r.probe = func(p string) error {
			if p == "run" && seed%2 == 0 {
				time.Sleep(150 * time.Microsecond) // with helpers
			}
			if p == point && count.Add(1) > left {
				return unix.ENOSPC
			}
			return nil
		}
		err := r.catchUpInRuns()
		var e *Error
		if err == nil && (point == "pwritev" || count.Load() <= left) {
			r.equal() // each was written by itself then, or nothing failed
			continue
		}
		if !errors.As(err, &e) || e.Divergence || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make space") {
			t.Fatalf("seed %d: %v", seed, err)
		}
		s := r.a.State()
		if s.Applied != e.LSN-1 || s.Applied < start || s.Pending != r.p.lsn || s.Durable > s.Applied {
			t.Fatalf("seed %d: %v, but the state is %+v", seed, err, s)
		}
		// What the position promises, but for what Pending says.
		replayed := newRig(t, t.TempDir(), t.TempDir())
		replayed.p.log = r.p.log
		for _, rec := range r.p.log {
			if rec.LSN <= s.Applied {
				replayed.apply(rec)
			}
		}
		later := map[string]bool{}
		for _, rec := range r.p.log[s.Applied:] {
			later[rec.Path] = true
		}
		for _, f := range names {
			if later[f] {
				continue
			}
			want, err := os.ReadFile(replayed.cfg.Store + "/" + f)
			if err != nil || string(want) != r.read(f) {
				t.Fatalf("seed %d: %s is not as of LSN %d, %v", seed, f, s.Applied, err)
			}
		}
		// Tried again, at once or after a kill.
		r.probe = nil
		if seed%2 == 0 {
			r.reopen()
			if again := r.a.State(); again.Applied != s.Applied || again.Pending != s.Pending {
				t.Fatalf("seed %d: reopened as %+v, was %+v", seed, again, s)
			}
		}
		if seed%3 == 0 {
			r.catchUp() // one by one: what is pending stays so until all is done
		} else {
			r.inRuns()
		}
		r.equal()
		if s := r.a.State(); s.Applied != r.p.lsn || s.Pending != 0 {
			t.Fatalf("seed %d: %+v", seed, s)
		}
	}
}

// Records of a run that may be applied cannot be replaced by others of another
// epoch, which came because the log was cut.
func TestAnotherEpochWithinARunIsDivergence(t *testing.T) {
	r := tempRig(t)
	r.someFiles(2)
	for i := range 10 {
		r.p.write(fmt.Sprintf("f%d", i%2), pattern(100, byte(i)), 0)
	}
	r.probe = func(point string) error {
		if point == "pwrite" {
			return unix.ENOSPC
		}
		return nil
	}
	if r.catchUpInRuns() == nil {
		t.Fatal("nothing failed")
	}
	r.reopen()
	first := r.a.State().Applied
	for _, rec := range r.p.log[first : first+4] {
		r.apply(rec)
	}
	rec := *r.p.log[first+4]
	rec.Epoch++
	if r.a.Queue(&rec) {
		t.Fatal("queued")
	}
	_ = r.refused(&rec, true)
}

// Nothing but the next record of the same epoch is queued, and none that may
// conflict with others.
func TestWhatIsNotQueued(t *testing.T) {
	r := tempRig(t)
	r.someFiles(1)
	w := r.p.write("f0", []byte("x"), 0)
	for name, change := range map[string]func(*record.Record){
		"a gap":                          func(r *record.Record) { r.LSN++ },
		"a repetition":                   func(r *record.Record) { r.LSN-- },
		"another epoch":                  func(r *record.Record) { r.Epoch++ },
		"an older epoch":                 func(r *record.Record) { r.Epoch-- },
		"no file id":                     func(r *record.Record) { r.FileID = 0 },
		"a missing file":                 func(r *record.Record) { r.FileID, r.Path = 99, "missing" },
		"a new name":                     func(r *record.Record) { r.Op = record.OpCreate },
		"a copied range":                 func(r *record.Record) { r.Op = record.OpCopyRange },
		"attributes of what is not open": func(r *record.Record) { r.Op, r.FileID = record.OpSetAttr, 99 },
	} {
		rec := *w
		change(&rec)
		if r.a.Queue(&rec) || r.a.Queued() != 0 {
			t.Errorf("%s was queued", name)
		}
	}
	if !r.a.Queue(w) || r.a.Queue(w) {
		t.Error("want the record queued once")
	}
	if err := r.a.Apply(w); !errors.Is(err, ErrOrder) {
		t.Errorf("Apply before ApplyQueued: %v", err)
	}
	r.p.must(r.a.ApplyQueued())
	r.equal()
}

// An fsync in a run is one of what was written before it, and durable stays
// before it until it is done.
func TestFsyncsOfARun(t *testing.T) {
	r := tempRig(t)
	names := r.someFiles(4)
	start := r.a.State().Applied
	r.probe = func(point string) error {
		if point == "worker.fsync" {
			time.Sleep(time.Millisecond)
		}
		if d := r.a.Durable(); d > r.a.State().Applied {
			t.Errorf("durable to %d within the run", d)
		}
		return nil
	}
	for i := range 400 {
		f := names[i%4]
		r.p.write(f, pattern(50, byte(i)), int64(i)*50)
		if i%7 == 0 {
			r.p.fsync(f, 0)
		}
	}
	r.inRuns()
	if err := r.a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := r.a.State(); s.Durable != r.p.lsn || start == s.Applied {
		t.Errorf("state %+v, want durable %d", s, r.p.lsn)
	}
	r.equal()
}

// The state file of the version before is taken over; that one must not take
// ours.
func TestOldStateFile(t *testing.T) {
	r := tempRig(t)
	r.someFiles(3)
	r.a.st.store(offVersion, stateVersionOld)
	r.reopen()
	if s := r.a.State(); s.Applied != 3 || s.Suspect != "" {
		t.Errorf("state %+v", s)
	}
	if v := r.a.st.load(offVersion); v != stateVersion {
		t.Errorf("the file still says version %d", v)
	}
	r.a.st.store(offVersion, stateVersion+1)
	r.crash()
	if _, err := Open(r.cfg); err == nil || !strings.Contains(err.Error(), "newer one") {
		t.Errorf("opened one of a later version: %v", err)
	}
}

func BenchmarkRuns1K(b *testing.B) {
	for _, workers := range []int{1, 2, 4} {
		b.Run(fmt.Sprint(workers), func(b *testing.B) { benchRuns(b, workers, 1<<10, 64) })
	}
}

func BenchmarkRuns8K(b *testing.B) {
	for _, workers := range []int{1, 2, 4} {
		b.Run(fmt.Sprint(workers), func(b *testing.B) { benchRuns(b, workers, 8<<10, 64) })
	}
}

// benchRuns appends in runs of 512 KiB; beside it, "one by one" is what Apply
// does with the same records.
func benchRuns(b *testing.B, workers, size, files int) {
	a, _ := benchApplier(b)
	a.cfg.ApplyWorkers = workers
	lsn := uint64(0)
	for i := range uint64(files) {
		r := benchCreate(fmt.Sprintf("f%d", i), i+1)
		lsn++
		r.LSN, r.Epoch = lsn, 1
		if err := a.Apply(&r); err != nil {
			b.Fatal(err)
		}
	}
	data := make([]byte, size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	var r record.Record
	i := 0
	for b.Loop() {
		r = record.Record{
			Op: record.OpWrite, Path: "f", FileID: uint64(i%files + 1), Offset: int64(i/files%1000) * int64(size), Data: data,
			Mtime:  record.Timespec{Sec: int64(i)},
			Fields: record.FieldPath | record.FieldFileID | record.FieldOffset | record.FieldData | record.FieldMtime,
		}
		lsn++
		r.LSN, r.Epoch = lsn, 1
		if !a.Queue(&r) {
			b.Fatal("not queued")
		}
		if i++; i%(512<<10/size) == 0 {
			if err := a.ApplyQueued(); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := a.ApplyQueued(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(i)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkColdOverwrite overwrites parts of pages that have to be read from a
// disk first, as a standby does whose page cache does not hold them.
func BenchmarkColdOverwrite(b *testing.B) {
	for _, workers := range []int{1, 8} {
		b.Run(fmt.Sprint(workers), func(b *testing.B) { benchCold(b, workers) })
	}
}

func benchCold(b *testing.B, workers int) {
	const files, size, count = 64, 1 << 20, 512
	dir := b.TempDir()
	store := dir + "/store"
	if err := os.Mkdir(store, 0o700); err != nil {
		b.Fatal(err)
	}
	var fds []*os.File
	for i := range files {
		f, err := os.Create(fmt.Sprintf("%s/f%d", store, i))
		if err == nil {
			_, err = f.Write(make([]byte, size))
		}
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		fds = append(fds, f)
	}
	a, err := Open(Config{Store: store, StateFile: dir + "/state", ApplyWorkers: workers})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := a.Close(); err != nil {
			b.Error(err)
		}
	}()
	lsn := uint64(1)
	if err := a.Apply(&record.Record{LSN: lsn, Epoch: 1, Op: record.OpEpoch}); err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	data := make([]byte, 1000)
	n := 0
	for b.Loop() {
		b.StopTimer()
		for _, f := range fds {
			if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		for range count {
			lsn++
			f := rng.IntN(files)
			if !a.Queue(&record.Record{
				LSN: lsn, Epoch: 1, Op: record.OpWrite, FileID: uint64(f + 1), Path: fmt.Sprintf("f%d", f),
				Offset: rng.Int64N(size - 1000), Data: data, Mtime: record.Timespec{Sec: 1},
				Fields: record.FieldPath | record.FieldFileID | record.FieldOffset | record.FieldData | record.FieldMtime,
			}) {
				b.Fatal("not queued")
			}
			n++
		}
		if err := a.ApplyQueued(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
}
