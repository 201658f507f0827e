// Package config reads replfs.yaml, the one file that describes a cluster. The
// same file serves every node; a node finds its own settings by its name.
package config

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// DefaultPath is where the config is looked for when nothing else is said.
const DefaultPath = "/etc/replfs/replfs.yaml"

// Durability says what must have happened before a write is acknowledged.
type Durability string

// The durability modes.
const (
	DurabilityAsync    Durability = "async"    // nothing; the standby follows
	DurabilityReceived Durability = "received" // fsync waits for the standby's memory
	DurabilityFsync    Durability = "fsync"    // fsync waits for the standby's disk
	DurabilitySync     Durability = "sync"     // every mutation waits for the standby
)

// StandbyLoss says what a primary does when a standby stops answering.
type StandbyLoss string

// The answers to a lost standby.
const (
	LossDegrade StandbyLoss = "degrade" // go on without it
	LossBlock   StandbyLoss = "block"   // let what asks for durability wait
)

// Compression of the replication stream.
type Compression string

// The compressions.
const (
	CompressionNone Compression = "none"
	CompressionZstd Compression = "zstd"
)

// ElectionMode says who decides which node is primary.
type ElectionMode string

// The election modes.
const (
	ElectionEtcd   ElectionMode = "etcd"   // replfs, by a lease in etcd
	ElectionManual ElectionMode = "manual" // an operator, or another cluster manager
)

// VIPWhen says when a new primary takes the virtual address.
type VIPWhen string

// The moments to take the virtual address.
const (
	VIPReady VIPWhen = "ready" // after the service is healthy
	VIPEarly VIPWhen = "early" // before the service starts
)

// VIPDuplicate says what to do about a virtual address that another machine
// answers to.
type VIPDuplicate string

// The answers to a duplicate virtual address.
const (
	DuplicateWait  VIPDuplicate = "wait"  // take it when nobody answers any more
	DuplicateForce VIPDuplicate = "force" // take it all the same
)

// Config is a whole config file with defaults filled in. The settings that a
// node may override are to be read through Node.
type Config struct {
	Cluster string `yaml:"cluster"`
	Mount   string `yaml:"mount"`
	Store   string `yaml:"store"`
	State   string `yaml:"state"`
	Control string `yaml:"control"`
	Metrics string `yaml:"metrics"`
	TLS     *TLS   `yaml:"tls"`

	// Insecure permits a transport without TLS between loopback addresses;
	// InsecureAnyAddress extends that to all addresses.
	Insecure           bool `yaml:"insecure"`
	InsecureAnyAddress bool `yaml:"insecure_any_address"`

	// LowLatency keeps idle CPUs from sleeping while the mount is busy.
	LowLatency bool `yaml:"low_latency"`

	Nodes       []Node        `yaml:"nodes"`
	Replication Replication   `yaml:"replication"`
	Election    Election      `yaml:"election"`
	VIP         *VIP          `yaml:"vip"`
	Health      []HealthCheck `yaml:"health"`
	Hooks       Hooks         `yaml:"hooks"`
	Notify      Notify        `yaml:"notify"`

	src *source
}

// TLS names the files of a node's identity.
type TLS struct {
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// Node is an entry of nodes: a node's identity and its overrides, which are
// empty where the top-level setting holds.
type Node struct {
	Name     string `yaml:"name"`
	Address  string `yaml:"address"`
	Priority int    `yaml:"priority"`
	Witness  bool   `yaml:"witness"`

	Mount   string   `yaml:"mount"`
	Store   string   `yaml:"store"`
	State   string   `yaml:"state"`
	Control string   `yaml:"control"`
	Metrics string   `yaml:"metrics"`
	TLS     *TLS     `yaml:"tls"`
	VIP     *NodeVIP `yaml:"vip"`
}

// NodeVIP is the part of vip that a node may override.
type NodeVIP struct {
	Interface string `yaml:"interface"`
}

// Replication is how records travel.
type Replication struct {
	Durability    Durability  `yaml:"durability"`
	Paths         []PathRule  `yaml:"paths"`
	Exclude       []string    `yaml:"exclude"`
	OnStandbyLoss StandbyLoss `yaml:"on_standby_loss"`
	// MinInSync is how many standbys have to be in sync with LossBlock.
	MinInSync  int      `yaml:"min_in_sync"`
	AckTimeout Duration `yaml:"ack_timeout"`
	// MaxLagBytes and MaxLag bound how far a standby may be behind; MaxLag 0
	// is no bound.
	MaxLagBytes ByteSize `yaml:"max_lag_bytes"`
	MaxLag      Duration `yaml:"max_lag"`
	// Ring is the size of the log's part in memory.
	Ring ByteSize `yaml:"ring"`
	// DrainTimeout is how long a planned stop waits for the standbys.
	DrainTimeout Duration    `yaml:"drain_timeout"`
	Journal      Journal     `yaml:"journal"`
	Compression  Compression `yaml:"compression"`
}

// PathRule gives the paths that match their own durability.
type PathRule struct {
	Match      string     `yaml:"match"`
	Durability Durability `yaml:"durability"`
}

// Journal is the log's part on disk.
type Journal struct {
	// MaxBytes bounds it; 0 is no journal.
	MaxBytes ByteSize `yaml:"max_bytes"`
}

// Election is how the primary is chosen.
type Election struct {
	Mode ElectionMode `yaml:"mode"`
	// Endpoints are the URLs of an existing etcd; empty means an embedded one.
	Endpoints []string `yaml:"endpoints"`
	TTL       Duration `yaml:"ttl"`
	// InitialPrimary is primary when the cluster starts for the first time.
	InitialPrimary string `yaml:"initial_primary"`
	// ReadyTimeout is how long a promotion waits for the service to be healthy.
	ReadyTimeout Duration `yaml:"ready_timeout"`
}

// VIP are the virtual addresses that the primary holds, each with its prefix
// length.
type VIP struct {
	Address   string   `yaml:"address"`
	Addresses []string `yaml:"addresses"`
	Interface string   `yaml:"interface"`
	// Label names IPv4 addresses: <interface>:<label>.
	Label string `yaml:"label"`
	// Scope of IPv4 addresses: global, site, link or host.
	Scope       string       `yaml:"scope"`
	When        VIPWhen      `yaml:"when"`
	OnDuplicate VIPDuplicate `yaml:"on_duplicate"`
	// Lifetime is how long the kernel keeps them without a renewal.
	Lifetime Duration `yaml:"lifetime"`
}

// All returns all addresses, as they stand in the file.
func (v *VIP) All() []string {
	var out []string
	if v.Address != "" {
		out = append(out, v.Address)
	}
	return append(out, v.Addresses...)
}

// HealthCheck is a check of the service; one of Exec, HTTP and TCP is set.
type HealthCheck struct {
	Exec     string   `yaml:"exec"`
	HTTP     string   `yaml:"http"`
	TCP      string   `yaml:"tcp"`
	Interval Duration `yaml:"interval"`
	Timeout  Duration `yaml:"timeout"`
	Rise     int      `yaml:"rise"`
	Fall     int      `yaml:"fall"`
}

// Hooks are commands to run at role changes, one after the other.
type Hooks struct {
	OnPromote []Hook `yaml:"on_promote"`
	OnDemote  []Hook `yaml:"on_demote"`
	OnFault   []Hook `yaml:"on_fault"`
}

// Hook is a command for /bin/sh; in the file, a bare string or a mapping.
type Hook struct {
	Exec    string   `yaml:"exec,short"`
	Timeout Duration `yaml:"timeout"`
}

// Notify says who hears of role changes.
type Notify struct {
	Exec    []Hook    `yaml:"exec"`
	Webhook []Webhook `yaml:"webhook"`
	SMTP    SMTP      `yaml:"smtp"`
}

// Webhook is a URL to POST to; in the file, a bare string or a mapping.
type Webhook struct {
	URL     string   `yaml:"url,short"`
	Timeout Duration `yaml:"timeout"`
	// SecretFile holds the key that signs the body; without it there is no
	// signature.
	SecretFile string `yaml:"secret_file"`
}

// SMTP is a mail server. The password stays in a file of its own, as the config
// is world-readable.
type SMTP struct {
	Server       string   `yaml:"server"`
	From         string   `yaml:"from"`
	To           []string `yaml:"to"`
	Username     string   `yaml:"username"`
	PasswordFile string   `yaml:"password_file"`
	StartTLS     bool     `yaml:"starttls"`
	// CA is a file with what to trust instead of the system's certificates.
	CA string `yaml:"ca"`
}

// Load reads and checks the config file at path. Its errors name file and line,
// one line of text for each thing wrong.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the administrator names the file
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("config %s does not exist: write one with `replfs init`, or name another with --config", path)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the config: %w", err)
	}
	return Parse(data, path)
}

// Parse is Load for data already read; filename only serves messages.
func Parse(data []byte, filename string) (*Config, error) {
	c := defaults()
	c.src = &source{file: filename, lines: map[string]int{}}
	if err := decode(data, c); err != nil {
		return nil, err
	}
	c.fillIn()
	if err := c.validate(); err != nil {
		return nil, err
	}
	return c, nil
}

func defaults() *Config {
	return &Config{
		State:   "/var/lib/replfs",
		Control: "/run/replfs/replfs.sock",

		LowLatency: true,

		Replication: Replication{
			Durability:    DurabilityFsync,
			Exclude:       []string{"lost+found/"},
			OnStandbyLoss: LossDegrade,
			MinInSync:     1,
			AckTimeout:    Duration(3 * time.Second),
			MaxLagBytes:   1 << 30,
			Ring:          64 << 20,
			DrainTimeout:  Duration(10 * time.Second),
			Journal:       Journal{MaxBytes: 8 << 30},
			Compression:   CompressionNone,
		},
		Election: Election{Mode: ElectionEtcd, TTL: Duration(3 * time.Second), ReadyTimeout: Duration(5 * time.Minute)},
	}
}

// fillIn sets the defaults that depend on other settings or stand in list entries.
func (c *Config) fillIn() {
	if c.Store == "" && c.Mount != "" {
		c.Store = storeOf(c.Mount)
	}
	if v := c.VIP; v != nil {
		if v.When == "" {
			v.When = VIPReady
		}
		if v.OnDuplicate == "" {
			v.OnDuplicate = DuplicateWait
		}
		setDefault(c, "vip.lifetime", &v.Lifetime, Duration(10*time.Second))
	}
	for i := range c.Health {
		h, at := &c.Health[i], fmt.Sprintf("health[%d].", i)
		setDefault(c, at+"interval", &h.Interval, Duration(time.Second))
		setDefault(c, at+"timeout", &h.Timeout, Duration(2*time.Second))
		setDefault(c, at+"rise", &h.Rise, 2)
		setDefault(c, at+"fall", &h.Fall, 3)
	}
	for _, l := range c.hookLists() {
		for i := range l.hooks {
			setDefault(c, fmt.Sprintf("%s[%d].timeout", l.key, i), &l.hooks[i].Timeout, Duration(time.Minute))
		}
	}
	for i := range c.Notify.Webhook {
		setDefault(c, fmt.Sprintf("notify.webhook[%d].timeout", i), &c.Notify.Webhook[i].Timeout, Duration(10*time.Second))
	}
}

// setDefault leaves a zero that the file asks for to be refused.
func setDefault[T any](c *Config, path string, p *T, v T) {
	if !c.src.has(path) {
		*p = v
	}
}

type hookList struct {
	key   string
	hooks []Hook
}

func (c *Config) hookLists() []hookList {
	return []hookList{
		{"hooks.on_promote", c.Hooks.OnPromote},
		{"hooks.on_demote", c.Hooks.OnDemote},
		{"hooks.on_fault", c.Hooks.OnFault},
		{"notify.exec", c.Notify.Exec},
	}
}
