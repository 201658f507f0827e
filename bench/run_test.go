package bench_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/replfs/replfs/bench"
	"github.com/replfs/replfs/test/lab"
)

// runLimit is generous: the machine may be busy.
const runLimit = 8 * time.Minute

// workDir is a directory for a run; the test fails if the run leaves something
// in it, or a mount.
func workDir(t *testing.T) string {
	t.Helper()
	lab.NeedFUSE(t)
	dir, err := os.MkdirTemp("/dev/shm", "replfs-bench-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL passes through
		t.Fatal(err)
	}
	t.Cleanup(func() {
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil || strings.Contains(string(mounts), dir) {
			t.Errorf("mounts were left (%v):\n%s", err, mounts)
			return
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// benchFS is the command `replfs bench fs`.
func benchFS(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return benchCommand(t, append([]string{"fs"}, args...)...)
}

// benchCommand is a command of `replfs bench`; the test fails if it leaves a
// runtime directory.
func benchCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), lab.Binary(t), append([]string{"bench"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	timer := time.AfterFunc(runLimit, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	t.Cleanup(func() {
		timer.Stop()
		if cmd.Process == nil {
			return // it did not start
		}
		for _, parent := range []string{"/run", "/dev/shm", os.TempDir()} {
			left, err := filepath.Glob(fmt.Sprintf("%s/replfs-bench-%d-*", parent, cmd.Process.Pid))
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		}
	})
	return cmd
}

func report(t *testing.T, cmd *exec.Cmd) *bench.Report {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bench fs: %v\n%s", err, stderr.String())
	}
	var r bench.Report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	return &r
}

func find(r *bench.Report, workload, target string) *bench.Result {
	for i := range r.Results {
		if r.Results[i].Workload == workload && r.Results[i].Target == target {
			return &r.Results[i]
		}
	}
	return nil
}

// TestFileWorkloads: every workload on files and git runs on every target, and
// what replfs was asked for is counted.
func TestFileWorkloads(t *testing.T) {
	r := report(t, benchFS(t, "--dir", workDir(t), "--scale", "0.01", "--rounds", "2", "--workloads",
		"untar,delete,find,stat,open-*,overwrite,write,read,append-*,git-*", "--json"))
	if len(r.Targets) != len(bench.Targets()) || r.FileSystem != "tmpfs" {
		t.Errorf("targets %v on %s", r.Targets, r.FileSystem)
	}
	for _, w := range r.Workloads {
		for _, target := range r.Targets {
			res := find(r, w.Name, target.Name)
			if target.Skipped != "" || w.Skipped != "" {
				continue // not installed
			}
			if res == nil || res.Median <= 0 || res.Ops <= 0 || len(res.Rounds) != 2 {
				t.Errorf("%s on %s: %+v", w.Name, target.Name, res)
			}
		}
	}
	untar := find(r, "untar", "async")
	if untar.Requests["CREATE"] != 1 || untar.RequestsSum < 5 || untar.RequestsSum > 20 {
		t.Errorf("requests of untar: %.2f, %v", untar.RequestsSum, untar.Requests)
	}
	if untar.Ratio["bare"] <= 0 || untar.Ratio["loopback"] <= 0 {
		t.Errorf("ratios of untar: %v", untar.Ratio)
	}
	if bare := find(r, "untar", "bare"); bare.Requests != nil || bare.Ratio["bare"] != 0 {
		t.Errorf("the bare store has requests %v and ratios %v", bare.Requests, bare.Ratio)
	}
	if len(r.Wanted) != 9 {
		t.Errorf("%d verdicts on files and git, want 9", len(r.Wanted))
	}
}

// TestPgbenchWorkloads: a database runs on the bare store and on the mount.
func TestPgbenchWorkloads(t *testing.T) {
	r := report(t, benchFS(t, "--dir", workDir(t), "--scale", "0.05", "--rounds", "1", "--workloads", "pgbench-*", "--targets", "bare,alone", "--json"))
	for _, w := range r.Workloads {
		if w.Skipped != "" {
			t.Skipf("%s: %s", w.Name, w.Skipped)
		}
		for _, target := range []string{"bare", "alone"} {
			if res := find(r, w.Name, target); res == nil || res.Ops <= 0 || res.Median <= 0 {
				t.Errorf("%s on %s: %+v", w.Name, target, res)
			}
		}
	}
	for _, v := range r.Wanted {
		if v.NotJudged != "meant on a disk" {
			t.Errorf("on a tmpfs a number for disks was judged: %+v", v)
		}
	}
}

// TestNotInstalled: what is missing is said, and does not fail the run.
func TestNotInstalled(t *testing.T) {
	cmd := benchFS(t, "--dir", workDir(t), "--scale", "0.01", "--rounds", "1", "--workloads", "write,git-clone", "--targets", "bare,bindfs", "--json")
	cmd.Env = []string{"PATH=/nonexistent"}
	r := report(t, cmd)
	if r.Targets[1].Skipped != "bindfs is not installed" || r.Workloads[1].Skipped != "git is not installed" {
		t.Errorf("targets %+v, workloads %+v", r.Targets, r.Workloads)
	}
	if find(r, "write", "bare") == nil || len(r.Results) != 1 {
		t.Errorf("results %+v", r.Results)
	}
	var out strings.Builder
	if err := r.Print(&out); err != nil || !strings.Contains(out.String(), "not measured: bindfs is not installed") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// TestInterrupt: a canceled run ends its daemons and leaves nothing.
func TestInterrupt(t *testing.T) {
	dir := workDir(t)
	cmd := benchFS(t, "--dir", dir, "--rounds", "1000", "--workloads", "untar", "--targets", "loopback,async")
	interrupt(t, cmd, dir+"/replfs-bench-*/async/primary/mount/untar/tree/d000")
	// Its daemons have ended as well.
	cmds, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cmds {
		if b, err := os.ReadFile(c); err == nil && strings.Contains(string(b), dir+"/") {
			t.Errorf("still running: %s", strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
}

// TestOptions: wrong options are refused before anything starts.
func TestOptions(t *testing.T) {
	for want, o := range map[string]bench.Options{
		`no target is called "nfs"`:  {Rounds: 1, Scale: 1, Targets: []string{"nfs"}},
		`no workload is called "x*"`: {Rounds: 1, Scale: 1, Workloads: []string{"x*"}},
		`workload "[": syntax error`: {Rounds: 1, Scale: 1, Workloads: []string{"["}},
		`0 rounds measure nothing`:   {Scale: 1},
		`the scale must be positive`: {Rounds: 1},
		`the directory to work in: `: {Rounds: 1, Scale: 1, Dir: "/nonexistent"},
	} {
		_, err := bench.Run(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", o, err, want)
		}
	}
}

// interrupt starts a run, ends it with SIGINT once what pattern names is there,
// and expects it to say that it failed.
func interrupt(t *testing.T, cmd *exec.Cmd, pattern string) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr, cmd.Stdout = &stderr, io.Discard
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	working := func() bool {
		made, err := filepath.Glob(pattern)
		return err == nil && len(made) > 0
	}
	for deadline := time.Now().Add(2 * time.Minute); !working(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("the run did not begin to work")
			break
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("an interrupted run ended with %v\n%s", err, stderr.String())
	}
}
