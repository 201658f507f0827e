package bench_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/replfs/replfs/bench"
)

// TestReplication: every workload gives its numbers in every round, and those
// that do not depend on the machine are right.
func TestReplication(t *testing.T) {
	cmd := benchCommand(t, "replication", "--dir", workDir(t), "--scale", "0.02", "--rounds", "2", "--behind", "8MiB", "--json")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bench replication: %v\n%s", err, stderr.String())
	}
	var r bench.ReplicationReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	got := map[string]int{}
	for _, n := range r.Numbers {
		got[n.Workload]++
		if len(n.Rounds) != 2 || n.Median < 0 {
			t.Errorf("%+v", n)
		}
		switch n.Name {
		case "network bytes / payload":
			if n.Median < 1 || n.Median > 1.05 {
				t.Errorf("%.3f bytes went over the network for each of a file that cannot be compressed", n.Median)
			}
		case "behind":
			if n.Median < 8 {
				t.Errorf("%g MB behind", n.Median)
			}
		}
		if n.Workload == "fsync" && n.Limit != 0 && n.NotJudged == "" {
			t.Errorf("judged on a tmpfs: %+v", n)
		}
	}
	for _, w := range bench.ReplicationWorkloads() {
		if got[w[0]] == 0 {
			t.Errorf("no numbers of %s", w[0])
		}
	}
	var text strings.Builder
	if err := r.Print(&text); err != nil || !strings.Contains(text.String(), "| ≥ 100000 records/s |") {
		t.Errorf("%v\n%s", err, text.String())
	}
}

// TestInterruptReplication: a canceled run ends its daemons, a stopped one too,
// and leaves nothing.
func TestInterruptReplication(t *testing.T) {
	dir := workDir(t)
	cmd := benchCommand(t, "replication", "--dir", dir, "--rounds", "1", "--workloads", "catch-up", "--behind", "1TiB")
	interrupt(t, cmd, dir+"/replfs-bench-*/async/primary/mount/behind-0")
}

// TestReplicationOptions: wrong options are refused before anything starts.
func TestReplicationOptions(t *testing.T) {
	for want, o := range map[string]bench.ReplicationOptions{
		`no workload is called "x*"`: {Rounds: 1, Scale: 1, Workloads: []string{"x*"}},
		`workload "[": syntax error`: {Rounds: 1, Scale: 1, Workloads: []string{"["}},
		`0 rounds measure nothing`:   {Scale: 1},
		`the scale must be positive`: {Rounds: 1},
		`the directory to work in: `: {Rounds: 1, Scale: 1, Dir: "/nonexistent"},
	} {
		_, err := bench.RunReplication(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", o, err, want)
		}
	}
}
