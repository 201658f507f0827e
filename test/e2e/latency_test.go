package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/replfs/replfs/internal/latency"
	"github.com/replfs/replfs/test/lab"
)

// TestLowLatency: a node holds the kernel's interface, by which it has CPUs
// kept awake, also after a reload.
func TestLowLatency(t *testing.T) {
	if _, err := os.Stat(latency.Device); err != nil {
		t.Skip(err)
	}
	ctx := bounded(t, 2*time.Minute)
	c := newCluster(t, lab.Options{})
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitRole(ctx, one, "primary"))
	holds := func(when string) {
		t.Helper()
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", c.Process(one).Pid()))
		must(t, err)
		n := 0
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil && to == latency.Device {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s, the daemon has %s open %d times, want once", when, latency.Device, n)
		}
	}
	holds("started")
	reload(t, ctx, c, one)
	holds("reloaded")
}
