package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/replfs/replfs/internal/config"
)

// quietTool is a program that accepts any arguments, in place of replfs: these
// tests are about what the lab writes.
const quietTool = "/bin/true"

func TestClusterConfig(t *testing.T) {
	NeedRoot(t)
	for name, opts := range map[string]Options{
		"loopback": {},
		"namespaces": {
			Namespaces: true, Durability: "sync", AckTimeout: 7 * time.Second,
			Replication: map[string]any{"on_standby_loss": "block", "journal": map[string]any{"max_bytes": "1GiB"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			opts.Binary = quietTool
			c, err := NewCluster(t.Context(), opts)
			must(t, err)
			defer func() {
				must(t, c.Close())
				must(t, c.Close()) // more than once
				if _, err := os.Stat(c.Path()); !os.IsNotExist(err) {
					t.Errorf("%s is still there", c.Path())
				}
			}()
			cfg, err := config.Load(c.Config())
			must(t, err)
			if got := len(cfg.Nodes); got != 2 {
				t.Fatalf("%d nodes, want 2", got)
			}
			if cfg.Election.InitialPrimary != "gl-1" || cfg.Insecure == opts.Namespaces {
				t.Errorf("initial primary %q, insecure %v", cfg.Election.InitialPrimary, cfg.Insecure)
			}
			if opts.Namespaces {
				if cfg.Replication.Durability != "sync" || cfg.Replication.OnStandbyLoss != "block" {
					t.Errorf("the options are not in the file: %+v", cfg.Replication)
				}
				if want := c.Namespace("gl-2").Addr() + ":7410"; cfg.Nodes[1].Address != want {
					t.Errorf("address %s, want %s", cfg.Nodes[1].Address, want)
				}
			}
		})
	}
}

// TestNewClusterCleansUpAfterItself fails late and looks for what is left.
func TestNewClusterCleansUpAfterItself(t *testing.T) {
	NeedRoot(t)
	parent := t.TempDir()
	_, err := NewCluster(t.Context(), Options{Binary: "/bin/false", Namespaces: true, Parent: parent})
	if err == nil || !strings.Contains(err.Error(), "replfs pki all") {
		t.Errorf("the error is %v, want one about replfs pki", err)
	}
	left, err := filepath.Glob(filepath.Join(parent, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestNodeThatFailsToStart expects the reason from the log, not a time-out.
func TestNodeThatFailsToStart(t *testing.T) {
	NeedRoot(t)
	script := filepath.Join(t.TempDir(), "replfs")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\necho the store is missing >&2\nexit 1\n"), 0o755))
	c, err := NewCluster(t.Context(), Options{Binary: script})
	must(t, err)
	defer func() { must(t, c.Close()) }()
	start := time.Now()
	err = c.StartNode(t.Context(), "gl-1")
	if err == nil || !strings.Contains(err.Error(), "the store is missing") {
		t.Errorf("the error is %v, want the node's own words", err)
	}
	if took := time.Since(start); took > startLimit/2 {
		t.Errorf("it took %s to notice", took)
	}
	if err := c.StopNode("gl-2"); err == nil {
		t.Error("a node that was never started could be stopped")
	}
}
