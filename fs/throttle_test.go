package fs

import (
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestThrottleBucket: over any time what is let in keeps to the rate and to
// the room, and a large record goes into debt that those after it pay.
func TestThrottleBucket(t *testing.T) {
	now := time.Unix(0, 0)
	var th throttle
	th.init()
	th.now = func() time.Time { return now }
	never := make(chan struct{})
	closed := make(chan struct{})
	close(closed)
	if !th.take(1<<30, never) {
		t.Fatal("held up without a limit")
	}
	th.set(1000, math.MaxInt64)
	taken := 0
	for range 1000 { // ten seconds
		now = now.Add(10 * time.Millisecond)
		for th.take(7, closed) {
			taken += 7
		}
	}
	if taken < 9900 || taken > 10100 {
		t.Errorf("%d bytes in 10 s at 1000 a second", taken)
	}
	now = now.Add(time.Hour) // nothing is saved up
	for taken = 0; th.take(1, closed); taken++ {
	}
	if taken > 21 {
		t.Errorf("%d bytes at once after an hour", taken)
	}
	now = now.Add(time.Second)
	if !th.take(5000, never) {
		t.Fatal("a large record is held up although there is no debt")
	}
	for range 49 {
		now = now.Add(100 * time.Millisecond)
		if th.take(1, closed) {
			t.Fatal("its debt was not paid")
		}
	}
	now = now.Add(200 * time.Millisecond)
	if !th.take(1, never) {
		t.Fatal("held up after the debt was paid")
	}
	th.set(1e6, 100)
	now = now.Add(time.Second)
	th.set(1e6, 0)
	if taken = 0; th.take(1, closed) {
		taken++
	}
	if taken > 1 {
		t.Error("there was no room")
	}
	th.set(0, 1<<20)
	now = now.Add(time.Hour)
	if th.take(0, closed) {
		t.Error("rate 0 lets something in")
	}
	th.set(math.Inf(1), 100)
	for taken = 0; th.take(30, closed); taken += 30 {
	}
	if taken != 120 {
		t.Errorf("%d bytes at any rate with room for 100", taken)
	}
	th.set(math.Inf(1), math.MaxInt64)
	if !th.take(1<<30, never) {
		t.Error("held up after the limit was lifted")
	}
}

// TestThrottleStops: what is held up goes on when the limit is lifted, waits
// without a lock, and is refused when the gate closes.
func TestThrottleStops(t *testing.T) {
	e := newEnv(t, options{})
	fd, err := unix.Open(e.in("f"), unix.O_CREAT|unix.O_RDWR, 0o644)
	must(t, err)
	e.fs.Throttle(0, 1<<20)
	start := func(f func() error) chan error {
		c := make(chan error, 1)
		go func() { c <- f() }()
		return c
	}
	held := func(n int) {
		t.Helper()
		eventually(t, "mutations are held up", func() bool { return e.fs.Throttled() == n })
	}
	write := start(func() error { return writeAll(fd, "x") })
	held(1)
	mkdir := start(func() error { return unix.Mkdir(e.in("d"), 0o755) })
	held(2)
	// Locks are free, reading goes on.
	eventually(t, "the tree is not locked", func() bool {
		free := e.fs.tree.TryLock()
		if free {
			e.fs.tree.Unlock()
		}
		return free
	})
	buf := make([]byte, 1)
	if _, err := unix.Pread(fd, buf, 0); err != nil {
		t.Error(err)
	}
	e.fs.Throttle(math.Inf(1), math.MaxInt64)
	must(t, <-write)
	must(t, <-mkdir)

	// A freeze does not wait for them.
	e.fs.Throttle(0, 1<<20)
	rmdir := start(func() error { return unix.Rmdir(e.in("d")) })
	held(1)
	e.fs.Freeze()
	e.fs.Throttle(math.Inf(1), math.MaxInt64)
	e.fs.Thaw()
	must(t, <-rmdir)

	e.fs.Throttle(0, 1<<20)
	refused := start(func() error { return unix.Mkdir(e.in("refused"), 0o755) })
	held(1)
	e.fs.SetReadOnly()
	if err := <-refused; !errors.Is(err, unix.EROFS) {
		t.Errorf("held up when the gate closed: %v", err)
	}
	e.fs.Throttle(math.Inf(1), math.MaxInt64)
	must(t, unix.Close(fd))
	e.equal()
}

// TestThrottleRate: many writers together keep to the rate.
func TestThrottleRate(t *testing.T) {
	e := newEnv(t, options{})
	stop := e.follow()
	const rate = 4 << 20
	e.fs.Throttle(rate, math.MaxInt64)
	var quit atomic.Bool
	var wrote atomic.Int64
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range 8 {
		wg.Go(func() {
			fd, err := unix.Open(e.in("f"+itoa(i)), unix.O_CREAT|unix.O_WRONLY, 0o644)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fd)
			data := make([]byte, 16<<10)
			for !quit.Load() {
				if _, err := unix.Pwrite(fd, data, 0); err != nil {
					t.Error(err)
					return
				}
				wrote.Add(int64(len(data)))
			}
		})
	}
	time.Sleep(time.Second)
	quit.Store(true)
	e.fs.Throttle(math.Inf(1), math.MaxInt64)
	took := time.Since(begun).Seconds() // before what waits goes on
	wg.Wait()
	// One record each may be on its way; a slow machine writes less.
	if most := rate*(took+burst.Seconds()) + 9*(16<<10); float64(wrote.Load()) > most {
		t.Errorf("%d bytes in %.2f s, at most %.0f may come", wrote.Load(), took, most)
	}
	stop()
	e.equal()
}
