package main

import (
	"os"
	"strings"
	"testing"
)

// TestBenchOptions: wrong options end with the exit code for wrong usage,
// before anything is started.
func TestBenchOptions(t *testing.T) {
	out := must(t, "bench", "fs", "--list")
	for _, want := range []string{"loopback", "alone", "untar", "pgbench-tpcb"} {
		if !strings.Contains(out, want) {
			t.Errorf("the list lacks %s:\n%s", want, out)
		}
	}
	if os.Geteuid() != 0 {
		fails(t, exitUsage, []string{"run it as root"}, "bench", "fs")
		return
	}
	fails(t, exitUsage, []string{`no target is called "nfs": --list shows them`}, "bench", "fs", "--targets", "bare,nfs")
	fails(t, exitUsage, []string{"0 rounds measure nothing"}, "bench", "fs", "--rounds", "0")
	fails(t, exitFailed, []string{"find the directory to work in"}, "bench", "fs", "--dir", "/nonexistent")
}
