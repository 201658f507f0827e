package apply

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/treediff"
	"github.com/replfs/replfs/internal/treediff/treetest"
	"github.com/replfs/replfs/replicate/record"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	unix.Umask(0o022)
	goleak.VerifyTestMain(m)
}

// rig is a primary and a standby on one filesystem.
type rig struct {
	t     testing.TB
	p     *primary
	cfg   Config
	a     *Applier
	probe func(string) error
}

// filesystems are directories on different ones, so that what only one of
// them supports is done both ways.
func filesystems(t testing.TB) map[string]string {
	fs := map[string]string{"disk": t.TempDir()}
	if dir, err := os.MkdirTemp(memory(), "apply-test-"); err == nil && memory() != "" {
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		fs["tmpfs"] = dir
	}
	return fs
}

// memory is a directory in memory, or "" for the default.
func memory() string {
	if _, err := os.Stat("/dev/shm"); err != nil {
		return ""
	}
	return "/dev/shm"
}

// newRig keeps the primary in pdir and the rest in sdir.
func newRig(t testing.TB, pdir, sdir string) *rig {
	t.Helper()
	dirs := map[string]string{"primary": pdir, "store": sdir}
	for name, dir := range dirs {
		d, err := os.MkdirTemp(dir, name+"-")
		if err != nil {
			t.Fatal(err)
		}
		dirs[name] = d
	}
	r := &rig{t: t, p: newPrimary(t, dirs["primary"])}
	stateDir, err := os.MkdirTemp(memory(), "apply-state-") // synced often
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(stateDir); err != nil {
			t.Error(err)
		}
	})
	r.cfg = Config{
		Store: dirs["store"], StateFile: filepath.Join(stateDir, "state"),
		Node: "b", BootID: "boot-1",
	}
	r.p.must(copyAttrs(dirs["primary"], dirs["store"]))
	r.open()
	t.Cleanup(func() {
		if r.a != nil {
			if err := r.a.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

func tempRig(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	return newRig(t, dir, dir)
}

// copyAttrs makes two empty directories equal.
func copyAttrs(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return err
	}
	return errors.Join(unix.Chmod(to, st.Mode&0o7777), unix.Chown(to, int(st.Uid), int(st.Gid)),
		unix.UtimesNano(to, []unix.Timespec{st.Atim, st.Mtim}))
}

func (r *rig) open() {
	r.t.Helper()
	a, err := open(r.cfg, func(point string) error {
		if r.probe == nil {
			return nil
		}
		return r.probe(point)
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.a = a
}

// crash ends the applier as a kill would: nothing is finished.
func (r *rig) crash() {
	r.t.Helper()
	r.a.sync.abandon()
	r.probe = nil
	if err := r.a.release(); err != nil {
		r.t.Fatal(err)
	}
	r.a = nil
}

func (r *rig) reopen() {
	r.t.Helper()
	r.crash()
	r.open()
}

// restart closes and opens cleanly.
func (r *rig) restart() {
	r.t.Helper()
	if err := r.a.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.open()
}

func (r *rig) apply(recs ...*record.Record) {
	r.t.Helper()
	for _, rec := range recs {
		if err := r.a.Apply(rec); err != nil {
			r.t.Fatal(err)
		}
	}
}

// catchUp applies what of the primary's log is not applied.
func (r *rig) catchUp() {
	r.t.Helper()
	for _, rec := range r.p.log {
		if rec.LSN > r.a.State().Applied {
			r.apply(rec)
		}
	}
}

func (r *rig) equal() {
	r.t.Helper()
	if !treetest.Equal(r.t, r.p.dir, r.cfg.Store, treediff.Options{}) {
		r.t.FailNow()
	}
}

// refused applies a record that must fail, and returns the error.
func (r *rig) refused(rec *record.Record, divergence bool) *Error {
	r.t.Helper()
	before := r.a.State()
	err := r.a.Apply(rec)
	var e *Error
	if !errors.As(err, &e) {
		r.t.Fatalf("apply %v: %v, want an *Error", rec, err)
	}
	if e.LSN != rec.LSN || e.Op != rec.Op || e.Divergence != divergence {
		r.t.Fatalf("apply %v: %#v, want divergence %v", rec, e, divergence)
	}
	if after := r.a.State(); after.Applied != before.Applied || after.Durable != before.Durable {
		r.t.Fatalf("a failed record moved the position from %+v to %+v", before, after)
	}
	return e
}

// mustRefuse is refused for when it does not matter how.
func (r *rig) mustRefuse(rec *record.Record, divergence bool) {
	r.t.Helper()
	if e := r.refused(rec, divergence); !strings.Contains(e.Error(), fmt.Sprintf("%q", rec.Path)) {
		r.t.Fatalf("the error does not name the path: %v", e)
	}
}

// killed is what a probe panics with to stop Apply where it is.
type killed struct{ point string }

// applyUntilKilled applies the log; done is false if the probe killed it.
func (r *rig) applyUntilKilled() (at string, done bool) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case killed:
			at, done = p.point, false
		default:
			panic(p)
		}
	}()
	r.catchUp()
	return "", true
}

func (r *rig) read(path string) string {
	b, err := os.ReadFile(filepath.Join(r.cfg.Store, path))
	if err != nil {
		return fmt.Sprint(err)
	}
	return string(b)
}

func (r *rig) equalQuietly() bool {
	diffs, err := treediff.Compare(r.p.dir, r.cfg.Store, treediff.Options{})
	return err == nil && len(diffs) == 0
}
