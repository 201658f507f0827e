package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/goccy/go-yaml"

	"github.com/replfs/replfs/internal/control"
)

// startCluster makes a cluster of two nodes on this machine and starts its
// primary, and its standby if it shall replicate.
func startCluster(durability string, standby bool) func(context.Context, string, *site, string) (*running, error) {
	return func(ctx context.Context, binary string, s *site, name string) (*running, error) {
		config := s.path(name + ".yaml")
		names := []string{"primary", "standby"}
		if err := writeConfig(config, s, name, names, durability); err != nil {
			return nil, err
		}
		r := &running{
			dir: s.path(name, names[0], "mount"), store: s.path(name, names[0], "store"),
			control: control.NewClient(controlSocket(s, name, names[0])), replicas: standby,
			signal: syscall.SIGTERM,
		}
		if !standby {
			names = names[:1]
		}
		for _, n := range names {
			c := command{name: binary, args: []string{"mount", "--config", config, "--node", n, "--log-level", "warn", "--log-format", "json"}}
			p, err := c.start(name + "'s " + n)
			if err != nil {
				return nil, errors.Join(err, r.stop())
			}
			r.processes = append(r.processes, p)
		}
		err := poll(ctx, "start "+name, startLimit, func() error {
			if err := r.alive(); err != nil {
				return err
			}
			st, err := r.control.Status(ctx)
			if err != nil {
				return err
			}
			if !st.Writable {
				return errors.New("the primary is not writable yet")
			}
			return nil
		})
		if err == nil {
			err = r.settle(ctx) // in sync
		}
		if err == nil {
			err = os.Chmod(r.dir, 0o755)
		}
		if err != nil {
			return nil, errors.Join(err, r.stop())
		}
		return r, nil
	}
}

func controlSocket(s *site, cluster, node string) string {
	return filepath.Join(s.runtime, cluster+"-"+node+".sock")
}

func writeConfig(path string, s *site, name string, names []string, durability string) error {
	ports, err := freePorts(len(names))
	if err != nil {
		return err
	}
	var nodes []yaml.MapSlice
	for i, n := range names {
		dir := func(d string) string { return s.node(name, n, d) }
		if err := mkdirs(dir("mount"), dir("store"), dir("state")); err != nil {
			return err
		}
		if err := os.Chmod(dir("store"), 0o700); err != nil {
			return fmt.Errorf("close the store: %w", err)
		}
		nodes = append(nodes, yaml.MapSlice{
			{Key: "name", Value: n},
			{Key: "address", Value: fmt.Sprintf("127.0.0.1:%d", ports[i])},
			{Key: "mount", Value: dir("mount")},
			{Key: "store", Value: dir("store")},
			{Key: "state", Value: dir("state")},
			{Key: "control", Value: controlSocket(s, name, n)},
		})
	}
	replication := yaml.MapSlice{{Key: "durability", Value: durability}}
	if s.journal > 0 {
		replication = append(replication, yaml.MapItem{Key: "journal", Value: yaml.MapSlice{{Key: "max_bytes", Value: s.journal}}})
	}
	text, err := yaml.Marshal(yaml.MapSlice{
		{Key: "cluster", Value: "bench-" + name},
		{Key: "insecure", Value: true},
		{Key: "nodes", Value: nodes},
		{Key: "replication", Value: replication},
		{Key: "election", Value: yaml.MapSlice{{Key: "mode", Value: "manual"}, {Key: "initial_primary", Value: names[0]}}},
	})
	if err != nil {
		return fmt.Errorf("render the config: %w", err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return fmt.Errorf("write the config: %w", err)
	}
	return nil
}

// freePorts finds n ports on the loopback interface that nobody listens at.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close() // only when all are chosen, else they could be the same
		addr, ok := l.Addr().(*net.TCPAddr)
		if !ok {
			return nil, fmt.Errorf("find a free port: %s is no TCP address", l.Addr())
		}
		ports = append(ports, addr.Port)
	}
	return ports, nil
}
