package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// stopLimit is how long a process may take to end when it is asked to: a
	// daemon drains and unmounts.
	stopLimit = 60 * time.Second
	// killLimit is how long one may take that was killed.
	killLimit = 20 * time.Second
)

// command is a program to run.
type command struct {
	name string
	args []string
	user string // root if empty
	env  []string
	// isolated gives it PID and IPC namespaces: a kill then takes all its
	// descendants and its shared memory with it.
	isolated bool
}

// build makes the command. Children are in a process group of their own, so
// that Ctrl-C reaches this process only, which then ends them in the right
// order, and die with it.
func (c command) build(ctx context.Context) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, c.name, c.args...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "HOME=/nonexistent"}, c.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killLimit
	if c.isolated {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC
	}
	if c.user != "" {
		uid, gid, err := lookupUser(c.user)
		if err != nil {
			return nil, err
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	}
	return cmd, nil
}

func lookupUser(name string) (uid, gid uint32, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, fmt.Errorf("look up user %s: %w", name, err)
	}
	id, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, 0, fmt.Errorf("uid of %s: %w", name, err)
	}
	group, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return 0, 0, fmt.Errorf("gid of %s: %w", name, err)
	}
	return uint32(id), uint32(group), nil
}

// run runs a program to its end and returns its output; ctx kills it.
func (c command) run(ctx context.Context) (string, error) {
	cmd, err := c.build(ctx)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", c.name, strings.Join(c.args, " "), err, lastLines(string(out), 5))
	}
	return string(out), nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// process is a child that runs in the background.
type process struct {
	name string
	cmd  *exec.Cmd
	out  bytes.Buffer // to be read when done is closed
	done chan struct{}
}

// start runs a program until it is stopped.
func (c command) start(name string) (*process, error) {
	cmd, err := c.build(context.Background())
	if err != nil {
		return nil, err
	}
	p := &process{name: name, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		// How it ended is in ProcessState.
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// ended says how a process ended that should not have.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended (%s): %s", p.name, p.cmd.ProcessState, lastLines(p.out.String(), 5))
	default:
		return nil
	}
}

// stop asks the process to end with sig, and kills it if it does not.
func (p *process) stop(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopLimit):
		p.kill()
		return fmt.Errorf("%s did not end within %s and was killed", p.name, stopLimit)
	}
}

// kill ends the process and its group at once.
func (p *process) kill() {
	select {
	case <-p.done:
		return
	default:
	}
	// It may have ended just now.
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	select {
	case <-p.done:
	case <-time.After(killLimit):
	}
}

// poll calls f until it succeeds.
func poll(ctx context.Context, what string, limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return nil
		}
		var gone *goneError
		if errors.As(err, &gone) {
			return fmt.Errorf("%s: %w", what, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %s: %w", what, limit, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// goneError ends a poll: what is waited for cannot come true any more.
type goneError struct{ error }
