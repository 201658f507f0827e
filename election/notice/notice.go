// Package notice tells people and programs about role changes: by a command, by a
// webhook, by mail. Telling never delays a role change: each target has a bounded
// queue and a goroutine of its own.
package notice

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
)

// Event is what is told; its JSON form is the body of a webhook.
type Event struct {
	// ID is different for each event, the same for all attempts to tell it.
	ID   string    `json:"id"`
	Time time.Time `json:"time"`
	// Event is what happened: "promoted", "demoted", "fault", "recovered".
	Event   string `json:"event"`
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	Role    string `json:"role"`
	Epoch   uint64 `json:"epoch"`
	Peer    string `json:"peer,omitempty"`
	Reason  string `json:"reason,omitempty"`
	// Error says what did not work; empty if all did.
	Error string `json:"error,omitempty"`
}

// Text is the event in a few lines for people.
func (e Event) Text() string {
	s := fmt.Sprintf("replfs, cluster %s: %s %s, role %s, epoch %d.\n", e.Cluster, e.Node, e.Event, e.Role, e.Epoch)
	for _, l := range []struct{ name, text string }{{"Reason", e.Reason}, {"Peer", e.Peer}, {"Problem", e.Error}} {
		if l.text != "" {
			s += l.name + ": " + l.text + "\n"
		}
	}
	return s + "Time: " + e.Time.Format(time.RFC3339) + "\n"
}

// Target is somebody to tell.
type Target interface {
	// Name says who, without secrets.
	Name() string
	// Send tells once. An error that another attempt cannot mend is Permanent.
	Send(ctx context.Context, e Event) error
}

// Permanent marks an error that another attempt cannot mend.
func Permanent(err error) error { return backoff.Permanent(err) }

const (
	queueLength = 64
	attempts    = 8
	firstWait   = time.Second
	longestWait = time.Minute
)

// Sender tells events to all targets.
type Sender struct {
	log     *zap.Logger
	queues  []chan Event
	ctx     context.Context
	cancel  context.CancelFunc
	done    sync.WaitGroup
	backoff func() backoff.BackOff

	mu     sync.Mutex
	closed bool
}

// NewSender starts a Sender, which has to be closed.
func NewSender(targets []Target, log *zap.Logger) *Sender {
	return newSender(targets, log, func() backoff.BackOff {
		b := backoff.NewExponentialBackOff()
		b.InitialInterval, b.MaxInterval, b.Multiplier = firstWait, longestWait, 2
		return b
	})
}

func newSender(targets []Target, log *zap.Logger, b func() backoff.BackOff) *Sender {
	s := &Sender{log: log, backoff: b}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, t := range targets {
		q := make(chan Event, queueLength)
		s.queues = append(s.queues, q)
		s.done.Go(func() {
			for e := range q {
				s.tell(t, e)
			}
		})
	}
	return s
}

// Send queues an event for all targets and returns at once. A target whose queue
// is full does not hear of it; the log does.
func (s *Sender) Send(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for _, q := range s.queues {
		select {
		case q <- e:
		default:
			s.log.Error("notice dropped: too many wait", zap.String("event", e.Event), zap.String("id", e.ID))
		}
	}
}

func (s *Sender) tell(t Target, e Event) {
	log := s.log.With(zap.String("target", t.Name()), zap.String("event", e.Event), zap.String("id", e.ID))
	_, err := backoff.Retry(s.ctx, func() (struct{}, error) { return struct{}{}, t.Send(s.ctx, e) },
		backoff.WithBackOff(s.backoff()), backoff.WithMaxTries(attempts), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, wait time.Duration) {
			log.Warn("notice failed; trying again", zap.Error(err), zap.Duration("wait", wait))
		}))
	if err != nil {
		log.Error("notice not delivered", zap.Error(err))
		return
	}
	log.Info("notice delivered")
}

// Close delivers what is queued until ctx ends, then gives up.
func (s *Sender) Close(ctx context.Context) error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		for _, q := range s.queues {
			close(q)
		}
	}
	s.mu.Unlock()
	all := make(chan struct{})
	go func() {
		s.done.Wait()
		close(all)
	}()
	defer s.cancel()
	select {
	case <-all:
		return nil
	case <-ctx.Done():
	}
	s.cancel()
	<-all
	return errors.New("not all notices were delivered")
}
