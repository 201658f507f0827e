package lab

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// permanentError ends a poll at once.
type permanentError struct{ err error }

// Error returns the message of the error that ended the poll.
func (e permanentError) Error() string { return e.err.Error() }

// Unwrap returns the error that ended the poll.
func (e permanentError) Unwrap() error { return e.err }

// permanent marks an error that waiting cannot mend.
func permanent(err error) error { return permanentError{err} }

// poll calls check until it returns nil, for at most limit. What check returned
// last is the reason in the error.
func poll(ctx context.Context, limit time.Duration, what string, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	const every = 50 * time.Millisecond
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var reason error
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if errors.As(err, &permanentError{}) {
			return fmt.Errorf("%s: %w", what, err)
		}
		// An error that only says that time is up must not hide the real one.
		if reason == nil || ctx.Err() == nil {
			reason = err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: gave up after %s: %w", what, time.Since(start).Round(time.Millisecond), reason)
		}
	}
}
