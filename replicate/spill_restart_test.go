package replicate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/replfs/replfs/replicate/journal"
	"github.com/replfs/replfs/replicate/record"
)

func TestARestartedPrimaryGoesOnFromItsJournal(t *testing.T) {
	c := newSpillingPair(t)
	c.away()
	for i := range 3 {
		stop := writing(c.p, uint64(i))
		c.churn(uint64(i), 5)
		stop()
		c.restart(false) // its process was killed
		if st := c.spiller.Status(); !st.Active {
			t.Fatalf("restart %d: %+v", i, st)
		}
	}
	c.net.mend()
	c.same()
	c.copies(1)
	c.joined()
	c.givenBack()
}

// TestAKillInTheMiddleOfSpilling has writers wait for the journal when the
// process ends, so that the ring is full to the last byte.
func TestAKillInTheMiddleOfSpilling(t *testing.T) {
	c := newSpillingPair(t)
	stuck := make(chan struct{})
	os := &failing{OS: journal.System()}
	c.spill.OS, c.spill.StallLimit = os, 2*patience
	c.away()
	c.churn(1, 6)
	os.set(nil, stuck)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.churn(2, 1)
		c.p.must(c.p.create("big-one"))
		for range 10 {
			c.p.must(c.p.write("big-one", 0, make([]byte, record.MaxData)))
		}
	}()
	eventually(t, "writers wait for the journal", func() bool { return c.p.log.Waiting() > 0 })
	os.set(nil, nil)
	close(stuck)
	<-done
	// The spiller may be anywhere.
	c.restart(false)
	c.net.mend()
	c.same()
	c.copies(1)
}

func TestACleanStopKeepsWhatStandbysNeedOverAReboot(t *testing.T) {
	for _, n := range []int{1, 12} { // in the ring only, and in both
		t.Run(fmt.Sprintf("%d MiB", n), func(t *testing.T) {
			c := newSpillingPair(t)
			c.away()
			c.churn(1, n)
			c.park()
			c.spill.BootID = "the next boot"
			c.restart(true)
			if st := c.spiller.Status(); !st.Active {
				t.Fatalf("%+v", st)
			}
			c.churn(2, 6)
			c.net.mend()
			c.same()
			c.copies(1)
			c.joined()
			c.givenBack()
		})
	}
}

func TestACleanStopWithAllStandbysThereLeavesNothing(t *testing.T) {
	c := newSpillingPair(t)
	c.away()
	c.churn(1, 12)
	c.net.mend()
	c.same()
	c.joined()
	eventually(t, "all is acknowledged", func() bool {
		r, _, _ := c.inSync.Progress("b")
		return r == c.p.log.Last()
	})
	c.park()
	if left, _ := filepath.Glob(filepath.Join(c.spill.Dir, "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestAMachineCrashLosesTheJournal(t *testing.T) {
	c := newSpillingPair(t)
	c.away()
	c.churn(1, 12)
	c.spill.BootID = "the next boot"
	c.unclean = true
	c.restart(true)
	if st := c.spiller.Status(); st.Active {
		t.Fatalf("%+v", st)
	}
	c.net.mend()
	c.same()
	c.copies(2)
}

func TestAJournalOfAnotherHistoryIsDropped(t *testing.T) {
	c := newSpillingPair(t)
	c.away()
	c.churn(1, 12)
	c.stop()
	// Its records from the middle on never happened for whoever is primary now.
	first := c.p.log.First()
	c.p.mu.Lock()
	c.p.history = History{{1, "a", 1}, {7, "x", first - 10}}
	c.p.mu.Unlock()
	c.run()
	if st := c.spiller.Status(); st.Active {
		t.Fatalf("%+v", st)
	}
	c.givenBack()
}

// TestAFlippedBitInTheJournal is found when it is read: a complete copy, once.
func TestAFlippedBitInTheJournal(t *testing.T) {
	c := newSpillingPair(t)
	c.away()
	c.churn(1, 20)
	segs, err := filepath.Glob(filepath.Join(c.spill.Dir, "*.seg"))
	if err != nil || len(segs) < 3 {
		t.Fatal(segs, err)
	}
	f, err := os.OpenFile(segs[1], os.O_RDWR, 0)
	if err == nil {
		b := make([]byte, 1)
		_, err = f.ReadAt(b, 100<<10)
		b[0] ^= 4
		if err == nil {
			_, err = f.WriteAt(b, 100<<10)
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	c.net.mend()
	c.same()
	c.copies(2)
	c.joined()
	c.givenBack()
}
