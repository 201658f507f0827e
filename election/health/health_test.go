package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
)

const hang = 60 * time.Second

var errBad = errors.New("bad")

func TestTracker(t *testing.T) {
	for _, p := range []struct {
		rise, fall int
		results    string // + and -
		want       string // ? h u after each
	}{
		{2, 3, "++++", "?hhh"},
		{2, 3, "---+", "??uu"},
		{2, 3, "+-+-+-+-+", "?????????"},
		{2, 3, "++--+--+---", "?hhhhhhhhhu"},
		{2, 3, "---+-+-++", "??uuuuuuh"},
		{1, 1, "+-+-", "huhu"},
		{3, 2, "++-+++--", "?????hhu"},
		{1, 3, "--+---", "??hhhu"},
	} {
		tr := Tracker{Rise: p.rise, Fall: p.fall, Interval: time.Second}
		now := time.Unix(1000, 0)
		got, last := "", Unknown
		for _, r := range p.results {
			var err error
			if r == '-' {
				err = errBad
			}
			if changed := tr.Observe(now, err); changed != (tr.State() != last) {
				t.Errorf("%s: changed %t, state %v was %v", p.results, changed, tr.State(), last)
			}
			if !tr.Due().Equal(now.Add(time.Second)) || tr.Err() != err {
				t.Errorf("due %v, error %v", tr.Due(), tr.Err())
			}
			last = tr.State()
			got += map[State]string{Unknown: "?", Healthy: "h", Unhealthy: "u"}[last]
			now = now.Add(time.Second)
		}
		if got != p.want {
			t.Errorf("rise %d, fall %d, %s: %s, want %s", p.rise, p.fall, p.results, got, p.want)
		}
	}
}

func TestCombine(t *testing.T) {
	for _, p := range []struct {
		in   []State
		want State
	}{
		{nil, Healthy}, {[]State{Healthy}, Healthy}, {[]State{Healthy, Unknown}, Unknown},
		{[]State{Unknown, Unhealthy, Healthy}, Unhealthy},
	} {
		if got := Combine(p.in); got != p.want {
			t.Errorf("%v: %v", p.in, got)
		}
	}
}

func TestProbes(t *testing.T) {
	status := atomic.Int32{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang":
			<-r.Context().Done()
		case "/half":
			w.Header().Set("Content-Length", "100")
			_, _ = fmt.Fprint(w, "half")
		case "/redirect":
			http.Redirect(w, r, "/hang", http.StatusFound)
		default:
			w.WriteHeader(int(status.Load()))
		}
	}))
	defer srv.Close()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	defer lis.Close()
	short := 200 * time.Millisecond
	for _, p := range []struct {
		check  Check
		status int32
		want   string
	}{
		{Check{HTTP: srv.URL, Timeout: hang}, 200, ""},
		{Check{HTTP: srv.URL, Timeout: hang}, 204, ""},
		{Check{HTTP: srv.URL, Timeout: hang}, 404, "404 Not Found"},
		{Check{HTTP: srv.URL, Timeout: hang}, 503, "503 Service Unavailable"},
		{Check{HTTP: srv.URL + "/redirect", Timeout: hang}, 0, ""},
		{Check{HTTP: srv.URL + "/hang", Timeout: short}, 0, "no answer within 200ms"},
		{Check{HTTP: srv.URL + "/half", Timeout: hang}, 0, "ends early"},
		{Check{TCP: lis.Addr().String(), Timeout: hang}, 0, ""},
		{Check{TCP: closed.Addr().String(), Timeout: hang}, 0, "refused"},
		{Check{Exec: "test $((1+1)) = 2", Timeout: hang}, 0, ""},
		{Check{Exec: "exit 4", Timeout: hang}, 0, "exit status 4"},
		{Check{Exec: "trap '' TERM; sleep 600", Timeout: short}, 0, "no answer within 200ms"},
	} {
		status.Store(p.status)
		err := p.check.probe(t.Context())
		if (err == nil) != (p.want == "") || err != nil && !strings.Contains(err.Error(), p.want) {
			t.Errorf("%s: %v, want %q", p.check.Name(), err, p.want)
		}
	}
}

// TestMonitor drives two checks by hand.
func TestMonitor(t *testing.T) {
	defer goleak.VerifyNone(t)
	results := map[string]chan error{"a": make(chan error), "b": make(chan error)}
	var mu sync.Mutex
	var said []string
	m := New([]Check{{TCP: "a", Rise: 1, Fall: 2}, {TCP: "b", Rise: 2, Fall: 1}}, zap.NewNop(), func(s State, why string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, s.String()+" "+why)
	})
	m.probe = func(ctx context.Context, c Check) error {
		select {
		case err := <-results[c.TCP]:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.sleep = func(context.Context, time.Time) {}
	feed := func(name string, errs ...error) {
		for _, err := range errs {
			results[name] <- err
		}
	}
	m.Start()
	m.Start()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	if err := m.Wait(ctx); err == nil || !strings.Contains(err.Error(), "tcp a: not healthy for long enough") {
		t.Errorf("wait: %v", err)
	}
	cancel()
	feed("a", nil)
	feed("b", nil, nil)
	ctx, cancel = context.WithTimeout(t.Context(), hang)
	defer cancel()
	if err := m.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	feed("a", errBad, nil)
	feed("b", errBad, nil)
	feed("b", nil)
	if err := m.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	// The second result is taken only when the first one was reported.
	feed("a", nil)
	feed("b", nil)
	m.Stop()
	m.Stop()
	if s, r := m.Results(); s != Unknown || r != nil {
		t.Errorf("stopped: %v %v", s, r)
	}
	want := []string{"healthy ", "unhealthy tcp b: bad", "healthy "}
	var short []string
	for _, s := range said {
		if !strings.HasPrefix(s, "unknown") {
			short = append(short, s)
		}
	}
	if strings.Join(short, "|") != strings.Join(want, "|") {
		t.Errorf("said %q", said)
	}
}

func TestNothingToCheck(t *testing.T) {
	m := New(nil, zap.NewNop(), nil)
	m.Start()
	defer m.Stop()
	if err := m.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}
