package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/replfs/replfs/internal/control"
)

func TestUnfit(t *testing.T) {
	primary := []control.Peer{{Name: "gl-1", Role: "primary", State: "streaming"}}
	away := []control.Peer{{Name: "gl-1", Role: "unknown", State: "unreachable"}}
	for _, p := range []struct {
		st        control.Status
		connected bool
		want      string
	}{
		{control.Status{Role: "primary"}, true, ""},
		{control.Status{Role: "standby", InSync: true, Peers: away}, false, ""},
		{control.Status{Role: "standby", InSync: true, Peers: primary}, true, ""},
		{control.Status{Role: "standby", InSync: true, Peers: away}, true, "has no primary"},
		{control.Status{Role: "standby", Peers: primary}, false, "not in sync"},
		{control.Status{Role: "standby", InSync: true, Sync: &control.Sync{}}, false, "complete copy"},
		{control.Status{Role: "starting", InSync: true}, false, "is starting"},
	} {
		err := unfit(&p.st, p.connected)
		if (err == nil) != (p.want == "") || err != nil && !strings.Contains(err.Error(), p.want) {
			t.Errorf("%+v, connected %t: %v, want %q", p.st, p.connected, err, p.want)
		}
	}
}

// TestInsist: what is only passing is tried again, a refusal for good is not.
func TestInsist(t *testing.T) {
	for text, tries := range map[string]int{
		"no replfs runs here (nobody listens)": 3, "gl-1 is starting or changing its role: ask again in a moment": 3, "gl-1 has newer data": 1,
	} {
		n := 0
		_, err := insist(t.Context(), func() (*control.RoleChange, error) {
			if n++; n == 3 {
				return &control.RoleChange{}, nil
			}
			return nil, errors.New(text)
		})
		if n != tries || (err == nil) != (tries == 3) {
			t.Errorf("%s: %d tries, %v", text, n, err)
		}
	}
}
