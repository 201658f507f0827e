package fs

import "sync/atomic"

// completed remembers the mutations that were carried out last, by the number
// that the kernel gave the request. A reply may not have reached the kernel
// when the process ends; the successor then gets the request again, and must
// answer it without doing it once more.
type completed struct {
	next atomic.Uint64
	all  [completedCount]completion
}

// completedCount is far more than there can be mutations between their record
// and their reply.
const completedCount = 8 << 10

type completion struct {
	unique, file, size atomic.Uint64
}

// note remembers that the request unique was carried out. file is the id of
// the inode it made or changed, size what it wrote. unique 0 is no request.
func (c *completed) note(unique, file uint64, size int) {
	if unique == 0 {
		return
	}
	unique &^= uniqueResend // it may be sent a third time
	e := &c.all[c.next.Add(1)%completedCount]
	e.unique.Store(0)
	e.file.Store(file)
	e.size.Store(uint64(size))
	e.unique.Store(unique)
}

// carriedOut is what a request did that is sent again.
type carriedOut struct{ File, Size uint64 }

func (c *completed) outcomes() map[uint64]carriedOut {
	out := make(map[uint64]carriedOut, completedCount)
	for i := range c.all {
		e := &c.all[i]
		if u := e.unique.Load(); u != 0 {
			out[u] = carriedOut{e.file.Load(), e.size.Load()}
		}
	}
	return out
}
