// Package treetest makes tests fail when two directory trees differ.
package treetest

import (
	"testing"

	"github.com/replfs/replfs/internal/treediff"
)

// shown is how many differences a failure lists: the first ones tell what went
// wrong, the rest are usually its consequences.
const shown = 20

// Equal marks the test as failed, naming the first differences, unless the
// trees under a and b are equal. It reports whether they are.
func Equal(t testing.TB, a, b string, opts treediff.Options) bool {
	t.Helper()
	diffs, err := treediff.Compare(a, b, opts)
	if err != nil {
		t.Errorf("%v", err)
	}
	for i, d := range diffs {
		if i == shown {
			t.Errorf("... and %d more", len(diffs)-shown)
			break
		}
		t.Errorf("%v", d)
	}
	return err == nil && len(diffs) == 0
}
