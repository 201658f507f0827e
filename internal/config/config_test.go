package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// full has every setting of the format, some of them twice.
const full = `cluster: gitlab
mount: /var/opt/gitlab
store: /srv/gitlab.store
state: /var/lib/replfs-state
nodes:
  - {name: gl-1, address: "10.1.1.1:7410", priority: 100}
  - name: gl-2
    address: "10.1.1.2:7410"
    priority: 90
    mount: /data
    store: /data.backing/
    state: /state2
    control: /run/2.sock
    metrics: "127.0.0.1:7412"
    tls: {cert: /etc/two.crt, key: /etc/two.key}
    vip: {interface: ens3}
  - {name: gl-w, address: "10.1.1.3:7410", witness: true}
control: /run/r.sock
metrics: "127.0.0.1:7411"
tls: {ca: /etc/ca.crt, cert: /etc/node.crt, key: /etc/node.key}
replication:
  durability: sync
  paths: [{match: "gitlab-rails/shared/artifacts/**", durability: async}]
  exclude: ["lost+found/", "**/*.tmp"]
  on_standby_loss: block
  ack_timeout: 4s
  max_lag_bytes: 2GiB
  ring: 32MiB
  drain_timeout: 1m
  journal: {max_bytes: 9GB}
  compression: zstd
election:
  mode: etcd
  endpoints: ["https://etcd:2379"]
  ttl: 5s
  initial_primary: gl-1
vip: {address: 10.1.1.10/24, interface: eth0, when: early}
health:
  - {http: "http://127.0.0.1/-/health", interval: 3s, timeout: 4s, fall: 5, rise: 6}
  - {tcp: "127.0.0.1:80"}
hooks:
  on_promote: [gitlab-ctl start, {exec: "true", timeout: 5s}]
  on_demote: ["gitlab-ctl stop"]
  on_fault:
    - |
      echo one
      echo two
notify:
  webhook: ["https://chat/hook"]
  exec: [notify-me]
  smtp: {server: "mail:25", from: a@b, to: [c@d], username: u, password_file: /etc/pw, starttls: true}
`

// small is a valid config that says no more than it must.
const small = `cluster: c
mount: /m
insecure: true
nodes:
  - {name: a, address: "127.0.0.1:1"}
election: {mode: manual}
`

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse([]byte(text), "f.yaml")
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return c
}

func TestFull(t *testing.T) {
	c := mustParse(t, full)
	wantReplication := Replication{
		Durability:    DurabilitySync,
		Paths:         []PathRule{{"gitlab-rails/shared/artifacts/**", DurabilityAsync}},
		Exclude:       []string{"lost+found/", "**/*.tmp"},
		OnStandbyLoss: LossBlock, MinInSync: 1,
		AckTimeout:   Duration(4 * time.Second),
		MaxLagBytes:  2 << 30,
		Ring:         32 << 20,
		DrainTimeout: Duration(time.Minute),
		Journal:      Journal{9e9},
		Compression:  CompressionZstd,
	}
	for _, p := range []struct{ got, want any }{
		{c.Replication, wantReplication},
		{c.Election, Election{ElectionEtcd, []string{"https://etcd:2379"}, Duration(5 * time.Second), "gl-1"}},
		{*c.VIP, VIP{"10.1.1.10/24", "eth0", VIPEarly}},
		{c.Health, []HealthCheck{
			{HTTP: "http://127.0.0.1/-/health", Interval: Duration(3 * time.Second), Timeout: Duration(4 * time.Second), Fall: 5, Rise: 6},
			{TCP: "127.0.0.1:80", Interval: Duration(time.Second), Timeout: Duration(2 * time.Second), Fall: 3, Rise: 2},
		}},
		{c.Hooks, Hooks{
			OnPromote: []Hook{{"gitlab-ctl start", Duration(time.Minute)}, {"true", Duration(5 * time.Second)}},
			OnDemote:  []Hook{{"gitlab-ctl stop", Duration(time.Minute)}},
			OnFault:   []Hook{{"echo one\necho two\n", Duration(time.Minute)}},
		}},
		{c.Notify, Notify{
			Exec:    []Hook{{"notify-me", Duration(time.Minute)}},
			Webhook: []Webhook{{"https://chat/hook", Duration(10 * time.Second)}},
			SMTP:    SMTP{"mail:25", "a@b", []string{"c@d"}, "u", "/etc/pw", true},
		}},
		{c.Nodes[2], Node{Name: "gl-w", Address: "10.1.1.3:7410", Witness: true}},
		{c.File(), "f.yaml"},
	} {
		if !reflect.DeepEqual(p.got, p.want) {
			t.Errorf("got  %+v\nwant %+v", p.got, p.want)
		}
	}
}

func TestDefaults(t *testing.T) {
	c := mustParse(t, small)
	want := Replication{
		Durability: DurabilityFsync, Exclude: []string{"lost+found/"}, OnStandbyLoss: LossDegrade, MinInSync: 1,
		AckTimeout: Duration(3 * time.Second), MaxLagBytes: 1 << 30, Ring: 64 << 20,
		DrainTimeout: Duration(10 * time.Second), Journal: Journal{8 << 30}, Compression: CompressionNone,
	}
	if !reflect.DeepEqual(c.Replication, want) {
		t.Errorf("replication: got %+v, want %+v", c.Replication, want)
	}
	v, err := c.Node("a")
	if err != nil {
		t.Fatal(err)
	}
	wantView := &NodeView{
		Cluster: "c", Name: "a", Address: "127.0.0.1:1", Mount: "/m", Store: "/m.store",
		State: "/var/lib/replfs", Control: "/run/replfs/replfs.sock", Config: c,
	}
	if !reflect.DeepEqual(v, wantView) {
		t.Errorf("got  %+v\nwant %+v", v, wantView)
	}
	if c.Election.TTL != Duration(3*time.Second) {
		t.Errorf("ttl: got %v", c.Election.TTL)
	}
}

func TestAnEmptyExcludeListExcludesNothing(t *testing.T) {
	c := mustParse(t, small+"replication: {exclude: []}\n")
	if len(c.Replication.Exclude) != 0 {
		t.Errorf("exclude: got %q", c.Replication.Exclude)
	}
}

func TestAJournalCanBeSwitchedOff(t *testing.T) {
	c, err := Parse([]byte(strings.Replace(base, "durability: fsync", "journal: {max_bytes: 0}", 1)), "f.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if c.Replication.Journal.MaxBytes != 0 || len(c.Unsupported()) != 0 {
		t.Errorf("%+v, unsupported %v", c.Replication.Journal, c.Unsupported())
	}
}

func TestNodeOverrides(t *testing.T) {
	c := mustParse(t, full)
	one, err := c.Node("gl-1")
	if err != nil {
		t.Fatal(err)
	}
	two, err := c.Node("gl-2")
	if err != nil {
		t.Fatal(err)
	}
	want1 := &NodeView{
		Cluster: "gitlab", Name: "gl-1", Address: "10.1.1.1:7410", Priority: 100,
		Mount: "/var/opt/gitlab", Store: "/srv/gitlab.store", State: "/var/lib/replfs-state",
		Control: "/run/r.sock", Metrics: "127.0.0.1:7411",
		TLS: &TLS{"/etc/ca.crt", "/etc/node.crt", "/etc/node.key"},
		VIP: &VIP{"10.1.1.10/24", "eth0", VIPEarly}, Config: c,
	}
	want2 := &NodeView{
		Cluster: "gitlab", Name: "gl-2", Address: "10.1.1.2:7410", Priority: 90,
		Mount: "/data", Store: "/data.backing", State: "/state2",
		Control: "/run/2.sock", Metrics: "127.0.0.1:7412",
		TLS: &TLS{"/etc/ca.crt", "/etc/two.crt", "/etc/two.key"},
		VIP: &VIP{"10.1.1.10/24", "ens3", VIPEarly}, Config: c,
	}
	if !reflect.DeepEqual(one, want1) {
		t.Errorf("gl-1: got  %+v\nwant %+v", one, want1)
	}
	if !reflect.DeepEqual(two, want2) {
		t.Errorf("gl-2: got  %+v\nwant %+v", two, want2)
	}
	if peers := two.Peers(); len(peers) != 1 || peers[0].Name != "gl-1" {
		t.Errorf("peers of gl-2: got %+v, want gl-1 alone", peers)
	}
	if !c.HasNode("gl-w") || c.HasNode("gl-3") {
		t.Error("HasNode is wrong")
	}

	_, err = c.Node("gl-9")
	if want := `config f.yaml:5: no node is named "gl-9": the nodes are gl-1, gl-2, gl-w`; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestDefaultStoreFollowsTheNodesMount(t *testing.T) {
	c := mustParse(t, strings.Replace(small, `:1"}`, `:1", mount: /n/}`, 1))
	v, err := c.Node("a")
	if err != nil {
		t.Fatal(err)
	}
	if v.Store != "/n.store" || v.Mount != "/n" {
		t.Errorf("got mount %s, store %s", v.Mount, v.Store)
	}
	c = mustParse(t, strings.Replace(small, `:1"}`, `:1", mount: /n}`+"\nstore: /s", 1))
	if v, err = c.Node("a"); err != nil || v.Store != "/s" {
		t.Errorf("a store that is set gives way to the default: got %+v, %v", v, err)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "replfs.yaml")
	_, err := Load(path)
	if err == nil || !strings.Contains(err.Error(), "does not exist: write one with `replfs init`") {
		t.Errorf("missing file: got %v", err)
	}
	if err := os.WriteFile(path, []byte(small), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err != nil {
		t.Error(err)
	}
	if _, err := Load(filepath.Dir(path)); err == nil || !strings.Contains(err.Error(), "reading the config") {
		t.Errorf("a directory: got %v", err)
	}
}

func TestExample(t *testing.T) {
	for name, o := range map[string]ExampleOptions{
		"placeholders": {},
		"three":        {Cluster: "x", Mount: "/a b: #c", Nodes: []ExampleNode{{"n-1", "[::1]:5"}, {"n-2", "h.example:6"}, {"n-3", "h2:6"}}},
		"odd words":    {Cluster: "true", Mount: "/1", Nodes: []ExampleNode{{"null", "1.2.3.4:5"}, {"123", "1.2.3.5:5"}}},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := Example(o)
			if err != nil {
				t.Fatal(err)
			}
			c := mustParse(t, string(data))
			if errs := c.Unsupported(); len(errs) > 0 {
				t.Errorf("unsupported: %v", errs)
			}
			if o.Mount != "" && (c.Cluster != o.Cluster || c.Mount != o.Mount) {
				t.Errorf("got cluster %q, mount %q", c.Cluster, c.Mount)
			}
			for i, n := range o.Nodes {
				if c.Nodes[i].Name != n.Name || c.Nodes[i].Address != n.Address {
					t.Errorf("got node %+v, want %+v", c.Nodes[i], n)
				}
			}
			if c.Election.InitialPrimary != c.Nodes[0].Name {
				t.Errorf("initial primary is %q", c.Election.InitialPrimary)
			}
			// What the comments call a default has to be one.
			uncommented := strings.NewReplacer("\n#store", "\nstore", "\n#state", "\nstate", "\n#control", "\ncontrol", "\n  #", "\n  ").Replace(dropProse(string(data)))
			c2 := mustParse(t, uncommented)
			c.src, c2.src = nil, nil
			if !reflect.DeepEqual(c, c2) {
				t.Errorf("commented defaults differ:\n%+v\n%+v\n%s", c, c2, uncommented)
			}
		})
	}
	if _, err := Example(ExampleOptions{Cluster: "No Good"}); err == nil {
		t.Error("an invalid cluster name gave a config")
	}
}

// dropProse removes the comments that are not settings ("# text", not "#key: value").
func dropProse(s string) string {
	var out []string
	for line := range strings.SplitSeq(s, "\n") {
		if !strings.HasPrefix(strings.TrimSpace(line), "# ") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// TestThreeDataNodes: a node streams to, or hears from, every other one.
func TestThreeDataNodes(t *testing.T) {
	const text = `
cluster: gitlab
mount: /data
insecure: true
nodes:
  - {name: gl-1, address: "127.0.0.1:7410", priority: 100, mount: /data1, state: /state1, control: /run/1.sock}
  - {name: gl-2, address: "127.0.0.1:7420", priority: 90, mount: /data2, state: /state2, control: /run/2.sock}
  - {name: gl-3, address: "127.0.0.1:7430", priority: 80, mount: /data3, state: /state3, control: /run/3.sock}
election: {mode: manual, initial_primary: gl-1}
`
	c := mustParse(t, text)
	if errs := c.Unsupported(); len(errs) > 0 {
		t.Errorf("unsupported: %v", errs)
	}
	for i, want := range map[string]string{"gl-1": "gl-2 gl-3", "gl-2": "gl-1 gl-3", "gl-3": "gl-1 gl-2"} {
		v, err := c.Node(i)
		if err != nil {
			t.Fatal(err)
		}
		var peers []string
		for _, p := range v.Peers() {
			peers = append(peers, p.Name)
		}
		if got := strings.Join(peers, " "); got != want {
			t.Errorf("%s has the peers %s, want %s", i, got, want)
		}
	}
	twice := strings.Replace(text, "127.0.0.1:7430", "127.0.0.1:7410", 1)
	if _, err := Parse([]byte(twice), "f.yaml"); err == nil || !strings.Contains(err.Error(), `is also that of node "gl-1"`) {
		t.Errorf("two nodes at one address: %v", err)
	}
}
