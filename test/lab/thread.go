package lab

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/vishvananda/netns"
)

// spawner is the thread that starts every process. The parent-death signal
// follows the thread that forked, not its process, so that thread must never
// end before the process does.
var spawner = sync.OnceValues(func() (chan<- func(), error) {
	jobs := make(chan func())
	ready := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		spawnerOrigin, err = netns.Get()
		ready <- err
		for job := range jobs {
			job()
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("open the network namespace of this process: %w", err)
	}
	return jobs, nil
})

// spawnerOrigin is the network namespace the process began in; only the
// spawner's thread uses it.
var spawnerOrigin netns.NsHandle

// onSpawner runs fn on the spawner's thread, inside ns when it is not nil. Only
// the network namespace changes: the mount namespace stays shared, so that a
// FUSE mount made by a child is visible everywhere.
func onSpawner(ns *Namespace, fn func() error) error {
	jobs, err := spawner()
	if err != nil {
		return err
	}
	result := make(chan error)
	jobs <- func() {
		result <- func() error {
			if ns == nil {
				return fn()
			}
			if err := netns.Set(ns.handle); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", ns.name, err)
			}
			err := fn()
			if back := netns.Set(spawnerOrigin); back != nil {
				// Everything started from here on would land in the wrong
				// network: no test can be trusted any more.
				panic(fmt.Sprintf("lab: leave network namespace %s: %v", ns.name, back))
			}
			return err
		}()
	}
	return <-result
}

// onFreshThread runs fn on a thread of its own that ends afterwards, inside ns.
// Unlike the spawner it may block.
func onFreshThread(ns *Namespace, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime discards the thread, and its namespace
		// with it, when the goroutine ends.
		runtime.LockOSThread()
		defer func() {
			// A runtime.Goexit in fn (t.FailNow) must not strand the caller.
			select {
			case result <- errors.New("the function did not return"):
			default:
			}
		}()
		if err := netns.Set(ns.handle); err != nil {
			result <- fmt.Errorf("enter network namespace %s: %w", ns.name, err)
			return
		}
		result <- fn()
	}()
	return <-result
}
