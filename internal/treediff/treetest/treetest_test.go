package treetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/replfs/replfs/internal/treediff"
)

// recorder is a test that writes down its failures.
type recorder struct {
	testing.TB
	failures []string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func TestEqual(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	opts := treediff.Options{IgnoreMtime: true}

	r := &recorder{TB: t}
	if !Equal(r, a, b, opts) || len(r.failures) != 0 {
		t.Errorf("equal trees failed: %q", r.failures)
	}
	for i := range shown + 5 {
		if err := os.WriteFile(filepath.Join(b, fmt.Sprintf("f%02d", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if Equal(r, a, b, opts) {
		t.Error("different trees are equal")
	}
	if len(r.failures) != shown+1 || !strings.Contains(r.failures[0], "f00") || !strings.Contains(r.failures[shown], "5 more") {
		t.Errorf("failures: %q", r.failures)
	}
	r.failures = nil
	if Equal(r, a, filepath.Join(b, "none"), opts) || len(r.failures) != 1 {
		t.Errorf("a tree that is not there: %q", r.failures)
	}
}
