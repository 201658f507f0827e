package bench

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	syncAppend  = 8 << 10
	syncWriters = 16
)

// fsync compares an append with fdatasync on the mount with what it cannot be
// faster than: the slower of the same on a local file, and a round trip with the
// same on the peer, whose disk is this one too.
func (r *replBencher) fsync(ctx context.Context, round int) error {
	c, err := r.cluster(ctx, "fsync")
	if err != nil {
		return err
	}
	if err := c.settle(ctx); err != nil {
		return err
	}
	n := r.n(300)
	mount, bare := filepath.Join(c.dir, fmt.Sprintf("sync-%d", round)), r.site.path(fmt.Sprintf("sync-%d", round))
	if err := mkdirs(mount, bare); err != nil {
		return err
	}
	var local, both, one, many float64
	steps := []func() error{
		func() (err error) { local, err = syncTime(ctx, bare, "local", 1, n); return err },
		func() (err error) { both, err = syncTime(ctx, bare, "both", 2, n); return err },
		func() (err error) { one, err = syncTime(ctx, mount, "one", 1, n); return err },
		func() (err error) { many, err = syncTime(ctx, mount, "many", syncWriters, n); return err },
	}
	for i := range steps {
		if err := steps[(i+round)%len(steps)](); err != nil {
			return err
		}
	}
	trip, err := roundTrip(r.n(2000))
	if err != nil {
		return err
	}
	const w = "fsync"
	r.add(w, "local", "µs", local)
	r.add(w, "two local ones at a time", "µs", both)
	r.add(w, "round trip", "µs", trip)
	r.add(w, "mount", "µs", one)
	r.add(w, "mount / (round trip + local)", "", one/(trip+local))
	r.add(w, "mount / (round trip + two local ones at a time)", "", one/(trip+both))
	r.add(w, "16 writers to 16 files / one", "", syncWriters*one/many)
	for _, d := range []string{mount, bare} {
		if err := os.RemoveAll(d); err != nil {
			return fmt.Errorf("clean up: %w", err)
		}
	}
	return c.settle(ctx)
}

// syncTime is how long one append with fdatasync takes when that many writers
// do it at a time, each to a file of its own: the median over the writers' means.
func syncTime(ctx context.Context, dir, name string, writers, n int) (float64, error) {
	means, errs := make([]float64, writers), make([]error, writers)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() { means[i], errs[i] = syncing(ctx, filepath.Join(dir, fmt.Sprintf("%s-%d", name, i)), n) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return median(means), nil
}

func syncing(ctx context.Context, path string, n int) (float64, error) {
	f, err := fresh(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := incompressible(syncAppend)
	if _, err := f.Write(buf); err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	if err := f.Sync(); err != nil {
		return 0, fmt.Errorf("make the file: %w", err)
	}
	begun := time.Now()
	for i := range n {
		if _, err := f.Write(buf); err != nil {
			return 0, fmt.Errorf("write: %w", err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return 0, fmt.Errorf("fdatasync: %w", err)
		}
		if err := canceled(ctx, i*256); err != nil {
			return 0, err
		}
	}
	return float64(time.Since(begun).Microseconds()) / float64(n), nil
}

// roundTrip is how many microseconds a byte takes over the loopback interface
// and back, between two goroutines that wait for it.
func roundTrip(n int) (float64, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("listen: %w", err)
	}
	defer lis.Close()
	go func() {
		c, err := lis.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 1)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}()
	c, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		return 0, fmt.Errorf("dial: %w", err)
	}
	defer c.Close()
	b := make([]byte, 1)
	begun := time.Now()
	for range n {
		if _, err := c.Write(b); err != nil {
			return 0, fmt.Errorf("send: %w", err)
		}
		if _, err := c.Read(b); err != nil {
			return 0, fmt.Errorf("receive: %w", err)
		}
	}
	return float64(time.Since(begun).Nanoseconds()) / 1e3 / float64(n), nil
}
