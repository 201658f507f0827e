package replicate

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/replfs/replfs/replicate/wire"
)

func TestHistoryWith(t *testing.T) {
	base := History{{1, "a", 1}, {2, "b", 10}, {3, "a", 20}}
	tests := []struct {
		name string
		add  Epoch
		want History
	}{
		{"the next term", Epoch{4, "b", 30}, History{{1, "a", 1}, {2, "b", 10}, {3, "a", 20}, {4, "b", 30}}},
		{"takes the place of a term that began later", Epoch{4, "b", 15}, History{{1, "a", 1}, {2, "b", 10}, {4, "b", 15}}},
		{"takes the place of a term that began at the same record", Epoch{4, "b", 20}, History{{1, "a", 1}, {2, "b", 10}, {4, "b", 20}}},
		{"takes the place of the same epoch of another primary", Epoch{3, "b", 25}, History{{1, "a", 1}, {2, "b", 10}, {3, "b", 25}}},
		{"the same term again changes nothing", Epoch{3, "a", 20}, base},
		{"before everything", Epoch{9, "b", 1}, History{{9, "b", 1}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := slices.Clone(base)
			if got := base.With(tt.add); !slices.Equal(got, tt.want) {
				t.Errorf("With(%v) = %v, want %v", tt.add, got, tt.want)
			}
			if !slices.Equal(base, before) {
				t.Errorf("With changed its receiver to %v", base)
			}
		})
	}
}

func TestHistoryWithForgetsTheOldest(t *testing.T) {
	var h History
	for i := uint64(1); i <= maxHistory+10; i++ {
		h = h.With(Epoch{i, "a", 10 * i})
	}
	if len(h) != maxHistory || h[0].Epoch != 11 {
		t.Fatalf("%d epochs from %d on, want %d from 11 on", len(h), h[0].Epoch, maxHistory)
	}
	if HistoryFromWire(h.toWire()) == nil {
		t.Error("a full history does not travel")
	}
	// What was forgotten may not be taken for shared.
	if h.Holds(h, Position{10, 105}, 1<<20) {
		t.Error("holds a position in a forgotten epoch")
	}
}

func TestHistoryAt(t *testing.T) {
	h := History{{2, "a", 5}, {4, "b", 10}}
	for lsn, want := range map[uint64]uint64{5: 2, 9: 2, 10: 4, 1 << 40: 4} {
		if e, ok := h.At(lsn); !ok || e.Epoch != want {
			t.Errorf("At(%d) = %v, %v, want epoch %d", lsn, e, ok, want)
		}
	}
	for _, lsn := range []uint64{0, 4} {
		if e, ok := h.At(lsn); ok {
			t.Errorf("At(%d) = %v, want none", lsn, e)
		}
	}
	if _, ok := (History)(nil).At(1); ok {
		t.Error("an empty history has an epoch")
	}
}

func TestHistoryHolds(t *testing.T) {
	own := History{{1, "a", 1}, {2, "b", 100}, {3, "a", 200}}
	const last = 250
	tests := []struct {
		name string
		peer History
		pos  Position
		want bool
	}{
		{"in the running epoch", own, Position{3, 220}, true},
		{"the very end", own, Position{3, 250}, true},
		{"past the end", own, Position{3, 251}, false},
		{"the first record of an epoch", own, Position{2, 100}, true},
		{"the last record of an epoch", own[:1], Position{1, 99}, true},
		{"an old prefix that knows no later epoch", own[:2], Position{2, 150}, true},
		{"went on in an epoch that was over", own[:1], Position{1, 100}, false},
		{"went on in the epoch before", own[:2], Position{2, 200}, false},
		{"same epoch number, another primary", History{{1, "a", 1}, {2, "c", 100}}, Position{2, 150}, false},
		{"same primary and epoch, begun elsewhere", History{{1, "a", 1}, {2, "b", 90}}, Position{2, 150}, false},
		{"same beginning, other middle", History{{1, "a", 1}, {2, "c", 50}}, Position{2, 99}, false},
		{"shares the part before its own other epoch", History{{1, "a", 1}, {2, "c", 100}}, Position{1, 99}, true},
		{"epoch and history disagree", own, Position{2, 220}, false},
		{"no history", nil, Position{3, 220}, false},
		{"nothing at all", nil, Position{}, false},
		{"LSN 0", own, Position{1, 0}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := own.Holds(tt.peer, tt.pos, last); got != tt.want {
				t.Errorf("Holds(%v, %v) = %v, want %v", tt.peer, tt.pos, got, tt.want)
			}
		})
	}
}

func TestHistoryFromWire(t *testing.T) {
	h := History{{1, "a", 1}, {2, "b", 100}, {7, "a", 101}}
	if got := HistoryFromWire(h.toWire()); !slices.Equal(got, h) {
		t.Errorf("came back as %v, want %v", got, h)
	}
	long := make([]*wire.EpochStart, 0, maxHistory+1)
	for i := range uint64(maxHistory + 1) {
		long = append(long, &wire.EpochStart{Epoch: i + 1, Begin: i + 1})
	}
	bad := map[string][]*wire.EpochStart{
		"epochs go back":     {{Epoch: 2, Begin: 1}, {Epoch: 1, Begin: 10}},
		"an epoch twice":     {{Epoch: 2, Begin: 1}, {Epoch: 2, Begin: 10}},
		"beginnings go back": {{Epoch: 1, Begin: 10}, {Epoch: 2, Begin: 9}},
		"an empty epoch":     {{Epoch: 1, Begin: 10}, {Epoch: 2, Begin: 10}},
		"a hole":             {{Epoch: 1, Begin: 10}, nil},
		"too long":           long,
	}
	for name, in := range bad {
		t.Run(name, func(t *testing.T) {
			if got := HistoryFromWire(in); len(got) != 0 {
				t.Errorf("accepted as %v", got)
			}
		})
	}
}

// simEntry is a record of a simulated log; id tells it from all others.
type simEntry struct {
	id    int
	epoch Epoch
}

// simNode keeps what a node keeps, and the true log beside it.
type simNode struct {
	name    string
	log     []simEntry // received; its LSNs begin at 1
	applied int
	history History // of what is applied
	epoch   uint64  // highest known
	primary bool
	term    Epoch
}

func (n *simNode) last() uint64 { return uint64(len(n.log)) }

func (n *simNode) position(lsn int) *wire.Position {
	if lsn == 0 {
		return &wire.Position{}
	}
	return &wire.Position{Epoch: n.log[lsn-1].epoch.Epoch, Lsn: uint64(lsn)}
}

func (n *simNode) state() *wire.NodeState {
	return &wire.NodeState{
		Epoch: n.epoch, Received: n.position(len(n.log)), Applied: n.position(n.applied), History: n.history.toWire(),
	}
}

func (n *simNode) apply(upTo int) {
	for ; n.applied < upTo; n.applied++ {
		// The first record of an epoch tells the history.
		if e := n.log[n.applied].epoch; e.Begin == uint64(n.applied+1) {
			n.history = n.history.With(e)
		}
	}
}

func prefixOf(p, log []simEntry) bool {
	return len(p) <= len(log) && slices.Equal(p, log[:len(p)])
}

// TestDecideInSimulatedClusters lets nodes promote themselves, cut off or
// not, write, and follow each other as Decide says, and compares every
// decision with the logs themselves.
func TestDecideInSimulatedClusters(t *testing.T) {
	for seed := range uint64(300) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			nodes := []*simNode{{name: "a"}, {name: "b"}, {name: "c"}}
			ids, wentOn, copied := 0, 0, 0
			add := func(n *simNode) {
				ids++
				n.log = append(n.log, simEntry{ids, n.term})
				n.apply(len(n.log))
			}
			promote := func(n *simNode, knows uint64) {
				n.apply(len(n.log)) // what was received is applied first
				n.epoch = max(n.epoch, knows) + 1
				n.primary, n.term = true, Epoch{n.epoch, n.name, n.last() + 1}
				add(n)
			}
			promote(nodes[0], 0)
			for step := range 200 {
				n, p := nodes[rng.IntN(3)], nodes[rng.IntN(3)]
				switch rng.IntN(8) {
				case 0: // sees everyone, or is cut off and may take an epoch that another has
					knows := uint64(0)
					if rng.IntN(2) == 0 {
						for _, m := range nodes {
							knows = max(knows, m.epoch)
						}
					}
					if n.last() > 0 {
						promote(n, knows)
					}
				case 1, 2, 3:
					if n.primary {
						for range rng.IntN(5) {
							add(n)
						}
					}
				case 4:
					if !n.primary && n.applied < len(n.log) {
						n.apply(n.applied + rng.IntN(len(n.log)-n.applied+1))
					}
				default:
					if n == p || !p.primary || n.epoch > p.epoch {
						continue
					}
					plan := checkDecision(t, step, p, n)
					if t.Failed() {
						return
					}
					n.primary = false
					n.epoch = max(n.epoch, p.epoch)
					if plan.Copy {
						copied++
						n.log, n.applied, n.history = slices.Clone(p.log), len(p.log), slices.Clone(p.history)
						continue
					}
					wentOn++
					n.log = slices.Clone(n.log[:plan.From-1])
					n.log = append(n.log, p.log[len(n.log):len(n.log)+rng.IntN(len(p.log)-len(n.log)+1)]...)
					n.apply(n.applied + rng.IntN(len(n.log)-n.applied+1))
				}
			}
			if wentOn == 0 || copied == 0 {
				t.Errorf("only one outcome: %d went on, %d were copied", wentOn, copied)
			}
		})
	}
}

func checkDecision(t *testing.T, step int, p, n *simNode) Plan {
	t.Helper()
	plan := Decide(n.state(), p.history, p.last())
	shared := n.applied > 0 && prefixOf(n.log[:n.applied], p.log)
	switch {
	case plan.Copy && shared:
		t.Errorf("step %d: %s at %d is a prefix of %s, but is copied: %s", step, n.name, n.applied, p.name, plan.Reason)
	case plan.Copy && (!plan.Diverged || plan.Reason == ""):
		t.Errorf("step %d: %s is copied as %+v: its data would be thrown away", step, n.name, plan)
	case plan.Copy:
	case !shared:
		t.Errorf("step %d: %s at %d goes on from %d, but is no prefix of %s", step, n.name, n.applied, plan.From, p.name)
	case plan.From <= uint64(n.applied) || plan.From > n.last()+1 || plan.From > p.last()+1:
		t.Errorf("step %d: goes on from %d, applied %d, received %d, primary's end %d", step, plan.From, n.applied, n.last(), p.last())
	case !prefixOf(n.log[:plan.From-1], p.log):
		t.Errorf("step %d: %s goes on from %d, but what it keeps up to there is not %s's", step, n.name, plan.From, p.name)
	case prefixOf(n.log, p.log) && sameTerms(n) && plan.From != n.last()+1:
		t.Errorf("step %d: goes on from %d, though all %d records are shared", step, plan.From, n.last())
	}
	return plan
}

// sameTerms: no epoch began in what is received but not applied, so that the
// history covers it.
func sameTerms(n *simNode) bool {
	return n.applied > 0 && n.log[len(n.log)-1].epoch == n.log[n.applied-1].epoch
}
