// Package pki makes the certificates of a cluster's nodes and the TLS settings
// that check them. A node's certificate names its cluster and its node; who may
// speak is decided by that name, not by the address it comes from.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

const (
	caYears   = 10
	nodeYears = 5
	// backdate lets a node whose clock is behind accept a new certificate.
	backdate = time.Hour
)

// Files names the files of a node's identity: the CA's certificate, and the
// node's own certificate and key.
type Files struct {
	CA, Cert, Key string
}

// ErrExists is wrapped by errors about files that would have been overwritten.
var ErrExists = errors.New("already exists")

// CAFiles returns where CreateCA puts the CA's certificate and key.
func CAFiles(dir string) (cert, key string) {
	return filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
}

// NodeFiles returns where CreateNode puts a node's files.
func NodeFiles(dir, node string) Files {
	ca, _ := CAFiles(dir)
	return Files{CA: ca, Cert: filepath.Join(dir, node+".crt"), Key: filepath.Join(dir, node+".key")}
}

// CreateCA makes a cluster's CA in dir, which it creates if need be. It
// overwrites nothing unless force is set; then every certificate that the former
// CA signed is void.
func CreateCA(dir, cluster string, force bool) error {
	return createCA(dir, cluster, force, time.Now())
}

func createCA(dir, cluster string, force bool, now time.Time) error {
	if err := checkName("cluster", cluster); err != nil {
		return err
	}
	certFile, keyFile := CAFiles(dir)
	if err := prepare(dir, force, certFile, keyFile); err != nil {
		return err
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		// The organization is the cluster, so that no other cluster's node is signed by mistake.
		Subject:               pkix.Name{CommonName: "replfs CA of " + cluster, Organization: []string{cluster}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.AddDate(caYears, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	return write(template, template, key, key, certFile, keyFile)
}

// CreateNode makes a node's certificate and key in dir, signed by the CA there.
// It overwrites nothing unless force is set.
func CreateNode(dir, cluster, node string, force bool) error {
	return createNode(dir, cluster, node, force, time.Now())
}

func createNode(dir, cluster, node string, force bool, now time.Time) error {
	if err := checkName("cluster", cluster); err != nil {
		return err
	}
	if err := checkName("node", node); err != nil {
		return err
	}
	if node == "ca" {
		return errors.New(`a node cannot be named "ca": its files would be those of the CA`)
	}
	ca, caKey, err := loadCA(dir, cluster, now)
	if err != nil {
		return err
	}
	f := NodeFiles(dir, node)
	if err := prepare(dir, force, f.Cert, f.Key); err != nil {
		return err
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	notAfter := now.AddDate(nodeYears, 0, 0)
	if notAfter.After(ca.NotAfter) {
		notAfter = ca.NotAfter
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: node, Organization: []string{cluster}},
		DNSNames:              []string{node},
		URIs:                  []*url.URL{identityURI(cluster, node)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	return write(template, ca, key, caKey, f.Cert, f.Key)
}

func loadCA(dir, cluster string, now time.Time) (*x509.Certificate, crypto.Signer, error) {
	certFile, keyFile := CAFiles(dir)
	certs, err := readCerts(certFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("there is no CA in %s: make one with `replfs pki ca --cluster %s --dir %s`", dir, cluster, dir)
	}
	if err != nil {
		return nil, nil, err
	}
	key, err := readKey(keyFile)
	if err != nil {
		return nil, nil, err
	}
	// Of several CAs in the file, as during a change of CA, the key tells which is ours.
	for _, ca := range certs {
		pub, ok := ca.PublicKey.(*ecdsa.PublicKey)
		if !ok || !pub.Equal(key.Public()) {
			continue
		}
		if !ca.IsCA {
			return nil, nil, fmt.Errorf("%s is not a CA's certificate", certFile)
		}
		if org := ca.Subject.Organization; len(org) != 1 || org[0] != cluster {
			return nil, nil, fmt.Errorf("the CA in %s is for cluster %q, not %q: use another --dir or the right --cluster", dir, first(org), cluster)
		}
		if now.After(ca.NotAfter) {
			return nil, nil, fmt.Errorf("the CA certificate %s expired on %s: make a new CA with `replfs pki ca --cluster %s --dir %s --force`, then all nodes' certificates",
				certFile, day(ca.NotAfter), cluster, dir)
		}
		return ca, key, nil
	}
	return nil, nil, fmt.Errorf("%s does not belong to %s: restore the pair from one backup", keyFile, certFile)
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return key, nil
}

// prepare makes dir and refuses to go on if a file is there, before any is written.
func prepare(dir string, force bool, files ...string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the directory for certificates: %w", err)
	}
	if force {
		return nil
	}
	for _, f := range files {
		if _, err := os.Lstat(f); err == nil {
			return fmt.Errorf("%s %w: keep it, or replace it with --force", f, ErrExists)
		} else if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("looking for %s: %w", f, err)
		}
	}
	return nil
}

// write signs template and writes it and its key. The key goes first: a daemon
// that sees the new certificate then finds the key that belongs to it.
func write(template, parent *x509.Certificate, key *ecdsa.PrivateKey, signer crypto.Signer, certFile, keyFile string) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return fmt.Errorf("making a serial number: %w", err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return fmt.Errorf("signing %s: %w", certFile, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", keyFile, err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := renameio.WriteFile(keyFile, keyPEM, 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
		return fmt.Errorf("writing the key: %w", err)
	}
	if err := renameio.WriteFile(certFile, certPEM, 0o644, renameio.WithStaticPermissions(0o644)); err != nil {
		return fmt.Errorf("writing the certificate: %w", err)
	}
	return nil
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02") }
