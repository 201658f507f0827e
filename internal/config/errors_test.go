package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// base is the config that the error tests break, one line a setting.
const base = `cluster: gitlab
mount: /data
store: /data.store
state: /state
control: /run/c.sock
tls: {ca: /p/ca.crt, cert: /p/node.crt, key: /p/node.key}
nodes:
  - name: gl-1
    address: 10.1.1.1:7410
  - name: gl-2
    address: 10.1.1.2:7410
replication:
  durability: fsync
election:
  mode: manual
  initial_primary: gl-1
`

func TestErrors(t *testing.T) {
	const end = "  initial_primary: gl-1\n"
	for _, p := range []struct {
		name, old, new string
		line           int
		want           string
	}{
		{"unknown top-level key", "store:", "stor:", 3, `unknown key "stor" (did you mean "store"?)`},
		{"unknown nested key", "durability:", "durabilty:", 13, `unknown key "durabilty" (did you mean "durability"?)`},
		{"unknown node key", "    address: 10.1.1.2", "    port: 3\n    address: 10.1.1.2", 11, `unknown key "port"`},
		{"key that is like no other", "store:", "wombat:", 3, `unknown key "wombat"`},
		{"key twice", "state: /state", "state: /state\nstate: /other", 5, `"state"`},
		{"key that is a number", "store: /data.store", "3: /data.store", 3, `"3" cannot be a key here: want one of cluster, mount, store`},
		{"not YAML", "store: /data.store", "store: [", 0, ""},
		{"second document", "cluster:", "cluster: a\n---\ncluster:", 3, "a second document begins here"},
		{"anchor", "store: /data.store", "store: &s /data.store", 3, "store: YAML anchors, aliases and tags are not supported"},
		{"no value", "state: /state", "state:", 4, "state: has no value: give it one or remove the line"},
		{"empty state", "state: /state", `state: ""`, 4, `state of node "gl-1" is empty`},
		{"empty control", "control: /run/c.sock", `control: ""`, 5, `control of node "gl-1" is empty`},
		{"bool for text", "cluster: gitlab", "cluster: true", 1, "cluster: want text, not true or false"},
		{"list for text", "cluster: gitlab", "cluster: [a]", 1, "cluster: want text here, not a list"},
		{"text for a list", "replication:\n", "replication:\n  exclude: tmp/\n", 13, "replication.exclude: want a list"},
		{"empty list entry", "replication:\n", "replication:\n  exclude:\n    - a\n    -\n", 15, "replication.exclude: entry 2 of the list is empty"},
		{"text for a mapping", "  durability: fsync", "  journal: 8GiB", 13, "replication.journal: want `key: value` pairs here, not a single value"},
		{"list for a mapping", "  durability: fsync", "  journal: [8GiB]", 13, "replication.journal: want `key: value` pairs here, not a list"},
		{"bad bool", "cluster:", "insecure: yes\ncluster:", 1, "insecure: want true or false"},
		{"bad number", "    address: 10.1.1.2", "    priority: high\n    address: 10.1.1.2", 11, `nodes[1].priority: "high" is not a whole number`},
		{"negative priority", "    address: 10.1.1.2", "    priority: -1\n    address: 10.1.1.2", 11, `priority -1 of node "gl-2" is negative`},

		{"no cluster", "cluster: gitlab\n", "", 0, "cluster is missing"},
		{"bad cluster", "cluster: gitlab", "cluster: Git_Lab", 1, `cluster "Git_Lab" is not a valid name`},
		{"no nodes", "", "cluster: c\nmount: /m\n", 0, "nodes is missing"},
		{"node without name", "  - name: gl-2\n    address", "  - address", 10, "a node has no name"},
		{"node without address", "\n    address: 10.1.1.2:7410", "", 10, `node "gl-2" has no address`},
		{"bad node name", "name: gl-2", "name: gl.2", 10, `node name "gl.2" is not a valid DNS label`},
		{"long node name", "name: gl-2", "name: " + strings.Repeat("x", 64), 10, "is not a valid DNS label"},
		{"same node name", "name: gl-2", "name: gl-1", 10, `node name "gl-1" stands twice`},
		{"same address", "10.1.1.2:7410", "10.1.1.1:07410", 11, `is also that of node "gl-1"`},
		{"same address, mapped", "10.1.1.2:7410", `"[::ffff:10.1.1.1]:7410"`, 11, `is also that of node "gl-1"`},
		{"address without port", "10.1.1.2:7410", "10.1.1.2", 11, `address of node "gl-2": "10.1.1.2" is not HOST:PORT`},
		{"address without host", "10.1.1.2:7410", `":7410"`, 11, "has no host"},
		{"bad port", "10.1.1.2:7410", "10.1.1.2:70000", 11, `port "70000" is not a number from 1 to 65535`},
		{"port 0", "10.1.1.2:7410", "10.1.1.2:0", 11, `port "0" is not a number`},
		{"bad host", "10.1.1.2:7410", "10.1.1.256:7410", 11, `"10.1.1.256" is neither an IP address nor a host name`},
		{"unspecified address", "10.1.1.2:7410", "0.0.0.0:7410", 11, "cannot be reached by its peers"},
		{"only witnesses", "name: gl-1\n    address: 10.1.1.1:7410\n  - name: gl-2\n    address: 10.1.1.2:7410", "name: gl-1\n    address: 10.1.1.1:7410\n    witness: true", 7, "every node is a witness"},

		{"no mount", "mount: /data\n", "", 7, `node "gl-1" has no mount`},
		{"relative mount", "mount: /data", "mount: data", 2, `mount "data" of node "gl-1" is not absolute`},
		{"relative store", "store: /data.store", "store: s", 3, `store "s" of node "gl-1" is not absolute`},
		{"relative state", "state: /state", "state: s", 4, `state "s" of node "gl-1" is not absolute`},
		{"relative control", "control: /run/c.sock", "control: c.sock", 5, `control "c.sock" of node "gl-1" is not absolute`},
		{"state in store", "state: /state", "state: /data.store/state", 4, `state /data.store/state of node "gl-1" lies inside its store /data.store`},
		{"state in mount", "state: /state", "state: /x/../data/s", 4, `state /data/s of node "gl-1" lies inside its mount /data`},
		{"store in mount", "store: /data.store", "store: /data/store", 3, `store /data/store of node "gl-1" lies inside its mount /data`},
		{"mount in store", "mount: /data", "mount: /data.store/m", 2, `mount /data.store/m of node "gl-1" lies inside its store`},
		{"store is mount", "store: /data.store", "store: /data/", 3, `store and mount of node "gl-1" are both /data`},
		{"mount in state", "mount: /data", "mount: /state/m", 2, `lies inside its state /state`},
		{"root as mount", "mount: /data", "mount: /", 3, `store /data.store of node "gl-1" lies inside its mount /`},
		{"node's state in store", "    address: 10.1.1.2", "    state: /data.store/s\n    address: 10.1.1.2", 11, `state /data.store/s of node "gl-2" lies inside its store`},
		{"node's mount relative", "    address: 10.1.1.2", "    mount: m\n    address: 10.1.1.2", 11, `mount "m" of node "gl-2" is not absolute`},
		{"long control", "/run/c.sock", "/run/" + strings.Repeat("x", 103), 5, "is 108 bytes long, Linux allows 107"},
		{"control in mount", "/run/c.sock", "/data/c.sock", 5, "lies inside its mount /data"},
		{"control in store", "/run/c.sock", "/data.store/c.sock", 5, "lies inside its store /data.store"},
		{"shared machine", "10.1.1.2:7410", "10.1.1.1:7411", 2, `nodes "gl-1" and "gl-2" are on one machine and share the mount /data`},

		{"no tls", "tls: {ca: /p/ca.crt, cert: /p/node.crt, key: /p/node.key}\n", "", 7, `node "gl-1" has no tls`},
		{"empty tls", "tls: {ca: /p/ca.crt, cert: /p/node.crt, key: /p/node.key}\n", "tls:\n", 8, `node "gl-1" has no tls`},
		{"tls without key", ", key: /p/node.key", "", 6, `tls.key is missing for node "gl-1"`},
		{"relative tls", "key: /p/node.key", "key: node.key", 6, `tls.key "node.key" of node "gl-1" is not absolute`},
		{"tls in mount", "key: /p/node.key", "key: /data/node.key", 6, "lies inside its mount or store"},
		{"tls and insecure", "cluster:", "insecure: true\ncluster:", 1, "insecure: true contradicts tls"},
		{"insecure, not loopback", "tls: {ca: /p/ca.crt, cert: /p/node.crt, key: /p/node.key}", "insecure: true", 9, `only for loopback addresses, but node "gl-1" has 10.1.1.1:7410`},
		{"force without insecure", "cluster:", "insecure_any_address: true\ncluster:", 1, "does nothing without `insecure: true`"},

		{"bad durability", "durability: fsync", "durability: fsnyc", 13, `replication.durability: unknown value "fsnyc": want async, received, fsync or sync (did you mean "fsync"?)`},
		{"bad standby loss", "durability: fsync", "on_standby_loss: panic", 13, "want degrade or block"},
		{"bad compression", "durability: fsync", "compression: gzip", 13, "want none or zstd"},
		{"bad duration", "durability: fsync", "ack_timeout: soon", 13, `replication.ack_timeout: "soon" is not a duration`},
		{"duration without unit", "durability: fsync", "ack_timeout: 3", 13, `"3" has no unit: want a duration such as 3s`},
		{"negative duration", "durability: fsync", "ack_timeout: -3s", 13, "less than nothing"},
		{"zero ack_timeout", "durability: fsync", "ack_timeout: 0s", 13, "replication.ack_timeout must be more than 0"},
		{"zero drain_timeout", "durability: fsync", "drain_timeout: 0s", 13, "replication.drain_timeout must be more than 0"},
		{"bad size", "durability: fsync", "ring: much", 13, `replication.ring: "much" has the unknown unit`},
		{"size with half a unit", "durability: fsync", "ring: 64M", 13, `"64M" has the unknown unit "M": want a number of bytes such as 64MiB`},
		{"small ring", "durability: fsync", "ring: 1KiB", 13, "replication.ring 1KiB is too small: it must be at least 64KiB"},
		{"no standby to wait for", "durability: fsync", "on_standby_loss: block\n  min_in_sync: 2", 14, "replication.min_in_sync 2 can never be reached: there are 1 nodes with data beside the primary"},
		{"none to wait for", "durability: fsync", "on_standby_loss: block\n  min_in_sync: 0", 14, "replication.min_in_sync 0 is too small"},
		{"short max_lag", "durability: fsync", "max_lag: 10ms", 13, "replication.max_lag 10ms is too short: it must be at least 200ms"},
		{"zero lag", "durability: fsync", "max_lag_bytes: 0", 13, "replication.max_lag_bytes 0B is too small"},
		{"small journal", "durability: fsync", "journal: {max_bytes: 127MiB}", 13, "replication.journal.max_bytes 127MiB is too small: it must be at least twice replication.ring and 16MiB, here 128MiB"},
		{"ring larger than the journal", "durability: fsync", "ring: 5GiB", 13, "replication.journal.max_bytes 8GiB is too small"},
		{"bad exclude", "durability: fsync", "exclude:\n    - ok\n    - \"a[\"", 15, `replication.exclude: pattern "a[" is malformed`},
		{"rooted exclude", "durability: fsync", "exclude: [/tmp/]", 13, `pattern "/tmp/" begins with /`},
		{"empty exclude", "durability: fsync", "exclude: [/]", 13, "an empty pattern would match everything"},
		{"upward exclude", "durability: fsync", "exclude: [a/../b]", 13, `has the part ".."`},
		{"bad path rule", "durability: fsync", "paths: [{match: \"{a\", durability: async}]", 13, `replication.paths: pattern "{a" is malformed`},
		{"path rule without durability", "durability: fsync", "paths: [{match: a}]", 13, `the rule for "a" has no durability`},

		{"bad mode", "mode: manual", "mode: auto", 15, "election.mode: unknown value \"auto\": want etcd or manual"},
		{"bad ttl", "mode: manual", "ttl: 0s", 15, "election.ttl must be more than 0"},
		{"bad endpoint", "mode: manual", "endpoints: [etcd]", 15, `election.endpoints: "etcd" is not a URL`},
		{"initial primary unknown", end, "  initial_primary: gl-3\n", 16, `election.initial_primary "gl-3" is not in nodes (did you mean "gl-1"?)`},
		{"initial primary a witness", "    address: 10.1.1.1:7410", "    address: 10.1.1.1:7410\n    witness: true", 17, `election.initial_primary "gl-1" is a witness`},

		{"bad metrics", end, end + "metrics: x\n", 17, `metrics: "x" is not HOST:PORT`},
		{"vip without address", end, end + "vip: {interface: e}\n", 17, "vip has no address"},
		{"vip without prefix", end, end + "vip: {interface: e, address: 10.1.1.1}\n", 17, "is not an address with prefix length"},
		{"vip without interface", end, end + "vip: {address: 10.1.1.1/24}\n", 17, `vip has no interface for node "gl-1"`},
		{"vip network", end, end + "vip: {interface: e, address: 10.1.1.0/24}\n", 17, "is a network, not an address in it"},
		{"vip multicast", end, end + "vip: {interface: e, address: 224.0.0.9/24}\n", 17, "cannot be a virtual address"},
		{"vip twice", end, end + "vip:\n  interface: e\n  address: 10.1.1.1/24\n  addresses: [\"fd00::1/64\", 10.1.1.1/32]\n", 20, "vip.addresses 10.1.1.1 stands twice"},
		{"vip scope", end, end + "vip: {interface: e, address: 10.1.1.1/24, scope: wide}\n", 17, `vip.scope "wide" is unknown`},
		{"vip label", end, end + "vip: {interface: e, address: 10.1.1.1/24, label: much-too-long-a-label}\n", 17, "may have 15 characters"},
		{"vip lifetime", end, end + "vip: {interface: e, address: 10.1.1.1/24, lifetime: 1s}\n", 17, "it must be at least 2s"},
		{"vip duplicate", end, end + "vip: {interface: e, address: 10.1.1.1/24, on_duplicate: fight}\n", 17, "want wait or force"},
		{"ready timeout", end, end + "  ready_timeout: 0s\n", 17, "election.ready_timeout must be more than 0"},
		{"webhook secret", end, end + "notify: {webhook: [{url: \"http://x\", secret_file: s}]}\n", 17, `secret_file "s" is not absolute`},
		{"smtp user without password", end, end + "notify: {smtp: {server: \"m:25\", from: a, to: [b], username: u}}\n", 17, "both username and password_file"},
		{"smtp ca", end, end + "notify: {smtp: {server: \"m:25\", from: a, to: [b], ca: x}}\n", 17, `notify.smtp.ca "x" is not absolute`},
		{"vip when", end, end + "vip: {when: never}\n", 17, "want ready or early"},
		{"node vip without vip", "    address: 10.1.1.2", "    vip: {interface: e}\n    address: 10.1.1.2", 11, "the cluster has no vip"},
		{"health with two kinds", end, end + "health:\n  - {tcp: \"a:1\", exec: x}\n", 18, "exactly one of exec, http and tcp, this one has 2"},
		{"health with no kind", end, end + "health: [{rise: 1}]\n", 17, "this one has 0"},
		{"health http", end, end + "health: [{http: \"ftp://x\"}]\n", 17, `"ftp://x" is not a URL`},
		{"health tcp", end, end + "health: [{tcp: x}]\n", 17, `"x" is not HOST:PORT`},
		{"health rise", end, end + "health: [{tcp: \"a:1\", rise: 0}]\n", 17, "rise must be at least 1"},
		{"health fall", end, end + "health: [{tcp: \"a:1\", fall: 0}]\n", 17, "fall must be at least 1"},
		{"health interval", end, end + "health: [{tcp: \"a:1\", interval: 0s}]\n", 17, "health: interval must be more than 0"},
		{"health timeout", end, end + "health: [{tcp: \"a:1\", timeout: 0s}]\n", 17, "health: timeout must be more than 0"},
		{"empty hook", end, end + "hooks:\n  on_demote: [{timeout: 3s}]\n", 18, "hooks.on_demote: a hook has no command"},
		{"hook timeout", end, end + "hooks:\n  on_fault: [{exec: x, timeout: 0s}]\n", 18, "hooks.on_fault: timeout must be more than 0"},
		{"webhook", end, end + "notify: {webhook: [x]}\n", 17, `notify.webhook: "x" is not a URL`},
		{"webhook timeout", end, end + "notify: {webhook: [{url: \"http://x\", timeout: 0s}]}\n", 17, "notify.webhook: timeout must be more than 0"},
		{"smtp server", end, end + "notify: {smtp: {from: a, to: [b]}}\n", 17, "notify.smtp.server:"},
		{"smtp addresses", end, end + "notify: {smtp: {server: \"m:25\"}}\n", 17, "notify.smtp needs from and to"},
		{"smtp password", end, end + "notify: {smtp: {server: \"m:25\", from: a, to: [b], password_file: p}}\n", 17, "is not absolute"},
	} {
		t.Run(p.name, func(t *testing.T) {
			text := p.new
			if p.old != "" {
				if !strings.Contains(base, p.old) {
					t.Fatalf("base has no %q", p.old)
				}
				text = strings.Replace(base, p.old, p.new, 1)
			}
			_, err := Parse([]byte(text), "f.yaml")
			if err == nil {
				t.Fatal("no error")
			}
			where := fmt.Sprintf("config f.yaml:%d: ", p.line)
			if p.line == 0 {
				where = "config f.yaml"
			}
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if strings.HasPrefix(line, where) && strings.Contains(line, p.want) {
					return
				}
			}
			t.Errorf("got:\n%v\nwant: %s%s", err, where, p.want)
		})
	}
}

func TestBaseIsValid(t *testing.T) {
	c := mustParse(t, base)
	if errs := c.Unsupported(); len(errs) > 0 {
		t.Errorf("unsupported: %v", errs)
	}
}

func TestAllErrorsAtOnceInOrder(t *testing.T) {
	text := strings.NewReplacer("cluster: gitlab", "cluster: G", "10.1.1.1:7410", "x", "mount: /data", "mount: data").Replace(base)
	_, err := Parse([]byte(text), "f.yaml")
	var lines []string
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			lines = append(lines, strings.Join(strings.Split(line, ":")[:2], ":"))
		}
	}
	// The mount is wrong for two nodes.
	want := "config f.yaml:1 config f.yaml:2 config f.yaml:2 config f.yaml:9"
	if got := strings.Join(lines, " "); got != want {
		t.Errorf("got:\n%v\nwant lines %s", err, want)
	}
	var ce *Error
	if !errors.As(err, &ce) || ce.Line != 1 || ce.File != "f.yaml" {
		t.Errorf("errors.As gave %+v", ce)
	}
}

func TestEmptyAndHuge(t *testing.T) {
	for _, text := range []string{"", "# only a comment\n", "---\n", "null"} {
		if _, err := Parse([]byte(text), "f"); err == nil || !strings.Contains(err.Error(), "config f: is empty: write a config with `replfs init`") {
			t.Errorf("%q: got %v", text, err)
		}
	}
	if _, err := Parse([]byte(strings.Repeat("#", maxConfigBytes+1)), "f"); err == nil || !strings.Contains(err.Error(), "larger than 64KiB") {
		t.Errorf("huge: got %v", err)
	}
}

func TestInsecure(t *testing.T) {
	mustParse(t, small)
	remote := strings.Replace(small, "127.0.0.1:1", "10.0.0.1:1", 1)
	if _, err := Parse([]byte(remote), "f"); err == nil {
		t.Error("insecure was taken for an address that is not loopback")
	}
	mustParse(t, remote+"insecure_any_address: true\n")
	for _, addr := range []string{"localhost:1", "[::1]:1"} {
		mustParse(t, strings.Replace(small, "127.0.0.1:1", addr, 1))
	}
}

func TestUnsupported(t *testing.T) {
	c := mustParse(t, full)
	var got []string
	for _, err := range c.Unsupported() {
		got = append(got, err.Error())
	}
	want := []string{
		"config f.yaml:19: metrics is not supported by this version: remove it",
		`config f.yaml:14: metrics of node "gl-2" is not supported by this version: remove it`,
		`config f.yaml:17: witness node "gl-w" is not supported by this version: remove its entry`,
		"config f.yaml:33: election.mode etcd is not supported by this version: set `election.mode: manual`",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	for text, want := range map[string]string{
		small + "replication: {durability: sync, paths: [{match: \"**\", durability: received}], max_lag: 5s, max_lag_bytes: 1MiB}\n": "",
		strings.Replace(small, "{mode: manual}", "{ttl: 3s}", 1):                                                                      "config f.yaml:6: election.mode is not set, which means etcd",
		strings.Replace(small, "election: {mode: manual}\n", "", 1):                                                                   "config f.yaml: election.mode is not set, which means etcd",
		small + "replication: {durability: async}\n":                                                                                  "",
		small + "health: []\nhooks: {}\nnotify: {smtp: {}}\n":                                                                         "",
		small + "replication: {paths: [], compression: none}\nvip:\n":                                                                 "",
	} {
		errs := mustParse(t, text).Unsupported()
		if want == "" {
			if len(errs) != 0 {
				t.Errorf("%s\ngot %v, want none", text, errs)
			}
		} else if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), want) {
			t.Errorf("%s\ngot %v, want %s", text, errs, want)
		}
	}
}
