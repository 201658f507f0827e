package config

import (
	"strings"
	"testing"
)

// FuzzParse looks for input that makes Parse panic, or pass a config whose parts
// then do not work.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{full, small, base, "", "nodes: [{}]", "a: &a [*a]", "? x\n: y", "<<: {a: b}", "%YAML 1.2\n---\n", "vip:\n  - |\n", "'", "\x00", "- -\n -"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data, "f.yaml")
		if err != nil {
			if !strings.HasPrefix(err.Error(), "config f.yaml") {
				t.Errorf("error without its file: %v", err)
			}
			return
		}
		_ = c.Unsupported()
		for _, n := range c.Nodes {
			v, err := c.Node(n.Name)
			if err != nil {
				t.Fatal(err)
			}
			if v.State == "" || v.Control == "" || (!v.Witness && (v.Mount == "" || v.Store == "" || inside(v.Store, v.Mount))) {
				t.Errorf("a view that should have been refused: %+v", v)
			}
		}
	})
}
