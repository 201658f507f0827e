package bench

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/replfs/replfs/test/lab"
)

// BenchmarkMount compares the bare store with a mount that replicates in
// async and in fsync mode to a standby on the same machine. The directory is
// REPLFS_BENCH_DIR, by default a tmpfs: the software's own cost.
func BenchmarkMount(b *testing.B) {
	dir := os.Getenv("REPLFS_BENCH_DIR")
	if dir == "" {
		dir = "/dev/shm"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	bare, err := os.MkdirTemp(dir, "replfs-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(bare) //nolint:errcheck // temporary
	targets := []Target{{"bare", bare}}
	for _, mode := range []string{"async", "fsync"} {
		c := lab.ForTest(b, lab.Options{Durability: mode, Parent: dir})
		for _, n := range c.Names() {
			if err := c.StartNode(ctx, n); err != nil {
				b.Fatal(err)
			}
		}
		if err := c.WaitInSync(ctx, "gl-1", "gl-2"); err != nil {
			b.Fatal(err)
		}
		targets = append(targets, Target{mode, c.Mount("gl-1")})
	}
	for b.Loop() {
		results, err := Compare(targets, Workloads(1), 3, os.Stderr)
		if err != nil {
			b.Fatal(err)
		}
		Print(os.Stdout, results)
	}
}

// TestWorkloads keeps the workloads working: each runs on a plain directory.
func TestWorkloads(t *testing.T) {
	results, err := Compare([]Target{{"a", t.TempDir()}, {"b", t.TempDir()}}, Workloads(0.01), 1, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 * len(Workloads(1)); len(results) != want {
		t.Fatalf("%d results, want %d", len(results), want)
	}
	for _, r := range results {
		if r.Median <= 0 || r.Ops <= 0 {
			t.Errorf("%+v", r)
		}
	}
}
