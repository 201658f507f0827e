package fs

import (
	"maps"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// TestPosix runs go-fuse's conformance suite; what it did must have reached
// the standby as well.
func TestPosix(t *testing.T) {
	skip := map[string]string{
		"FcntlFlockLocksFile": "expects the fcntl(2) locks of one process to exclude each other, which they do nowhere",
	}
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		t.Run(name, func(t *testing.T) {
			if why := skip[name]; why != "" {
				t.Skip(why)
			}
			e := newEnv(t, options{})
			posixtest.All[name](t, e.mnt)
			e.equal()
			e.sound()
		})
	}
}
