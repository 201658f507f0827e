package oplog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// The test binary runs itself as the process to be killed.
const childEnv = "REPLFS_OPLOG_TEST_CHILD"

func TestMain(m *testing.M) {
	if kind, dir, ok := strings.Cut(os.Getenv(childEnv), ":"); ok {
		err := map[string]func(string) error{"primary": childPrimary, "standby": childStandby}[kind](dir)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const (
	killRounds  = 25
	killWorkers = 4
	// killWindow bounds how many records come after one whose worker has
	// not confirmed it yet, so that it is still in the ring.
	killWindow  = 500
	killMaxData = 4000
	primarySize = 2 * testSize
)

// counters are words shared by the child and its parent, which outlive the
// child as the log does.
func counters(path string) ([]atomic.Uint64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(4096); err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&b[0])), 512), f.Close()
}

// worker is what one of the child's goroutines tells: the operation it has
// started, the last one whose Append returned, and the LSN of that.
type worker struct {
	started, done *atomic.Uint64
	lsn           [2]*atomic.Uint64 // of even and odd operations
	since         *atomic.Uint64    // the log's next LSN when the operation under way began
}

func workers(words []atomic.Uint64) []worker {
	ws := make([]worker, killWorkers)
	for i := range ws {
		w := words[i*8:]
		ws[i] = worker{&w[0], &w[1], [2]*atomic.Uint64{&w[2], &w[3]}, &w[4]}
	}
	return ws
}

func opSize(who, k uint64) int { return int((who*7919 + k*104729) % killMaxData) }

// childPrimary appends from several goroutines until it is killed.
func childPrimary(dir string) error {
	words, err := counters(filepath.Join(dir, "counters"))
	if err != nil {
		return err
	}
	l, rec, err := Open(filepath.Join(dir, "ring"), Options{Size: primarySize})
	if err != nil || rec.Fresh || len(rec.Intents) > 0 {
		return fmt.Errorf("open: %+v, %w", rec, err)
	}
	ws, errs := workers(words), make(chan error)
	for i := range ws {
		go func() {
			who, w := uint64(i), &ws[i]
			for k := w.done.Load() + 1; ; k++ {
				r, data := write(who, k, opSize(who, k))
				for !othersNear(ws, l.Next()) {
					runtime.Gosched()
				}
				w.since.Store(l.Next())
				s := l.Begin(r)
				w.started.Store(k)
				lsn, err := l.Append(r, data, s)
				if err != nil {
					errs <- err
					return
				}
				w.lsn[k%2].Store(lsn)
				w.done.Store(k)
				s.End()
				w.since.Store(0)
			}
		}()
	}
	fmt.Println("ready")
	return <-errs
}

func othersNear(ws []worker, next uint64) bool {
	for i := range ws {
		if s := ws[i].since.Load(); s != 0 && next > s+killWindow {
			return false
		}
	}
	return true
}

// runAndKill runs the child and kills it after a random time.
func runAndKill(t *testing.T, kind, dir string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+kind+":"+dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	time.Sleep(time.Duration(rand.IntN(40_000)) * time.Microsecond)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("the child ended by itself: %v: %s", err, stderr.String())
	}
}

func killDir(t *testing.T, first uint64, size int64) (dir string, words []atomic.Uint64) {
	t.Helper()
	path := ringPath(t)
	l, _ := openLog(t, path, size)
	if err := l.Reset(first); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	dir = filepath.Dir(path)
	words, err := counters(filepath.Join(dir, "counters"))
	if err != nil {
		t.Fatal(err)
	}
	return dir, words
}

func rounds() int {
	if testing.Short() {
		return 5
	}
	return killRounds
}

func TestKillPrimary(t *testing.T) {
	dir, words := killDir(t, 1, primarySize)
	ws := workers(words)
	inFlight, pending := 0, 0
	lost := make([]map[uint64]bool, killWorkers)
	for i := range lost {
		lost[i] = map[uint64]bool{}
	}
	for round := range rounds() {
		runAndKill(t, "primary", dir)
		l, rec := openLog(t, filepath.Join(dir, "ring"), primarySize)
		if round%2 == 1 {
			// Killed again before the intents were dealt with.
			crash(t, l)
			again := rec
			l, rec = openLog(t, filepath.Join(dir, "ring"), primarySize)
			if !reflect.DeepEqual(rec, again) {
				t.Fatalf("second recovery %+v, first %+v", rec, again)
			}
		}
		if rec.Fresh || rec.IntentsLost || rec.Last == 0 {
			t.Fatalf("Recovered = %+v", rec)
		}
		all := content(t, l)
		for i := range all {
			if err := checkWrite(&all[i]); err != nil {
				t.Fatal(err)
			}
		}
		for i := range ws {
			f, err := checkWorker(uint64(i), &ws[i], all, rec, lost[i])
			if err != nil {
				t.Fatalf("round %d, log %d to %d, worker %d (started %d, done %d): %v",
					round, rec.First, rec.Last, i, ws[i].started.Load(), ws[i].done.Load(), err)
			}
			inFlight += f
			ws[i].done.Store(ws[i].started.Load())
			ws[i].lsn[0].Store(0)
			ws[i].lsn[1].Store(0)
			ws[i].since.Store(0)
		}
		pending += len(rec.Intents)
		l.ClearIntents()
		closeLog(t, l)
	}
	t.Logf("%d operations were in flight, %d of all begun had no record", inFlight, pending)
}

// checkWorker compares what a worker confirmed with what was recovered. lost
// are its operations that earlier rounds found to have been cut short.
func checkWorker(who uint64, w *worker, all []record.Record, rec Recovered, lost map[uint64]bool) (inFlight int, err error) {
	started, done := w.started.Load(), w.done.Load()
	if started != done && started != done+1 {
		return 0, errors.New("the counters make no sense")
	}
	var logged, intents []uint64
	for i := range all {
		if r := &all[i]; r.FileID == who {
			logged = append(logged, uint64(r.Offset))
		}
	}
	for i := range rec.Intents {
		if r := &rec.Intents[i]; r.FileID == who {
			want, _ := write(who, uint64(r.Offset), opSize(who, uint64(r.Offset)))
			if r.Path != want.Path || r.Length != want.Length {
				return 0, fmt.Errorf("intent %s", r)
			}
			intents = append(intents, uint64(r.Offset))
		}
	}
	for i := 1; i < len(logged); i++ {
		want := logged[i-1] + 1
		for lost[want] {
			want++
		}
		if logged[i] != want {
			return 0, fmt.Errorf("record %d follows %d", logged[i], logged[i-1])
		}
	}
	if lsn := w.lsn[done%2].Load(); lsn != 0 {
		if lsn > rec.Last {
			return 0, fmt.Errorf("operation %d was confirmed as LSN %d", done, lsn)
		}
		if lsn >= rec.First {
			if r := all[lsn-rec.First]; r.FileID != who || uint64(r.Offset) != done {
				return 0, fmt.Errorf("LSN %d should be operation %d, is %s", lsn, done, &r)
			}
		}
	}
	isLogged, isIntent := slices.Contains(logged, done+1), slices.Contains(intents, done+1)
	switch {
	case len(intents) > 1 || len(intents) == 1 && !isIntent:
		return 0, fmt.Errorf("intents %d", intents)
	case started == done && isLogged:
		return 0, errors.New("a record of what was not started")
	case started == done+1 && isLogged == isIntent:
		return 0, fmt.Errorf("operation %d: in the log %v, in the intents %v", started, isLogged, isIntent)
	}
	if isIntent && started == done+1 {
		lost[started] = true
	}
	return int(started - done), nil
}

// What the standby's process does next: from and to are the log's last LSN
// before and after, and any in between may be found if it appends.
const (
	doAppend = iota
	doCut
)

// childStandby appends raw records, truncates and resets until it is killed.
func childStandby(dir string) error {
	words, err := counters(filepath.Join(dir, "counters"))
	if err != nil {
		return err
	}
	l, rec, err := Open(filepath.Join(dir, "ring"), Options{Size: testSize})
	if err != nil || rec.Fresh {
		return fmt.Errorf("open: %+v, %w", rec, err)
	}
	fmt.Println("ready")
	rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
	var batch []byte
	for turn := uint64(0); ; turn++ {
		// The announcement takes effect at once, by the last store.
		announce := func(kind, to uint64) {
			w := words[8+8*(turn%2):]
			w[0].Store(kind)
			w[1].Store(l.Last())
			w[2].Store(to)
			words[0].Store(turn + 1)
		}
		var err error
		switch next := l.Next(); rng.IntN(10) {
		default:
			batch = batch[:0]
			n := uint64(1 + rng.IntN(100))
			for lsn := next; lsn < next+n; lsn++ {
				r, data := write(1, lsn, rng.IntN(8000))
				r.LSN, r.Data, r.Fields = lsn, data, r.Fields|record.FieldData
				batch = r.Append(batch)
			}
			announce(doAppend, next-1+n)
			_, err = l.AppendRaw(context.Background(), batch)
		case 0, 1:
			to := max(l.First()-1, l.Last()-min(l.Last(), uint64(rng.IntN(200))))
			announce(doCut, to)
			err = l.TruncateAfter(to)
		case 2:
			if rng.IntN(10) != 0 {
				continue
			}
			to := 1 + rng.Uint64N(1<<40)
			announce(doCut, to-1)
			err = l.Reset(to)
		}
		if err != nil {
			return err
		}
	}
}

func TestKillStandby(t *testing.T) {
	dir, words := killDir(t, 1, testSize)
	cut := 0
	for round := range rounds() {
		words[0].Store(0)
		runAndKill(t, "standby", dir)
		l, rec := openLog(t, filepath.Join(dir, "ring"), testSize)
		if rec.Fresh {
			t.Fatalf("round %d: Recovered = %+v", round, rec)
		}
		all := content(t, l)
		for i := range all {
			if err := checkWrite(&all[i]); err != nil || uint64(all[i].Offset) != all[i].LSN {
				t.Fatalf("round %d: %s: %v", round, &all[i], err)
			}
		}
		if turn := words[0].Load(); turn != 0 {
			w := words[8+8*((turn-1)%2):]
			kind, from, to := w[0].Load(), w[1].Load(), w[2].Load()
			ok := rec.Last == from || rec.Last == to
			if kind == doAppend {
				ok = from <= rec.Last && rec.Last <= to
			}
			if !ok {
				t.Fatalf("round %d: last %d; kind %d, from %d to %d", round, rec.Last, kind, from, to)
			}
			if rec.Last != to {
				cut++
			}
		}
		closeLog(t, l)
	}
	t.Logf("%d operations were cut short", cut)
}
