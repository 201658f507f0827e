package pki

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// handshake connects client to server and has each read a byte of the other, as
// a TLS 1.3 client learns only then that it was refused.
func handshake(t *testing.T, server, client *tls.Config) (serverState tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		conn := tls.Server(raw, server)
		err = exchange(conn)
		serverState = conn.ConnectionState()
		done <- errors.Join(err, ignoreClosed(raw.Close()))
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	clientErr = exchange(tls.Client(raw, client))
	if err := ignoreClosed(raw.Close()); err != nil {
		t.Error(err)
	}
	serverErr = <-done // from here on serverState is ours
	return serverState, serverErr, clientErr
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func exchange(conn *tls.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if err := conn.Handshake(); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

func inConfig(node string) bool { return node == "gl-1" || node == "gl-2" }

func server(t *testing.T, files Files) *tls.Config {
	t.Helper()
	c, err := ServerTLS(files, "gitlab", inConfig)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func client(t *testing.T, files Files, expect string) *tls.Config {
	t.Helper()
	c, err := ClientTLS(files, "gitlab", expect, "10.1.1.2:7410")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestHandshake(t *testing.T) {
	dir := newCluster(t, "gitlab", time.Now(), "gl-1", "gl-2")
	state, serverErr, clientErr := handshake(t, server(t, NodeFiles(dir, "gl-2")), client(t, NodeFiles(dir, "gl-1"), "gl-2"))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
	if state.Version != tls.VersionTLS13 {
		t.Errorf("version %x", state.Version)
	}
	cluster, node, err := PeerIdentity(state)
	if err != nil || cluster != "gitlab" || node != "gl-1" {
		t.Errorf("PeerIdentity: %q, %q, %v", cluster, node, err)
	}
	if _, _, err := PeerIdentity(tls.ConnectionState{}); err == nil {
		t.Error("PeerIdentity of nobody gives no error")
	}
}

func TestServerRefuses(t *testing.T) {
	now := time.Now()
	dir := newCluster(t, "gitlab", now, "gl-1", "gl-2", "evil")
	srv := server(t, NodeFiles(dir, "gl-2"))
	// raw is a client that does not check itself, as an attacker's would not.
	raw := func(f Files) *tls.Config {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}} //nolint:gosec // an attacker's
	}
	// signed is a client with a certificate our CA signed, changed by edit.
	signed := func(then time.Time, edit func(*x509.Certificate)) *tls.Config {
		ca, caKey, err := loadCA(dir, "gitlab", now)
		if err != nil {
			t.Fatal(err)
		}
		key, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gl-1"}, DNSNames: []string{"gl-1"},
			URIs:      []*url.URL{identityURI("gitlab", "gl-1")},
			NotBefore: then.Add(-time.Hour), NotAfter: then.Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		edit(template)
		der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}} //nolint:gosec // an attacker's
	}
	uris := func(all ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.URIs = nil
			for _, s := range all {
				u, err := url.Parse(s)
				if err != nil {
					t.Fatal(err)
				}
				c.URIs = append(c.URIs, u)
			}
		}
	}
	old := raw(NodeFiles(dir, "gl-1"))
	old.MaxVersion = tls.VersionTLS12

	if _, err, _ := handshake(t, srv, signed(now, func(*x509.Certificate) {})); err != nil {
		t.Fatalf("an unchanged certificate is refused: %v", err)
	}
	for name, p := range map[string]struct {
		client *tls.Config
		want   []string
	}{
		"no certificate":        {&tls.Config{InsecureSkipVerify: true}, []string{"didn't provide a certificate"}}, //nolint:gosec // an attacker's
		"old TLS":               {old, []string{"unsupported versions"}},
		"not in config":         {raw(NodeFiles(dir, "evil")), []string{`peer is node "evil", not in the config`}},
		"wrong CA":              {raw(NodeFiles(newCluster(t, "gitlab", now, "gl-1"), "gl-1")), []string{"did not sign", "certificates of one CA"}},
		"other cluster":         {raw(NodeFiles(newCluster(t, "wiki", now, "gl-1"), "gl-1")), []string{`peer's certificate is for cluster "wiki", this is cluster "gitlab"`}},
		"other cluster, our CA": {signed(now, uris("replfs://wiki/gl-1")), []string{`peer's certificate is for cluster "wiki", this is cluster "gitlab"`}},
		"expired":               {signed(now.AddDate(0, 0, -1), func(*x509.Certificate) {}), []string{"for node gl-1 that expired on", "replfs pki node gl-1 --cluster gitlab"}},
		"early":                 {signed(now.AddDate(0, 0, 1), func(*x509.Certificate) {}), []string{"valid only from", "clocks"}},
		"server only":           {signed(now, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), []string{"not valid here", "key usage"}},
		"no identity":           {signed(now, uris("https://gitlab/gl-1")), []string{"names 0 replfs nodes"}},
		"two identities":        {signed(now, uris("replfs://gitlab/gl-1", "replfs://gitlab/gl-2")), []string{"names 2 replfs nodes"}},
		"odd identity":          {signed(now, uris("replfs://gitlab/gl-1?x")), []string{"malformed identity"}},
		"deep identity":         {signed(now, uris("replfs://gitlab/gl-1/x")), []string{"malformed identity"}},
		"two names":             {signed(now, func(c *x509.Certificate) { c.DNSNames = []string{"gl-2"} }), []string{`names node "gl-1" in one place`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, serverErr, clientErr := handshake(t, srv, p.client)
			wantError(t, serverErr, p.want...)
			if clientErr == nil {
				t.Error("the client got through")
			}
		})
	}
}

func TestClientRefuses(t *testing.T) {
	now := time.Now()
	dir := newCluster(t, "gitlab", now, "gl-1", "gl-2", "gl-3")
	cl := client(t, NodeFiles(dir, "gl-1"), "gl-2")
	for name, p := range map[string]struct {
		files Files
		want  []string
	}{
		"other node":    {NodeFiles(dir, "gl-3"), []string{"expected node gl-2 at 10.1.1.2:7410 but its certificate names gl-3"}},
		"other CA":      {NodeFiles(newCluster(t, "gitlab", now, "gl-2"), "gl-2"), []string{"connecting to node gl-2 at 10.1.1.2:7410", "did not sign"}},
		"other cluster": {NodeFiles(newCluster(t, "wiki", now, "gl-2"), "gl-2"), []string{`for cluster "wiki", this is cluster "gitlab"`}},
		"expired":       {NodeFiles(newCluster(t, "gitlab", now.AddDate(-6, 0, 0), "gl-2"), "gl-2"), []string{"for node gl-2 that expired on"}},
	} {
		t.Run(name, func(t *testing.T) {
			pair, err := tls.LoadX509KeyPair(p.files.Cert, p.files.Key)
			if err != nil {
				t.Fatal(err)
			}
			srv := &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert}
			_, serverErr, clientErr := handshake(t, srv, cl)
			wantError(t, clientErr, p.want...)
			if serverErr == nil {
				t.Error("the server got through")
			}
		})
	}
}

// TestRenewalNeedsNoRestart replaces one side's files between handshakes.
func TestRenewalNeedsNoRestart(t *testing.T) {
	dir := newCluster(t, "gitlab", time.Now(), "gl-1", "gl-2")
	f := NodeFiles(dir, "gl-2")
	mine := NodeFiles(dir, "gl-1")
	mine.CA = filepath.Join(dir, "mine.crt")
	if err := os.WriteFile(mine.CA, []byte(read(t, f.CA)), 0o600); err != nil {
		t.Fatal(err)
	}
	srv, cl := server(t, f), client(t, mine, "gl-2")
	serial := func() string {
		t.Helper()
		var got string
		watch := cl.Clone()
		watch.VerifyConnection = func(s tls.ConnectionState) error {
			got = s.PeerCertificates[0].SerialNumber.String()
			return cl.VerifyConnection(s)
		}
		if _, serverErr, clientErr := handshake(t, srv, watch); serverErr != nil || clientErr != nil {
			t.Fatalf("server: %v, client: %v", serverErr, clientErr)
		}
		return got
	}
	first := serial()
	if err := CreateNode(dir, "gitlab", "gl-2", true); err != nil {
		t.Fatal(err)
	}
	second := serial()
	if second == first {
		t.Error("the server still shows the old certificate")
	}

	// Half a renewal: the certificate is there, its key is not yet.
	key := read(t, f.Key)
	if err := CreateNode(dir, "gitlab", "gl-2", true); err != nil {
		t.Fatal(err)
	}
	newKey := read(t, f.Key)
	if err := os.WriteFile(f.Key, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != second {
		t.Errorf("half a renewal: certificate %s, want %s", got, second)
	}
	if err := os.WriteFile(f.Key, []byte(newKey), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got == second {
		t.Error("the completed renewal is not seen")
	}

	// A new CA on the client's side shuts out the certificates of the former one.
	otherCA, _ := CAFiles(newCluster(t, "gitlab", time.Now()))
	if err := os.WriteFile(mine.CA, []byte(read(t, mine.CA)+read(t, otherCA)), 0o600); err != nil {
		t.Fatal(err)
	}
	serial() // both CAs hold
	if err := os.WriteFile(mine.CA, []byte(read(t, otherCA)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, clientErr := handshake(t, srv, cl)
	wantError(t, clientErr, "a certificate that the CA in "+mine.CA+" did not sign")
}

// TestExpiryWhileRunning lets time pass over a running node.
func TestExpiryWhileRunning(t *testing.T) {
	dir := newCluster(t, "gitlab", time.Now(), "gl-1", "gl-2")
	now := time.Now()
	clock := func() time.Time { return now }
	ls, err := newLoader(NodeFiles(dir, "gl-2"), "gitlab", clock)
	if err != nil {
		t.Fatal(err)
	}
	lc, err := newLoader(NodeFiles(dir, "gl-1"), "gitlab", clock)
	if err != nil {
		t.Fatal(err)
	}
	srv, cl := ls.serverTLS(inConfig), lc.clientTLS("gl-2", "a:1")
	if _, serverErr, clientErr := handshake(t, srv, cl); serverErr != nil || clientErr != nil {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
	now = now.AddDate(5, 0, 1)
	_, serverErr, clientErr := handshake(t, srv, cl)
	wantError(t, serverErr, "gl-2.crt expired on", "replfs pki node gl-2 --cluster gitlab")
	if clientErr == nil {
		t.Error("the client got through")
	}
	// Files that cannot be used are named as well, or the renewal seems to be ignored.
	if err := os.Chmod(NodeFiles(dir, "gl-2").Key, 0o644); err != nil { //nolint:gosec // on purpose
		t.Fatal(err)
	}
	_, serverErr, _ = handshake(t, srv, cl)
	wantError(t, serverErr, "expired on", "the files on disk cannot be used", "chmod 600")

	// A renewal that is another node's certificate is not one.
	f1, f2 := NodeFiles(dir, "gl-1"), NodeFiles(dir, "gl-2")
	for from, to := range map[string]string{f2.Cert: f1.Cert, f2.Key: f1.Key} {
		if err := os.WriteFile(to, []byte(read(t, from)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err = lc.own()
	wantError(t, err, `replaced by that of node "gl-2", this is node "gl-1"`)
}
