package fs

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stopLimit bounds the wait for readers to stop, stopStable is how long
	// there have to be none.
	stopLimit  = 2 * time.Second
	stopStable = 2 * time.Millisecond
	stopStep   = 200 * time.Microsecond
)

// stopReading ends the server's reading, and returns a descriptor of the device
// that outlives it. All that requests wait for is held by the caller.
//
// A thread must not be killed while it reads: a request that is being copied to
// a page which is not there yet fails with EIO then.
func (m *Mount) stopReading() (int, error) {
	srv := m.srv.Swap(nil)
	fd, err := unix.FcntlInt(uintptr(m.dev.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		// The server's readers give up at the first read that finds nothing.
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		m.srv.Store(srv)
		return -1, fmt.Errorf("stop reading requests: %w", err)
	}
	stable := time.Duration(0)
	for begun := time.Now(); stable < stopStable && time.Since(begun) < stopLimit; time.Sleep(stopStep) {
		if srv.DebugData() == "readers: 0" {
			stable += stopStep
			continue
		}
		stable = 0
		if err := wakeThreads(); err != nil {
			m.fs.log.Warn("cannot interrupt the readers of requests", logErr(err))
		}
	}
	return fd, nil
}

// wakeThreads has blocking system calls begin again. The runtime expects this
// signal at any time.
func wakeThreads() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG) // it may have ended
		}
	}
	return nil
}

// readOn undoes stopReading, with another server.
func (m *Mount) readOn(fd int) error {
	if err := unix.SetNonblock(fd, false); err != nil {
		return fmt.Errorf("read requests again: %w", err)
	}
	srv, dev, err := attach(newFront(m.fs), fd, m.dev.init, m.opts)
	if err != nil {
		return fmt.Errorf("read requests again: %w", err)
	}
	m.dev = dev
	m.serve(srv)
	return nil
}
