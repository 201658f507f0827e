package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moby/sys/mountinfo"

	"github.com/replfs/replfs/internal/treediff"
	"github.com/replfs/replfs/internal/treediff/treetest"
	"github.com/replfs/replfs/test/lab"
)

// TestStopDrains: SIGTERM ends a node in order, whatever its role: what was
// written before is on the standby, the mount is gone, exit code 0.
func TestStopDrains(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	s := seed(t)
	c := started(t, ctx, lab.Options{Durability: "async"})
	l := startLoad(t, ctx, c, one, "load", s)
	time.Sleep(700 * time.Millisecond)
	// The standby is behind, or there would be nothing to drain, and the load
	// goes on: later writes get EROFS, then the mount is gone.
	stopDaemon(t, c, two)
	time.Sleep(300 * time.Millisecond)
	goesOn := time.AfterFunc(500*time.Millisecond, func() { _ = c.Process(two).Signal(syscall.SIGCONT) })
	defer goesOn.Stop()
	must(t, c.StopNode(one))
	l.stop(append(gone, unix.EROFS, unix.ENOENT)...)
	l.verify(c.Store(one))
	l.verify(c.Store(two))
	must(t, c.StopNode(two))
	treetest.Equal(t, c.Store(one), c.Store(two), treediff.Options{})
	for _, n := range c.Names() {
		if e := logStart(c, n).since(t, msgEnded); len(e) != 1 {
			t.Errorf("%s did not say that it stopped", n)
		}
		if st := stateOf(t, c, n); !st.Clean {
			t.Errorf("%s did not stop cleanly: %+v", n, st)
		}
	}
	// And on they go, in the other order.
	must(t, c.StartNode(ctx, two))
	must(t, c.WaitRole(ctx, two, "standby"))
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitInSync(ctx, one, two))
	logStart(c, two).want(t, msgReceiving, 1)
}

// TestStopWhileBusy: a process that sits in the mount does not keep a node from
// ending. It says who that is, and leaves the dead mount, which the next start
// takes away.
func TestStopWhileBusy(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{AckTimeout: time.Second})
	for _, n := range []string{two, one} {
		dir := c.Mount(n)
		var f *os.File
		if n == one {
			dir = filepath.Join(dir, "dir")
			must(t, os.Mkdir(dir, 0o755))
			var err error
			f, err = os.Create(filepath.Join(dir, "open"))
			must(t, err)
		}
		sitting := exec.Command("sleep", "300")
		sitting.Dir = dir
		sitting.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		must(t, sitting.Start())
		signal(t, c, n, syscall.SIGTERM)
		code, err := c.Process(n).Wait(hang)
		must(t, err)
		if out := c.Process(n).Tail(5); code != 1 || !strings.Contains(out, fmt.Sprintf("%d (sleep)", sitting.Process.Pid)) {
			t.Errorf("%s ended with %d: %s", n, code, out)
		}
		if st := stateOf(t, c, n); !st.Clean {
			t.Errorf("%s did not stop cleanly: %+v", n, st)
		}
		if f != nil {
			if _, err := f.WriteString("x"); err == nil {
				t.Error("a write to a mount that is gone worked")
			}
			_ = f.Close() // it fails, as it must
		}
		if err := os.WriteFile(filepath.Join(c.Mount(n), "beneath"), nil, 0o600); !errors.Is(err, unix.ENOTCONN) {
			t.Errorf("writing where the mount was: %v", err)
		}
		must(t, sitting.Process.Kill())
		_ = sitting.Wait() // it was killed
	}
	for _, n := range c.Names() {
		must(t, c.StartNode(ctx, n))
	}
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
}

// TestStaleMount: a dead mount in the way, one that is alive, and a mount point
// that is not fit for it.
func TestStaleMount(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := newCluster(t, lab.Options{})
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitRole(ctx, one, "primary"))
	for range 2 {
		// Known to the kernel, so that it could answer from its cache.
		_, err := os.Stat(c.Mount(one))
		must(t, err)
		must(t, c.KillNode(one))
		if _, err := os.ReadDir(c.Mount(one)); !errors.Is(err, unix.ENOTCONN) {
			t.Fatalf("the mount of a dead daemon: %v", err)
		}
		begun := logMark(t, c, one)
		must(t, c.StartNode(ctx, one))
		must(t, c.WaitRole(ctx, one, "primary"))
		begun.want(t, msgDetached, 1)
	}
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(c.Mount(one)))
	if err != nil || len(infos) != 1 {
		t.Errorf("mounts: %v, %v", infos, err)
	}
	must(t, c.StopNode(one))
	must(t, os.WriteFile(filepath.Join(c.Mount(one), "hidden"), nil, 0o600))
	if err := c.StartNode(ctx, one); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("a mount point with something in it: %v", err)
	}
	must(t, os.Remove(filepath.Join(c.Mount(one), "hidden")))
}

// TestSecondDaemon: the state directory belongs to one process, and the one
// that is there goes on.
func TestSecondDaemon(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{})
	for _, n := range c.Names() {
		res, err := c.Command(ctx, n, "mount")
		must(t, err)
		if res.Code != 1 || !strings.Contains(res.Stderr, "another replfs runs with this state directory") {
			t.Errorf("a second daemon of %s: %+v", n, res)
		}
	}
	returns(t, "beside refused daemons", fsyncOf(t, c, one, "file"), hang)
	equalStores(t, ctx, c, one, two)
}

// TestCommands: what scripts rely on: exit codes and the fields of status.
func TestCommands(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := newCluster(t, lab.Options{})
	expect := func(node string, code int, text string, args ...string) lab.Result {
		t.Helper()
		res, err := c.Command(ctx, node, args...)
		must(t, err)
		if res.Code != code || !strings.Contains(res.Output(), text) {
			t.Errorf("replfs %q on %s: exit code %d, want %d with %q: %s", args, node, res.Code, code, text, res.Output())
		}
		return res
	}
	expect(one, 1, "no replfs runs here", "status")
	expect(one, 1, "no replfs runs here", "promote")
	expect(one, 2, "unknown flag", "status", "--nonsense")
	expect(one, 2, "unknown command", "nonsense")
	res, err := lab.Run(ctx, lab.Command{Name: "status", Path: lab.Binary(t), Args: []string{"status", "--config", c.Config(), "--node", "nobody"}})
	if err != nil || res.Code != 2 || !strings.Contains(res.Stderr, "nobody") {
		t.Errorf("an unknown node: %+v, %v", res, err)
	}
	bad := c.Path("bad.yaml")
	must(t, os.WriteFile(bad, []byte("cluster: x\nnonsense: 1\n"), 0o600))
	res, err = lab.Run(ctx, lab.Command{Name: "mount", Path: lab.Binary(t), Args: []string{"mount", "--config", bad}})
	if err != nil || res.Code != 2 || !strings.Contains(res.Stderr, ":2") || !strings.Contains(res.Stderr, "nonsense") {
		t.Errorf("a bad config: %+v, %v", res, err)
	}

	must(t, c.StartNode(ctx, two))
	expect(two, 3, "refused as unsafe", "promote")
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitInSync(ctx, one, two))
	expect(one, 0, "already", "promote")
	expect(two, 0, "already", "demote")
	expect(one, 0, "gl-1  primary  epoch 1", "status")
	expect(two, 0, "gl-2  standby, in sync", "status")

	must(t, os.WriteFile(filepath.Join(c.Mount(one), "file"), []byte("x"), 0o600))
	must(t, c.WaitCaughtUp(ctx, one, two))
	fields := func(node string) map[string]any {
		t.Helper()
		var st map[string]any
		must(t, json.Unmarshal([]byte(expect(node, 0, "", "status", "--json").Stdout), &st))
		return st
	}
	primary, standby := fields(one), fields(two)
	for _, key := range []string{
		"version", "cluster", "cluster_id", "node", "role", "writable", "primary", "epoch", "durability", "mount",
		"store", "started", "lsn", "lag", "in_sync", "peers", "history", "problems",
	} {
		for _, st := range []map[string]any{primary, standby} {
			if _, ok := st[key]; !ok {
				t.Errorf("status of %v has no %q", st["node"], key)
			}
		}
	}
	for key, want := range map[string][2]any{
		"node": {one, two}, "role": {"primary", "standby"}, "writable": {true, false}, "primary": {one, one},
		"epoch": {1.0, 1.0}, "in_sync": {true, true}, "mount": {c.Mount(one), c.Mount(two)},
		"cluster_id": {primary["cluster_id"], primary["cluster_id"]},
	} {
		if primary[key] != want[0] || standby[key] != want[1] {
			t.Errorf("%s: %v and %v, want %v", key, primary[key], standby[key], want)
		}
	}
	if primary["cluster_id"] == "" {
		t.Error("no cluster id")
	}
	for _, st := range []map[string]any{primary, standby} {
		if p, ok := st["problems"].([]any); !ok || len(p) != 0 {
			t.Errorf("problems of %v: %v", st["node"], st["problems"])
		}
	}
	var change map[string]any
	must(t, json.Unmarshal([]byte(expect(two, 0, "", "promote", "--json").Stdout), &change))
	if change["role"] != "primary" || change["epoch"] != 2.0 {
		t.Errorf("promote --json: %v", change)
	}
}
