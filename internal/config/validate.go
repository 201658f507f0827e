package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"
)

// maxSocketPath is the room for a path in Linux's sockaddr_un, less the final zero.
const maxSocketPath = 107

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// validate checks what the decoder, which sees one value at a time, cannot.
func (c *Config) validate() error {
	c.validateCluster()
	c.validateNodes()
	for i := range c.Nodes {
		c.validateView(i, c.view(i))
	}
	c.validateSharing()
	c.validateReplication()
	c.validateElection()
	c.validateService()
	return c.src.err()
}

func (c *Config) bad(path, format string, args ...any) {
	c.badAt([]string{path}, format, args...)
}

func (c *Config) badAt(paths []string, format string, args ...any) {
	c.src.report(c.src.errorf(paths, format, args...))
}

func (c *Config) validateCluster() {
	switch {
	case c.Cluster == "":
		c.bad("cluster", "cluster is missing: give the cluster a name, such as `cluster: gitlab`")
	case !dnsLabel.MatchString(c.Cluster):
		c.bad("cluster", "cluster %q is not a valid name: use up to 63 of a-z, 0-9 and inner hyphens", c.Cluster)
	}
	if c.InsecureAnyAddress && !c.Insecure {
		c.bad("insecure_any_address", "insecure_any_address does nothing without `insecure: true`: add that or remove this")
	}
}

func (c *Config) validateNodes() {
	if len(c.Nodes) == 0 {
		c.bad("nodes", "nodes is missing: list at least one node with name and address")
		return
	}
	names, addresses := map[string]bool{}, map[string]string{}
	dataNodes := 0
	for i, n := range c.Nodes {
		at := fmt.Sprintf("nodes[%d]", i)
		switch {
		case n.Name == "":
			c.bad(at, "a node has no name: add `name:`, usually its host name")
		case !dnsLabel.MatchString(n.Name):
			c.badAt([]string{at + ".name", at}, "node name %q is not a valid DNS label: use up to 63 of a-z, 0-9 and inner hyphens", n.Name)
		case names[n.Name]:
			c.badAt([]string{at + ".name", at}, "node name %q stands twice: every node needs a name of its own", n.Name)
		}
		names[n.Name] = true

		if n.Address == "" {
			c.bad(at, "node %q has no address: add `address: \"HOST:PORT\"`, where its peers reach it", n.Name)
		} else if host, port, err := splitAddress(n.Address); err != nil {
			c.badAt([]string{at + ".address", at}, "address of node %q: %v", n.Name, err)
		} else {
			key := net.JoinHostPort(host, port)
			if other, taken := addresses[key]; taken {
				c.badAt([]string{at + ".address", at}, "address %s of node %q is also that of node %q: every node needs its own", n.Address, n.Name, other)
			}
			addresses[key] = n.Name
			if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
				c.badAt([]string{at + ".address", at}, "address %s of node %q cannot be reached by its peers: give the node's own address", n.Address, n.Name)
			}
		}
		if n.Priority < 0 {
			c.badAt([]string{at + ".priority", at}, "priority %d of node %q is negative", n.Priority, n.Name)
		}
		if !n.Witness {
			dataNodes++
		}
	}
	if dataNodes == 0 {
		c.bad("nodes", "every node is a witness: at least one must hold data, remove its `witness: true`")
	}
}

// validateView checks node i's settings as they hold after its overrides.
func (c *Config) validateView(i int, v *NodeView) {
	if !v.Witness && v.Mount == "" {
		c.badAt(overridePaths(i, "mount"), "node %q has no mount: set `mount: /path/of/the/data`", v.Name)
	}
	if v.State == "" {
		c.badAt(overridePaths(i, "state"), "state of node %q is empty: name a directory or remove the line", v.Name)
	}
	if v.Control == "" {
		c.badAt(overridePaths(i, "control"), "control of node %q is empty: name a socket or remove the line", v.Name)
	}
	dirs := []struct{ key, path string }{{"mount", v.Mount}, {"store", v.Store}, {"state", v.State}}
	for _, d := range append(dirs, struct{ key, path string }{"control", v.Control}) {
		if d.path != "" && !filepath.IsAbs(d.path) && (d.key != "store" || filepath.IsAbs(v.Mount) || c.storeIsSet(i)) {
			c.badAt(overridePaths(i, d.key), "%s %q of node %q is not absolute: begin it with /", d.key, d.path, v.Name)
		}
	}
	for a, inner := range dirs {
		for b, outer := range dirs {
			if a == b || inner.path == "" || outer.path == "" || !inside(inner.path, outer.path) {
				continue
			}
			if inner.path != outer.path {
				c.badAt(overridePaths(i, inner.key), "%s %s of node %q lies inside its %s %s: put it elsewhere",
					inner.key, inner.path, v.Name, outer.key, outer.path)
			} else if a > b { // once a pair
				c.badAt(overridePaths(i, inner.key), "%s and %s of node %q are both %s: give each its own directory",
					inner.key, outer.key, v.Name, inner.path)
			}
		}
	}
	if len(v.Control) > maxSocketPath {
		c.badAt(overridePaths(i, "control"), "control socket path of node %q is %d bytes long, Linux allows %d: shorten it",
			v.Name, len(v.Control), maxSocketPath)
	}
	for _, d := range dirs[:2] { // mount and store
		if d.path == "" {
			continue
		}
		if inside(v.Control, d.path) {
			c.badAt(overridePaths(i, "control"), "control socket %s of node %q lies inside its %s %s: put it elsewhere, such as /run/replfs/replfs.sock",
				v.Control, v.Name, d.key, d.path)
		}
	}
	if v.Metrics != "" {
		if _, _, err := splitAddress(v.Metrics); err != nil {
			c.badAt(overridePaths(i, "metrics"), "metrics: %v", err)
		}
	}
	c.validateTransport(i, v)
	if v.VIP != nil && !v.Witness && v.VIP.Interface == "" {
		c.badAt([]string{fmt.Sprintf("nodes[%d].vip", i), "vip"}, "vip has no interface for node %q: set vip.interface here or in the node's entry", v.Name)
	}
	if v.VIP == nil && c.Nodes[i].VIP != nil {
		c.bad(fmt.Sprintf("nodes[%d].vip", i), "node %q has vip settings, but the cluster has no vip: set vip at top level", v.Name)
	}
}

func (c *Config) storeIsSet(i int) bool {
	return c.src.has("store") || c.src.has(fmt.Sprintf("nodes[%d].store", i))
}

func (c *Config) validateTransport(i int, v *NodeView) {
	if v.TLS != nil {
		if c.Insecure {
			c.bad("insecure", "insecure: true contradicts tls: remove one of them")
		}
		for _, f := range []struct{ key, path string }{{"ca", v.TLS.CA}, {"cert", v.TLS.Cert}, {"key", v.TLS.Key}} {
			paths := append(overridePaths(i, "tls."+f.key), "tls")
			switch {
			case f.path == "":
				c.badAt([]string{fmt.Sprintf("nodes[%d].tls", i), "tls"}, "tls.%s is missing for node %q: name the file that `replfs pki` made", f.key, v.Name)
			case !filepath.IsAbs(f.path):
				c.badAt(paths, "tls.%s %q of node %q is not absolute: begin it with /", f.key, f.path, v.Name)
			case v.Mount != "" && (inside(clean(f.path), v.Mount) || inside(clean(f.path), v.Store)):
				c.badAt(paths, "tls.%s %s of node %q lies inside its mount or store: replfs needs it before either is there, put it elsewhere", f.key, f.path, v.Name)
			}
		}
		return
	}
	if !c.Insecure {
		c.badAt([]string{fmt.Sprintf("nodes[%d]", i)}, "node %q has no tls: make certificates with `replfs pki` and set `tls: {ca: ..., cert: ..., key: ...}`, or, on one machine, set `insecure: true`", v.Name)
		return
	}
	host, _, err := splitAddress(v.Address)
	if err == nil && !c.InsecureAnyAddress && !isLoopback(host) {
		c.badAt([]string{fmt.Sprintf("nodes[%d].address", i), fmt.Sprintf("nodes[%d]", i)},
			"insecure: true is only for loopback addresses, but node %q has %s: use tls (see `replfs pki`), or set `insecure_any_address: true` if the network is private to the nodes",
			v.Name, v.Address)
	}
}

// validateSharing finds nodes on one machine that would use the same directory.
func (c *Config) validateSharing() {
	hostOf := func(n Node) string {
		host, _, err := splitAddress(n.Address)
		if err != nil {
			return ""
		}
		if isLoopback(host) {
			return "loopback"
		}
		return host
	}
	for i := range c.Nodes {
		for j := range i {
			if h := hostOf(c.Nodes[i]); h == "" || h != hostOf(c.Nodes[j]) || c.Nodes[i].Name == c.Nodes[j].Name {
				continue
			}
			a, b := c.view(i), c.view(j)
			for _, p := range []struct{ key, a, b string }{
				{"mount", a.Mount, b.Mount}, {"store", a.Store, b.Store}, {"state", a.State, b.State}, {"control", a.Control, b.Control},
			} {
				if (p.key == "mount" || p.key == "store") && (a.Witness || b.Witness) {
					continue
				}
				if p.a != "" && p.a == p.b {
					c.badAt(overridePaths(i, p.key), "nodes %q and %q are on one machine and share the %s %s: set `%s:` in their entries in nodes",
						b.Name, a.Name, p.key, p.a, p.key)
				}
			}
		}
	}
}

func (c *Config) validateReplication() {
	r := &c.Replication
	for i, p := range r.Exclude {
		c.checkPattern(fmt.Sprintf("replication.exclude[%d]", i), p)
	}
	for i, rule := range r.Paths {
		at := fmt.Sprintf("replication.paths[%d]", i)
		c.checkPattern(at, rule.Match)
		if rule.Durability == "" {
			c.bad(at, "replication.paths: the rule for %q has no durability: add async, received, fsync or sync", rule.Match)
		}
	}
	c.validateLoss()
	c.mustBePositive("replication.ack_timeout", "replication.ack_timeout", r.AckTimeout)
	c.mustBePositive("replication.drain_timeout", "replication.drain_timeout", r.DrainTimeout)
	for _, p := range []struct {
		key        string
		value, min ByteSize
	}{
		{"replication.max_lag_bytes", r.MaxLagBytes, 1 << 20},
		{"replication.ring", r.Ring, 64 << 10},
	} {
		if p.value < p.min {
			c.bad(p.key, "%s %s is too small: it must be at least %s", p.key, p.value, p.min)
		}
	}
	// A journal that is not larger than what is in memory anyway only costs.
	const key = "replication.journal.max_bytes"
	if smallest := max(minJournal, 2*r.Ring); r.Journal.MaxBytes != 0 && r.Journal.MaxBytes < smallest {
		c.badAt([]string{key, "replication.ring"}, "%s %s is too small: it must be at least twice replication.ring and %s, here %s; 0 switches the journal off",
			key, r.Journal.MaxBytes, minJournal, smallest)
	}
}

// minJournal is the smallest journal that can be had.
const minJournal ByteSize = 16 << 20

// minMaxLag is the least max_lag that can be kept to: that is looked at a few
// dozen times a second.
const minMaxLag = Duration(200 * time.Millisecond)

// validateLoss checks what the primary does when a standby is behind or lost.
func (c *Config) validateLoss() {
	r := &c.Replication
	if r.MaxLag > 0 && r.MaxLag < minMaxLag {
		c.bad("replication.max_lag", "replication.max_lag %s is too short: it must be at least %s, or 0 for no bound", r.MaxLag, minMaxLag)
	}
	if r.OnStandbyLoss != LossBlock {
		return // min_in_sync may stand there for later
	}
	standbys := -1
	for _, n := range c.Nodes {
		if !n.Witness {
			standbys++
		}
	}
	switch {
	case r.MinInSync < 1:
		c.bad("replication.min_in_sync", "replication.min_in_sync %d is too small: with `on_standby_loss: block` it is at least 1", r.MinInSync)
	case r.MinInSync > standbys:
		c.badAt([]string{"replication.min_in_sync", "replication.on_standby_loss"},
			"replication.min_in_sync %d can never be reached: there are %d nodes with data beside the primary, and every fsync would wait forever", r.MinInSync, max(standbys, 0))
	}
}

func (c *Config) checkPattern(at, pattern string) {
	p := strings.TrimSuffix(pattern, "/")
	key := strings.SplitN(at, "[", 2)[0]
	switch {
	case p == "":
		c.bad(at, "%s: an empty pattern would match everything: name what to match", key)
	case strings.HasPrefix(p, "/"):
		c.bad(at, "%s: pattern %q begins with /: patterns are relative to the mount", key, pattern)
	case !doublestar.ValidatePattern(p):
		c.bad(at, "%s: pattern %q is malformed: check its brackets, braces and backslashes", key, pattern)
	default:
		for part := range strings.SplitSeq(p, "/") {
			if part == "" || part == "." || part == ".." {
				c.bad(at, "%s: pattern %q has the part %q, which no path has: remove it", key, pattern, part)
				return
			}
		}
	}
}

func (c *Config) validateElection() {
	e := &c.Election
	c.mustBePositive("election.ttl", "election.ttl", e.TTL)
	for i, ep := range e.Endpoints {
		if err := checkHTTP(ep); err != nil {
			c.bad(fmt.Sprintf("election.endpoints[%d]", i), "election.endpoints: %v", err)
		}
	}
	if e.InitialPrimary == "" {
		return
	}
	for _, n := range c.Nodes {
		if n.Name == e.InitialPrimary {
			if n.Witness {
				c.bad("election.initial_primary", "election.initial_primary %q is a witness, which holds no data: name a data node", e.InitialPrimary)
			}
			return
		}
	}
	c.bad("election.initial_primary", "election.initial_primary %q is not in nodes%s", e.InitialPrimary, didYouMean(e.InitialPrimary, c.nodeNames()))
}

// splitAddress checks a host:port and returns its parts in normal form.
func splitAddress(s string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(s)
	if err != nil {
		return "", "", fmt.Errorf("%q is not HOST:PORT, such as 10.1.1.1:7410 or [fd00::1]:7410", s)
	}
	if host == "" {
		return "", "", fmt.Errorf("%q has no host: want HOST:PORT, such as 10.1.1.1:7410", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", "", fmt.Errorf("%q: port %q is not a number from 1 to 65535", s, port)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().String(), strconv.FormatUint(n, 10), nil
	}
	if !hostName.MatchString(host) {
		return "", "", fmt.Errorf("%q: %q is neither an IP address nor a host name", s, host)
	}
	return strings.ToLower(strings.TrimSuffix(host, ".")), strconv.FormatUint(n, 10), nil
}

// hostName ends in a label that begins with a letter, so that 10.1.1 or 10.1.1.999 is not one.
var hostName = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?\.)*[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9_])?\.?$`)

func isLoopback(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.IsLoopback()
	}
	return host == "localhost"
}

func checkHTTP(s string) error {
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf("%q is not a URL: want one such as http://127.0.0.1/-/health", s)
	}
	return nil
}
