package main

import "errors"

// The exit codes; scripts rely on them.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2 // a wrong command line or config
	exitRefused = 3 // possible, but not safe
)

// exitError is an error that ends the process with a code other than exitFailed.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }

func (e *exitError) Unwrap() error { return e.err }

// usageError marks err as one of the command line or the config. Nil stays nil.
func usageError(err error) error { return withCode(exitUsage, err) }

// refusedError marks err as a refusal of something unsafe. Nil stays nil.
func refusedError(err error) error { return withCode(exitRefused, err) }

func withCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code: code, err: err}
}

func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	var ee *exitError
	if errors.As(err, &ee) {
		return ee.code
	}
	return exitFailed
}
