package hook

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

const hang = 60 * time.Second

func newRunner(t *testing.T) (*Runner, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	return NewRunner(zap.New(core)), logs
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEnvironment(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	t.Setenv("REPLFS_HANDOVER_FD", "7")
	r, logs := newRunner(t)
	out := filepath.Join(t.TempDir(), "out")
	mine, err := os.Create(out + ".mine")
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	ev := Event{Hook: OnPromote, Cluster: "gitlab", Node: "gl-2", Role: "primary", Epoch: 7, Peer: "gl-1", Reason: "it is 'dead'", Mount: "/m"}
	script := fmt.Sprintf("env >%s; ls -l /proc/self/fd >%s.fds; cat /proc/self/oom_score_adj >%s.oom; pwd; echo said; cat", out, out, out)
	if _, err := r.Run(t.Context(), []Hook{{script, hang}}, ev, true); err != nil {
		t.Fatal(err)
	}
	env := read(t, out)
	for _, want := range []string{
		"REPLFS_HOOK=on_promote\n", "REPLFS_CLUSTER=gitlab\n", "REPLFS_NODE=gl-2\n", "REPLFS_ROLE=primary\n", "REPLFS_EPOCH=7\n",
		"REPLFS_PEER=gl-1\n", "REPLFS_REASON=it is 'dead'\n", "REPLFS_MOUNT=/m\n",
	} {
		if !strings.Contains(env, want) {
			t.Errorf("no %q in\n%s", want, env)
		}
	}
	if strings.Contains(env, "NOTIFY_SOCKET") || strings.Contains(env, "HANDOVER") {
		t.Errorf("what means the daemon was inherited:\n%s", env)
	}
	if fds := read(t, out+".fds"); strings.Contains(fds, mine.Name()) || !strings.Contains(fds, " 0 -> /dev/null") {
		t.Errorf("descriptors:\n%s", fds)
	}
	if got := strings.TrimSpace(read(t, out+".oom")); got != "0" {
		t.Errorf("oom_score_adj %s", got)
	}
	var said []string
	for _, e := range logs.FilterMessage("hook says").All() {
		said = append(said, fmt.Sprint(e.ContextMap()["line"]))
	}
	if strings.Join(said, " ") != "/ said" {
		t.Errorf("logged %q", said)
	}
}

func TestOrderAndFailure(t *testing.T) {
	r, _ := newRunner(t)
	for _, stop := range []bool{true, false} {
		out := filepath.Join(t.TempDir(), "out")
		hooks := []Hook{{"echo 1 >>" + out, hang}, {"echo 2 >>" + out + "; echo broken; exit 3", hang}, {"echo 3 >>" + out, hang}}
		res, err := r.Run(t.Context(), hooks, Event{Hook: OnPromote}, stop)
		if err == nil || !strings.Contains(err.Error(), "exit status 3: broken") {
			t.Errorf("error %v", err)
		}
		want, n := "1\n2\n3\n", 3
		if stop {
			want, n = "1\n2\n", 2
		}
		if got := read(t, out); got != want || len(res) != n || res[1].Output != "broken" || res[1].Err == nil || res[0].Err != nil {
			t.Errorf("stop %t: %q, results %+v", stop, got, res)
		}
	}
}

// TestOneAtATime: many callers, never two hooks.
func TestOneAtATime(t *testing.T) {
	r, _ := newRunner(t)
	dir := t.TempDir()
	lock := filepath.Join(dir, "lock")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			h := Hook{fmt.Sprintf("mkdir %s && sleep 0.02 && rmdir %s", lock, lock), hang}
			if _, err := r.Run(t.Context(), []Hook{h, h}, Event{}, true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func gone(t *testing.T, pidFile string) {
	t.Helper()
	var pid int
	if _, err := fmt.Sscan(read(t, pidFile), &pid); err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); time.Since(begun) < hang; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	t.Errorf("process %d is still there", pid)
}

// TestTimeout: the whole process group ends, by SIGTERM or, if that is ignored,
// by SIGKILL.
func TestTimeout(t *testing.T) {
	r, _ := newRunner(t)
	for name, script := range map[string]string{
		"plain":        "sleep 600 & echo $! >%s; wait",
		"deaf":         "trap '' TERM; sleep 600 & echo $! >%s; while :; do sleep 1; done",
		"child's deaf": "(trap '' TERM; exec sleep 600) & echo $! >%s; sleep 600",
	} {
		t.Run(name, func(t *testing.T) {
			pid := filepath.Join(t.TempDir(), "pid")
			_, err := r.Run(t.Context(), []Hook{{fmt.Sprintf(script, pid), 300 * time.Millisecond}}, Event{}, true)
			if !errors.Is(err, ErrTimeout) {
				t.Errorf("error %v", err)
			}
			gone(t, pid)
		})
	}
}

func TestCancel(t *testing.T) {
	r, _ := newRunner(t)
	pid := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("another role")
	go func() {
		for begun := time.Now(); time.Since(begun) < hang; time.Sleep(5 * time.Millisecond) {
			if b, _ := os.ReadFile(pid); len(b) > 0 {
				break
			}
		}
		cancel(why)
	}()
	res, err := r.Run(ctx, []Hook{{"trap '' TERM; sleep 600 & echo $! >" + pid + "; wait", hang}, {"touch " + pid + ".second", hang}}, Event{}, false)
	if !errors.Is(err, why) || len(res) != 1 {
		t.Errorf("error %v, results %+v", err, res)
	}
	gone(t, pid)
	if _, err := os.Stat(pid + ".second"); err == nil {
		t.Error("the second hook ran")
	}
}

// TestBackground: what a hook starts and leaves is not waited for, nor ended.
func TestBackground(t *testing.T) {
	r, _ := newRunner(t)
	pid := filepath.Join(t.TempDir(), "pid")
	res, err := r.Run(t.Context(), []Hook{{"sleep 600 & echo $! >" + pid, hang}}, Event{}, true)
	if err != nil || res[0].Took > hang/2 {
		t.Errorf("took %v, %v", res[0].Took, err)
	}
	var n int
	if _, err := fmt.Sscan(read(t, pid), &n); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
		t.Errorf("what the hook has started is gone: %v", err)
	}
}

func TestMuchOutput(t *testing.T) {
	r, logs := newRunner(t)
	res, err := r.Run(t.Context(), []Hook{{"head -c 1000000 /dev/zero | tr '\\0' x; yes '' | head -1000; seq 100000; echo the end", hang}}, Event{}, true)
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, e := range logs.FilterMessage("hook says").All() {
		total += len(fmt.Sprint(e.ContextMap()["line"]))
	}
	if total == 0 || total > maxLogged || logs.FilterMessage("hook says more than is logged").Len() != 1 {
		t.Errorf("%d bytes logged", total)
	}
	if !strings.HasSuffix(res[0].Output, "the end") || len(res[0].Output) > maxTail {
		t.Errorf("output of %d bytes", len(res[0].Output))
	}
}
