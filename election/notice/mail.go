package notice

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/wneessen/go-mail"
)

// mailTimeout bounds one attempt to send a mail.
const mailTimeout = 30 * time.Second

// Mail sends events through a mail server.
type Mail struct {
	// Server is HOST:PORT.
	Server   string
	From     string
	To       []string
	Username string
	// PasswordFile is read each time, less a newline at its end.
	PasswordFile string
	// StartTLS requires an encrypted connection with a certificate that is valid.
	StartTLS bool
	// CA is a file with what to trust instead of the system's certificates.
	CA string
}

// Name is that of the server.
func (m *Mail) Name() string { return "smtp " + m.Server }

// Send sends one mail to all. A password is sent over an encrypted connection only,
// unless the server is on this machine.
func (m *Mail) Send(ctx context.Context, e Event) error {
	msg := mail.NewMsg()
	if err := errors.Join(msg.From(m.From), msg.To(m.To...)); err != nil {
		return Permanent(fmt.Errorf("%s: %w", m.Name(), err))
	}
	what := e.Event
	if e.Error != "" {
		what += " (with a problem)"
	}
	msg.Subject(fmt.Sprintf("[replfs %s] %s %s", e.Cluster, e.Node, what))
	msg.SetMessageIDWithValue(e.ID + "@replfs." + e.Node)
	msg.SetDateWithValue(e.Time)
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	msg.SetBodyString(mail.TypeTextPlain, e.Text())

	client, err := m.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, mailTimeout)
	defer cancel()
	if err := client.DialAndSendWithContext(ctx, msg); err != nil {
		err = fmt.Errorf("%s: %w", m.Name(), err)
		var se *mail.SendError
		if errors.As(err, &se) && !se.IsTemp() && se.ErrorCode() >= 500 {
			return Permanent(err)
		}
		return err
	}
	return nil
}

func (m *Mail) client() (*mail.Client, error) {
	host, portText, err := net.SplitHostPort(m.Server)
	if err != nil {
		return nil, Permanent(err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, Permanent(err)
	}
	opts := []mail.Option{mail.WithPort(port), mail.WithTimeout(mailTimeout), mail.WithTLSPolicy(mail.NoTLS)}
	if m.StartTLS {
		config := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
		if m.CA != "" {
			pem, err := os.ReadFile(m.CA)
			if err != nil {
				return nil, fmt.Errorf("read what to trust: %w", err)
			}
			config.RootCAs = x509.NewCertPool()
			if !config.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%s has no certificate", m.CA)
			}
		}
		opts = append(opts, mail.WithTLSPolicy(mail.TLSMandatory), mail.WithTLSConfig(config))
	}
	if m.Username != "" {
		password, err := readSecret(m.PasswordFile)
		if err != nil {
			return nil, err
		}
		opts = append(opts, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(m.Username), mail.WithPassword(string(password)))
	}
	c, err := mail.NewClient(host, opts...)
	if err != nil {
		return nil, Permanent(fmt.Errorf("%s: %w", m.Name(), err))
	}
	return c, nil
}
