package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// ServerTLS returns the settings for a node that listens: TLS 1.3, a peer must
// show a certificate of this cluster's CA, and allowed must accept the node it
// names. It fails if this node's own files are not fit for use; later on they are
// read again whenever they change.
func ServerTLS(files Files, cluster string, allowed func(node string) bool) (*tls.Config, error) {
	l, err := newLoader(files, cluster, time.Now)
	if err != nil {
		return nil, err
	}
	return l.serverTLS(allowed), nil
}

func (l *loader) serverTLS(allowed func(node string) bool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// VerifyConnection checks the chain: by the CA as it is then, and with clearer errors.
		ClientAuth: tls.RequireAnyClientCert,
		// No resumption: every connection proves its key anew.
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return l.own()
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			node, err := l.verifyPeer(state, x509.ExtKeyUsageClientAuth)
			if err != nil {
				return err
			}
			if !allowed(node) {
				return fmt.Errorf("peer is node %q, not in the config: add it to nodes on every node, or stop it", node)
			}
			return nil
		},
	}
}

// ClientTLS returns the settings for a node that dials the node named expect at
// address, which only serves messages. Checks are as in ServerTLS.
func ClientTLS(files Files, cluster, expect, address string) (*tls.Config, error) {
	l, err := newLoader(files, cluster, time.Now)
	if err != nil {
		return nil, err
	}
	return l.clientTLS(expect, address), nil
}

func (l *loader) clientTLS(expect, address string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: expect,
		// The standard check compares with a CA that is fixed here and now;
		// VerifyConnection checks the chain and the name instead, always.
		InsecureSkipVerify: true, //nolint:gosec // see above
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return l.own()
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			node, err := l.verifyPeer(state, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return fmt.Errorf("connecting to node %s at %s: %w", expect, address, err)
			}
			if node != expect {
				return fmt.Errorf("expected node %s at %s but its certificate names %s: correct the addresses in nodes, or that node's certificate", expect, address, node)
			}
			return nil
		},
	}
}

// Check tells whether files serve as the identity of a cluster's node, and until
// when.
func Check(files Files, cluster, node string) (notAfter time.Time, err error) {
	l, err := newLoader(files, cluster, time.Now)
	if err != nil {
		return time.Time{}, err
	}
	c, err := l.get()
	if err != nil {
		return time.Time{}, err
	}
	if c.node != node {
		return time.Time{}, fmt.Errorf("certificate %s names node %q, this is node %q: copy %s.crt and %s.key here", files.Cert, c.node, node, node, node)
	}
	return c.leaf.NotAfter, nil
}

// own returns this node's certificate if it is still valid.
func (l *loader) own() (*tls.Certificate, error) {
	c, err := l.get()
	if err != nil {
		return nil, err
	}
	if err := l.checkOwn(c); err != nil {
		return nil, err
	}
	return c.pair, nil
}

// verifyPeer checks the peer's certificate against the CA, the usage and the
// cluster, and returns the node it names.
func (l *loader) verifyPeer(state tls.ConnectionState, usage x509.ExtKeyUsage) (string, error) {
	c, err := l.get()
	if err != nil {
		return "", err
	}
	if len(state.PeerCertificates) == 0 {
		return "", errors.New("peer showed no certificate")
	}
	leaf, now := state.PeerCertificates[0], l.now()
	opts := verifyOptions(c.roots, now, usage)
	opts.Intermediates = x509.NewCertPool()
	for _, cert := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	if err := l.checkChain(leaf, opts, c.cluster); err != nil {
		return "", err
	}
	cluster, node, err := identityOf(leaf)
	if err != nil {
		return "", fmt.Errorf("peer's %w", err)
	}
	if cluster != l.cluster {
		return "", fmt.Errorf("peer's certificate is for cluster %q, this is cluster %q", cluster, l.cluster)
	}
	return node, nil
}

func (l *loader) checkChain(leaf *x509.Certificate, opts x509.VerifyOptions, ours string) error {
	_, err := leaf.Verify(opts)
	if err == nil {
		return nil
	}
	// Whoever is not of our CA may claim any name: do not repeat it as a fact.
	cluster, node, idErr := identityOf(leaf)
	who := fmt.Sprintf("peer, which calls itself %q,", leaf.Subject.CommonName)
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		if idErr == nil && cluster != ours {
			return fmt.Errorf("peer's certificate is for cluster %q, this is cluster %q", cluster, ours)
		}
		return fmt.Errorf("%s has a certificate that the CA in %s did not sign: give both nodes certificates of one CA: %w", who, l.files.CA, err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && idErr == nil && opts.CurrentTime.After(leaf.NotAfter):
		return fmt.Errorf("%s has a certificate for node %s that expired on %s: renew it with `%s`, then copy it there", who, node, day(leaf.NotAfter), renewal(cluster, node))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && opts.CurrentTime.Before(leaf.NotBefore):
		return fmt.Errorf("%s has a certificate valid only from %s on: compare the clocks of both machines", who, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return fmt.Errorf("%s has a certificate that is not valid here: %w", who, err)
}

func verifyOptions(roots *x509.CertPool, now time.Time, usage x509.ExtKeyUsage) x509.VerifyOptions {
	return x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}
}
