package bench

import (
	"context"
	"errors"
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
// same on the peer.
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
	peer := bare
	if r.site.peer != "" {
		peer = filepath.Join(r.site.peer, filepath.Base(bare))
	}
	if err := mkdirs(mount, bare, peer); err != nil {
		return err
	}
	var local, remote, both, one, many float64
	steps := []func() error{
		func() (err error) { local, err = syncTime(ctx, bare, "local", 1, n); return err },
		func() (err error) { remote, err = syncTime(ctx, peer, "peer", 1, n); return err },
		func() (err error) { both, err = syncPair(ctx, bare, peer, n); return err },
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
	r.add(w, "peer", "µs", remote)
	r.add(w, "local and peer at a time, without replfs", "µs", both)
	r.add(w, "round trip", "µs", trip)
	r.add(w, "mount", "µs", one)
	r.add(w, "mount / max(local, round trip + peer)", "", one/max(local, trip+remote))
	r.add(w, "mount / local and peer at a time", "", one/both)
	r.add(w, "16 writers to 16 files / one", "", syncWriters*one/many)
	for _, d := range []string{mount, bare, peer} {
		if err := os.RemoveAll(d); err != nil {
			return fmt.Errorf("clean up: %w", err)
		}
	}
	return c.settle(ctx)
}

// syncTime is how long one append with fdatasync takes when that many writers
// do it at a time, each to a file of its own, until all are done.
func syncTime(ctx context.Context, dir, name string, writers, n int) (float64, error) {
	errs := make([]error, writers)
	begun := time.Now()
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() { errs[i] = syncing(ctx, filepath.Join(dir, fmt.Sprintf("%s-%d", name, i)), n, nil, nil) })
	}
	wg.Wait()
	return float64(time.Since(begun).Microseconds()) / float64(n), errors.Join(errs...)
}

// syncing appends and syncs n times. With peer it tells the peer each time before
// it begins, and waits in the end until that is done as well; with first it is
// that peer.
func syncing(ctx context.Context, path string, n int, peer, first net.Conn) error {
	f, err := fresh(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, b := incompressible(syncAppend), make([]byte, 1)
	for i := range n {
		if first != nil {
			if _, err := first.Read(b); err != nil {
				return fmt.Errorf("receive: %w", err)
			}
		}
		if peer != nil {
			if _, err := peer.Write(b); err != nil {
				return fmt.Errorf("send: %w", err)
			}
		}
		if _, err := f.Write(buf); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return fmt.Errorf("fdatasync: %w", err)
		}
		if first != nil {
			if _, err := first.Write(b); err != nil {
				return fmt.Errorf("send: %w", err)
			}
		}
		if peer != nil {
			if _, err := peer.Read(b); err != nil {
				return fmt.Errorf("receive: %w", err)
			}
		}
		if err := canceled(ctx, i*256); err != nil {
			return err
		}
	}
	return nil
}

// syncPair is how long it takes until a file here and one of the peer are
// synced, the second begun when a byte from the first has come over the network:
// what the disks allow, when it is one under both nodes.
func syncPair(ctx context.Context, dir, peer string, n int) (float64, error) {
	there, back, closeBoth, err := loopback()
	if err != nil {
		return 0, err
	}
	defer closeBoth()
	var other error
	var wg sync.WaitGroup
	wg.Go(func() {
		defer back.Close() // the first waits for it
		other = syncing(ctx, filepath.Join(peer, "second"), n, nil, back)
	})
	begun := time.Now()
	err = syncing(ctx, filepath.Join(dir, "first"), n, there, nil)
	took := time.Since(begun)
	closeBoth()
	wg.Wait()
	if err == nil {
		err = other
	}
	return float64(took.Microseconds()) / float64(n), err
}

// roundTrip is how many microseconds a byte takes over the loopback interface
// and back, between two goroutines that wait for it.
func roundTrip(n int) (float64, error) {
	there, back, closeBoth, err := loopback()
	if err != nil {
		return 0, err
	}
	defer closeBoth()
	go func() {
		b := make([]byte, 1)
		for {
			if _, err := back.Read(b); err != nil {
				return
			}
			if _, err := back.Write(b); err != nil {
				return
			}
		}
	}()
	b := make([]byte, 1)
	begun := time.Now()
	for range n {
		if _, err := there.Write(b); err != nil {
			return 0, fmt.Errorf("send: %w", err)
		}
		if _, err := there.Read(b); err != nil {
			return 0, fmt.Errorf("receive: %w", err)
		}
	}
	return float64(time.Since(begun).Nanoseconds()) / 1e3 / float64(n), nil
}

// loopback is a TCP connection of this process with itself.
func loopback() (a, b net.Conn, closeBoth func(), err error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, nil, fmt.Errorf("listen: %w", err)
	}
	defer lis.Close()
	if a, err = net.Dial("tcp", lis.Addr().String()); err != nil {
		return nil, nil, nil, fmt.Errorf("dial: %w", err)
	}
	if b, err = lis.Accept(); err != nil {
		return nil, nil, nil, errors.Join(fmt.Errorf("accept: %w", err), a.Close())
	}
	return a, b, func() {
		_ = a.Close()
		_ = b.Close()
	}, nil
}
