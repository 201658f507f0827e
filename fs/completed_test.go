package fs

import "testing"

func TestCompletedKeepsTheLast(t *testing.T) {
	c := completed{}
	for u := uint64(2); u <= 2*(completedCount+10); u += 2 {
		c.note(u, u+1, int(u/2))
	}
	c.note(0, 1, 1) // no request
	out := c.outcomes()
	if len(out) != completedCount {
		t.Errorf("%d outcomes, want %d", len(out), completedCount)
	}
	for u := uint64(22); u <= 2*(completedCount+10); u += 2 {
		if o, ok := out[u]; !ok || o != (carriedOut{File: u + 1, Size: u / 2}) {
			t.Fatalf("request %d: %+v, %t", u, o, ok)
		}
	}
	// What was sent again may be sent a third time.
	c.note(1<<20|uniqueResend, 5, 6)
	if o := c.outcomes()[1<<20]; o != (carriedOut{File: 5, Size: 6}) {
		t.Errorf("a request that was sent again left %+v", o)
	}
}

func BenchmarkCompleted(b *testing.B) {
	var c completed
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for u := uint64(2); pb.Next(); u += 2 {
			c.note(u, 1, 2)
		}
	})
}
