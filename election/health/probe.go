package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"syscall"
	"time"
)

// Check is one check of the service; one of Exec, HTTP and TCP is set.
type Check struct {
	// Exec is a command for /bin/sh, which exits with 0.
	Exec string
	// HTTP is a URL that answers GET with 2xx or 3xx; redirects are not followed.
	HTTP string
	// TCP is an address that takes connections.
	TCP string

	Interval time.Duration
	// Timeout is how long a check may take: a longer one is a bad result.
	Timeout    time.Duration
	Rise, Fall int
}

// Name says what is checked.
func (c Check) Name() string {
	switch {
	case c.HTTP != "":
		return "http " + c.HTTP
	case c.TCP != "":
		return "tcp " + c.TCP
	}
	return "exec " + c.Exec
}

// probe makes the check once.
func (c Check) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("no answer within %v", c.Timeout))
	defer cancel()
	var err error
	switch {
	case c.HTTP != "":
		err = probeHTTP(ctx, c.HTTP)
	case c.TCP != "":
		err = probeTCP(ctx, c.TCP)
	default:
		err = probeExec(ctx, c.Exec)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func probeTCP(ctx context.Context, address string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return c.Close()
}

func probeHTTP(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// A connection of its own each time, and no proxy: what is checked is the
	// service here.
	client := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return fmt.Errorf("it answers %s", resp.Status)
	}
	// A service that hangs in the middle of its answer is not well.
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)); err != nil {
		return fmt.Errorf("its answer ends early: %w", err)
	}
	return nil
}

func probeExec(ctx context.Context, command string) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return err
	}
	return nil
}
