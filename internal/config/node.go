package config

import (
	"fmt"
	"path/filepath"
	"strings"
)

// NodeView is what holds for one node: the top-level settings with the node's
// overrides applied. Paths are clean.
type NodeView struct {
	Cluster  string
	Name     string
	Address  string
	Priority int
	Witness  bool

	Mount   string // empty for a witness without one
	Store   string // empty for a witness without one
	State   string
	Control string
	Metrics string // empty: none
	TLS     *TLS   // nil: insecure
	VIP     *VIP   // nil: none

	// Config is the file this view is of.
	Config *Config
}

// Node returns the effective settings of the named node.
func (c *Config) Node(name string) (*NodeView, error) {
	for i := range c.Nodes {
		if c.Nodes[i].Name == name {
			return c.view(i), nil
		}
	}
	return nil, c.src.errorf([]string{"nodes"}, "no node is named %q: the nodes are %s", name, strings.Join(c.nodeNames(), ", "))
}

// File is the path the config was read from.
func (c *Config) File() string { return c.src.file }

// Peers returns the other data nodes, in the file's order.
func (v *NodeView) Peers() []Node {
	var peers []Node
	for _, n := range v.Config.Nodes {
		if n.Name != v.Name && !n.Witness {
			peers = append(peers, n)
		}
	}
	return peers
}

// HasNode tells whether a node of that name is in the config.
func (c *Config) HasNode(name string) bool {
	for _, n := range c.Nodes {
		if n.Name == name {
			return true
		}
	}
	return false
}

func (c *Config) nodeNames() []string {
	names := make([]string, 0, len(c.Nodes))
	for _, n := range c.Nodes {
		names = append(names, n.Name)
	}
	return names
}

func (c *Config) view(i int) *NodeView {
	n := &c.Nodes[i]
	v := &NodeView{
		Cluster:  c.Cluster,
		Name:     n.Name,
		Address:  n.Address,
		Priority: n.Priority,
		Witness:  n.Witness,
		Mount:    clean(or(n.Mount, c.Mount)),
		Store:    or(n.Store, c.Store),
		State:    clean(or(n.State, c.State)),
		Control:  clean(or(n.Control, c.Control)),
		Metrics:  or(n.Metrics, c.Metrics),
		Config:   c,
	}
	// The default store follows the node's own mount.
	if n.Store == "" && n.Mount != "" && !c.src.has("store") {
		v.Store = storeOf(n.Mount)
	}
	v.Store = clean(v.Store)
	if n.TLS != nil || c.TLS != nil {
		v.TLS = &TLS{}
		for _, t := range []*TLS{c.TLS, n.TLS} {
			if t != nil {
				v.TLS = &TLS{CA: or(t.CA, v.TLS.CA), Cert: or(t.Cert, v.TLS.Cert), Key: or(t.Key, v.TLS.Key)}
			}
		}
	}
	if c.VIP != nil {
		vip := *c.VIP
		if n.VIP != nil {
			vip.Interface = or(n.VIP.Interface, vip.Interface)
		}
		v.VIP = &vip
	}
	return v
}

func storeOf(mount string) string { return clean(mount) + ".store" }

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func clean(p string) string {
	if p == "" {
		return ""
	}
	return filepath.Clean(p)
}

// inside tells whether path is dir or lies below it; both are clean.
func inside(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// overridePaths names where node i's value of key may stand in the file, the
// place that counts first.
func overridePaths(i int, key string) []string {
	return []string{fmt.Sprintf("nodes[%d].%s", i, key), key, fmt.Sprintf("nodes[%d]", i)}
}
