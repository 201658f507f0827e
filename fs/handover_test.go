package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/workload"
	"github.com/replfs/replfs/replicate/record"
)

// rounds is how often a test hands over.
func rounds(short, long int) int {
	if os.Getenv("REPLFS_LONG") != "" {
		return long
	}
	return short
}

// TestHandoverUnderLoad: every operation of a workload succeeds while the
// mount passes from process to process, and each is recorded once.
func TestHandoverUnderLoad(t *testing.T) {
	s := newServed(t)
	wait := s.startWorkload(workload.Options{Seed: 11, Writers: 4, Steps: rounds(4000, 40000), MaxBytes: 8 << 20, MaxFiles: 500})
	done := make(chan error, 1)
	go func() { done <- wait(false) }()
	n := 0
	for running := true; running; n++ {
		select {
		case err := <-done:
			must(t, err)
			running = false
		case <-time.After(20 * time.Millisecond):
			s.restart()
		}
	}
	if n < 3 {
		t.Errorf("only %d handovers while the workload ran", n)
	}
	t.Logf("%d handovers", n)
}

// TestHandoverKeepsFiles: whatever was open before works on afterwards.
func TestHandoverKeepsFiles(t *testing.T) {
	s := newServed(t)
	open := func(name string, flags int) *os.File {
		t.Helper()
		f, err := os.OpenFile(s.in(name), flags|os.O_CREATE, 0o644)
		must(t, err)
		t.Cleanup(func() { _ = f.Close() }) // before the helper ends
		return f
	}
	must(t, os.MkdirAll(s.in("dir/sub"), 0o755))
	kept := open("dir/kept", os.O_RDWR)
	appended := open("appended", os.O_WRONLY|os.O_APPEND)
	unlinked := open("unlinked", os.O_RDWR)
	replaced := open("replaced", os.O_RDWR)
	for _, f := range []*os.File{kept, appended, unlinked, replaced} {
		_, err := f.WriteString("before ")
		must(t, err)
	}
	must(t, os.Remove(s.in("unlinked")))
	must(t, os.WriteFile(s.in("new"), []byte("new"), 0o600))
	must(t, os.Rename(s.in("new"), s.in("replaced")))
	must(t, unix.Flock(int(kept.Fd()), unix.LOCK_EX))
	listing, err := os.Open(s.in("dir"))
	must(t, err)
	defer listing.Close()
	first, err := listing.Readdirnames(1)
	must(t, err)

	for range 3 {
		s.restart()
		for _, f := range []*os.File{kept, appended, unlinked, replaced} {
			_, err := f.WriteString("after ")
			must(t, err)
		}
		// A directory that was looked up before moves.
		must(t, os.Rename(s.in("dir"), s.in("moved")))
		must(t, os.Rename(s.in("moved"), s.in("dir")))
	}
	rest, err := listing.Readdirnames(-1)
	must(t, err)
	if len(first)+len(rest) != 2 {
		t.Errorf("the listing of two entries gave %q, then %q", first, rest)
	}
	other := open("dir/kept", os.O_RDWR)
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("a lock from before: %v", err)
	}
	want := "before after after after "
	for _, f := range []*os.File{kept, unlinked, replaced} {
		got := make([]byte, 100)
		n, _ := f.ReadAt(got, 0)
		if string(got[:n]) != want {
			t.Errorf("%s holds %q", f.Name(), got[:n])
		}
	}
	got, err := os.ReadFile(s.in("appended"))
	must(t, err)
	if string(got) != want {
		t.Errorf("appended holds %q", got)
	}
	var st unix.Stat_t
	must(t, unix.Fstat(int(unlinked.Fd()), &st))
	if st.Nlink != 0 {
		t.Errorf("the unlinked file has %d links", st.Nlink)
	}
}

// TestHandoverMmap: pages that were dirty reach the store through the
// successor, whose remount must not wait for them.
func TestHandoverMmap(t *testing.T) {
	s := newServed(t)
	must(t, os.WriteFile(s.in("f"), make([]byte, 2*page), 0o600))
	for range 3 {
		must(t, mmapped(s.in("f"), "write"))
		s.restart()
	}
	s.restart()
	f, err := os.OpenFile(s.in("f"), os.O_RDWR, 0)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
	got, err := os.ReadFile(s.store + "/f")
	must(t, err)
	if got[page] != 0xff {
		t.Errorf("the store holds %#x after three changes", got[page])
	}
}

// TestHandoverAnswersOnce: writes that were carried out and not answered are
// answered by the successor, and not carried out again.
func TestHandoverAnswersOnce(t *testing.T) {
	s := newServed(t, "block") // no O_SYNC write is answered before the handover
	const writers = 4
	var wg sync.WaitGroup
	for i := range writers {
		f, err := os.OpenFile(s.in(fmt.Sprint("f", i)), os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_SYNC, 0o600)
		must(t, err)
		wg.Go(func() {
			defer f.Close()
			if n, err := f.WriteString("once"); n != 4 || err != nil {
				t.Errorf("the write was answered %d, %v", n, err)
			}
		})
	}
	for i := range writers {
		eventually(t, "the store has the write", func() bool {
			st, err := os.Stat(fmt.Sprintf("%s/f%d", s.store, i))
			return err == nil && st.Size() == 4
		})
	}
	s.restart()
	wg.Wait()
	s.check = func(records []record.Record) {
		for i := range writers {
			if n := count(records, record.OpWrite, fmt.Sprint("f", i)); n != 1 {
				t.Errorf("%d records of one write", n)
			}
		}
	}
}

// TestHandoverAppliesOnce: of appends, exclusive creations and renames none is
// done twice or lost, whatever waits when the mount passes on.
func TestHandoverAppliesOnce(t *testing.T) {
	s := newServed(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	const appenders = 3
	counts := make([]int, appenders)
	for i := range appenders {
		f, err := os.OpenFile(s.in(fmt.Sprint("log", i)), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		must(t, err)
		wg.Go(func() {
			defer f.Close()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := fmt.Fprintf(f, "%d\n", counts[i]); err != nil {
					t.Errorf("append %d: %v", counts[i], err)
					return
				}
				counts[i]++
			}
		})
	}
	// A lock file, as git uses them: two never hold it.
	var holder sync.Mutex
	locked := 0
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				f, err := os.OpenFile(s.in("lock"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				if os.IsExist(err) {
					continue
				}
				if err != nil {
					t.Errorf("lock: %v", err)
					return
				}
				if !holder.TryLock() {
					t.Error("two hold the lock file")
					return
				}
				locked++
				holder.Unlock()
				if err := f.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
				// Renamed first: a rename that is done twice fails.
				if err := os.Rename(s.in("lock"), s.in("unlock")); err != nil {
					t.Errorf("rename: %v", err)
					return
				}
			}
		})
	}
	for i := range rounds(40, 600) {
		time.Sleep(time.Duration(i%5) * time.Millisecond)
		s.restart()
	}
	close(stop)
	wg.Wait()
	for i, n := range counts {
		text, err := os.ReadFile(s.in(fmt.Sprint("log", i)))
		must(t, err)
		var want strings.Builder
		for j := range n {
			fmt.Fprintln(&want, j)
		}
		if string(text) != want.String() {
			t.Errorf("log%d has %d bytes of %d: lines are lost or double", i, len(text), want.Len())
		}
	}
	t.Logf("%v lines, %d locks", counts, locked)
}

// TestHandoverFails: when there is no successor in the end, work goes on.
func TestHandoverFails(t *testing.T) {
	e := newEnv(t, options{})
	stop := e.follow()
	wait := e.startLoad(500)
	nobody := errors.New("nobody")
	for range 5 {
		time.Sleep(10 * time.Millisecond)
		if err := e.m.HandOver(func([]byte, []int) error { return nobody }); !errors.Is(err, nobody) {
			t.Errorf("the handover ended with %v", err)
		}
		must(t, os.WriteFile(e.in("file"), []byte("x"), 0o600))
	}
	must(t, wait(false))
	stop()
	e.equal()
	e.sound()
}
