package replicate

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/replfs/replfs/replicate/record"
)

// awaited is a set that waits are for.
func awaited(t *testing.T, set ...string) (*InSync, *atomic.Uint64) {
	t.Helper()
	leakCheck(t)
	var last atomic.Uint64
	s := NewInSync(InSyncConfig{
		AckTimeout: patience, Last: last.Load, Log: zap.NewNop(), Persist: func([]string) error { return nil },
	})
	s.Start(set)
	t.Cleanup(s.Stop)
	return s, &last
}

// background starts a wait, and tells when it has ended.
func background(t *testing.T, wait func(ctx context.Context) error) (cancel func(), ended <-chan error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	ch := make(chan error, 1)
	go func() { ch <- wait(ctx) }()
	return stop, ch
}

func mustWait(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		t.Fatalf("it has ended too early: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
}

func mustEnd(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		t.Fatal("it still waits")
		return nil
	}
}

func TestAwaitDurable(t *testing.T) {
	s, last := awaited(t, "b", "c", "d")
	last.Store(9)
	_, ended := background(t, func(ctx context.Context) error { return s.AwaitDurable(ctx, []string{"b", "c"}, 5) })
	s.Ack("b", 9, 9, 5)
	mustWait(t, ended)
	s.Ack("c", 9, 9, 4)
	mustWait(t, ended)
	s.Ack("c", 9, 9, 5) // d is not waited for
	if err := mustEnd(t, ended); err != nil {
		t.Error(err)
	}
}

func TestAwaitEnds(t *testing.T) {
	ask := func() (uint64, error) { return 1, nil }
	for name, wait := range map[string]func(s *InSync, ctx context.Context) error{
		"durable": func(s *InSync, ctx context.Context) error { return s.AwaitDurable(ctx, []string{"b", "c"}, 5) },
		"synced":  func(s *InSync, ctx context.Context) error { return s.AwaitSynced(ctx, []string{"b", "c"}, ask) },
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := awaited(t, "b", "c")
			cancel, ended := background(t, func(ctx context.Context) error { return wait(s, ctx) })
			mustWait(t, ended)
			cancel()
			if err := mustEnd(t, ended); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
			_, ended = background(t, func(ctx context.Context) error { return wait(s, ctx) })
			mustWait(t, ended)
			if err := s.Drop("c", "a test"); err != nil {
				t.Fatal(err)
			}
			var left *LeftError
			if err := mustEnd(t, ended); !errors.As(err, &left) || len(left.Names) != 1 || left.Names[0] != "c" {
				t.Errorf("one left: %v", err)
			}
			// Who had left before it began is told at once.
			if err := wait(s, t.Context()); !errors.As(err, &left) {
				t.Errorf("one that had left: %v", err)
			}
			s.Stop()
			if err := wait(s, t.Context()); !errors.Is(err, ErrNotPrimary) {
				t.Errorf("no primary: %v", err)
			}
		})
	}
}

// TestAwaitSynced: each standby has to have done the sync that was asked for, or
// a later one; one that connects anew is asked again.
func TestAwaitSynced(t *testing.T) {
	s, last := awaited(t, "b", "c")
	ask := func() (uint64, error) { return last.Add(1), nil }
	s.Connected("b")
	s.Connected("c")
	_, ended := background(t, func(ctx context.Context) error { return s.AwaitSynced(ctx, []string{"b", "c"}, ask) })
	eventually(t, "it asks", func() bool { return last.Load() == 1 })
	s.Synced("b", 1)
	mustWait(t, ended)
	s.Disconnected("b") // it has done it
	s.Connected("b")
	mustWait(t, ended)
	if n := last.Load(); n != 1 {
		t.Errorf("asked again, %d times, though the one that connected anew had done it", n)
	}
	s.Disconnected("c")
	mustWait(t, ended)
	s.Connected("c")
	eventually(t, "it asks again", func() bool { return last.Load() == 2 })
	s.Synced("c", 1) // of before
	mustWait(t, ended)
	s.Synced("c", 2)
	mustWait(t, ended)
	s.Synced("b", 3)
	if err := mustEnd(t, ended); err != nil {
		t.Error(err)
	}
	fails := errors.New("the log is closed")
	if err := s.AwaitSynced(t.Context(), []string{"b"}, func() (uint64, error) { return 0, fails }); !errors.Is(err, fails) {
		t.Errorf("%v", err)
	}
	if st := s.Standings(); len(st) != 2 || st[0].Name != "b" || st[0].Synced != 3 || !st[1].InSync {
		t.Errorf("standings: %+v", st)
	}
}

// TestSyncOverTheWire: an OpSync comes back as such from a real standby, also
// when that starts again meanwhile.
func TestSyncOverTheWire(t *testing.T) {
	c := newPair(t)
	c.p.must(c.p.create("f"))
	c.run()
	c.joined()
	for i := range 3 {
		c.p.must(c.p.write("f", 0, []byte("not fsynced")))
		cut := i == 1
		err := c.inSync.AwaitSynced(t.Context(), []string{"b"}, func() (uint64, error) {
			lsn, err := c.p.log.Append(&record.Record{Op: record.OpSync}, nil, nil)
			if cut {
				cut = false
				c.net.cut(true)
				go func() {
					c.s.reopen()
					c.net.mend()
				}()
			}
			return lsn, err
		})
		if err != nil {
			t.Fatal(err)
		}
		if st := c.s.Applier(); st.Synced() == 0 || st.Synced() != c.inSync.Standings()[0].Synced {
			t.Errorf("the standby has synced up to %d, the primary knows %+v", st.Synced(), c.inSync.Standings())
		}
	}
	c.same()
}
