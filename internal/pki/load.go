package pki

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
)

// credentials are a node's files as last read.
type credentials struct {
	pair    *tls.Certificate
	leaf    *x509.Certificate
	roots   *x509.CertPool
	cluster string
	node    string
}

// loader reads a node's files anew when they change, so that a renewal needs no
// restart.
type loader struct {
	files   Files
	cluster string
	now     func() time.Time

	mu    sync.Mutex
	cur   *credentials
	stamp [3]fileStamp
	err   error // why the files as they are now cannot be used
}

// fileStamp tells one version of a file from the next. Its ctime changes with the
// contents and with the mode, and cannot be set back by tools that keep mtimes.
type fileStamp struct {
	dev, ino uint64
	size     int64
	ctime    syscall.Timespec
}

func newLoader(files Files, cluster string, now func() time.Time) (*loader, error) {
	l := &loader{files: files, cluster: cluster, now: now}
	c, err := l.get()
	if err != nil {
		return nil, err
	}
	return l, l.checkOwn(c)
}

// get returns the files' contents. Files that have become unusable, as while they
// are being replaced one by one, leave the former ones in use.
func (l *loader) get() (*credentials, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	stamp := l.stamps()
	if l.cur != nil && stamp == l.stamp {
		return l.cur, nil
	}
	fresh, err := load(l.files, l.cluster)
	if err == nil && l.cur != nil && fresh.node != l.cur.node {
		err = fmt.Errorf("certificate %s was replaced by that of node %q, this is node %q", l.files.Cert, fresh.node, l.cur.node)
	}
	l.err = err
	switch {
	case err == nil:
		l.cur = fresh
		l.stamp = stamp
	case l.cur == nil:
		return nil, err
	}
	return l.cur, nil
}

func (l *loader) stamps() (s [3]fileStamp) {
	for i, name := range []string{l.files.CA, l.files.Cert, l.files.Key} {
		var st syscall.Stat_t
		if err := syscall.Stat(name, &st); err != nil {
			continue // a zero stamp differs from the former one; load says what is wrong
		}
		s[i] = fileStamp{dev: st.Dev, ino: st.Ino, size: st.Size, ctime: st.Ctim}
	}
	return s
}

// checkOwn refuses a certificate of ours that every peer would refuse.
func (l *loader) checkOwn(c *credentials) error {
	now := l.now()
	var problem string
	switch {
	case now.After(c.leaf.NotAfter):
		problem = fmt.Sprintf("certificate %s expired on %s: renew it with `%s`, then copy it here", l.files.Cert, day(c.leaf.NotAfter), renewal(c.cluster, c.node))
	case now.Before(c.leaf.NotBefore):
		problem = fmt.Sprintf("certificate %s is valid only from %s on: set this machine's clock", l.files.Cert, c.leaf.NotBefore.UTC().Format(time.RFC3339))
	default:
		if _, err := c.leaf.Verify(verifyOptions(c.roots, now, x509.ExtKeyUsageAny)); err != nil {
			return fmt.Errorf("certificate %s is not signed by the CA in %s: copy the ca.crt that lies beside the certificate's original: %w", l.files.Cert, l.files.CA, err)
		}
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return fmt.Errorf("%s (the files on disk cannot be used: %w)", problem, l.err)
	}
	return errors.New(problem)
}

func renewal(cluster, node string) string {
	return fmt.Sprintf("replfs pki node %s --cluster %s --dir DIR --force", node, cluster)
}

// load reads and checks the files, but for the certificates' dates.
func load(files Files, cluster string) (*credentials, error) {
	c := &credentials{roots: x509.NewCertPool()}
	cas, err := readCerts(files.CA)
	if err != nil {
		return nil, err
	}
	for _, ca := range cas {
		if !ca.IsCA {
			return nil, fmt.Errorf("%s is not a CA's certificate, it names %q: copy the cluster's ca.crt here", files.CA, ca.Subject.CommonName)
		}
		c.roots.AddCert(ca)
	}
	chain, err := readCerts(files.Cert)
	if err != nil {
		return nil, err
	}
	key, err := readKey(files.Key)
	if err != nil {
		return nil, err
	}
	c.leaf = chain[0]
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(c.leaf.PublicKey) {
		return nil, fmt.Errorf("key %s does not belong to certificate %s: copy both of one node, made at the same time", files.Key, files.Cert)
	}
	c.cluster, c.node, err = identityOf(c.leaf)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", files.Cert, err)
	}
	if c.cluster != cluster {
		return nil, fmt.Errorf("certificate %s is for cluster %q, this is cluster %q: make one with `replfs pki node %s --cluster %s --dir DIR`",
			files.Cert, c.cluster, cluster, c.node, cluster)
	}
	c.pair = &tls.Certificate{PrivateKey: key, Leaf: c.leaf}
	for _, cert := range chain {
		c.pair.Certificate = append(c.pair.Certificate, cert.Raw)
	}
	return c, nil
}

// readCerts returns the certificates of a PEM file, at least one.
func readCerts(file string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(file) //nolint:gosec // the config names it
	if err != nil {
		return nil, fmt.Errorf("reading a certificate: %w", err)
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %s cannot be read: copy it again from where it was made: %w", file, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s holds no PEM certificate: copy it again from where it was made", file)
	}
	return certs, nil
}

// readKey returns the private key of a PEM file that only its owner may read.
func readKey(file string) (crypto.Signer, error) {
	f, err := os.Open(file) //nolint:gosec // the config names it
	if err != nil {
		return nil, fmt.Errorf("reading a key: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading a key: %w", err)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key %s can be read or changed by others (mode %04o): run `chmod 600 %s`, and make a new key if others use this machine",
			file, fi.Mode().Perm(), file)
	}
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(f); err != nil {
		return nil, fmt.Errorf("reading a key: %w", err)
	}
	block, _ := pem.Decode(buf.Bytes())
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM key: copy it again from where it was made", file)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key %s cannot be read: copy it again from where it was made: %w", file, err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key %s cannot sign: make one with `replfs pki node`", file)
	}
	return key, nil
}
