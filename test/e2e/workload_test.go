// Package e2e tests whole clusters: real daemons, mounts and processes.
package e2e

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/workload"
	"github.com/replfs/replfs/test/lab"
)

// neverOnFUSE are operations that the kernel refuses on a FUSE file system
// before they reach the daemon.
var neverOnFUSE = map[workload.Op]bool{
	workload.OpCollapseRange: true,
	workload.OpInsertRange:   true,
	workload.OpTmpfileLink:   true,
}

// TestRandomWorkload: after thousands of random operations by several
// writers, both stores are equal in every attribute.
func TestRandomWorkload(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	c := started(t, ctx, lab.Options{Durability: "async"})
	stats, err := workload.Run(ctx, c.Mount(one), workload.Options{
		Seed: seed(t), Writers: 6, Steps: rounds(12000, 200000), MaxBytes: 64 << 20, MaxFiles: 2000,
		Tolerate: []unix.Errno{unix.EOPNOTSUPP},
	})
	if err != nil {
		t.Fatalf("workload: %v", err)
	}
	for _, op := range stats.Missing() {
		if !neverOnFUSE[op] {
			t.Errorf("operation %s never succeeded", op)
		}
	}
	equalStores(t, ctx, c, one, two)
}
