package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/workload"
	"github.com/replfs/replfs/test/lab"
)

// patientWriter appends numbered lines to a file of its own on whichever mount
// takes them, and fsyncs each. It opens the file anew each time, so that it
// keeps neither mount from turning read-only.
type patientWriter struct {
	mounts []string
	name   string

	mu     sync.Mutex
	acked  map[int]bool
	last   int
	counts [3]int // acknowledged on each mount
}

func (w *patientWriter) run(ctx context.Context) error {
	at := 0
	for ctx.Err() == nil {
		w.last++
		err := w.write(w.mounts[at], w.last)
		switch {
		case err == nil:
			w.mu.Lock()
			w.acked[w.last] = true
			w.counts[at]++
			w.mu.Unlock()
		case errors.Is(err, unix.EROFS), errors.Is(err, unix.ENOENT):
			// ENOENT: this node does not have the file yet.
			at = (at + 1) % len(w.mounts)
			time.Sleep(time.Millisecond)
		default:
			return fmt.Errorf("%s on %s: %w", w.name, w.mounts[at], err)
		}
	}
	return nil
}

func (w *patientWriter) write(mount string, n int) error {
	f, err := os.OpenFile(filepath.Join(mount, w.name), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%d\n", n)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// verify expects each acknowledged line once, in order.
func (w *patientWriter) verify(t *testing.T, root string) {
	t.Helper()
	f, err := os.Open(filepath.Join(root, w.name))
	must(t, err)
	defer f.Close()
	found, last := map[int]bool{}, 0
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var n int
		if _, err := fmt.Sscanf(sc.Text(), "%d", &n); err != nil || n <= last {
			t.Fatalf("%s: line %q after %d", w.name, sc.Text(), last)
		}
		found[n], last = true, n
	}
	for n := range w.acked {
		if !found[n] {
			t.Fatalf("%s in %s: line %d was acknowledged and is lost", w.name, root, n)
		}
	}
}

// mountOf is the kernel's entry for a node's mount.
func mountOf(t *testing.T, c *lab.Cluster, node string) *mountinfo.Info {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(c.Mount(node)))
	must(t, err)
	if len(infos) != 1 {
		t.Fatalf("%s has %d mounts", node, len(infos))
	}
	return infos[0]
}

// waitFlag waits until the kernel shows a mount as ro or rw.
func waitFlag(t *testing.T, ctx context.Context, c *lab.Cluster, node, flag string) {
	t.Helper()
	eventually(t, ctx, hang, fmt.Sprintf("the mount of %s is %s", node, flag), func() error {
		m := mountOf(t, c, node)
		// The one that remounting changes is the superblock's.
		if !slices.Contains(strings.Split(m.VFSOptions, ","), flag) {
			return fmt.Errorf("it is %s (%s)", m.VFSOptions, m.Options)
		}
		return nil
	})
}

// TestSwitchover: planned switchovers under load, to and fro, lose nothing and
// leave both mounts where they are.
func TestSwitchover(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	s := seed(t)
	rng := random(s)
	c := started(t, ctx, lab.Options{})
	ids := map[string]int{one: mountOf(t, c, one).ID, two: mountOf(t, c, two).ID}
	writers := make([]*patientWriter, 3)
	for i := range writers {
		writers[i] = &patientWriter{
			mounts: []string{c.Mount(one), c.Mount(two)}, name: fmt.Sprintf("w%d", i), acked: map[int]bool{},
		}
		must(t, os.WriteFile(filepath.Join(c.Mount(one), writers[i].name), nil, 0o600))
	}
	text := []byte(strings.Repeat("something to read\n", 10000))
	must(t, os.WriteFile(filepath.Join(c.Mount(one), "reading"), text, 0o600))
	must(t, os.MkdirAll(filepath.Join(c.Mount(one), "work"), 0o755))
	must(t, c.WaitCaughtUp(ctx, one, two))

	running, stop := context.WithCancel(ctx)
	defer stop()
	errs := make(chan error, 16)
	var wg sync.WaitGroup
	var reads atomic.Int64
	for _, w := range writers {
		wg.Go(func() { errs <- w.run(running) })
	}
	for i, mount := range []string{c.Mount(one), c.Mount(two)} {
		// Opened once: a handle survives every change of roles.
		f, err := os.Open(filepath.Join(mount, "reading"))
		must(t, err)
		defer f.Close()
		wg.Go(func() {
			buf := make([]byte, len(text))
			for running.Err() == nil {
				if _, err := f.ReadAt(buf, 0); err != nil || string(buf) != string(text) {
					errs <- fmt.Errorf("a reader with an open handle: %w", err)
					return
				}
				reads.Add(1)
				time.Sleep(5 * time.Millisecond)
			}
			errs <- nil
		})
		wg.Go(func() {
			var err error
			for running.Err() == nil && quietly(err, unix.ENOENT, unix.ENOTDIR) == nil {
				// On a standby, names vanish and change under those who list them.
				_, err = workload.Run(running, filepath.Join(mount, "work"), workload.Options{
					Seed: s + uint64(i), Writers: 2, MaxBytes: 16 << 20, MaxFiles: 400, Pause: 2 * time.Millisecond,
					// EIO: mapped pages that the demoted node could not write back.
					TolerateEROFS: true, Tolerate: []unix.Errno{unix.EOPNOTSUPP, unix.EIO},
				})
			}
			errs <- quietly(err, unix.ENOENT, unix.ENOTDIR)
		})
	}
	old, new := one, two
	for range rounds(6, 60) {
		sleepRandom(rng, 100*time.Millisecond, 600*time.Millisecond)
		promote(t, ctx, c, new, false)
		must(t, c.WaitRole(ctx, old, "standby"))
		must(t, c.WaitInSync(ctx, new, old))
		old, new = new, old
	}
	stop()
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	primary, standby := old, new
	equalStores(t, ctx, c, primary, standby)
	for _, w := range writers {
		w.verify(t, c.Mount(one))
		w.verify(t, c.Mount(two))
		if w.counts[0] == 0 || w.counts[1] == 0 {
			t.Errorf("%s wrote %v times on the two mounts", w.name, w.counts)
		}
	}
	if reads.Load() < 20 {
		t.Errorf("only %d reads", reads.Load())
	}
	for _, n := range c.Names() {
		if id := mountOf(t, c, n).ID; id != ids[n] {
			t.Errorf("the mount of %s was replaced: id %d, was %d", n, id, ids[n])
		}
		logStart(c, n).want(t, msgReceiving, map[string]int{one: 0, two: 1}[n])
	}
	waitFlag(t, ctx, c, primary, "rw")
	waitFlag(t, ctx, c, standby, "ro")
}

// TestOpenHandles: a file that is open for writing when its node hands over
// keeps the kernel's flag from changing, not the gate; the handle works again
// when the node is primary again.
func TestOpenHandles(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := started(t, ctx, lab.Options{})
	f, err := os.Create(filepath.Join(c.Mount(one), "open"))
	must(t, err)
	defer f.Close()
	_, err = f.WriteString("before ")
	must(t, err)
	promote(t, ctx, c, two, false)
	if _, err := f.WriteString("never "); !errors.Is(err, unix.EROFS) {
		t.Errorf("a write through an open handle of a standby: %v, want EROFS", err)
	}
	if err := os.WriteFile(filepath.Join(c.Mount(one), "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a create on a standby: %v, want EROFS", err)
	}
	waitFlag(t, ctx, c, two, "rw")
	g, err := os.OpenFile(filepath.Join(c.Mount(two), "open"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = g.WriteString("there ")
	must(t, errors.Join(err, g.Close()))
	must(t, c.WaitInSync(ctx, two, one))
	promote(t, ctx, c, one, false)
	// At the handle's own offset, as if nothing had been in between.
	_, err = f.WriteAt([]byte("BEFORE"), 0)
	must(t, err)
	must(t, f.Close())
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
	for _, n := range c.Names() {
		if b, err := os.ReadFile(filepath.Join(c.Mount(n), "open")); err != nil || string(b) != "BEFORE there " {
			t.Errorf("%s has %q, %v", n, b, err)
		}
	}
	waitFlag(t, ctx, c, two, "ro")
	waitFlag(t, ctx, c, one, "rw")
}
