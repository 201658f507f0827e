package workload

import (
	"fmt"
	"strings"
)

// OpStats count what became of one kind of operation.
type OpStats struct {
	OK     int
	Failed int // for reasons that are expected
}

// Stats tell what a Run did.
type Stats struct {
	Steps int
	Ops   map[Op]OpStats
}

func newStats() Stats { return Stats{Ops: map[Op]OpStats{}} }

func (s *Stats) count(op Op, ok bool) {
	c := s.Ops[op]
	if ok {
		c.OK++
	} else {
		c.Failed++
	}
	s.Ops[op] = c
	s.Steps++
}

func (s *Stats) add(other Stats) {
	s.Steps += other.Steps
	for op, n := range other.Ops {
		c := s.Ops[op]
		c.OK += n.OK
		c.Failed += n.Failed
		s.Ops[op] = c
	}
}

// Missing lists the operations, of all that there are, that never succeeded.
func (s Stats) Missing() []Op {
	var missing []Op
	for _, op := range Ops() {
		if s.Ops[op].OK == 0 {
			missing = append(missing, op)
		}
	}
	return missing
}

// String is a table with one line for each operation that was tried.
func (s Stats) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-24s %9s %9s\n", fmt.Sprintf("%d steps", s.Steps), "ok", "failed")
	for _, op := range Ops() {
		if c, ok := s.Ops[op]; ok {
			fmt.Fprintf(&b, "%-24s %9d %9d\n", op, c.OK, c.Failed)
		}
	}
	return b.String()
}
