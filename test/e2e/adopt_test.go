package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/replfs/replfs/test/lab"
)

// TestAdopt: a directory that is in use is refused; adopted, it is replicated
// where it was; given back and changed without replfs, it is adopted again and
// the standby ends up with what it is then.
func TestAdopt(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	c := newCluster(t, lab.Options{})
	s := seed(t)
	must(t, os.Remove(c.Store(one)))
	fill(t, c.Mount(one), 500, random(s))

	user := exec.Command("/bin/sleep", "600")
	user.Dir = c.Mount(one)
	must(t, user.Start())
	adopt(t, ctx, c, 3, "has its working directory at")
	must(t, user.Process.Kill())
	_ = user.Wait() // it was killed

	adopt(t, ctx, c, 0, "would rename", "--dry-run")
	if _, err := os.Lstat(c.Store(one)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a dry run made the store: %v", err)
	}
	adopt(t, ctx, c, 0, "is the store now")
	start(t, ctx, c)
	l := startLoad(t, ctx, c, one, "load", s)
	time.Sleep(300 * time.Millisecond)
	adopt(t, ctx, c, 3, "stop replfs", "--undo")
	l.stop()
	equalStores(t, ctx, c, one, two)
	l.verify(c.Mount(two))

	must(t, c.StopNode(one))
	adopt(t, ctx, c, 0, "holds the data again", "--undo")
	must(t, os.WriteFile(filepath.Join(c.Mount(one), "without replfs"), []byte("data"), 0o600))
	adopt(t, ctx, c, 0, "is the store now")
	copied := logMark(t, c, two)
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitInSync(ctx, one, two))
	copied.want(t, msgReceiving, 1)
	equalStores(t, ctx, c, one, two)
	if _, err := os.Stat(filepath.Join(c.Mount(two), "without replfs")); err != nil {
		t.Error(err)
	}
}

// adopt runs `replfs adopt` for the first node and checks how it ends.
func adopt(t *testing.T, ctx context.Context, c *lab.Cluster, code int, say string, args ...string) {
	t.Helper()
	res, err := c.Command(ctx, one, append([]string{"adopt"}, args...)...)
	must(t, err)
	if out := res.Stdout + res.Stderr; res.Code != code || !strings.Contains(out, say) {
		t.Fatalf("adopt %q: exit code %d, want %d and %q:\n%s", args, res.Code, code, say, out)
	}
}
