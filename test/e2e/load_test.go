package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/workload"
	"github.com/replfs/replfs/test/lab"
)

// gone are the errors of a mount whose daemon was killed under a caller.
var gone = []unix.Errno{unix.ENOTCONN, unix.ECONNABORTED, unix.EIO, unix.EINTR}

// load is a random workload and some writers that fsync, on one mount.
type load struct {
	t       *testing.T
	name    string
	cancel  context.CancelFunc
	done    chan struct{}
	writers []*workload.AckedWriter

	mu   sync.Mutex
	errs []error
}

// ackedWriters is how many writers that fsync a load has.
const ackedWriters = 2

// startLoad works in the mount of a node until it is stopped. Loads of one
// cluster have different names and share the tree that they work on.
func startLoad(t *testing.T, ctx context.Context, c *lab.Cluster, node, name string, seed uint64) *load {
	t.Helper()
	mount := c.Mount(node)
	for _, dir := range []string{"work", "acked"} {
		must(t, os.MkdirAll(filepath.Join(mount, dir), 0o755))
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &load{t: t, name: name, cancel: cancel, done: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := workload.Run(ctx, filepath.Join(mount, "work"), workload.Options{
			Seed: seed, Writers: 3, MaxBytes: 32 << 20, MaxFiles: 1000, Pause: time.Millisecond,
			Tolerate: []unix.Errno{unix.EOPNOTSUPP},
		})
		l.failed(err)
	})
	for i := range ackedWriters {
		w := workload.NewAckedWriter(filepath.Join(mount, l.file(i)), time.Millisecond)
		l.writers = append(l.writers, w)
		wg.Go(func() { l.failed(w.Run(ctx).Err) })
	}
	go func() {
		wg.Wait()
		close(l.done)
	}()
	t.Cleanup(cancel)
	return l
}

// file is where a writer writes, relative to the mount.
func (l *load) file(i int) string { return filepath.Join("acked", fmt.Sprintf("%s-%d", l.name, i)) }

func (l *load) failed(err error) {
	if err != nil {
		l.mu.Lock()
		l.errs = append(l.errs, err)
		l.mu.Unlock()
	}
}

// acked is how many lines were acknowledged.
func (l *load) acked() (n uint64) {
	for _, w := range l.writers {
		n += w.Last()
	}
	return n
}

// stop ends the load. Errors other than those allowed fail the test.
func (l *load) stop(allowed ...unix.Errno) {
	l.t.Helper()
	l.cancel()
	select {
	case <-l.done:
	case <-time.After(60 * time.Second):
		l.t.Fatalf("load %s hangs", l.name)
	}
	for _, err := range l.errs {
		ok := false
		for _, errno := range allowed {
			ok = ok || errors.Is(err, errno)
		}
		if !ok {
			l.t.Fatalf("load %s: %v", l.name, err)
		}
	}
}

// verify looks for everything that was acknowledged in a mount or store.
func (l *load) verify(root string) {
	l.t.Helper()
	for i, w := range l.writers {
		if err := workload.VerifyAcked(filepath.Join(root, l.file(i)), w.Last()); err != nil {
			l.t.Fatalf("acknowledged and lost: %v", err)
		}
	}
}

// moving waits until more lines are acknowledged than now.
func (l *load) moving(ctx context.Context) {
	l.t.Helper()
	before := l.acked()
	eventually(l.t, ctx, hang, "load "+l.name+" goes on", func() error {
		if l.acked() < before+5 {
			return fmt.Errorf("%d lines acknowledged, then %d", before, l.acked())
		}
		return nil
	})
}

// quietly is an error only if it is not one of those allowed.
func quietly(err error, allowed ...unix.Errno) error {
	for _, errno := range allowed {
		if errors.Is(err, errno) {
			return nil
		}
	}
	return err
}
