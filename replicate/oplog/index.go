package oplog

// indexStep is the least distance in bytes between two index entries: it
// bounds how many headers a search walks over.
const indexStep = 64 << 10

type entry struct{ lsn, off uint64 }

// index is a sparse map from LSN to byte offset: a deque, oldest first, in a
// buffer that never grows.
type index struct {
	buf      []entry
	start, n int
}

func newIndex(ringSize uint64) index {
	return index{buf: make([]entry, ringSize/indexStep+2)}
}

func (x *index) at(i int) entry {
	i += x.start
	if i >= len(x.buf) {
		i -= len(x.buf)
	}
	return x.buf[i]
}

func (x *index) clear() { x.start, x.n = 0, 0 }

// add notes a record that was appended, if it is far enough from the last
// one noted.
func (x *index) add(lsn, off uint64) {
	if x.n > 0 && off-x.at(x.n-1).off < indexStep {
		return
	}
	i := x.start + x.n
	if i >= len(x.buf) {
		i -= len(x.buf)
	}
	x.buf[i] = entry{lsn, off}
	x.n++
}

func (x *index) dropBefore(lsn uint64) {
	for x.n > 0 && x.buf[x.start].lsn < lsn {
		if x.start++; x.start == len(x.buf) {
			x.start = 0
		}
		x.n--
	}
}

func (x *index) dropAfter(lsn uint64) {
	for x.n > 0 && x.at(x.n-1).lsn > lsn {
		x.n--
	}
}

// byLSN gives the last entry not after lsn.
func (x *index) byLSN(lsn uint64) (entry, bool) {
	lo, hi := 0, x.n
	for lo < hi {
		if mid := (lo + hi) / 2; x.at(mid).lsn <= lsn {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return entry{}, false
	}
	return x.at(lo - 1), true
}

// around gives the last entry before off and the first at or after it.
func (x *index) around(off uint64) (before, after entry, okBefore, okAfter bool) {
	lo, hi := 0, x.n
	for lo < hi {
		if mid := (lo + hi) / 2; x.at(mid).off < off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo > 0 {
		before, okBefore = x.at(lo-1), true
	}
	if lo < x.n {
		after, okAfter = x.at(lo), true
	}
	return before, after, okBefore, okAfter
}
