//go:build !race

package oplog

import "testing"

// Under the race detector sync.Pool drops items on purpose.
func TestNoAllocations(t *testing.T) {
	l, r, data := newLog(t), benchRecord(), pattern(1, 8<<10)
	rd := newReader(t, l, 1)
	buf := make([]byte, 0, 1<<20)
	for name, f := range map[string]func(){
		"Append and Begin, End": func() {
			s := l.Begin(r)
			if _, err := l.Append(r, data, s); err != nil {
				t.Error(err)
			}
			s.End()
		},
		"Append and Read": func() {
			if _, err := l.Append(r, data, nil); err != nil {
				t.Error(err)
			}
			if err := rd.Rewind(l.Last()); err != nil {
				t.Error(err)
			}
			if _, _, _, err := rd.Read(t.Context(), buf); err != nil {
				t.Error(err)
			}
		},
	} {
		if n := testing.AllocsPerRun(2000, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
