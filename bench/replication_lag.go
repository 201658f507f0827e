package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	lagBlock    = 4 << 10
	lagInterval = time.Millisecond
)

// lag writes a block every millisecond and notes when it was visible in the
// standby's store. The store tells by inotify(7): to look all the time would take
// the CPU that is to be measured.
func (r *replBencher) lag(ctx context.Context, round int) error {
	c, err := r.cluster(ctx, "async")
	if err != nil {
		return err
	}
	name := fmt.Sprintf("lag-%d", round)
	f, err := fresh(filepath.Join(c.dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := c.settle(ctx); err != nil { // the standby has the file
		return err
	}
	n := r.n(3000)
	seen, err := watchGrowth(ctx, filepath.Join(r.standbyStore("async"), name), n)
	if err != nil {
		return err
	}
	written := make([]time.Time, n)
	buf := make([]byte, lagBlock)
	next := time.Now()
	for i := range n {
		time.Sleep(time.Until(next))
		next = next.Add(lagInterval)
		binary.LittleEndian.PutUint64(buf, uint64(i+1))
		if _, err := f.Write(buf); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		written[i] = time.Now()
		if err := canceled(ctx, i); err != nil {
			return err
		}
	}
	got := <-seen
	if got.err != nil {
		return got.err
	}
	lags := make([]float64, n)
	for i := range lags {
		// What was there before write(2) returned has no lag.
		lags[i] = max(0, float64(got.at[i].Sub(written[i]).Nanoseconds())/1e6)
	}
	slices.Sort(lags)
	r.add("lag", "p50", "ms", lags[n/2])
	r.add("lag", "p99", "ms", lags[n*99/100])
	r.add("lag", "max", "ms", lags[n-1])
	return nil
}

type growth struct {
	at  []time.Time
	err error
}

// watchGrowth notes when each of the blocks of a file is there, the number in it
// included.
func watchGrowth(ctx context.Context, path string, blocks int) (<-chan growth, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch the standby's store: %w", err)
	}
	in := os.NewFile(uintptr(fd), "inotify")
	if _, err = unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", path, err), in.Close())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch the standby's store: %w", err), in.Close())
	}
	out := make(chan growth, 1)
	stop := context.AfterFunc(ctx, func() { _ = in.SetReadDeadline(time.Now()) })
	go func() {
		defer stop()
		defer in.Close()
		defer f.Close()
		at, err := noteBlocks(in, f, blocks)
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		out <- growth{at, err}
	}()
	return out, nil
}

func noteBlocks(in, f *os.File, blocks int) ([]time.Time, error) {
	at := make([]time.Time, 0, blocks)
	events := make([]byte, 64*int(unsafe.Sizeof(unix.InotifyEvent{})))
	var head [8]byte
	for len(at) < blocks {
		if err := in.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			return nil, fmt.Errorf("watch the standby's store: %w", err)
		}
		if _, err := in.Read(events); err != nil {
			return nil, fmt.Errorf("%d of %d blocks came to the standby's store: %w", len(at), blocks, err)
		}
		now := time.Now()
		st, err := f.Stat()
		if err != nil {
			return nil, fmt.Errorf("watch the standby's store: %w", err)
		}
		for int64(len(at)+1)*lagBlock <= st.Size() {
			if _, err := f.ReadAt(head[:], int64(len(at))*lagBlock); err != nil {
				return nil, fmt.Errorf("read the standby's store: %w", err)
			}
			if got := binary.LittleEndian.Uint64(head[:]); got != uint64(len(at)+1) {
				return nil, fmt.Errorf("block %d of the standby's store says %d", len(at)+1, got)
			}
			at = append(at, now)
		}
	}
	return at, nil
}
