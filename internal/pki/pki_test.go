package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// newCluster makes a CA and nodes as of then, and returns their directory.
func newCluster(t *testing.T, cluster string, then time.Time, nodes ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	if err := createCA(dir, cluster, false, then); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if err := createNode(dir, cluster, n, false, then); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want %q", parts)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("got error %q, want it to say %q", err, p)
		}
	}
}

func TestCreate(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	dir := newCluster(t, "gitlab", now, "gl-1")
	caFile, caKey := CAFiles(dir)
	f := NodeFiles(dir, "gl-1")
	if f.CA != caFile || f.Cert != filepath.Join(dir, "gl-1.crt") || f.Key != filepath.Join(dir, "gl-1.key") {
		t.Errorf("files: %+v", f)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, caKey: 0o600, f.Key: 0o600, caFile: 0o644, f.Cert: 0o644} {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", path, fi.Mode().Perm(), want)
		}
	}
	cas, err := readCerts(caFile)
	if err != nil {
		t.Fatal(err)
	}
	leaves, err := readCerts(f.Cert)
	if err != nil {
		t.Fatal(err)
	}
	ca, leaf := cas[0], leaves[0]
	if !ca.IsCA || !ca.NotAfter.Equal(now.AddDate(10, 0, 0)) || !ca.MaxPathLenZero {
		t.Errorf("CA: is CA %v, until %v", ca.IsCA, ca.NotAfter)
	}
	if leaf.IsCA || !leaf.NotAfter.Equal(now.AddDate(5, 0, 0)) || !leaf.NotBefore.Before(now) {
		t.Errorf("node: is CA %v, from %v until %v", leaf.IsCA, leaf.NotBefore, leaf.NotAfter)
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
		t.Errorf("node's key is a %T", leaf.PublicKey)
	}
	if leaf.Subject.CommonName != "gl-1" || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "gl-1" ||
		len(leaf.URIs) != 1 || leaf.URIs[0].String() != "replfs://gitlab/gl-1" {
		t.Errorf("identity: %v %v %v", leaf.Subject, leaf.DNSNames, leaf.URIs)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(verifyOptions(roots, now, usage)); err != nil {
			t.Errorf("usage %v: %v", usage, err)
		}
	}
	notAfter, err := Check(f, "gitlab", "gl-1")
	if err != nil || !notAfter.Equal(leaf.NotAfter) {
		t.Errorf("Check: %v, %v", notAfter, err)
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	dir := newCluster(t, "gitlab", time.Now(), "gl-1")
	caFile, caKey := CAFiles(dir)
	f := NodeFiles(dir, "gl-1")
	before := read(t, caFile) + read(t, caKey) + read(t, f.Key)

	err := CreateCA(dir, "gitlab", false)
	wantError(t, err, "already exists", "--force")
	if !errors.Is(err, ErrExists) {
		t.Error("not ErrExists")
	}
	wantError(t, CreateNode(dir, "gitlab", "gl-1", false), "gl-1.crt already exists")
	if err := os.Remove(f.Cert); err != nil {
		t.Fatal(err)
	}
	wantError(t, CreateNode(dir, "gitlab", "gl-1", false), "gl-1.key already exists")
	if _, err := os.Stat(f.Cert); err == nil {
		t.Error("a refused CreateNode wrote the certificate")
	}
	if read(t, caFile)+read(t, caKey)+read(t, f.Key) != before {
		t.Error("a file changed")
	}

	old := read(t, f.Key)
	if err := CreateNode(dir, "gitlab", "gl-1", true); err != nil {
		t.Fatal(err)
	}
	if read(t, f.Key) == old {
		t.Error("force kept the key")
	}
	if err := CreateCA(dir, "gitlab", true); err != nil {
		t.Fatal(err)
	}
	_, err = Check(f, "gitlab", "gl-1")
	wantError(t, err, "is not signed by the CA in")
}

func TestCreateRefuses(t *testing.T) {
	dir := newCluster(t, "gitlab", time.Now())
	for _, name := range []string{"", "../x", "A", "a.b", "-a", "a/b", strings.Repeat("a", 64)} {
		wantError(t, CreateNode(dir, "gitlab", name, false), "node name", "is not valid")
		wantError(t, CreateNode(dir, name, "n", false), "cluster name", "is not valid")
		wantError(t, CreateCA(dir, name, true), "cluster name", "is not valid")
	}
	wantError(t, CreateNode(dir, "gitlab", "ca", true), "cannot be named")
	wantError(t, CreateNode(dir, "other", "n", false), `is for cluster "gitlab", not "other"`)
	wantError(t, CreateNode(t.TempDir(), "gitlab", "n", false), "there is no CA", "replfs pki ca --cluster gitlab")

	_, keyFile := CAFiles(dir)
	if err := os.Chmod(keyFile, 0o644); err != nil { //nolint:gosec // on purpose
		t.Fatal(err)
	}
	wantError(t, CreateNode(dir, "gitlab", "n", false), "chmod 600 "+keyFile)

	other := newCluster(t, "gitlab", time.Now())
	_, otherKey := CAFiles(other)
	if err := os.Rename(otherKey, keyFile); err != nil {
		t.Fatal(err)
	}
	wantError(t, CreateNode(dir, "gitlab", "n", false), "does not belong to")

	old := newCluster(t, "gitlab", time.Now().AddDate(-11, 0, 0))
	wantError(t, CreateNode(old, "gitlab", "n", false), "expired on", "replfs pki ca")
}

func TestNodeDoesNotOutliveItsCA(t *testing.T) {
	then := time.Now().AddDate(-7, 0, 0).Truncate(time.Second)
	dir := newCluster(t, "gitlab", then)
	if err := CreateNode(dir, "gitlab", "n", false); err != nil {
		t.Fatal(err)
	}
	notAfter, err := Check(NodeFiles(dir, "n"), "gitlab", "n")
	if err != nil || !notAfter.Equal(then.AddDate(10, 0, 0)) {
		t.Errorf("valid until %v, %v, want the CA's end", notAfter, err)
	}
}

func TestCheckRefuses(t *testing.T) {
	now := time.Now()
	dir := newCluster(t, "gitlab", now, "gl-1", "gl-2")
	good := NodeFiles(dir, "gl-1")
	elsewhere := newCluster(t, "gitlab", now, "gl-1")
	expired := newCluster(t, "gitlab", now.AddDate(-6, 0, 0), "gl-1")
	early := newCluster(t, "gitlab", now.Add(2*time.Hour), "gl-1")
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	badPEM := filepath.Join(dir, "bad.pem")
	if err := os.WriteFile(badPEM, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	openKey := filepath.Join(dir, "open.key")
	if err := os.WriteFile(openKey, []byte(read(t, good.Key)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(openKey, 0o640); err != nil { //nolint:gosec // on purpose
		t.Fatal(err)
	}
	_, caKey := CAFiles(dir)
	for name, p := range map[string]struct {
		files         Files
		cluster, node string
		want          []string
	}{
		"other node":    {good, "gitlab", "gl-2", []string{`names node "gl-1", this is node "gl-2"`}},
		"other cluster": {good, "wiki", "gl-1", []string{`is for cluster "gitlab", this is cluster "wiki"`, "replfs pki node gl-1 --cluster wiki"}},
		"other CA":      {Files{good.CA, NodeFiles(elsewhere, "gl-1").Cert, NodeFiles(elsewhere, "gl-1").Key}, "gitlab", "gl-1", []string{"is not signed by the CA in"}},
		"other key":     {Files{good.CA, good.Cert, NodeFiles(dir, "gl-2").Key}, "gitlab", "gl-1", []string{"does not belong to certificate"}},
		"expired":       {NodeFiles(expired, "gl-1"), "gitlab", "gl-1", []string{"expired on", "replfs pki node gl-1 --cluster gitlab"}},
		"too early":     {NodeFiles(early, "gl-1"), "gitlab", "gl-1", []string{"valid only from", "clock"}},
		"open key":      {Files{good.CA, good.Cert, openKey}, "gitlab", "gl-1", []string{"mode 0640", "chmod 600 " + openKey}},
		"no CA":         {Files{"/nonexistent", good.Cert, good.Key}, "gitlab", "gl-1", []string{"/nonexistent"}},
		"no key":        {Files{good.CA, good.Cert, "/nonexistent"}, "gitlab", "gl-1", []string{"/nonexistent"}},
		"garbage cert":  {Files{good.CA, garbage, good.Key}, "gitlab", "gl-1", []string{"holds no PEM certificate"}},
		"broken cert":   {Files{good.CA, badPEM, good.Key}, "gitlab", "gl-1", []string{"bad.pem cannot be read"}},
		"garbage key":   {Files{good.CA, good.Cert, garbage}, "gitlab", "gl-1", []string{"holds no PEM key"}},
		"node as CA":    {Files{good.Cert, good.Cert, good.Key}, "gitlab", "gl-1", []string{"is not a CA's certificate"}},
		"CA as node":    {Files{good.CA, good.CA, caKey}, "gitlab", "gl-1", []string{"names 0 replfs nodes"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Check(p.files, p.cluster, p.node)
			wantError(t, err, p.want...)
			if name == "other node" {
				return // a matter for Check alone
			}
			_, err = ServerTLS(p.files, p.cluster, func(string) bool { return true })
			wantError(t, err, p.want...)
			_, err = ClientTLS(p.files, p.cluster, "gl-2", "address")
			wantError(t, err, p.want...)
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path) //nolint:gosec // the test's own
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
