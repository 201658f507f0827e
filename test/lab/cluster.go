package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// commandLimit bounds one replfs command.
const commandLimit = 60 * time.Second

// Cluster is a set of replfs nodes on this machine.
type Cluster struct {
	opts    Options
	root    *Root
	network *Network // nil on the loopback interface
	nodes   map[string]*node
	closers []func() error
}

// NewCluster writes the configuration and the certificates of a cluster and
// makes its directories and its network. It starts no node.
func NewCluster(ctx context.Context, opts Options) (_ *Cluster, err error) {
	opts = opts.withDefaults()
	if opts.Binary == "" {
		return nil, errors.New("a cluster needs the path of the replfs binary")
	}
	// Processes start in another directory than this one.
	if opts.Binary, err = filepath.Abs(opts.Binary); err != nil {
		return nil, fmt.Errorf("find the replfs binary: %w", err)
	}
	c := &Cluster{opts: opts, nodes: make(map[string]*node)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if c.root, err = NewRoot(opts.Parent, opts.Prefix); err != nil {
		return nil, err
	}
	if opts.Namespaces {
		if c.network, err = NewNetwork(slices.Concat(opts.Nodes, opts.Clients)...); err != nil {
			return nil, err
		}
	}
	for _, name := range opts.Nodes {
		c.nodes[name] = &node{name: name, dir: c.root.Path(name)}
		if err := c.nodes[name].mkdirs(); err != nil {
			return nil, err
		}
	}
	if err := c.writeConfig(); err != nil {
		return nil, err
	}
	if opts.Namespaces {
		pki := Command{
			Name: "replfs pki all", Path: opts.Binary,
			Args: []string{"pki", "all", "--config", c.Config(), "--dir", c.root.Path("pki")},
		}
		ctx, cancel := context.WithTimeout(ctx, commandLimit)
		defer cancel()
		if _, err := RunOK(ctx, pki); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// ForTest builds a cluster that is closed when the test ends, and shows the
// logs of its nodes when the test has failed.
func ForTest(t testing.TB, opts Options) *Cluster {
	t.Helper()
	NeedFUSE(t)
	if opts.Binary == "" {
		opts.Binary = Binary(t)
	}
	if opts.Logf == nil {
		opts.Logf = t.Logf
	}
	c, err := NewCluster(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range c.opts.Nodes {
				t.Logf("last lines of the log of %s:\n%s", name, c.Tail(name, 40))
			}
		}
		if err := c.Close(); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return c
}

// Names are the nodes, the initial primary first.
func (c *Cluster) Names() []string { return slices.Clone(c.opts.Nodes) }

// Config is the path of the configuration file.
func (c *Cluster) Config() string { return c.root.Path("replfs.yaml") }

// Path joins elements to the cluster's working directory, for what a test wants
// to keep outside the mounts.
func (c *Cluster) Path(elem ...string) string { return c.root.Path(elem...) }

// Mount is where a node mounts its file system.
func (c *Cluster) Mount(name string) string { return c.nodes[name].path("mount") }

// Store is a node's backing directory. It lies where only root can pass, so
// that its own mode, which is the mode of the mount's root, may be wider.
func (c *Cluster) Store(name string) string { return c.nodes[name].path("private", "store") }

// State is a node's own directory.
func (c *Cluster) State(name string) string { return c.nodes[name].path("state") }

// Network is the cluster's network, nil on the loopback interface.
func (c *Cluster) Network() *Network { return c.network }

// Namespace is a node's network namespace, nil on the loopback interface.
func (c *Cluster) Namespace(name string) *Namespace {
	if c.network == nil {
		return nil
	}
	return c.network.Namespace(name)
}

// OnClose has fn called by Close, after the nodes have been killed (what hangs
// in a mount is then free to end) and before the directories are removed.
func (c *Cluster) OnClose(fn func() error) { c.closers = append(c.closers, fn) }

// MakeDir makes a directory for an application beneath a node's mount, and lets
// every user pass through the mount's root to reach it.
func (c *Cluster) MakeDir(name, dir string) (string, error) {
	if err := os.Chmod(c.Mount(name), 0o755); err != nil {
		return "", fmt.Errorf("let users into the mount of %s: %w", name, err)
	}
	path := filepath.Join(c.Mount(name), dir)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", fmt.Errorf("make a directory in the mount of %s: %w", name, err)
	}
	return path, nil
}

// Close kills what still runs, detaches the mounts and removes the directories.
// It may be called more than once.
func (c *Cluster) Close() error {
	var errs []error
	for _, n := range c.nodes {
		if n.process != nil {
			errs = append(errs, n.process.Kill())
		}
	}
	for i := len(c.closers) - 1; i >= 0; i-- {
		errs = append(errs, c.closers[i]())
	}
	c.closers = nil
	if c.network != nil {
		errs = append(errs, c.network.Close())
	}
	if c.root != nil {
		errs = append(errs, c.root.Close())
	}
	return errors.Join(errs...)
}
