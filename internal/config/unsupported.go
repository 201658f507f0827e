package config

import "fmt"

// Unsupported lists the settings, among them defaults, that are valid but that
// this version does not act on, each with its line and what to do. A daemon must
// not start while there are any: whoever wrote them relies on them.
func (c *Config) Unsupported() []error {
	var errs []error
	add := func(path, format string, args ...any) {
		errs = append(errs, c.src.errorf([]string{path}, format, args...))
	}
	const remove = " is not supported by this version: remove it"

	if c.Metrics != "" {
		add("metrics", "metrics"+remove)
	}
	for i, n := range c.Nodes {
		at := fmt.Sprintf("nodes[%d]", i)
		if n.Metrics != "" {
			add(at+".metrics", "metrics of node %q"+remove, n.Name)
		}
		if n.Witness {
			add(at+".witness", "witness node %q is not supported by this version: remove its entry", n.Name)
		}
	}
	if c.Election.Mode == ElectionEtcd {
		if c.src.has("election.mode") {
			add("election.mode", "election.mode etcd is not supported by this version: set `election.mode: manual`")
		} else {
			add("election", "election.mode is not set, which means etcd, and that is not supported by this version: set `election.mode: manual`")
		}
	}
	return errs
}
