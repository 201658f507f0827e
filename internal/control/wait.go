package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Position is a place in the cluster's log; as a text it is EPOCH/LSN.
type Position struct {
	Epoch uint64 `json:"epoch"`
	LSN   uint64 `json:"lsn"`
}

func (p Position) String() string { return fmt.Sprintf("%d/%d", p.Epoch, p.LSN) }

// ParsePosition reads what String and the attribute user.replfs.position give.
func ParsePosition(s string) (Position, error) {
	var p Position
	epoch, lsn, ok := strings.Cut(s, "/")
	var err error
	if p.Epoch, err = strconv.ParseUint(epoch, 10, 64); err == nil {
		p.LSN, err = strconv.ParseUint(lsn, 10, 64)
	}
	if !ok || err != nil || p.Epoch == 0 || p.LSN == 0 {
		return Position{}, fmt.Errorf("%q is no position: give EPOCH/LSN, such as 3/1200, as `getfattr -n user.replfs.position FILE` prints it", s)
	}
	return p, nil
}

// Wait says what a WaitRequest waits for.
type Wait string

const (
	// WaitReady waits for nothing: it tells for whom the others would wait.
	WaitReady Wait = "ready"
	// WaitSync waits until all that was written is durable.
	WaitSync Wait = "sync"
	// WaitAcked waits until all that was fsynced is durable.
	WaitAcked Wait = "acked"
	// WaitPosition waits on a primary until every fsync up to the position is
	// durable, on a standby until its store shows the position.
	WaitPosition Wait = "position"
)

// WaitRequest asks a node to wait for the standbys in sync.
type WaitRequest struct {
	What     Wait     `json:"what"`
	Position Position `json:"position"`
	// Standbys are the ones to wait for; by default those in sync now.
	Standbys []string `json:"standbys,omitempty"`
	// Timeout in nanoseconds; 0 is none.
	Timeout time.Duration `json:"timeout_ns,omitempty"`
}

// WaitResult is what was waited for.
type WaitResult struct {
	// Position is that up to which it is true.
	Position Position `json:"position"`
	Standbys []string `json:"standbys,omitempty"`
	Seconds  float64  `json:"seconds"`
}

// Wait asks the node to wait; see UnsafeError. It ends with ctx.
func (c *Client) Wait(ctx context.Context, req WaitRequest) (*WaitResult, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	var r WaitResult
	return &r, c.send(ctx, http.MethodPost, "/v1/wait", bytes.NewReader(body), &r)
}

// maxRequest bounds the body of a request.
const maxRequest = 64 << 10

func handleWait(n Node, unsafe func(error) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req WaitRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req); err != nil {
			answer(w, nil, fmt.Errorf("read the request: %w", err), unsafe)
			return
		}
		res, err := n.Wait(r.Context(), req)
		answer(w, res, err, unsafe)
	}
}
