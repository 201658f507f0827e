package replicate

import (
	"strings"
	"testing"

	"github.com/replfs/replfs/replicate/wire"
)

func TestCheckIdentity(t *testing.T) {
	id := func(cluster, node, clusterID string, protocol uint32) *wire.Identity {
		return &wire.Identity{Cluster: cluster, Node: node, ClusterId: clusterID, Protocol: protocol}
	}
	self := id("gitlab", "gl-1", "c1", Protocol)
	tests := []struct {
		name     string
		peer     *wire.Identity
		expected string
		want     []string // parts of the error, nil for none
	}{
		{"the same cluster", id("gitlab", "gl-2", "c1", Protocol), "gl-2", nil},
		{"an insecure connection names nobody", id("gitlab", "gl-2", "c1", Protocol), "", nil},
		{"a node that joined no cluster yet", id("gitlab", "gl-2", "", Protocol), "gl-2", nil},
		{"another cluster", id("forge", "gl-2", "c1", Protocol), "gl-2", []string{"forge", "gitlab", "gl-2"}},
		{"another node", id("gitlab", "gl-3", "c1", Protocol), "gl-2", []string{"gl-2", "gl-3"}},
		{"another life of the cluster", id("gitlab", "gl-2", "c2", Protocol), "gl-2", []string{"two different clusters", "gl-1", "gl-2", "empty its state"}},
		{"another protocol", id("gitlab", "gl-2", "c1", Protocol+1), "gl-2", []string{"protocol 2", "same version"}},
		{"no identity", nil, "gl-2", []string{"protocol 0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := CheckIdentity(self, tt.peer, tt.expected)
			if (err == nil) != (tt.want == nil) {
				t.Fatalf("error %v", err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
	if err := CheckIdentity(id("gitlab", "gl-1", "", Protocol), id("gitlab", "gl-2", "c9", Protocol), "gl-2"); err != nil {
		t.Errorf("a node without a cluster refuses one that has one: %v", err)
	}
}

func TestDecide(t *testing.T) {
	own := History{{1, "a", 1}, {2, "b", 100}}
	const last = 200
	pos := func(epoch, lsn uint64) *wire.Position { return &wire.Position{Epoch: epoch, Lsn: lsn} }
	tests := []struct {
		name string
		peer *wire.NodeState
		want Plan // Reason: a part of it
	}{
		{"all received is shared", &wire.NodeState{Applied: pos(2, 150), Received: pos(2, 180), History: own.toWire()}, Plan{From: 181}},
		{"at the end", &wire.NodeState{Applied: pos(2, 200), Received: pos(2, 200), History: own.toWire()}, Plan{From: 201}},
		{"received a tail that the primary does not have", &wire.NodeState{Applied: pos(1, 99), Received: pos(1, 120), History: own[:1].toWire()}, Plan{From: 100}},
		{"received past the primary's end", &wire.NodeState{Applied: pos(2, 150), Received: pos(2, 201), History: own.toWire()}, Plan{From: 151}},
		{"an epoch began in what is not applied yet", &wire.NodeState{Applied: pos(1, 90), Received: pos(2, 110), History: own[:1].toWire()}, Plan{From: 91}},
		{"its log was lost", &wire.NodeState{Applied: pos(2, 150), Received: pos(0, 0), History: own.toWire()}, Plan{From: 151}},
		{"no received position", &wire.NodeState{Applied: pos(2, 150), History: own.toWire()}, Plan{From: 151}},
		{"applied a divergent tail", &wire.NodeState{Applied: pos(1, 101), Received: pos(1, 101), History: own[:1].toWire()}, Plan{Copy: true, Diverged: true, Reason: "1/101"}},
		{"applied past the primary's end", &wire.NodeState{Applied: pos(2, 201), Received: pos(2, 201), History: own.toWire()}, Plan{Copy: true, Diverged: true, Reason: "2/201"}},
		{"applied divergent, received shared", &wire.NodeState{Applied: pos(1, 101), Received: pos(2, 150), History: own.toWire()}, Plan{Copy: true, Diverged: true, Reason: "1/101"}},
		{"first contact", &wire.NodeState{}, Plan{Copy: true, Diverged: true, Reason: "no data of this cluster"}},
		{"suspect", &wire.NodeState{Applied: pos(2, 150), Received: pos(2, 180), History: own.toWire(), Suspect: "the disk failed"}, Plan{Copy: true, Diverged: true, Reason: "the disk failed"}},
		// What a copy left came from a primary: nothing to keep.
		{"interrupted copy", &wire.NodeState{Applied: pos(2, 150), History: own.toWire(), Copying: true}, Plan{Copy: true, Reason: "interrupted"}},
		{"interrupted copy, suspect as well", &wire.NodeState{Applied: pos(2, 150), History: own.toWire(), Copying: true, Suspect: "x"}, Plan{Copy: true, Reason: "interrupted"}},
		{"a history out of order", &wire.NodeState{Applied: pos(2, 150), Received: pos(2, 150), History: []*wire.EpochStart{{Epoch: 2, Begin: 100, Primary: "b"}, {Epoch: 1, Begin: 1}}}, Plan{Copy: true, Diverged: true, Reason: "2/150"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Decide(tt.peer, own, last)
			if got.Copy != tt.want.Copy || got.Diverged != tt.want.Diverged || !got.Copy && got.From != tt.want.From {
				t.Errorf("Decide = %+v, want %+v", got, tt.want)
			}
			if got.Copy && (got.Reason == "" || !strings.Contains(got.Reason, tt.want.Reason)) {
				t.Errorf("reason %q does not say %q", got.Reason, tt.want.Reason)
			}
		})
	}
	// A primary that forgot its history must not take anyone for its own.
	if p := Decide(&wire.NodeState{Applied: pos(2, 150), Received: pos(2, 150), History: own.toWire()}, nil, last); !p.Copy {
		t.Errorf("a primary without a history lets a standby go on: %+v", p)
	}
}
