package notice

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/replfs/replfs/election/hook"
)

const hang = 60 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var event = Event{
	ID: "id-1", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Event: "promoted", Cluster: "gitlab",
	Node: "gl-2", Role: "primary", Epoch: 7, Peer: "gl-1", Reason: "by hand",
}

func quick() backoff.BackOff { return backoff.NewConstantBackOff(time.Millisecond) }

func closing(t *testing.T, s *Sender) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	return s.Close(ctx)
}

func secret(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestWebhook: the third attempt is taken, with a signature that is right.
func TestWebhook(t *testing.T) {
	var got []Event
	n := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		mac := hmac.New(sha256.New, []byte("the key"))
		mac.Write(body)
		if want := "sha256=" + hex.EncodeToString(mac.Sum(nil)); r.Header.Get("X-Replfs-Signature-256") != want || r.Method != http.MethodPost {
			t.Errorf("%s, signature %q, want %q", r.Method, r.Header.Get("X-Replfs-Signature-256"), want)
		}
		var e Event
		if err := json.Unmarshal(body, &e); err != nil {
			t.Error(err)
		}
		got = append(got, e)
		if n++; n < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer srv.Close()
	s := newSender([]Target{&Webhook{URL: srv.URL + "/token", Timeout: hang, SecretFile: secret(t, "the key\n", 0o600)}}, zap.NewNop(), quick)
	s.Send(event)
	if err := closing(t, s); err != nil {
		t.Fatal(err)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if len(got) != 3 || got[2] != event {
		t.Errorf("got %+v", got)
	}
}

func TestWebhookRefused(t *testing.T) {
	var n atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n.Add(1)
		w.WriteHeader(http.StatusForbidden)
	}))
	defer srv.Close()
	core, logs := observer.New(zap.InfoLevel)
	s := newSender([]Target{
		&Webhook{URL: srv.URL + "/token", Timeout: hang},
		&Webhook{URL: srv.URL + "/token", Timeout: hang, SecretFile: secret(t, "key", 0o644)},
		&Webhook{URL: "http://127.0.0.1:1/token", Timeout: hang},
	}, zap.New(core), quick)
	s.Send(event)
	if err := closing(t, s); err != nil {
		t.Fatal(err)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if n.Load() != 1 {
		t.Errorf("%d requests: a refusal is final, and a secret for everybody is none", n.Load())
	}
	all := ""
	for _, e := range logs.All() {
		all += fmt.Sprintln(e.Message, e.ContextMap())
	}
	for _, want := range []string{"403 Forbidden", "may be read by everybody", "connection refused"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	if strings.Contains(all, "token") {
		t.Errorf("the path, which may be a secret, is in the log:\n%s", all)
	}
	if got := logs.FilterMessage("notice not delivered").Len(); got != 3 {
		t.Errorf("%d not delivered", got)
	}
}

type stuck struct{ begun chan struct{} }

func (s *stuck) Name() string { return "stuck" }
func (s *stuck) Send(ctx context.Context, _ Event) error {
	select {
	case s.begun <- struct{}{}:
	default:
	}
	<-ctx.Done()
	return ctx.Err()
}

type counter struct{ n atomic.Int32 }

func (c *counter) Name() string { return "counter" }
func (c *counter) Send(context.Context, Event) error {
	c.n.Add(1)
	return nil
}

// TestStuck: one who does not listen delays neither the caller nor the others,
// and its queue has an end.
func TestStuck(t *testing.T) {
	core, logs := observer.New(zap.ErrorLevel)
	st, c := &stuck{make(chan struct{}, 1)}, &counter{}
	s := newSender([]Target{st, c}, zap.New(core), quick)
	s.Send(event)
	<-st.begun
	for i := range 3 * queueLength {
		for begun := time.Now(); c.n.Load() < int32(i) && time.Since(begun) < hang; {
			time.Sleep(time.Millisecond)
		}
		s.Send(event)
	}
	for begun := time.Now(); c.n.Load() < 3*queueLength+1 && time.Since(begun) < hang; {
		time.Sleep(time.Millisecond)
	}
	if got := c.n.Load(); got != 3*queueLength+1 {
		t.Errorf("the other heard %d", got)
	}
	if got := logs.FilterMessage("notice dropped: too many wait").Len(); got != 2*queueLength {
		t.Errorf("%d dropped", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); err == nil {
		t.Error("closed as if all were delivered")
	}
	s.Send(event) // does nothing
}

func TestCommand(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	r := hook.NewRunner(zap.NewNop())
	c := &Command{Hook: hook.Hook{Command: "echo $REPLFS_HOOK $REPLFS_NODE $REPLFS_EPOCH $REPLFS_PEER $REPLFS_MOUNT >" + out, Timeout: hang}, Runner: r, Mount: "/m"}
	if err := c.Send(t.Context(), event); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil || string(b) != "promoted gl-2 7 gl-1 /m\n" {
		t.Errorf("%q, %v", b, err)
	}
	c.Hook.Command = "exit 1"
	var perm *backoff.PermanentError
	if err := c.Send(t.Context(), event); err == nil || errors.As(err, &perm) {
		t.Errorf("error %v", err)
	}
}
