package latency

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
)

// device is a file that keeps what is written to it.
func device(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func wishes(t *testing.T, path string) []uint32 {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []uint32
	for ; len(b) >= 4; b = b[4:] {
		out = append(out, binary.NativeEndian.Uint32(b))
	}
	return out
}

// until calls f again and again, for a minute at most.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within a minute: " + what)
		}
	}
}

// TestHoldsWhileBusy: requests that come fast keep CPUs awake, and when they
// stop, CPUs may sleep.
func TestHoldsWhileBusy(t *testing.T) {
	path := device(t)
	g, err := Open(path, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		until(t, "held", func() bool {
			for range burstSize {
				g.Note()
			}
			return g.Holding()
		})
		until(t, "released", func() bool { return !g.Holding() })
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := wishes(t, path), []uint32{noWish, noSleep, noWish, noSleep, noWish}; !slices.Equal(got, want) {
		t.Errorf("asked for %v, want %v", got, want)
	}
}

// TestRate: only the rate decides, not how many requests there were.
func TestRate(t *testing.T) {
	for _, c := range []struct {
		every time.Duration
		want  bool
	}{{burstWindow/burstSize + time.Microsecond, false}, {burstWindow / burstSize, true}} {
		var now time.Time
		g, err := open(device(t), zap.NewNop(), func() time.Time { return now })
		if err != nil {
			t.Fatal(err)
		}
		for range 10 * burstSize {
			now = now.Add(c.every)
			g.Note()
		}
		if c.want {
			until(t, "held", g.Holding)
		} else if len(g.wake) > 0 || g.Holding() {
			t.Errorf("a request every %s keeps CPUs awake", c.every)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCloseWhileBusy(t *testing.T) {
	path := device(t)
	g, err := Open(path, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var notes sync.WaitGroup
	for range 4 {
		notes.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					g.Note()
				}
			}
		})
	}
	until(t, "held", g.Holding)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	close(stop)
	notes.Wait()
	if got := wishes(t, path); got[len(got)-1] != noWish {
		t.Errorf("ends with %v", got)
	}
}

func TestWithoutDevice(t *testing.T) {
	g, err := Open(filepath.Join(t.TempDir(), "none"), zap.NewNop())
	if err == nil {
		t.Fatal("opened what does not exist")
	}
	g.Note()
	if g.Holding() || g.Close() != nil {
		t.Error("a guard that is not there holds something")
	}
}

func TestNoteAllocatesNothing(t *testing.T) {
	g, err := Open(device(t), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(1000, g.Note); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkNote(b *testing.B) {
	path := filepath.Join(b.TempDir(), "device")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	g, err := Open(path, zap.NewNop())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		g.Note()
	}
	if err := g.Close(); err != nil {
		b.Fatal(err)
	}
}
