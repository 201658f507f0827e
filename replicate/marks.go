package replicate

import "time"

// mark says where the log ended until a moment: at the record lsn, with bytes
// appended by then.
type mark struct {
	lsn, bytes uint64
	at         time.Time
}

// marks remember how the log grew, coarsely, for longer than the log itself
// may hold its records. The oldest is first.
type marks struct {
	m   []mark
	max int
	// step is the least time between two marks but the last ones.
	step time.Duration
}

// add notes the log's end. When there are max marks every second one is
// forgotten, and they are set half as often from then on.
func (s *marks) add(m mark) {
	n := len(s.m)
	switch {
	case n > 0 && s.m[n-1].lsn == m.lsn:
		s.m[n-1].at = m.at
		return
	case n > 1 && s.m[n-1].at.Sub(s.m[n-2].at) < s.step:
		s.m[n-1] = m
		return
	case n >= s.max:
		kept := s.m[:0]
		for i := 0; i < n; i += 2 {
			kept = append(kept, s.m[i])
		}
		s.m = kept
		s.step = max(2*s.step, 2*pacerInterval)
	}
	s.m = append(s.m, m)
}

// trim forgets what lies before lsn.
func (s *marks) trim(lsn uint64) {
	n := 0
	for n+1 < len(s.m) && s.m[n+1].lsn <= lsn {
		n++
	}
	if n > 0 {
		s.m = append(s.m[:0], s.m[n:]...)
	}
	if len(s.m) < s.max/4 {
		s.step /= 2
	}
}

// find estimates how many bytes had been appended when the log ended at lsn,
// and a moment at which it did not reach further yet. It is not ok for what
// lies before the oldest mark.
func (s *marks) find(lsn uint64) (bytes uint64, at time.Time, ok bool) {
	lo, hi := 0, len(s.m)
	for lo < hi {
		if mid := (lo + hi) / 2; s.m[mid].lsn <= lsn {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return 0, time.Time{}, false
	}
	m := s.m[lo-1]
	bytes, at = m.bytes, m.at
	if lo < len(s.m) {
		next := s.m[lo]
		part := float64(lsn-m.lsn) / float64(next.lsn-m.lsn)
		bytes += uint64(part * float64(next.bytes-m.bytes))
	}
	return bytes, at, true
}
