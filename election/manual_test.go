package election

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

var errAway = errors.New("connection refused")

func TestStart(t *testing.T) {
	fresh := State{Cluster: "gitlab", Node: "gl-1"}
	joined := func(r Role, epoch uint64) State {
		return State{Cluster: "gitlab", Node: "gl-1", ClusterID: "c1", Role: r, Epoch: epoch}
	}
	standby := func(epoch uint64) Peer {
		return Peer{Name: "gl-2", Role: Standby, ClusterID: "c1", Epoch: epoch}
	}
	primary := func(epoch uint64) Peer {
		return Peer{Name: "gl-2", Role: Primary, ClusterID: "c1", Epoch: epoch}
	}
	away := Peer{Name: "gl-2", Err: errAway, Role: Primary, Epoch: 99, ClusterID: "c1"} // void
	empty := Peer{Name: "gl-2", Role: Standby}
	tests := []struct {
		name    string
		st      State
		initial bool
		peers   []Peer
		want    Role
		why     string
	}{
		{"new cluster, initial primary, alone", fresh, true, nil, Primary, "initial primary"},
		{"new cluster, initial primary, peer empty", fresh, true, []Peer{empty}, Primary, "initial primary"},
		{"new cluster, initial primary, peer away", fresh, true, []Peer{away}, Primary, "initial primary"},
		{"new cluster, the other is initial primary", fresh, false, []Peer{empty}, Standby, "not primary"},
		{"new cluster, nobody answers, not initial", fresh, false, []Peer{away}, Standby, "not primary"},
		{"lost its state, peer is primary", fresh, true, []Peer{primary(3)}, Standby, "gl-2 is primary in epoch 3"},
		{"lost its state, peer has data", fresh, true, []Peer{standby(3)}, Standby, "epoch 3"},
		{"lost its state, peer has data of no epoch", fresh, true, []Peer{standby(0)}, Standby, "no state"},
		{"was primary, peer follows", joined(Primary, 3), true, []Peer{standby(3)}, Primary, "was primary in epoch 3"},
		{"was primary, not the initial one", joined(Primary, 3), false, []Peer{standby(3)}, Primary, "was primary"},
		{"was primary, peer away", joined(Primary, 3), false, []Peer{away}, Primary, "was primary"},
		{"was primary, peer took over", joined(Primary, 3), true, []Peer{primary(4)}, Standby, "gl-2 is primary in epoch 4"},
		{"was primary, peer says so of the same epoch", joined(Primary, 3), true, []Peer{primary(3)}, Standby, "gl-2 is primary"},
		{"was primary, peer knows a later epoch", joined(Primary, 3), true, []Peer{standby(4)}, Standby, "gl-2 knows epoch 4, this node 3"},
		{"was primary, peer is empty", joined(Primary, 3), false, []Peer{empty}, Primary, "was primary"},
		{"was standby, initial primary", joined(Standby, 3), true, []Peer{standby(3)}, Standby, "not primary"},
		{"was standby, peer away", joined(Standby, 3), true, []Peer{away}, Standby, "not primary"},
		{"was nothing yet, but joined", joined("", 3), true, nil, Standby, "not primary"},
		{"second peer decides", joined(Primary, 3), false, []Peer{away, standby(3), {Name: "gl-3", Role: Primary, Epoch: 5}}, Standby, "gl-3 is primary"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			role, why := Start(tt.st, tt.initial, tt.peers)
			if role != tt.want || !strings.Contains(why, tt.why) {
				t.Errorf("Start = %s (%s), want %s (…%s…)", role, why, tt.want, tt.why)
			}
		})
	}
}

func TestUnsafe(t *testing.T) {
	good := Self{
		State:  State{ClusterID: "c1", Role: Standby, Epoch: 3},
		InSync: true, ReceivedEpoch: 3, ReceivedLSN: 100,
	}
	with := func(f func(*Self)) Self {
		s := good
		f(&s)
		return s
	}
	other := func(epoch, lsn uint64) Peer {
		return Peer{Name: "gl-3", Role: Standby, Epoch: 3, ReceivedEpoch: epoch, ReceivedLSN: lsn, Promotable: true}
	}
	tests := []struct {
		name  string
		self  Self
		peers []Peer
		want  []string // one part of each reason, in order
	}{
		{"in sync, primary away", good, []Peer{{Name: "gl-2", Err: errAway, Role: Primary}}, nil},
		{"in sync, nobody else", good, nil, nil},
		{"in sync, peer equal", good, []Peer{other(3, 100)}, nil},
		{"in sync, peer behind", good, []Peer{other(3, 99)}, nil},
		{"in sync, peer further in an older epoch", good, []Peer{other(2, 500)}, nil},
		{"never joined", Self{}, nil, []string{"never held data"}},
		{"not in sync", with(func(s *Self) { s.InSync = false }), nil, []string{"not in sync"}},
		{"copying", with(func(s *Self) { s.Copying, s.InSync, s.Suspect = true, false, "complete copy: x" }), nil, []string{"only a part"}},
		{"copying, though said to be in sync", with(func(s *Self) { s.Copying = true }), nil, []string{"only a part"}},
		{"suspect", with(func(s *Self) { s.Suspect, s.InSync = "disk failed", false }), nil, []string{"suspect: disk failed"}},
		{"suspect, though said to be in sync", with(func(s *Self) { s.Suspect = "disk failed" }), nil, []string{"suspect: disk failed"}},
		{"trouble", with(func(s *Self) { s.Trouble = "no space" }), nil, []string{"no space"}},
		{"trouble and not in sync", with(func(s *Self) { s.Trouble, s.InSync = "no space", false }), nil, []string{"no space", "not in sync"}},
		{"peer is primary", good, []Peer{{Name: "gl-2", Role: Primary, Epoch: 3}}, []string{"gl-2 is primary in epoch 3"}},
		{"peer has more", good, []Peer{other(3, 101)}, []string{"gl-3 has newer data (3/101, this node has 3/100)"}},
		{"peer has a later epoch", good, []Peer{other(4, 5)}, []string{"gl-3 has newer data"}},
		{"peer has more but is not promotable", good, []Peer{{Name: "gl-3", ReceivedEpoch: 3, ReceivedLSN: 200}}, nil},
		{"peer that has more is away", good, []Peer{{Name: "gl-3", Err: errAway, ReceivedEpoch: 9, Promotable: true}}, nil},
		{"everything at once", with(func(s *Self) { s.InSync, s.Trouble = false, "no space" }),
			[]Peer{{Name: "gl-2", Role: Primary, Epoch: 4}, other(4, 1)},
			[]string{"no space", "not in sync", "gl-2 is primary", "gl-3 has newer data"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Unsafe(tt.self, tt.peers)
			if len(got) != len(tt.want) {
				t.Fatalf("Unsafe = %q, want %q", got, tt.want)
			}
			for i, w := range tt.want {
				if !strings.Contains(got[i], w) {
					t.Errorf("reason %q does not say %q", got[i], w)
				}
			}
		})
	}
}

func TestRefusedErrorSaysWhy(t *testing.T) {
	var refused *RefusedError
	err := error(&RefusedError{Reasons: []string{"one", "two"}})
	if !errors.As(err, &refused) || err.Error() != "refused as unsafe: one; two" {
		t.Errorf("error %q", err)
	}
}

func TestNextEpoch(t *testing.T) {
	tests := []struct {
		name  string
		own   uint64
		peers []uint64
		want  uint64
	}{
		{"new cluster", 0, nil, 1},
		{"own is highest", 5, []uint64{3, 4}, 6},
		{"a peer knows more", 5, []uint64{3, 9}, 10},
		{"equal", 5, []uint64{5}, 6},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var peers []Peer
			for _, e := range tt.peers {
				peers = append(peers, Peer{Epoch: e})
			}
			peers = append(peers, Peer{Epoch: 1000, Err: errAway}) // void
			before := slices.Clone(peers)
			if got := NextEpoch(State{Epoch: tt.own}, peers); got != tt.want {
				t.Errorf("NextEpoch = %d, want %d", got, tt.want)
			}
			if !slices.Equal(peers, before) {
				t.Error("peers were changed")
			}
		})
	}
}
