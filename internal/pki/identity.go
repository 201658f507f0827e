package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

const uriScheme = "replfs"

// nameForm is what names of clusters and nodes look like. It keeps path
// separators out of file names and out of the identity.
var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func checkName(what, name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("%s name %q is not valid: use up to 63 of a-z, 0-9 and inner hyphens", what, name)
	}
	return nil
}

func identityURI(cluster, node string) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: cluster, Path: "/" + node}
}

// PeerIdentity returns whom the peer's certificate names. The handshake must
// have been made with a configuration of this package, which verified it.
func PeerIdentity(state tls.ConnectionState) (cluster, node string, err error) {
	if len(state.PeerCertificates) == 0 {
		return "", "", errors.New("peer showed no certificate")
	}
	return identityOf(state.PeerCertificates[0])
}

func identityOf(cert *x509.Certificate) (cluster, node string, err error) {
	var found []*url.URL
	for _, u := range cert.URIs {
		if u.Scheme == uriScheme {
			found = append(found, u)
		}
	}
	if len(found) != 1 {
		return "", "", fmt.Errorf("certificate of %q names %d replfs nodes, want 1: make it with `replfs pki node`", cert.Subject.CommonName, len(found))
	}
	cluster, node = found[0].Host, strings.TrimPrefix(found[0].Path, "/")
	if checkName("cluster", cluster) != nil || checkName("node", node) != nil || found[0].String() != identityURI(cluster, node).String() {
		return "", "", fmt.Errorf("certificate has the malformed identity %q: make it with `replfs pki node`", found[0])
	}
	if cert.Subject.CommonName != node || len(cert.DNSNames) != 1 || cert.DNSNames[0] != node {
		return "", "", fmt.Errorf("certificate names node %q in one place and %q in another: make it with `replfs pki node`",
			node, append([]string{cert.Subject.CommonName}, cert.DNSNames...))
	}
	return cluster, node, nil
}
