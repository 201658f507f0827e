package replicate

import (
	"testing"
	"time"
)

func TestCatchUpLeft(t *testing.T) {
	for _, tt := range []struct {
		remaining uint64
		rate      float64
		want      time.Duration
		ok        bool
	}{
		{100, 50, 2 * time.Second, true},
		{0, 50, 0, true},
		{100, 0, 0, false},
		{100, -3, 0, false},
		{1 << 60, 1e-9, 0, false},
	} {
		got, ok := (&CatchUpStatus{Remaining: tt.remaining, Rate: tt.rate}).Left()
		if got != tt.want || ok != tt.ok {
			t.Errorf("%+v: %v %v", tt, got, ok)
		}
	}
}
