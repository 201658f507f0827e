package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/replfs/replfs/internal/pki"
	"github.com/replfs/replfs/replicate"
	"github.com/replfs/replfs/replicate/wire"
	"github.com/replfs/replfs/test/lab"
)

// stranger is a daemon at the address of a node, with a configuration and
// directories of its own.
type stranger struct {
	name string
	dir  string
	args []string
	ns   *lab.Namespace
	p    *lab.Process
}

// newStranger takes a copy of the cluster's configuration that edit changes.
// What edit gets is the node's own entry.
func newStranger(t *testing.T, c *lab.Cluster, node string, edit func(file, own map[string]any)) *stranger {
	t.Helper()
	s := &stranger{name: node, dir: c.Path("stranger-" + t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]), ns: c.Namespace(node)}
	for _, dir := range []string{"mount", "store", "state"} {
		must(t, os.MkdirAll(filepath.Join(s.dir, dir), 0o700))
	}
	b, err := os.ReadFile(c.Config())
	must(t, err)
	var file map[string]any
	must(t, yaml.Unmarshal(b, &file))
	for _, n := range file["nodes"].([]any) {
		own := n.(map[string]any)
		if own["name"] != node {
			continue
		}
		own["mount"], own["store"], own["state"] = filepath.Join(s.dir, "mount"), filepath.Join(s.dir, "store"), filepath.Join(s.dir, "state")
		own["control"] = filepath.Join(s.dir, "control.sock")
		edit(file, own)
		s.name = own["name"].(string)
	}
	b, err = yaml.Marshal(file)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(s.dir, "replfs.yaml"), b, 0o600))
	s.args = []string{"mount", "--config", filepath.Join(s.dir, "replfs.yaml"), "--node", s.name}
	return s
}

func (s *stranger) start(t *testing.T) {
	t.Helper()
	var err error
	s.p, err = lab.StartProcess(lab.Command{Name: "stranger", Path: lab.Binary(t), Args: s.args, Namespace: s.ns}, filepath.Join(s.dir, "log"))
	must(t, err)
	// After a failure; its mount goes with the cluster's directory.
	t.Cleanup(func() { _ = s.p.Kill() })
}

// stop ends it in order, so that no mount is left.
func (s *stranger) stop(t *testing.T) {
	t.Helper()
	must(t, s.p.Signal(syscall.SIGTERM))
	if code, err := s.p.Wait(hang); err != nil || code != 0 {
		t.Errorf("the stranger ended with %d, %v:\n%s", code, err, s.p.Tail(10))
	}
}

// otherPKI makes a CA and a certificate of one node.
func otherPKI(t *testing.T, cluster, node string) pki.Files {
	t.Helper()
	dir := t.TempDir()
	must(t, pki.CreateCA(dir, cluster, false))
	must(t, pki.CreateNode(dir, cluster, node, false))
	return pki.NodeFiles(dir, node)
}

// ours are the files of a node of the cluster, made if need be.
func ours(t *testing.T, c *lab.Cluster, node string) pki.Files {
	t.Helper()
	f := pki.NodeFiles(c.Path("pki"), node)
	if _, err := os.Stat(f.Cert); err != nil {
		must(t, pki.CreateNode(c.Path("pki"), "lab", node, false))
	}
	return f
}

func tlsOf(f pki.Files) map[string]any {
	return map[string]any{"ca": f.CA, "cert": f.Cert, "key": f.Key}
}

// plain takes out how often a text was quoted.
func plain(text string) string { return strings.ReplaceAll(text, `\`, "") }

// TestStrangers: a daemon at a standby's address that does not belong to the
// cluster is turned away, both sides say why, and the cluster goes on.
func TestStrangers(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{Namespaces: true, AckTimeout: 500 * time.Millisecond})
	cases := []struct {
		name string
		edit func(t *testing.T, file, own map[string]any)
		// primary is what the primary's status says of it, log what its own
		// log has.
		primary, log string
	}{
		{
			name: "ca", primary: "did not sign", log: "did not sign",
			edit: func(t *testing.T, _, own map[string]any) { own["tls"] = tlsOf(otherPKI(t, "lab", two)) },
		},
		{
			name: "cluster", primary: `certificate is for cluster "other", this is cluster "lab"`,
			log: `certificate is for cluster "lab", this is cluster "other"`,
			edit: func(t *testing.T, file, own map[string]any) {
				own["tls"] = tlsOf(otherPKI(t, "other", two))
				file["cluster"] = "other"
			},
		},
		{
			// Signed by the right CA, for a node that is not in the config.
			name: "node", primary: "expected node gl-2 at", log: "bad certificate",
			edit: func(t *testing.T, _, own map[string]any) {
				own["name"] = "gl-3"
				own["tls"] = tlsOf(ours(t, c, "gl-3"))
			},
		},
		{
			// All is right, but it belongs to another life of the cluster.
			name: "id", primary: "different clusters", log: "different clusters",
			edit: func(t *testing.T, file, _ map[string]any) {
				file["election"] = map[string]any{"mode": "manual", "initial_primary": two}
			},
		},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			must(t, c.StopNode(two))
			s := newStranger(t, c, two, func(file, own map[string]any) { tc.edit(t, file, own) })
			if tc.name == "id" {
				// It founds a cluster while it sees nobody.
				must(t, c.Network().Cut(one, two))
			}
			s.start(t)
			if tc.name == "id" {
				eventually(t, ctx, hang, "the other cluster is founded", func() error {
					if !strings.Contains(s.p.Tail(100), `"msg":"primary"`) {
						return fmt.Errorf("its log: %s", s.p.Tail(3))
					}
					return nil
				})
				must(t, c.Network().Heal(one, two))
			}
			eventually(t, ctx, hang, "both sides say why", func() error {
				p, err := peer(ctx, c, one, two)
				if err != nil {
					return err
				}
				if !strings.Contains(plain(p.Error), tc.primary) {
					return fmt.Errorf("the primary says: %s %q", p.State, p.Error)
				}
				if !strings.Contains(plain(s.p.Tail(1000)), tc.log) {
					return fmt.Errorf("its own log: %s", s.p.Tail(3))
				}
				return nil
			})
			if st, err := status(ctx, c, one); err != nil || st.Role != "primary" || !strings.Contains(problems(st), "gl-2") {
				t.Errorf("the primary says: %+v, %v", st, err)
			}
			returns(t, "with a stranger around", fsyncOf(t, c, one, "with "+tc.name), hang)
			s.stop(t)
			must(t, c.StartNode(ctx, two))
			must(t, c.WaitInSync(ctx, one, two))
			equalStores(t, ctx, c, one, two)
		})
	}
	logStart(c, two).want(t, msgReceiving, 1)
}

// TestOwnCertificate: a node does not even start with the certificate of
// another one.
func TestOwnCertificate(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := newCluster(t, lab.Options{Namespaces: true})
	s := newStranger(t, c, two, func(_, own map[string]any) { own["tls"] = tlsOf(ours(t, c, one)) })
	res, err := lab.Run(ctx, lab.Command{Name: "mount", Path: lab.Binary(t), Args: s.args, Namespace: s.ns})
	must(t, err)
	if res.Code != 1 || !strings.Contains(res.Stderr, `names node "gl-1", this is node "gl-2"`) {
		t.Errorf("%+v", res)
	}
}

// TestStrangeClients: a client that is not a peer of the cluster gets no answer
// from a node, whatever its certificate, and the node says so.
func TestStrangeClients(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{Namespaces: true})
	address := c.Namespace(one).Addr() + ":7410"
	as := func(f pki.Files, cluster string) credentials.TransportCredentials {
		t.Helper()
		cfg, err := pki.ClientTLS(f, cluster, one, address)
		must(t, err)
		cfg.VerifyConnection = nil // it does not care who answers
		return credentials.NewTLS(cfg)
	}
	id := func(node string) *wire.Identity {
		st, err := status(ctx, c, one)
		must(t, err)
		return &wire.Identity{Cluster: "lab", Node: node, ClusterId: st.ClusterID, Protocol: replicate.Protocol}
	}
	cases := []struct {
		name  string
		creds credentials.TransportCredentials
		id    *wire.Identity
		// answer is what the client gets to hear, log what the node's log says.
		answer, log string
	}{
		{"insecure", insecure.NewCredentials(), id(two), "", "first record does not look like a TLS handshake"},
		{"no certificate", credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}), id(two), "", "client didn't provide a certificate"},
		{"another CA", as(otherPKI(t, "lab", two), "lab"), id(two), "", "did not sign"},
		{"another cluster", as(otherPKI(t, "other", two), "other"), id(two), "", `certificate is for cluster "other"`},
		{"unknown node", as(ours(t, c, "gl-3"), "lab"), id("gl-3"), "", `"gl-3", not in the config`},
		{"another's name", as(ours(t, c, two), "lab"), id(one), "the certificate is that of gl-2, the message says gl-1", "the certificate is that of gl-2"},
		{"the node's own name", as(ours(t, c, one), "lab"), id(one), "gl-1 is not a data node in the config of gl-1", "not a data node"},
		{
			"another cluster's id", as(ours(t, c, two), "lab"),
			&wire.Identity{Cluster: "lab", Node: two, ClusterId: "another", Protocol: replicate.Protocol}, "two different clusters", "two different clusters",
		},
		{
			"another version", as(ours(t, c, two), "lab"),
			&wire.Identity{Cluster: "lab", Node: two, Protocol: 99}, "speaks protocol 99", "speaks protocol 99",
		},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			begun := logMark(t, c, one)
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(tc.creds),
				grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
					return c.Namespace(two).Dial(ctx, "tcp", addr)
				}))
			must(t, err)
			defer conn.Close()
			self := &wire.NodeState{Identity: tc.id, Role: wire.Role_ROLE_STANDBY, Epoch: 99}
			client := wire.NewReplicationClient(conn)
			calls := map[string]func() error{
				"state":    func() error { _, err := client.State(ctx, &wire.StateRequest{Caller: self}); return err },
				"handover": func() error { _, err := client.Handover(ctx, &wire.HandoverRequest{Caller: self}); return err },
				"stream": func() error {
					s, err := client.Stream(ctx)
					if err != nil {
						return err
					}
					if err := s.Send(&wire.Down{Kind: &wire.Down_Hello{Hello: self}}); err != nil {
						_, err = s.Recv()
						return err
					}
					_, err = s.Recv()
					return err
				},
			}
			for name, call := range calls {
				if err := call(); err == nil || !strings.Contains(err.Error(), tc.answer) {
					t.Errorf("%s: %v, want %q", name, err, tc.answer)
				}
			}
			eventually(t, ctx, hang, "the node's log", func() error {
				b, err := os.ReadFile(begun.path)
				if err == nil && !strings.Contains(plain(string(b[begun.offset:])), tc.log) {
					err = fmt.Errorf("it does not say %q: %s", tc.log, b[begun.offset:])
				}
				return err
			})
		})
	}
	if st, err := status(ctx, c, one); err != nil || st.Role != "primary" || st.Epoch != 1 {
		t.Errorf("the primary says: %+v, %v", st, err)
	}
	if p, err := peer(ctx, c, one, two); err != nil || !p.InSync {
		t.Errorf("the standby is %+v, %v", p, err)
	}
	returns(t, "after strange clients", fsyncOf(t, c, one, "file"), hang)
	equalStores(t, ctx, c, one, two)
}
