package oplog

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/replfs/replfs/replicate/record"
)

func TestReadBatches(t *testing.T) {
	l := newLog(t)
	appendN(t, l, 10, 100)
	r := newReader(t, l, 1)
	one := int(l.BytesAfter(9))
	for _, c := range []struct{ capacity, last int }{
		{one + one/2, 1}, {0, 2}, {one - 1, 3}, {3 * one, 6}, {1 << 20, 10},
	} {
		batch, first, last, err := r.Read(t.Context(), make([]byte, 0, c.capacity))
		if err != nil || int(last) != c.last {
			t.Fatalf("Read(%d) = %d to %d, %v; want %d", c.capacity, first, last, err, c.last)
		}
		rs, err := decodeAll(batch, first, last)
		if err != nil {
			t.Fatal(err)
		}
		for i := range rs {
			if err := checkWrite(&rs[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, _, _, err := r.Read(done(), nil)
	wantErr(t, "Read", err, context.Canceled)
}

// A record that exactly ends the ring's content and is larger than the
// buffer must come alone, with nothing read past it.
func TestReadLargeLast(t *testing.T) {
	l := newLog(t)
	appendN(t, l, 1, record.MaxData)
	batch, first, last, err := newReader(t, l, 1).Read(t.Context(), make([]byte, 0, 10))
	if err != nil || first != 1 || last != 1 {
		t.Fatalf("Read = %d, %d, %v", first, last, err)
	}
	if _, err := decodeAll(batch, 1, 1); err != nil {
		t.Fatal(err)
	}
}

func TestReadWaits(t *testing.T) {
	l := newLog(t)
	r := newReader(t, l, 1)
	type result struct {
		last uint64
		err  error
	}
	res := make(chan result)
	read := func(ctx context.Context) {
		_, _, last, err := r.Read(ctx, nil)
		res <- result{last, err}
	}
	go read(t.Context())
	waitSleepers(l, 1)
	appendN(t, l, 1, 10)
	if got := <-res; got.err != nil || got.last != 1 {
		t.Fatalf("%+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go read(ctx)
	waitSleepers(l, 1)
	cancel()
	wantErr(t, "Read", (<-res).err, context.Canceled)
	waitSleepers(l, 0)
	go read(t.Context())
	waitSleepers(l, 1)
	r.Close()
	r.Close()
	wantErr(t, "Read", (<-res).err, ErrClosed)
	wantErr(t, "Rewind", r.Rewind(1), ErrClosed)
	waitSleepers(l, 0)
}

func waitSleepers(l *Log, n int) {
	for {
		l.mu.Lock()
		got := l.sleepers
		l.mu.Unlock()
		if got == n {
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func TestOverrun(t *testing.T) {
	l := newLog(t)
	appendN(t, l, 1, 10)
	r := newReader(t, l, 1)
	appendN(t, l, 10, record.MaxData)
	_, _, _, err := r.Read(t.Context(), nil)
	wantErr(t, "Read", err, ErrGone)
	// It has nothing left to hold.
	r.Hold(true)
	appendN(t, l, 10, record.MaxData)
	if err := r.Rewind(l.First()); err != nil {
		t.Fatal(err)
	}
	if _, first, _, err := r.Read(t.Context(), nil); err != nil || first != l.First() {
		t.Fatalf("Read = %d, %v", first, err)
	}
}

// appendAsync appends one record and reports on the channel.
func appendAsync(l *Log, size int) <-chan error {
	ch := make(chan error, 1)
	go func() {
		r, data := write(1, 0, size)
		_, err := l.Append(r, data, nil)
		ch <- err
	}()
	return ch
}

func stillBlocked(t *testing.T, l *Log, n int) {
	t.Helper()
	for l.Waiting() != n {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(5 * time.Millisecond)
	if got := l.Waiting(); got != n {
		t.Fatalf("%d appends wait, want %d", got, n)
	}
}

func TestHoldAndRelease(t *testing.T) {
	l := newLog(t)
	r := newReader(t, l, 1)
	r.Hold(true)
	appendN(t, l, 3, record.MaxData)
	blocked := appendAsync(l, record.MaxData)
	stillBlocked(t, l, 1)
	// Not read yet, so it cannot be released.
	r.Release(1)
	stillBlocked(t, l, 1)
	for range 3 {
		if _, _, _, err := r.Read(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	// Read, but not released.
	stillBlocked(t, l, 1)
	r.Release(99)
	if got := r.Released(); got != 3 {
		t.Fatalf("released %d, 3 were read", got)
	}
	if err := <-blocked; err != nil {
		t.Fatal(err)
	}
	// Back to what was released: it is needed again.
	if err := r.Rewind(l.First()); err != nil {
		t.Fatal(err)
	}
	first := l.First()
	blocked = appendAsync(l, record.MaxData)
	stillBlocked(t, l, 1)
	// Later ones wait their turn, even if there is room for them.
	small := appendAsync(l, 1)
	stillBlocked(t, l, 2)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	raw := content(t, l)[0]
	raw.LSN = l.Next()
	_, err := l.AppendRaw(ctx, raw.Append(nil))
	wantErr(t, "AppendRaw", err, context.DeadlineExceeded)
	if l.First() != first {
		t.Fatal("held records were dropped")
	}
	r.Close()
	if err := <-blocked; err != nil {
		t.Fatal(err)
	}
	if err := <-small; err != nil {
		t.Fatal(err)
	}
}

// The first in the queue giving up must let the next one in.
func TestQueueAfterCancel(t *testing.T) {
	l := newLog(t)
	r := newReader(t, l, 1)
	r.Hold(true)
	appendN(t, l, 3, record.MaxData)
	ctx, cancel := context.WithCancel(t.Context())
	raw := content(t, l)[2]
	raw.LSN = 4
	first := make(chan error, 1)
	go func() {
		_, err := l.AppendRaw(ctx, raw.Append(nil))
		first <- err
	}()
	stillBlocked(t, l, 1)
	second := appendAsync(l, 1)
	stillBlocked(t, l, 2)
	cancel()
	wantErr(t, "AppendRaw", <-first, context.Canceled)
	if err := <-second; err != nil {
		t.Fatal(err)
	}
}

// A pinned region is not overwritten, and neither dropped by Reset, while a
// reader copies it.
func TestPin(t *testing.T) {
	l := newLog(t)
	r := newReader(t, l, 1)
	appendN(t, l, 3, record.MaxData)
	l.mu.Lock()
	r.pinned, r.pinLSN, r.pinEnd = true, 1, l.head
	l.mu.Unlock()
	blocked := appendAsync(l, record.MaxData)
	stillBlocked(t, l, 1)
	var wg sync.WaitGroup
	reset := make(chan struct{})
	wg.Go(func() {
		defer close(reset)
		if err := l.Reset(100); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-reset:
		t.Fatal("reset under a reader's feet")
	case <-time.After(20 * time.Millisecond):
	}
	l.mu.Lock()
	r.pinned = false
	l.idle.Broadcast()
	l.mu.Unlock()
	wg.Wait()
	if err := <-blocked; err != nil {
		t.Fatal(err)
	}
	if l.First() != 100 || l.Last() != 100 {
		t.Fatalf("first %d, last %d", l.First(), l.Last())
	}
}

// Reset, the reader's Close and the log's Close wait for a Read that copies
// right now, and are told when it has finished.
func TestEndDuringRead(t *testing.T) {
	path, met := ringPath(t), 0
	for i := range 45 {
		l, _ := openLog(t, path, testSize)
		if err := l.Reset(1); err != nil {
			t.Fatal(err)
		}
		appendN(t, l, 3, record.MaxData)
		r := newReader(t, l, 1)
		read := make(chan error, 1)
		go func() {
			batch, first, last, err := r.Read(context.Background(), make([]byte, 0, testSize))
			if err == nil {
				_, err = decodeAll(batch, first, last)
			}
			read <- err
		}()
		for pinned := false; !pinned && len(read) == 0; {
			l.mu.Lock()
			if pinned = r.pinned; pinned {
				met++
			}
			l.mu.Unlock()
		}
		switch i % 3 {
		case 0:
			if err := l.Reset(1); err != nil {
				t.Fatal(err)
			}
			appendN(t, l, 3, 1<<19) // over what is being read
		case 1:
			r.Close()
		}
		closeLog(t, l)
		if err := <-read; err != nil {
			t.Fatal(err)
		}
	}
	if met == 0 {
		t.Error("no Read was ever met while it copied")
	}
}
