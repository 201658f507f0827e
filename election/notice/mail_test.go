package notice

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// server is a mail server that takes mail from one user.
type server struct {
	mu     sync.Mutex
	got    []string // to and data
	refuse *smtp.SMTPError
	auth   bool
}

type session struct {
	s      *server
	authed bool
	to     []string
}

func (s *server) NewSession(*smtp.Conn) (smtp.Session, error) { return &session{s: s}, nil }

func (s *session) AuthMechanisms() []string { return []string{sasl.Plain} }
func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != "replfs" || password != "pass word" {
			return errors.New("wrong password")
		}
		s.authed = true
		return nil
	}), nil
}
func (s *session) Mail(string, *smtp.MailOptions) error {
	if s.s.auth && !s.authed {
		return smtp.ErrAuthRequired
	}
	return nil
}
func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	if s.s.refuse != nil {
		return s.s.refuse
	}
	s.to = append(s.to, to)
	return nil
}
func (s *session) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	s.s.got = append(s.s.got, strings.Join(s.to, ",")+"\n"+string(b))
	return err
}
func (s *session) Reset()        { s.to = nil }
func (s *session) Logout() error { return nil }

// serve runs a server on the loopback interface; with a certificate whose CA is
// in the file that is returned.
func serve(t *testing.T, s *server, withTLS bool) (address, ca string) {
	t.Helper()
	srv := smtp.NewServer(s)
	srv.Domain = "localhost"
	srv.AllowInsecureAuth = !withTLS
	if withTLS {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mail"}, DNSNames: []string{"localhost"},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
		ca = filepath.Join(t.TempDir(), "ca.crt")
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // ends when it is closed
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return l.Addr().String(), ca
}

func TestMail(t *testing.T) {
	s := &server{auth: true}
	address, ca := serve(t, s, true)
	m := &Mail{
		Server: address, From: "replfs@example.org", To: []string{"admin@example.org", "other@example.org"},
		Username: "replfs", PasswordFile: secret(t, "pass word\n", 0o600), StartTLS: true, CA: ca,
	}
	e := event
	e.Error = "the VIP is not there"
	if err := m.Send(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if len(s.got) != 1 {
		t.Fatalf("got %q", s.got)
	}
	for _, want := range []string{
		"admin@example.org,other@example.org\n", "Subject: [replfs gitlab] gl-2 promoted (with a problem)\r\n", "From: <replfs@example.org>",
		"Message-ID: <id-1@replfs.gl-2>", "gl-2 promoted, role primary, epoch 7.", "Reason: by hand", "Peer: gl-1", "Problem: the VIP is not there",
		"Auto-Submitted: auto-generated",
	} {
		if !strings.Contains(s.got[0], want) {
			t.Errorf("no %q in\n%s", want, s.got[0])
		}
	}

	wrong := *m
	wrong.PasswordFile = secret(t, "wrong", 0o600)
	if err := wrong.Send(t.Context(), e); err == nil || strings.Contains(err.Error(), "wrong\n") {
		t.Errorf("a wrong password: %v", err)
	}
	open := *m
	open.PasswordFile = secret(t, "pass word", 0o644)
	if err := open.Send(t.Context(), e); err == nil || !strings.Contains(err.Error(), "may be read by everybody") {
		t.Errorf("a password for everybody: %v", err)
	}
	untrusted := *m
	untrusted.CA = ""
	if err := untrusted.Send(t.Context(), e); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that nobody trusts: %v", err)
	}
	if len(s.got) != 1 {
		t.Errorf("%d mails", len(s.got))
	}
}

func TestMailPlain(t *testing.T) {
	s := &server{}
	address, _ := serve(t, s, false)
	m := &Mail{Server: address, From: "replfs@example.org", To: []string{"admin@example.org"}}
	if err := m.Send(t.Context(), event); err != nil || len(s.got) != 1 {
		t.Fatalf("%v, %q", err, s.got)
	}
	// STARTTLS that is not there is no reason to go without.
	m.StartTLS = true
	if err := m.Send(t.Context(), event); err == nil || len(s.got) != 1 {
		t.Errorf("sent without TLS: %v", err)
	}
	m.StartTLS = false
	var perm *backoff.PermanentError
	s.refuse = &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user"}
	if err := m.Send(t.Context(), event); !errors.As(err, &perm) {
		t.Errorf("an address that is refused: %v", err)
	}
	s.refuse = &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 2, 0}, Message: "later"}
	if err := m.Send(t.Context(), event); err == nil || errors.As(err, &perm) {
		t.Errorf("greylisted: %v", err)
	}
}
