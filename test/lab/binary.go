package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// BinaryEnv names the environment variable with the path of a built replfs.
const BinaryEnv = "REPLFS_BIN"

// buildBinary builds replfs once for this process. The result lies in a
// directory that the janitor removes when the process has ended, or has let go
// of the Root.
var buildBinary = sync.OnceValues(func() (*Root, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return nil, fmt.Errorf("find the module (or set %s): %w", BinaryEnv, err)
	}
	module := filepath.Dir(strings.TrimSpace(string(out)))
	root, err := NewRoot("", "replfs-bin-")
	if err != nil {
		return nil, err
	}
	bin := root.Path("replfs")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, "./cmd/replfs")
	cmd.Dir = module
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("build replfs: %w\n%s", err, out), root.Close())
	}
	return root, nil
})

// Binary returns the path of the replfs binary: $REPLFS_BIN, or one built from
// the sources around the test.
func Binary(t testing.TB) string {
	t.Helper()
	if bin := os.Getenv(BinaryEnv); bin != "" {
		abs, err := filepath.Abs(bin)
		if err != nil {
			t.Fatalf("%s: %v", BinaryEnv, err)
		}
		if _, err := os.Stat(abs); err != nil {
			t.Fatalf("%s: %v", BinaryEnv, err)
		}
		return abs
	}
	root, err := buildBinary()
	if err != nil {
		t.Fatal(err)
	}
	return root.Path("replfs")
}

// NeedRoot skips a test that cannot work without root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// NeedFUSE skips a test that cannot work without root and /dev/fuse.
func NeedFUSE(t testing.TB) {
	t.Helper()
	NeedRoot(t)
	if err := CheckFUSE(); err != nil {
		t.Skip(err)
	}
}

// CheckFUSE says what keeps this process from making FUSE mounts.
func CheckFUSE() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("FUSE is not available: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("close /dev/fuse: %w", err)
	}
	return nil
}
