package oplog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/replfs/replfs/replicate/record"
)

// Several appenders, readers that hold, that do not, and that rewind: every
// reader sees each record once, whole and in order, and an appender's records
// in the order it appended them.
func TestConcurrent(t *testing.T) {
	const appenders, perAppender = 4, 2500
	l := newLog(t)
	l.SetEpoch(1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	var readers, writers sync.WaitGroup
	for i := range 3 {
		r := newReader(t, l, 1)
		r.Hold(true)
		// One releases at once, one late, one goes back now and then.
		readers.Go(func() {
			if err := readHolding(ctx, l, r, i, appenders*perAppender); err != nil {
				t.Errorf("reader %d: %v", i, err)
				cancel()
				r.Hold(false)
			}
		})
	}
	var overruns atomic.Int64
	stop := make(chan struct{})
	var loose sync.WaitGroup
	for i := range 2 {
		loose.Go(func() {
			n, err := readLoosely(ctx, l, stop)
			if err != nil {
				t.Errorf("loose reader %d: %v", i, err)
			}
			overruns.Add(n)
		})
	}
	for who := range appenders {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(who), 7))
			for seq := range perAppender {
				n := rng.IntN(2000)
				if rng.IntN(200) == 0 {
					n = rng.IntN(record.MaxData)
				}
				r, data := write(uint64(who), uint64(seq), n)
				s := l.Begin(r)
				lsn, err := l.Append(r, data, s)
				s.End()
				if err != nil || lsn != r.LSN || l.Last() < lsn {
					t.Errorf("Append = %d, %v", lsn, err)
					return
				}
			}
		})
	}
	// The lock-free numbers and the searches must make sense meanwhile.
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			last, first := l.Last(), l.First()
			if first > last+1 && first > l.Last()+1 {
				t.Errorf("first %d, last %d", first, last)
				return
			}
			if e, ok := l.EpochOf((first + last) / 2); ok && e != 1 {
				t.Errorf("epoch %d", e)
				return
			}
			if n := l.BytesAfter(first); n > testSize {
				t.Errorf("%d bytes", n)
				return
			}
			time.Sleep(50 * time.Microsecond)
		}
	})
	writers.Wait()
	readers.Wait()
	close(stop)
	loose.Wait()
	watch.Wait()
	t.Logf("%d records, %d overruns", l.Last(), overruns.Load())
	if l.Last() != appenders*perAppender || l.Waiting() != 0 {
		t.Fatalf("last %d, %d waiting", l.Last(), l.Waiting())
	}
}

// readHolding reads the records 1 to last and checks that none is missing.
func readHolding(ctx context.Context, l *Log, r *Reader, kind int, last uint64) error {
	seqs := map[uint64]int64{}
	buf := make([]byte, 0, 300<<10)
	rng := rand.New(rand.NewPCG(uint64(kind), 9))
	seen := uint64(0)
	for seen < last {
		batch, first, end, err := r.Read(ctx, buf)
		if err != nil {
			return err
		}
		rs, err := decodeAll(batch, first, end)
		if err != nil {
			return err
		}
		if first > seen+1 {
			return fmt.Errorf("batch begins at %d after %d", first, seen)
		}
		for i := range rs {
			if err := checkWrite(&rs[i]); err != nil {
				return err
			}
			if rs[i].LSN <= seen {
				continue // read before going back
			}
			if who := rs[i].FileID; rs[i].Offset != seqs[who] {
				return fmt.Errorf("appender %d: record %d where %d should be", who, rs[i].Offset, seqs[who])
			}
			seqs[rs[i].FileID]++
		}
		seen = max(seen, end)
		switch kind {
		case 0:
			r.Release(end)
		case 1:
			if end > 100 {
				r.Release(end - 100)
			}
			if end == last || l.Waiting() > 0 {
				r.Release(end)
			}
		case 2:
			if rng.IntN(4) == 0 {
				if err := r.Rewind(r.Released() + 1); err != nil {
					return err
				}
				continue
			}
			r.Release(end)
		}
	}
	return nil
}

// readLoosely reads what it can get and counts how often it was overrun.
func readLoosely(ctx context.Context, l *Log, stop <-chan struct{}) (overruns int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { <-stop; cancel() }()
	r, err := l.NewReader(l.First())
	for errors.Is(err, ErrGone) {
		r, err = l.NewReader(l.First())
	}
	if err != nil {
		return 0, err
	}
	defer r.Close()
	buf := make([]byte, 0, 1<<20)
	for next := uint64(0); ; {
		batch, first, last, err := r.Read(ctx, buf)
		switch {
		case ctx.Err() != nil:
			return overruns, nil
		case errors.Is(err, ErrGone):
			overruns++
			for errors.Is(err, ErrGone) {
				err = r.Rewind(l.First())
			}
			if err != nil {
				return overruns, err
			}
			next = 0
			continue
		case err != nil:
			return overruns, err
		case next != 0 && first != next:
			return overruns, fmt.Errorf("batch begins at %d, not %d", first, next)
		}
		rs, err := decodeAll(batch, first, last)
		if err != nil {
			return overruns, err
		}
		for i := range rs {
			if err := checkWrite(&rs[i]); err != nil {
				return overruns, err
			}
		}
		next = last + 1
	}
}

// Readers and appenders keep going while the log is truncated and reset.
func TestConcurrentTruncate(t *testing.T) {
	l := newLog(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for who := range 2 {
		wg.Go(func() {
			for seq := uint64(0); ; seq++ {
				select {
				case <-stop:
					return
				default:
				}
				r, data := write(uint64(who), seq, 20000)
				if _, err := l.Append(r, data, nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			if _, err := readLoosely(t.Context(), l, stop); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range uint64(600) {
		var err error
		if i%3 == 0 {
			err = l.Reset(1 + i*1000)
		} else {
			err = l.TruncateAfter(max(l.Last(), 20) - 20)
		}
		if err != nil && !errors.Is(err, ErrGone) {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Microsecond)
	}
	close(stop)
	wg.Wait()
	content(t, l)
}
