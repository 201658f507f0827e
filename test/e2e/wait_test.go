package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/control"
	"github.com/replfs/replfs/test/lab"
)

// waits runs `replfs wait` on a node and expects an exit code and, in what it
// says, a text.
func waits(t *testing.T, ctx context.Context, c *lab.Cluster, node string, code int, text string, args ...string) lab.Result {
	t.Helper()
	res, err := c.Command(ctx, node, append([]string{"wait"}, args...)...)
	must(t, err)
	if res.Code != code || !strings.Contains(res.Output(), text) {
		t.Fatalf("wait %q on %s: exit code %d, want %d with %q: %s", args, node, res.Code, code, text, res.Output())
	}
	return res
}

// onDisks runs a cluster whose stores can be cut, has before write to the
// primary's mount and wait, and after write more; and tells what is on the disks
// of both nodes when all that was in memory is lost.
func onDisks(t *testing.T, before, after func(c *lab.Cluster, mount string)) (c *lab.Cluster) {
	t.Helper()
	ctx := bounded(t, 5*time.Minute)
	c = newCluster(t, lab.Options{Durability: "async", Replication: map[string]any{"exclude": []string{"lost+found/", "tmp/"}}})
	images := map[string]*lab.Image{}
	for _, n := range c.Names() {
		im, err := lab.NewImage(ctx, c.Path(n, "store.img"), c.Store(n), "ext4", 64<<20)
		must(t, err)
		images[n] = im
	}
	start(t, ctx, c)
	before(c, c.Mount(one))
	after(c, c.Mount(one))
	must(t, c.WaitCaughtUp(ctx, one, two))
	equalStores(t, ctx, c, one, two)
	for _, n := range c.Names() {
		stopDaemon(t, c, n)
	}
	for _, n := range c.Names() {
		must(t, images[n].Cut())
	}
	for _, n := range c.Names() {
		must(t, c.KillNode(n))
		must(t, images[n].Restart(ctx))
	}
	return c
}

var content = bytes.Repeat([]byte("content "), 100<<10)

// whole tells whether a file is in the store of a node as it was written.
func whole(c *lab.Cluster, node, name string) bool {
	b, err := os.ReadFile(filepath.Join(c.Store(node), name))
	return err == nil && bytes.Equal(b, content)
}

// TestWaitEverything: what nobody fsynced is on the disks of both nodes when
// wait has returned.
func TestWaitEverything(t *testing.T) {
	var names []string
	c := onDisks(t, func(c *lab.Cluster, mount string) {
		must(t, os.MkdirAll(filepath.Join(mount, "dir/sub"), 0o755))
		for i, args := range [][]string{{}, {mount}, {filepath.Join(mount, "dir")}} {
			name := fmt.Sprintf("dir/sub/file%d", i)
			names = append(names, name)
			must(t, os.WriteFile(filepath.Join(mount, name), content, 0o600))
			res := waits(t, t.Context(), c, one, 0, "", append([]string{"--json"}, args...)...)
			var r control.WaitResult
			must(t, json.Unmarshal([]byte(res.Stdout), &r))
			st, err := status(t.Context(), c, one)
			must(t, err)
			if r.Position != (control.Position{Epoch: st.Epoch, LSN: st.LSN.Appended}) || len(r.Standbys) != 1 || r.Standbys[0] != two {
				t.Errorf("%+v, the log is at %d/%d", r, st.Epoch, st.LSN.Appended)
			}
		}
	}, func(_ *lab.Cluster, mount string) {
		must(t, os.WriteFile(filepath.Join(mount, "later"), content, 0o600))
	})
	for _, n := range c.Names() {
		for _, name := range names {
			if !whole(c, n, name) {
				t.Errorf("%s has lost %s", n, name)
			}
		}
		if whole(c, n, "later") {
			t.Errorf("%s has what nobody waited for: nothing was proven", n)
		}
	}
}

// TestWaitFile: one file, and its name, are on both disks, in async mode too.
func TestWaitFile(t *testing.T) {
	const name = "a dir/-file"
	c := onDisks(t, func(c *lab.Cluster, mount string) {
		file := filepath.Join(mount, name)
		must(t, os.Mkdir(filepath.Dir(file), 0o755))
		must(t, os.WriteFile(file, content, 0o600))
		must(t, os.Symlink(file, c.Path("link")))
		waits(t, t.Context(), c, one, 0, "durable on gl-2", c.Path("link"))
	}, func(_ *lab.Cluster, mount string) {
		must(t, os.WriteFile(filepath.Join(mount, "later"), content, 0o600))
	})
	for _, n := range c.Names() {
		if !whole(c, n, name) {
			t.Errorf("%s has lost it", n)
		}
		if whole(c, n, "later") {
			t.Errorf("%s has what nobody waited for: nothing was proven", n)
		}
	}
}

// TestWaitPaths: what a path may be.
func TestWaitPaths(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{Replication: map[string]any{"exclude": []string{"lost+found/", "tmp/"}}})
	file := filepath.Join(c.Mount(one), "file")
	must(t, os.WriteFile(file, content, 0o600))
	must(t, os.Mkdir(filepath.Join(c.Mount(one), "tmp"), 0o755))
	must(t, os.WriteFile(filepath.Join(c.Mount(one), "tmp", "f"), nil, 0o644))
	must(t, unix.Mkfifo(file+".fifo", 0o644)) // it is not opened
	for _, args := range [][]string{{file}, {file + ".fifo"}, {"--timeout", "60s", file}} {
		waits(t, ctx, c, one, 0, "durable on gl-2", args...)
	}
	for path, text := range map[string]string{
		filepath.Join(c.Mount(one), "tmp", "f"):  "replication.exclude",
		filepath.Join(c.Mount(one), "tmp"):       "replication.exclude",
		filepath.Join(c.Mount(one), "not there"): "no such file",
	} {
		waits(t, ctx, c, one, 1, text, path)
	}
	waits(t, ctx, c, one, 2, "is not in the mount", c.Store(one))
	waits(t, ctx, c, one, 2, "is not in the mount", "..")
	waits(t, ctx, c, one, 2, "is no position", "--position", "12")
	waits(t, ctx, c, one, 2, "is negative", "--timeout", "-1s")
	waits(t, ctx, c, one, 2, "give either PATH or --position", "--position", "1/2", file)
	must(t, os.RemoveAll(filepath.Join(c.Mount(one), "tmp")))
	equalStores(t, ctx, c, one, two)
}

// TestWaitRefused: who cannot wait says why.
func TestWaitRefused(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := newCluster(t, lab.Options{})
	waits(t, ctx, c, one, 1, "no replfs runs here")
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitRole(ctx, one, "primary"))
	must(t, os.WriteFile(filepath.Join(c.Mount(one), "f"), []byte("x"), 0o600))
	for _, args := range [][]string{{}, {c.Mount(one)}, {filepath.Join(c.Mount(one), "f")}, {"--position", "1/1"}} {
		eventually(t, ctx, hang, "the peer is known to be away", func() error {
			res, err := c.Command(ctx, one, append([]string{"wait"}, args...)...)
			must(t, err)
			if res.Code != 3 || !strings.Contains(res.Stderr, "refused: no standby is in sync: gl-2: unreachable") {
				return fmt.Errorf("%d: %s", res.Code, res.Output())
			}
			return nil
		})
	}
	must(t, c.StartNode(ctx, two))
	must(t, c.WaitInSync(ctx, one, two))
	waits(t, ctx, c, two, 3, "gl-2 is a standby; run it on the primary, which gl-1 is")
	waits(t, ctx, c, two, 3, "run it on the primary", c.Mount(two))
	waits(t, ctx, c, one, 0, "durable on gl-2")
}

// TestWaitInterrupted: a standby that leaves the set, and one that takes too
// long, end the wait with what there is to know; one that starts again in
// between does not.
func TestWaitInterrupted(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{AckTimeout: 4 * time.Second})
	file := filepath.Join(c.Mount(one), "f")
	must(t, os.WriteFile(file, []byte("x"), 0o600))
	must(t, c.WaitCaughtUp(ctx, one, two))
	for _, args := range [][]string{{}, {file}} {
		must(t, c.WaitInSync(ctx, one, two))
		stopDaemon(t, c, two)
		begun := time.Now()
		waits(t, ctx, c, one, 1, "not within ", append([]string{"--timeout", "500ms"}, args...)...)
		took := time.Since(begun)
		t.Logf("%q gave up after %s", args, took)
		if took > 20*time.Second {
			t.Errorf("%q gave up after %s", args, took)
		}
		waits(t, ctx, c, one, 1, "gl-2 left the in-sync set", args...)
		signal(t, c, two, syscall.SIGCONT)
	}
	must(t, c.WaitInSync(ctx, one, two))
	done := make(chan lab.Result, 1)
	stopDaemon(t, c, two)
	go func() {
		res, err := c.Command(ctx, one, "wait")
		if err != nil {
			t.Error(err)
		}
		done <- res
	}()
	time.Sleep(300 * time.Millisecond) // it waits
	must(t, c.KillNode(two))
	must(t, c.StartNode(ctx, two))
	if res := <-done; res.Code != 0 {
		t.Errorf("a standby that started again: %d, %s", res.Code, res.Output())
	}
}

// positionOf reads the attribute of a file.
func positionOf(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 64)
	n, err := unix.Getxattr(path, "user.replfs.position", buf)
	must(t, err)
	return string(buf[:n])
}

// TestWaitPosition: a script finds out where in the log a file is, and waits
// for that on either node.
func TestWaitPosition(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{Durability: "async"})
	returns(t, "an fsync", fsyncOf(t, c, one, "f"), hang)
	p := positionOf(t, filepath.Join(c.Mount(one), "f"))
	waits(t, ctx, c, one, 0, "everything up to "+p+" is durable on gl-2", "--position", p)
	waits(t, ctx, c, two, 0, "everything up to "+p+" is shown by gl-2", "--position", p)
	if b, err := os.ReadFile(filepath.Join(c.Store(two), "f")); err != nil || string(b) != "f" {
		t.Errorf("it shows %q, %v", b, err)
	}
	// It is of the store's files on a standby, too: the whole store's there.
	must(t, c.WaitCaughtUp(ctx, one, two))
	st, err := status(ctx, c, two)
	must(t, err)
	if got, want := positionOf(t, filepath.Join(c.Mount(two), "f")), fmt.Sprintf("%d/%d", st.Epoch, st.LSN.Applied); got != want {
		t.Errorf("the standby's position is %s, want %s", got, want)
	}
	ahead := fmt.Sprintf("%d/%d", st.Epoch, st.LSN.Appended+1000)
	waits(t, ctx, c, one, 1, "was not reached yet", "--position", ahead)
	waits(t, ctx, c, two, 1, "gl-2 shows", "--position", ahead, "--timeout", "100ms")
	// One that a failover lost.
	lost := fmt.Sprintf("7/%d", st.LSN.Applied)
	waits(t, ctx, c, one, 1, "not in the history", "--position", lost)
	waits(t, ctx, c, two, 1, "not in the history", "--position", lost)
	promote(t, ctx, c, two, false)
	must(t, c.WaitInSync(ctx, two, one))
	waits(t, ctx, c, two, 0, "durable on gl-1", "--position", p)
	equalStores(t, ctx, c, two, one)
}
