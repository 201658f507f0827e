package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// RoleChange is the outcome of a promotion or demotion.
type RoleChange struct {
	Role    string  `json:"role"`
	Epoch   uint64  `json:"epoch"`
	What    string  `json:"what"`
	Seconds float64 `json:"seconds"`
}

// Node is what the server controls.
type Node interface {
	Status() *Status
	Promote(ctx context.Context, force bool) (*RoleChange, error)
	Demote(ctx context.Context) (*RoleChange, error)
	Wait(ctx context.Context, req WaitRequest) (*WaitResult, error)
	// Reload ends the connection when a successor takes over, and returns only
	// an error.
	Reload(ctx context.Context) error
}

// failure is the body of every answer but 200.
type failure struct {
	Error string `json:"error"`
	// Unsafe: refused, and force would do it.
	Unsafe bool `json:"unsafe,omitempty"`
}

// Server serves a Node on a unix socket that only root may use.
type Server struct {
	http *http.Server
	path string
}

// Serve listens at path, replacing a socket that a dead process left. unsafe
// tells errors that mean "refused as unsafe".
func Serve(path string, n Node, unsafe func(error) bool) (*Server, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("control socket %s is in use: another replfs runs there", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old control socket: %w", err)
	}
	// The umask makes the socket private from its first moment.
	old := unix.Umask(0o177)
	lis, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen at the control socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, n.Status(), nil, unsafe) })
	mux.HandleFunc("POST /v1/promote", func(w http.ResponseWriter, r *http.Request) {
		res, err := n.Promote(r.Context(), r.URL.Query().Get("force") == "true")
		answer(w, res, err, unsafe)
	})
	mux.HandleFunc("POST /v1/demote", func(w http.ResponseWriter, r *http.Request) {
		res, err := n.Demote(r.Context())
		answer(w, res, err, unsafe)
	})
	mux.HandleFunc("POST /v1/wait", handleWait(n, unsafe))
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, n.Reload(r.Context()), unsafe)
	})
	s := &Server{path: path, http: &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}}
	go func() { _ = s.http.Serve(lis) }() // ends with ErrServerClosed
	return s, nil
}

func answer(w http.ResponseWriter, body any, err error, unsafe func(error) bool) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		f := failure{Error: err.Error(), Unsafe: unsafe(err)}
		body = f
		if f.Unsafe {
			w.WriteHeader(http.StatusConflict)
		} else {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(body) // the client is gone
}

// Close ends the server and its socket.
func (s *Server) Close() error {
	err := s.http.Close()
	if rerr := os.Remove(s.path); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}
