package lab

import (
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/goccy/go-yaml"
)

// Options say what cluster to build. The zero value is two nodes, gl-1 and
// gl-2, on the loopback interface without TLS, fsync durability.
type Options struct {
	// Binary is the path of replfs. ForTest finds it by itself.
	Binary string
	// Nodes are the names; the first one is the initial primary.
	Nodes []string
	// Namespaces gives each node a network namespace and mutual TLS.
	Namespaces bool
	// Clients are more machines on the network, with nothing on them.
	Clients []string
	// Durability is async, received, fsync or sync.
	Durability string
	// AckTimeout is how long the primary waits for a standby.
	AckTimeout time.Duration
	// Replication are more keys of the section "replication".
	Replication map[string]any
	// Extra are more keys of the file; they replace what the lab wrote there.
	Extra map[string]any
	// Parent and Prefix place the working directory; see NewRoot.
	Parent, Prefix string
	// Logf, when set, is told what the lab does.
	Logf func(format string, args ...any)
}

// withDefaults fills in what the caller left out.
func (o Options) withDefaults() Options {
	if len(o.Nodes) == 0 {
		o.Nodes = []string{"gl-1", "gl-2"}
	}
	if o.Durability == "" {
		o.Durability = "fsync"
	}
	if o.AckTimeout == 0 {
		o.AckTimeout = 10 * time.Second // a busy disk is no lost standby
	}
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	return o
}

// writeConfig writes the one configuration file of all nodes.
func (c *Cluster) writeConfig() error {
	var nodes []yaml.MapSlice
	for i, name := range c.opts.Nodes {
		address, err := c.address(name)
		if err != nil {
			return err
		}
		n := yaml.MapSlice{
			{Key: "name", Value: name},
			{Key: "address", Value: address},
			{Key: "priority", Value: 100 - i},
			{Key: "mount", Value: c.Mount(name)},
			{Key: "store", Value: c.Store(name)},
			{Key: "state", Value: c.State(name)},
			{Key: "control", Value: c.nodes[name].path("control.sock")},
		}
		if c.opts.Namespaces {
			n = append(n, yaml.MapItem{Key: "tls", Value: yaml.MapSlice{
				{Key: "ca", Value: c.root.Path("pki", "ca.crt")},
				{Key: "cert", Value: c.root.Path("pki", name+".crt")},
				{Key: "key", Value: c.root.Path("pki", name+".key")},
			}})
		}
		nodes = append(nodes, n)
	}
	replication := map[string]any{"durability": c.opts.Durability, "ack_timeout": c.opts.AckTimeout.String()}
	maps.Copy(replication, c.opts.Replication)
	file := map[string]any{
		"cluster":     "lab",
		"nodes":       nodes,
		"replication": replication,
		"election":    map[string]any{"mode": "manual", "initial_primary": c.opts.Nodes[0]},
	}
	if !c.opts.Namespaces {
		file["insecure"] = true
	}
	maps.Copy(file, c.opts.Extra)
	var ordered yaml.MapSlice
	for _, key := range slices.Sorted(maps.Keys(file)) {
		ordered = append(ordered, yaml.MapItem{Key: key, Value: file[key]})
	}
	text, err := yaml.Marshal(ordered)
	if err != nil {
		return fmt.Errorf("render the configuration: %w", err)
	}
	if err := os.WriteFile(c.Config(), text, 0o644); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}

// address chooses a node's address for replication.
func (c *Cluster) address(name string) (string, error) {
	if c.network != nil {
		return net.JoinHostPort(c.network.Namespace(name).Addr(), "7410"), nil
	}
	port, err := freePorts(3)
	if err != nil {
		return "", fmt.Errorf("find a port for %s: %w", name, err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), nil
}

// freePorts finds n loopback ports in a row that nobody listens on, and returns
// the first: an embedded etcd member uses the two that follow the node's own.
func freePorts(n int) (int, error) {
	var last error
	for range 50 {
		first, err := listenFrom(0, n)
		if err == nil && claim(first, n) {
			return first, nil
		}
		last = err
	}
	return 0, fmt.Errorf("no %d free ports in a row: %w", n, last)
}

// claimed are the ports that this process has given out: the kernel may choose
// one again before anybody listens on it.
var claimed = struct {
	sync.Mutex
	ports map[int]bool
}{ports: map[int]bool{}}

// claim takes n ports from first on, unless one of them was given out before.
func claim(first, n int) bool {
	claimed.Lock()
	defer claimed.Unlock()
	for p := first; p < first+n; p++ {
		if claimed.ports[p] {
			return false
		}
	}
	for p := first; p < first+n; p++ {
		claimed.ports[p] = true
	}
	return true
}

// listenFrom listens on n ports in a row for a moment, to see that they are
// free; port 0 lets the kernel choose the first.
func listenFrom(port, n int) (int, error) {
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return 0, fmt.Errorf("listen: %w", err)
	}
	defer func() { _ = ln.Close() }()
	addr, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		return 0, fmt.Errorf("%s is no TCP address", ln.Addr())
	}
	if n > 1 {
		if _, err := listenFrom(addr.Port+1, n-1); err != nil {
			return 0, err
		}
	}
	return addr.Port, nil
}
