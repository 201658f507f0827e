// Package hook runs an administrator's commands at role changes: one at a time,
// in order, each with a time limit that ends everything the command has started.
package hook

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// The occasions.
const (
	OnPromote = "on_promote"
	OnDemote  = "on_demote"
	OnFault   = "on_fault"
	Notice    = "notice"
)

// Hook is a command for /bin/sh.
type Hook struct {
	Command string
	// Timeout is how long it may take. Then its process group gets SIGTERM, and
	// after Grace SIGKILL.
	Timeout time.Duration
}

// Grace is how long a hook that is told to end may take to do so.
const Grace = 5 * time.Second

// Event is what hooks are told, in their environment.
type Event struct {
	Hook    string // the occasion: REPLFS_HOOK
	Cluster string // REPLFS_CLUSTER
	Node    string // REPLFS_NODE
	Role    string // what the node is, or is about to be: REPLFS_ROLE
	Epoch   uint64 // REPLFS_EPOCH
	Peer    string // the other node concerned, if known: REPLFS_PEER
	Reason  string // REPLFS_REASON
	Mount   string // REPLFS_MOUNT
}

// unwanted are the variables that mean the daemon itself.
var unwanted = []string{"NOTIFY_SOCKET=", "WATCHDOG_", "LISTEN_", "REPLFS_"}

func (e Event) env() []string {
	var out []string
	for _, v := range os.Environ() {
		keep := true
		for _, p := range unwanted {
			keep = keep && !strings.HasPrefix(v, p)
		}
		if keep {
			out = append(out, v)
		}
	}
	if os.Getenv("PATH") == "" {
		out = append(out, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	return append(out, "REPLFS_HOOK="+e.Hook, "REPLFS_CLUSTER="+e.Cluster, "REPLFS_NODE="+e.Node, "REPLFS_ROLE="+e.Role,
		"REPLFS_EPOCH="+strconv.FormatUint(e.Epoch, 10), "REPLFS_PEER="+e.Peer, "REPLFS_REASON="+e.Reason, "REPLFS_MOUNT="+e.Mount)
}

// Result is how a hook ended.
type Result struct {
	Command string
	// Err is nil for exit code 0.
	Err  error
	Took time.Duration
	// Output is the last of what it printed.
	Output string
}

// ErrTimeout is that of a hook that took longer than it may.
var ErrTimeout = errors.New("took longer than its limit, and was ended")

// Runner runs hooks, never two at a time. Its methods may be called concurrently;
// who comes later waits.
type Runner struct {
	log *zap.Logger
	// turn holds a token while nobody runs hooks.
	turn chan struct{}
}

// NewRunner makes a Runner.
func NewRunner(log *zap.Logger) *Runner {
	return &Runner{log: log, turn: make(chan struct{}, 1)}
}

// Run runs hooks in order. With stopAtError one that fails is the last; otherwise
// the others run all the same. The error names what failed. When ctx ends, the one
// that runs is killed at once, and no other begins.
func (r *Runner) Run(ctx context.Context, hooks []Hook, ev Event, stopAtError bool) ([]Result, error) {
	if len(hooks) == 0 {
		return nil, nil
	}
	select {
	case r.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-r.turn }()
	var results []Result
	var errs []error
	for _, h := range hooks {
		if ctx.Err() != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
		res := r.run(ctx, h, ev)
		results = append(results, res)
		if res.Err != nil {
			err := fmt.Errorf("%s hook %q: %w", ev.Hook, shorten(h.Command, 80), res.Err)
			if res.Output != "" {
				err = fmt.Errorf("%w: %s", err, lastLine(res.Output))
			}
			errs = append(errs, err)
			if stopAtError {
				break
			}
		}
	}
	return results, errors.Join(errs...)
}

// script gives the command the chance that the kernel kills it before the daemon,
// which systemd protects, when memory runs out.
const script = `echo 0 >/proc/self/oom_score_adj; exec /bin/sh -c "$1"`

func (r *Runner) run(ctx context.Context, h Hook, ev Event) Result {
	log := r.log.With(zap.String("hook", ev.Hook), zap.String("command", shorten(h.Command, 200)))
	begun := time.Now()
	out := &output{log: log}
	cmd := exec.Command("/bin/sh", "-c", script, "sh", h.Command)
	cmd.Dir, cmd.Env = "/", ev.env()
	cmd.Stdout, cmd.Stderr = out, out
	// A session of its own: no terminal, and one process group to end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// What it has left in the background may keep its output open.
	cmd.WaitDelay = time.Second
	log.Info("hook begins", zap.Duration("limit", h.Timeout))
	err := cmd.Start()
	if err == nil {
		err = wait(ctx, cmd, h.Timeout)
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	res := Result{Command: h.Command, Err: err, Took: time.Since(begun), Output: out.end()}
	if err != nil {
		log.Error("hook failed", zap.Error(err), zap.Duration("took", res.Took))
	} else {
		log.Info("hook done", zap.Duration("took", res.Took))
	}
	return res
}

// wait waits for a command, and ends its process group when it may not go on.
func wait(ctx context.Context, cmd *exec.Cmd, limit time.Duration) error {
	pid := cmd.Process.Pid
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		awaitExit(pid)
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var why error
	select {
	case <-ended:
	case <-ctx.Done():
		why = context.Cause(ctx)
	case <-timer.C:
		why = ErrTimeout
		killGroup(pid, unix.SIGTERM)
		grace := time.NewTimer(Grace)
		defer grace.Stop()
		select {
		case <-ended:
		case <-grace.C:
		case <-ctx.Done():
		}
	}
	if why != nil {
		// The leader is not reaped yet, so the group's number is not another's.
		killGroup(pid, unix.SIGKILL)
		<-ended
	}
	err := cmd.Wait()
	if why != nil {
		return why
	}
	return err
}

// awaitExit waits until a child has ended, without reaping it.
func awaitExit(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func killGroup(pid int, sig syscall.Signal) {
	_ = syscall.Kill(-pid, sig) // nobody is left
}

// Bounds of what is kept of a hook's output.
const (
	maxLine   = 2 << 10
	maxLogged = 64 << 10
	maxTail   = 4 << 10
)

// output logs a command's output line by line, up to a bound, and keeps the end.
type output struct {
	log *zap.Logger

	mu     sync.Mutex
	line   []byte
	logged int
	tail   []byte
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tail = append(o.tail, b[max(0, len(b)-maxTail):]...)
	o.tail = o.tail[max(0, len(o.tail)-maxTail):]
	for _, c := range b {
		if c == '\n' || len(o.line) >= maxLine {
			o.flush()
		}
		if c != '\n' {
			o.line = append(o.line, c)
		}
	}
	return len(b), nil
}

func (o *output) flush() {
	if len(o.line) == 0 {
		return
	}
	before := o.logged
	o.logged += len(o.line)
	switch {
	case o.logged <= maxLogged:
		o.log.Info("hook says", zap.String("line", strings.ToValidUTF8(string(o.line), "?")))
	case before <= maxLogged:
		o.log.Warn("hook says more than is logged")
	}
	o.line = o.line[:0]
}

func (o *output) end() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.flush()
	return strings.ToValidUTF8(strings.TrimSpace(string(o.tail)), "?")
}

func lastLine(s string) string { return shorten(s[strings.LastIndexByte(s, '\n')+1:], 200) }

func shorten(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "..."
	}
	return s
}
