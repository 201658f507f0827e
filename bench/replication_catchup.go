package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	// behindWrite is what the primary goes on writing meanwhile, a second.
	behindWrite = 8 << 20
	behindTick  = 10 * time.Millisecond
)

// catchUp stops the standby, writes that much, starts it again, and goes on
// writing until it is in sync. How it catches up is what its config and the
// primary's allow: from the log, from the journal, or by a complete copy.
func (r *replBencher) catchUp(ctx context.Context, round int) error {
	c, err := r.cluster(ctx, "async")
	if err != nil {
		return err
	}
	if err := c.settle(ctx); err != nil {
		return err
	}
	standby := c.processes[1]
	pid := standby.cmd.Process.Pid
	// Stopped, not killed: the standby is away and keeps what it has.
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("stop the standby: %w", err)
	}
	resume := func() error { return syscall.Kill(pid, syscall.SIGCONT) }
	path := filepath.Join(c.dir, fmt.Sprintf("behind-%d", round))
	begun := time.Now()
	written, err := writeBehind(ctx, path, r.opt.Behind)
	err = errors.Join(err, resume())
	if err != nil {
		return fmt.Errorf("leave the standby behind: %w", err)
	}
	r.add("catch-up", "written while it was away", "MB/s", rate(written, time.Since(begun)))
	begun = time.Now()
	most, err := r.whileWriting(ctx, c, path+"-more", pid)
	if err != nil {
		return err
	}
	r.add("catch-up", "behind", "MB", float64(written)/1e6)
	r.add("catch-up", "caught up at", "MB/s", rate(written, time.Since(begun)))
	r.add("catch-up", "memory of the primary", "MB", float64(most[0])/1e6)
	r.add("catch-up", "memory of the standby", "MB", float64(most[1])/1e6)
	for _, p := range []string{path, path + "-more"} {
		if err := os.Remove(p); err != nil {
			return fmt.Errorf("clean up: %w", err)
		}
	}
	return c.settle(ctx)
}

func writeBehind(ctx context.Context, path string, size int64) (int64, error) {
	f, err := fresh(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := incompressible(streamChunk)
	var n int64
	for ; n < size; n += streamChunk {
		if _, err := f.Write(buf); err != nil {
			return n, fmt.Errorf("write: %w", err)
		}
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
	}
	return n, nil
}

// whileWriting goes on writing until the standby has caught up. It returns the
// most memory that primary and standby took.
func (r *replBencher) whileWriting(ctx context.Context, c *running, path string, standby int) (most [2]int64, err error) {
	f, err := fresh(path)
	if err != nil {
		return most, err
	}
	defer f.Close()
	pids := [2]int{c.processes[0].cmd.Process.Pid, standby}
	buf := incompressible(behindWrite / int(time.Second/behindTick))
	tick := time.NewTicker(behindTick)
	defer tick.Stop()
	deadline := time.Now().Add(hangLimit)
	for i := 0; ; i++ {
		if _, err := f.Write(buf); err != nil {
			return most, fmt.Errorf("write: %w", err)
		}
		if i%10 == 0 {
			for k, pid := range pids {
				rss, err := memoryOf(pid)
				if err != nil {
					return most, err
				}
				most[k] = max(most[k], rss)
			}
			st, err := c.control.Status(ctx)
			if err != nil {
				return most, err
			}
			done := len(st.Peers) > 0
			for _, p := range st.Peers {
				done = done && p.InSync && st.LSN.Appended-p.LSN.Applied < 100
			}
			if done && i > 0 {
				return most, nil
			}
		}
		if time.Now().After(deadline) {
			return most, errors.New("the standby does not catch up")
		}
		select {
		case <-ctx.Done():
			return most, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// memoryOf is what a process has of its own in memory: not the pages of files
// that it maps, such as its log.
func memoryOf(pid int) (int64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, fmt.Errorf("read the memory of a daemon: %w", err)
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("RssAnon:")); ok {
			kb, err := strconv.ParseInt(string(bytes.Fields(v)[0]), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the memory of a daemon: %w", err)
			}
			return kb << 10, nil
		}
	}
	return 0, errors.New("read the memory of a daemon: no RssAnon")
}
