package oplog

import (
	"errors"
	"testing"
	"time"

	"github.com/replfs/replfs/replicate/record"
)

func appendSized(t *testing.T, l *Log, n int) uint64 {
	t.Helper()
	lsn, err := l.Append(&record.Record{Op: record.OpWrite}, pattern(1, n), nil)
	if err != nil {
		t.Error(err)
	}
	return lsn
}

func TestHoldMakesAppendsWait(t *testing.T) {
	l := newLog(t)
	h := l.NewHold()
	defer h.Close()
	for range 10 {
		appendSized(t, l, 1<<20) // nothing is held yet
	}
	from := l.Last()
	if err := h.Move(from); err != nil {
		t.Fatal(err)
	}
	if err := h.Move(l.First() - 1); !errors.Is(err, ErrGone) {
		t.Fatalf("a hold before the log: %v", err)
	}
	if err := h.Move(l.Last() + 2); !errors.Is(err, ErrGone) {
		t.Fatalf("a hold behind the log: %v", err)
	}
	done := make(chan uint64)
	go func() {
		for range 8 {
			appendSized(t, l, 1<<20)
		}
		done <- l.Last()
	}()
	waitFor(t, func() bool { return l.Waiting() > 0 })
	if l.First() > from {
		t.Fatalf("the log begins at %d, held from %d", l.First(), from)
	}
	if err := h.Move(from + 1); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return l.First() == from+1 && l.Waiting() > 0 })
	h.Release()
	if last := <-done; last != from+8 {
		t.Errorf("ends at %d", last)
	}
}

func TestHoldIsVoidAfterReset(t *testing.T) {
	l := newLog(t)
	h := l.NewHold()
	defer h.Close()
	appendSized(t, l, 10)
	appendSized(t, l, 10)
	if err := h.Move(2); err != nil {
		t.Fatal(err)
	}
	if err := l.TruncateAfter(1); err != nil {
		t.Fatal(err)
	}
	if err := l.Reset(1000); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		appendSized(t, l, 1<<20) // would wait for ever
	}
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come true")
		}
	}
}

func TestAlarm(t *testing.T) {
	l := newLog(t)
	rung := make(chan struct{}, 1)
	has := func() bool {
		select {
		case <-rung:
			return true
		default:
			return false
		}
	}
	first := appendSized(t, l, 100)
	l.Alarm(first, 1000, rung)
	appendSized(t, l, 500)
	if has() {
		t.Fatal("rung too early")
	}
	appendSized(t, l, 500)
	if !has() {
		t.Fatal("not rung")
	}
	appendSized(t, l, 5000)
	if has() {
		t.Fatal("rung twice")
	}
	l.Alarm(first, 1000, rung) // it is so already
	if !has() {
		t.Fatal("not rung at once")
	}
	h := l.NewHold()
	defer h.Close()
	if err := h.Move(first); err != nil {
		t.Fatal(err)
	}
	l.Alarm(first, 1<<40, rung)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 5 {
			appendSized(t, l, 1<<20)
		}
	}()
	<-rung // an append waits
	l.NoAlarm()
	h.Release()
	<-done
	if has() {
		t.Fatal("rung after it was taken away")
	}
	l.Alarm(1, 10, nil)
	appendSized(t, l, 100)
}
