package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// killLimit bounds the wait for a process that was sent SIGKILL. Only one that
// hangs in the kernel (a FUSE mount whose daemon is stopped) needs longer.
const killLimit = 20 * time.Second

// Command describes a process to start.
type Command struct {
	Name string   // what messages call it
	Path string   // the program
	Args []string // its arguments, without the name
	Env  []string // added to a minimal environment
	Dir  string   // working directory; default /
	User string   // system user to run as; default root
	// Namespace is the network to run in; nil for the host's.
	Namespace *Namespace
	// Isolated gives the process a PID and an IPC namespace: SIGKILL then takes
	// all its descendants and its shared memory with it.
	Isolated bool
}

// build makes the exec.Cmd of a command.
func (c Command) build(ctx context.Context) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Dir = c.Dir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "HOME=/nonexistent"}, c.Env...)
	// Its own process group: a Ctrl-C on the terminal reaches the lab only,
	// which then ends its children in the right order.
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if c.Isolated {
		attr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC
	}
	if c.User != "" {
		uid, gid, err := lookupUser(c.User)
		if err != nil {
			return nil, err
		}
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	cmd.SysProcAttr = attr
	return cmd, nil
}

// lookupUser finds the numeric ids of a system user.
func lookupUser(name string) (uid, gid int, err error) {
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
	return int(id), int(group), nil
}

// Process is a running child that writes its output to a log file.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // what Wait returned; valid once done is closed
}

// StartProcess starts a command whose standard output and error are appended
// to the file log.
func StartProcess(c Command, log string) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", c.Name, err)
	}
	defer func() { _ = out.Close() }() // the child has its own copy
	// Process ends it; no context does.
	cmd, err := c.build(context.Background())
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := onSpawner(c.Namespace, cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	p := &Process{name: c.Name, log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Pid is the process id as the host sees it.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running says whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the process; it is an error when it has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("send %s to %s: %w", sig, p.name, err)
	}
	return nil
}

// Wait waits for the end of the process and returns its exit code, -1 when a
// signal ended it.
func (p *Process) Wait(limit time.Duration) (int, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		return 0, fmt.Errorf("%s (pid %d) has not ended within %s", p.name, p.Pid(), limit)
	}
	var exit *exec.ExitError
	if p.err != nil && !errors.As(p.err, &exit) {
		return 0, fmt.Errorf("wait for %s: %w", p.name, p.err)
	}
	return p.cmd.ProcessState.ExitCode(), nil
}

// Kill sends SIGKILL to the process and its group and waits for its end. A
// process that has ended already is no error.
func (p *Process) Kill() error {
	if p.Running() {
		if err := syscall.Kill(-p.Pid(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill %s: %w", p.name, err)
		}
	}
	_, err := p.Wait(killLimit)
	return err
}

// Log is the path of the file with the output.
func (p *Process) Log() string { return p.log }

// Tail returns the last lines of the output, for a message about a failure.
func (p *Process) Tail(lines int) string { return tailFile(p.log, lines) }

// tailFile returns the last lines of a file.
func tailFile(path string, lines int) string {
	data, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return fmt.Sprintf("(no log: %v)", err)
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Result is how a command that ran to its end did.
type Result struct {
	Code   int // exit code, -1 when a signal ended it
	Stdout string
	Stderr string
}

// Output is everything the command printed.
func (r Result) Output() string { return strings.TrimSpace(r.Stdout + r.Stderr) }

// Run runs a command to its end, however it exits. An error means that it could
// not run or that ctx ended first, which kills it.
func Run(ctx context.Context, c Command) (Result, error) {
	cmd, err := c.build(ctx)
	if err != nil {
		return Result{}, err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killLimit
	if err := onSpawner(c.Namespace, cmd.Start); err != nil {
		return Result{}, fmt.Errorf("start %s: %w", c.Name, err)
	}
	err = cmd.Wait()
	res := Result{Code: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
	if ctx.Err() != nil {
		return res, fmt.Errorf("%s: %w", c.Name, context.Cause(ctx))
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return res, fmt.Errorf("%s: %w", c.Name, err)
	}
	return res, nil
}

// RunOK runs a command that must exit with 0 and returns its standard output.
func RunOK(ctx context.Context, c Command) (string, error) {
	res, err := Run(ctx, c)
	if err != nil {
		return "", err
	}
	if res.Code != 0 {
		return "", fmt.Errorf("%s: exit code %d: %s", c.Name, res.Code, lastLines(res.Output(), 15))
	}
	return res.Stdout, nil
}

// lastLines shortens a text to its last lines.
func lastLines(text string, lines int) string {
	all := strings.Split(text, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
