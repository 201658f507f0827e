package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// Client talks to the node that listens at a control socket.
type Client struct {
	path string
	http *http.Client
}

// UnsafeError is a refusal that only force overrides.
type UnsafeError struct{ Reason string }

func (e *UnsafeError) Error() string { return e.Reason }

// NewClient makes a client; nothing is contacted yet.
func NewClient(path string) *Client {
	var d net.Dialer
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}}}
}

// Status asks for the node's status.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var st Status
	return &st, c.do(ctx, http.MethodGet, "/v1/status", &st)
}

// Promote makes the node primary; see UnsafeError.
func (c *Client) Promote(ctx context.Context, force bool) (*RoleChange, error) {
	var r RoleChange
	return &r, c.do(ctx, http.MethodPost, fmt.Sprintf("/v1/promote?force=%t", force), &r)
}

// Demote makes the node a standby.
func (c *Client) Demote(ctx context.Context) (*RoleChange, error) {
	var r RoleChange
	return &r, c.do(ctx, http.MethodPost, "/v1/demote", &r)
}

// reloadLimit bounds the wait for a successor: it asks its peers who they are.
const reloadLimit = 60 * time.Second

// Reload has the node replaced by its successor, and returns that one's status
// as soon as it has its role, and how long all of it took.
func (c *Client) Reload(ctx context.Context) (time.Duration, *Status, error) {
	begun := time.Now()
	before, err := c.Status(ctx)
	if err != nil {
		return 0, nil, err
	}
	if err := c.do(ctx, http.MethodPost, "/v1/reload", nil); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		return 0, nil, err
	}
	// The connection ended because the process was replaced.
	for time.Since(begun) < reloadLimit {
		st, err := c.Status(ctx)
		if err == nil && !st.Started.Equal(before.Started) && st.Role != "starting" {
			return time.Since(begun), st, nil
		}
		select {
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return 0, nil, fmt.Errorf("the successor is not ready after %v: see its log", reloadLimit)
}

func (c *Client) do(ctx context.Context, method, path string, out any) error {
	return c.send(ctx, method, path, nil, out)
}

func (c *Client) send(ctx context.Context, method, path string, body io.Reader, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://replfs"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("no replfs runs here (nobody listens at %s): start it with `replfs mount` or systemctl start replfs", c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("control socket %s: permission denied: run as root", c.path)
	case err != nil:
		return fmt.Errorf("ask the node at %s: %w", c.path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
			return fmt.Errorf("read the node's answer: %w", err)
		}
		return nil
	}
	var f failure
	if err := json.NewDecoder(resp.Body).Decode(&f); err != nil {
		return fmt.Errorf("the node answers %s", resp.Status)
	}
	if f.Unsafe {
		return &UnsafeError{f.Error}
	}
	return errors.New(f.Error)
}
