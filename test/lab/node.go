package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/replfs/replfs/internal/control"
)

const (
	startLimit = 30 * time.Second // from the start of a node to its first status
	stopLimit  = 60 * time.Second // from SIGTERM to the end: a drain and an unmount
	waitLimit  = 60 * time.Second // for a role or a position; a context may end it sooner
)

// node is one replfs daemon and its directories.
type node struct {
	name    string
	dir     string
	process *Process
	// boots counts the restarts of its machine.
	boots int
}

// bootIDEnv is what the daemon takes for the machine's boot id.
const bootIDEnv = "REPLFS_BOOT_ID"

// env is what the node's daemon has in its environment.
func (n *node) env() []string {
	if n.boots == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s=lab-%d", bootIDEnv, n.boots)}
}

// Reboot makes a node that does not run take its next start for one after a
// restart of its machine. What the machine had in memory is not lost by that.
func (c *Cluster) Reboot(name string) error {
	n, err := c.get(name)
	if err != nil {
		return err
	}
	if n.process != nil && n.process.Running() {
		return fmt.Errorf("%s runs", name)
	}
	n.boots++
	return nil
}

// path joins elements to the node's directory.
func (n *node) path(elem ...string) string {
	return filepath.Join(append([]string{n.dir}, elem...)...)
}

// mkdirs makes the node's directories as an administrator would.
func (n *node) mkdirs() error {
	if err := os.MkdirAll(n.path("mount"), 0o755); err != nil {
		return fmt.Errorf("make the mount point of %s: %w", n.name, err)
	}
	for _, dir := range []string{n.path("private", "store"), n.path("state")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the directories of %s: %w", n.name, err)
		}
	}
	return nil
}

// get returns a node of the cluster by its name.
func (c *Cluster) get(name string) (*node, error) {
	n := c.nodes[name]
	if n == nil {
		return nil, fmt.Errorf("no node %s in this cluster", name)
	}
	return n, nil
}

// running returns the process of a node that was started.
func (c *Cluster) running(name string) (*Process, error) {
	n, err := c.get(name)
	if err != nil {
		return nil, err
	}
	if n.process == nil {
		return nil, fmt.Errorf("%s was not started", name)
	}
	return n.process, nil
}

// StartNode starts a node's daemon and waits until it answers. Its role may
// still be "starting".
func (c *Cluster) StartNode(ctx context.Context, name string) error {
	n, err := c.get(name)
	if err != nil {
		return err
	}
	if n.process != nil && n.process.Running() {
		return fmt.Errorf("%s runs already", name)
	}
	n.process, err = StartProcess(Command{
		Name: name, Path: c.opts.Binary, Namespace: c.Namespace(name),
		Args: []string{"mount", "--config", c.Config(), "--node", name}, Env: n.env(),
	}, n.path("replfs.log"))
	if err != nil {
		return err
	}
	c.opts.Logf("started %s, pid %d", name, n.process.Pid())
	return poll(ctx, startLimit, "start "+name, func(ctx context.Context) error {
		_, err := c.Status(ctx, name)
		return err
	})
}

// StopNode sends SIGTERM to a node's daemon and waits for its end, which must
// be orderly: exit code 0 and nothing mounted any more.
func (c *Cluster) StopNode(name string) error {
	p, err := c.running(name)
	if err != nil {
		return err
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	code, err := p.Wait(stopLimit)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("%s ended with exit code %d:\n%s", name, code, p.Tail(15))
	}
	mounts, err := mountsBeneath(c.Mount(name))
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s ended and left its mount behind", name)
	}
	return nil
}

// KillNode sends SIGKILL to a node's daemon. Its mount stays behind, dead, as
// it would after a crash.
func (c *Cluster) KillNode(name string) error {
	p, err := c.running(name)
	if err != nil {
		return err
	}
	c.opts.Logf("kill -9 %s, pid %d", name, p.Pid())
	return p.Kill()
}

// Process is a node's daemon as it was last started, or nil.
func (c *Cluster) Process(name string) *Process { return c.nodes[name].process }

// Tail returns the last lines of a node's log.
func (c *Cluster) Tail(name string, lines int) string {
	return tailFile(c.nodes[name].path("replfs.log"), lines)
}

// Command runs a replfs command with --config and --node of a node, in its
// network, and returns how it ended.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) (Result, error) {
	if _, err := c.get(name); err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	return Run(ctx, Command{
		Name: fmt.Sprintf("replfs %s on %s", args[0], name),
		Path: c.opts.Binary, Namespace: c.Namespace(name),
		Args: append(slices.Clone(args), "--config", c.Config(), "--node", name),
	})
}

// Status asks a node for its status.
func (c *Cluster) Status(ctx context.Context, name string) (*control.Status, error) {
	if p := c.nodes[name]; p != nil && p.process != nil && !p.process.Running() {
		return nil, permanent(fmt.Errorf("%s has ended:\n%s", name, p.process.Tail(15)))
	}
	res, err := c.Command(ctx, name, "status", "--json")
	if err != nil {
		return nil, err
	}
	if res.Code != 0 {
		return nil, fmt.Errorf("status of %s: exit code %d: %s", name, res.Code, res.Output())
	}
	var s control.Status
	if err := json.Unmarshal([]byte(res.Stdout), &s); err != nil {
		return nil, fmt.Errorf("status of %s: %w in %q", name, err, res.Stdout)
	}
	return &s, nil
}

// Promote makes a node primary. A refusal is no error; see Result.Code.
func (c *Cluster) Promote(ctx context.Context, name string, force bool) (Result, error) {
	args := []string{"promote"}
	if force {
		args = append(args, "--force")
	}
	return c.Command(ctx, name, args...)
}

// WaitRole waits until a node has a role, and a primary until it may write.
func (c *Cluster) WaitRole(ctx context.Context, name, role string) error {
	return poll(ctx, waitLimit, fmt.Sprintf("%s as %s", name, role), func(ctx context.Context) error {
		s, err := c.Status(ctx, name)
		if err != nil {
			return err
		}
		if s.Role != role {
			return fmt.Errorf("its role is %s", s.Role)
		}
		if role == "primary" && !s.Writable {
			return errors.New("its mount is not writable")
		}
		return nil
	})
}

// WaitInSync waits until a primary counts on a standby, and the standby knows.
func (c *Cluster) WaitInSync(ctx context.Context, primary, standby string) error {
	what := fmt.Sprintf("%s in sync with %s", standby, primary)
	return poll(ctx, waitLimit, what, func(ctx context.Context) error {
		s, err := c.Status(ctx, primary)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(s.Peers, func(p control.Peer) bool { return p.Name == standby })
		if i < 0 {
			return fmt.Errorf("%s does not list %s", primary, standby)
		}
		if p := s.Peers[i]; !p.InSync {
			return fmt.Errorf("%s sees it as %s %s", primary, p.State, p.Error)
		}
		own, err := c.Status(ctx, standby)
		if err != nil {
			return err
		}
		if !own.InSync {
			return fmt.Errorf("%s does not know that it is in sync", standby)
		}
		// Both remember it from before a restart of the standby.
		i = slices.IndexFunc(own.Peers, func(p control.Peer) bool { return p.Name == primary })
		if i < 0 || own.Peers[i].State != "streaming" {
			return fmt.Errorf("%s has no stream from %s", standby, primary)
		}
		return nil
	})
}

// WaitCaughtUp waits until a standby's store shows everything that the primary
// had logged when the call began.
func (c *Cluster) WaitCaughtUp(ctx context.Context, primary, standby string) error {
	s, err := c.Status(ctx, primary)
	if err != nil {
		return err
	}
	target := s.LSN.Appended
	what := fmt.Sprintf("%s at LSN %d of %s", standby, target, primary)
	return poll(ctx, waitLimit, what, func(ctx context.Context) error {
		s, err := c.Status(ctx, standby)
		if err != nil {
			return err
		}
		if s.LSN.Applied < target {
			return fmt.Errorf("it has applied LSN %d", s.LSN.Applied)
		}
		return nil
	})
}
