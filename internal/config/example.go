package config

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"text/template"
)

// ExampleOptions fill in the config that Example writes. What is empty gets a
// placeholder to be edited.
type ExampleOptions struct {
	Cluster string
	Mount   string
	Nodes   []ExampleNode
}

// ExampleNode is a node of an example config. The first one is the initial primary.
type ExampleNode struct{ Name, Address string }

// Example returns a commented config for this version. It parses without errors
// and has nothing unsupported, if the options are valid.
func Example(o ExampleOptions) ([]byte, error) {
	o.Cluster = or(o.Cluster, "gitlab")
	o.Mount = or(o.Mount, "/var/opt/gitlab")
	if len(o.Nodes) == 0 {
		o.Nodes = []ExampleNode{{"gl-1", "10.1.1.1:7410"}, {"gl-2", "10.1.1.2:7410"}}
	}
	var buf bytes.Buffer
	if err := exampleTemplate.Execute(&buf, o); err != nil {
		return nil, fmt.Errorf("writing the config: %w", err)
	}
	if _, err := Parse(buf.Bytes(), "to be written"); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

var plainWord = regexp.MustCompile(`^[a-z/][A-Za-z0-9/._-]*$`)

// yamlText quotes s where YAML would read it as something else.
func yamlText(s string) string {
	if plainWord.MatchString(s) && !slices.Contains([]string{"true", "false", "null", "yes", "no", "on", "off"}, s) {
		return s
	}
	return strconv.Quote(s)
}

var exampleTemplate = template.Must(template.New("config").Funcs(template.FuncMap{
	"text":  yamlText,
	"quote": strconv.Quote,
	"store": func(mount string) string { return yamlText(storeOf(mount)) },
}).Parse(`# The config of a replfs cluster. The same file serves every node.
# Settings that are commented out show their defaults.

# The cluster's name: a-z, 0-9 and hyphens. Certificates are made for it.
cluster: {{text .Cluster}}

# The directory the applications use. replfs mounts itself here.
mount: {{text .Mount}}

# Where the data really lies. Nothing but replfs may change it. Put it on the
# file system that is to hold the data.
#store: {{store .Mount}}

# replfs's own files: its position, and what was moved aside before a copy.
#state: /var/lib/replfs

# The socket through which commands such as "replfs status" reach the daemon.
#control: /run/replfs/replfs.sock

# While the mount is busy, idle CPUs do not sleep: requests take about half the
# time on a virtual machine, and the machine takes more power meanwhile.
#low_latency: true

# The machines. A node finds itself by its name: its host name, or what --node
# says. The address is where the other node reaches it. mount, store, state,
# control and tls may also stand in a node's entry, and then hold for it alone.
nodes:
{{- range .Nodes}}
  - name: {{text .Name}}
    address: {{quote .Address}}
{{- end}}

# Who may speak to whom. Make the files with "replfs pki all", and copy to each
# node its own certificate and key, under these names.
tls:
  ca: /etc/replfs/pki/ca.crt
  cert: /etc/replfs/pki/node.crt
  key: /etc/replfs/pki/node.key

replication:
  # When an application's fsync returns:
  # fsync: when the data is on the disks of both nodes.
  # received: when it is on this node's disk and in the other one's memory.
  # async: when it is on this node's disk; a failover may lose the last moments.
  # sync: as fsync; and every other change waits until the other node shows it.
  durability: fsync

  # Paths with a durability of their own; the first that matches counts. The
  # patterns are those of exclude.
  #paths:
  #  - {match: "gitlab-rails/shared/artifacts/**", durability: async}

  # What never travels, relative to the mount. A trailing / means a directory
  # with all below it; ** matches any number of directories.
  #exclude: ["lost+found/"]

  # How long to wait for a standby before going on without it.
  #ack_timeout: 3s

  # degrade: go on without a standby that is lost. block: every fsync waits while
  # fewer than min_in_sync standbys are in sync, for as long as it takes.
  #on_standby_loss: degrade
  #min_in_sync: 1

  # How far a standby in sync may be behind: writers are slowed down from half of
  # it on, and wait at the bound. max_lag bounds the time as well, 0s does not.
  #max_lag_bytes: 1GiB
  #max_lag: 0s

  # The log of changes, in shared memory.
  #ring: 64MiB

  # What a standby that is slow or away has not received and the ring cannot hold
  # goes to state/journal, up to this size: then it catches up record by record.
  # One that falls further behind gets a complete copy. At least twice the ring;
  # 0: no journal, and writers wait for a connected standby.
  #journal: {max_bytes: 8GiB}

  # zstd: what is sent is compressed when that makes it smaller. It takes CPU; of
  # use where the network is slower than some 400 MB/s.
  #compression: none

  # How long a planned stop waits for the standby to catch up.
  #drain_timeout: 10s

election:
  # manual: "replfs promote" and "replfs demote" decide which node is primary.
  mode: manual

  # The node whose data counts when the cluster starts for the first time.
  initial_primary: {{text (index .Nodes 0).Name}}

  # How long a promotion waits for the checks in "health".
  #ready_timeout: 5m

# The address that clients use. The primary has it; "interface" may also stand in
# a node's entry, as vip: {interface: ens3}.
#vip:
#  address: 10.1.1.10/24           # more of them, IPv6 too: addresses: [...]
#  interface: eth0
#  when: ready                     # early: before the application is started
#  lifetime: 10s                   # the kernel removes it if replfs hangs for so long
#  on_duplicate: wait              # force: take it though another machine answers
#  label: vip                      # IPv4 only: shown as eth0:vip
#  scope: global                   # IPv4 only: or site, link, host

# Whether the application is well, asked on the primary. http wants an answer below
# 400, tcp a connection, exec exit code 0.
#health:
#  - http: "http://127.0.0.1/-/health"
#    interval: 1s
#    timeout: 2s
#    rise: 2                       # good results in a row until it is healthy
#    fall: 3                       # bad ones until it is not
#  - tcp: "127.0.0.1:22"

# Commands for /bin/sh, run one at a time, in order. They must not mind being run
# again: a daemon that was killed runs them anew. They find REPLFS_ROLE,
# REPLFS_EPOCH, REPLFS_PEER, REPLFS_REASON, REPLFS_NODE, REPLFS_CLUSTER,
# REPLFS_MOUNT and REPLFS_HOOK in their environment.
#hooks:
#  on_promote:
#    - exec: systemctl start gitlab-runsvdir && gitlab-ctl start
#      timeout: 5m                 # the default is 1m
#  on_demote:
#    - exec: systemctl -q is-active gitlab-runsvdir || exit 0; gitlab-ctl stop; systemctl stop gitlab-runsvdir
#      timeout: 2m
#  on_fault: ["logger -t replfs 'the service is not healthy'"]

# Who is told of role changes and faults.
#notify:
#  exec: ["logger -t replfs \"$REPLFS_NODE $REPLFS_HOOK\""]
#  webhook:
#    - url: https://chat.example.org/hooks/replfs
#      secret_file: /etc/replfs/webhook.secret    # signs the body (HMAC-SHA256)
#  smtp:
#    server: mail.example.org:587
#    from: replfs@example.org
#    to: [admin@example.org]
#    starttls: true
#    username: replfs
#    password_file: /etc/replfs/smtp.password
`))
