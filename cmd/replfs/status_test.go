package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/replfs/replfs/internal/control"
)

func TestStatusShowsCatchingUpAndTheJournal(t *testing.T) {
	left := 75.0
	st := &control.Status{
		Node: "gl-1", Role: "primary",
		Peers: []control.Peer{
			{Name: "gl-2", State: "catching up", CatchUp: &control.CatchUp{Bytes: 3 << 30, Rate: 40 << 20, SecondsLeft: &left}},
			{Name: "gl-3", State: "catching up", CatchUp: &control.CatchUp{Bytes: 1 << 20, Rate: -5}},
		},
		Journal: &control.Journal{Active: true, Bytes: 3 << 30, MaxBytes: 8 << 30, First: 10, Last: 99},
	}
	show := func() string {
		t.Helper()
		var out bytes.Buffer
		if err := printStatus(&out, st); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	text := show()
	for _, want := range []string{
		"gl-2 is catching up: 3.0 GiB to go, 40 MiB/s closer, about 1m15s left\n",
		"gl-3 is catching up: 1.0 MiB to go, 0 B/s closer, not coming closer\n",
		"journal: records 10 to 99, 3.0 GiB of 8.0 GiB\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	st.Journal.Active, st.Peers = false, nil
	if text := show(); strings.Contains(text, "journal") {
		t.Errorf("an idle journal shows:\n%s", text)
	}
}
