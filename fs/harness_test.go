package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/exclude"
	"github.com/replfs/replfs/internal/treediff"
	"github.com/replfs/replfs/internal/treediff/treetest"
	"github.com/replfs/replfs/replicate/apply"
	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
)

func TestMain(m *testing.M) {
	unix.Umask(0) // as the daemon does: modes are the caller's
	if helper := os.Getenv(helperEnv); helper != "" {
		os.Exit(runHelper(helper))
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests of package fs mount file systems and change owners: run them as root")
		os.Exit(1)
	}
	// The test and the mount it waits for share the process: a P taken by a
	// system call on the mount must not be missed by the server.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 8))
	code := m.Run()
	if code == 0 {
		code = leaks()
	}
	os.Exit(code)
}

// leaks finds what the tests left behind in the process and the mount table.
func leaks() int {
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "leaked goroutines:", err)
		return 1
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), tempPattern) {
		fmt.Fprintf(os.Stderr, "leaked mounts (%v):\n%s", err, mounts)
		return 1
	}
	return 0
}

// tempPattern begins the names of this process's directories.
var tempPattern = fmt.Sprintf("replfs-fs-test-%d-", os.Getpid())

const (
	tmpfs    = "/dev/shm"
	disk     = "/var/tmp"
	node     = "standby"
	ringSize = 16 << 20
)

// options shape an env; the zero value is a primary on tmpfs with a standby.
type options struct {
	base      string // where the stores are made
	store     string // instead of one of its own
	exclude   []string
	noStandby bool // its store stays empty until a copy
	readOnly  bool // begin as a standby does
	traced    bool // note every request
	prepare   func(store string)
	// durability is Fsync unless it is set, paths override it.
	durability Durability
	paths      []PathDurability
	syncStore  func(fd int, dataOnly bool) error
}

// env is a mounted file system with a real log and a standby that applies it.
type env struct {
	t                        testing.TB
	opt                      options
	dir, store, standby, mnt string
	excl                     *exclude.Set
	ring                     *oplog.Log
	log                      *testLog
	fs                       *FS
	m                        *Mount
	reader                   *oplog.Reader
	applier                  *apply.Applier
	trace                    trace
	epoch                    uint64
	buf                      []byte
	// applied is called after each record that the standby applied.
	applied func(r *record.Record)
	copying
	busy atomic.Uint64

	mu      sync.Mutex
	suspect []string
}

func newEnv(t testing.TB, opt options) *env {
	t.Helper()
	fds := openFds(t)
	t.Cleanup(func() { // after everything else was cleaned up
		if now := openFds(t); now > fds && !t.Failed() {
			t.Errorf("%d file descriptors are open, %d were before", now, fds)
			listFds(t)
		}
	})
	if opt.base == "" {
		opt.base = tmpfs
	}
	if opt.durability == Async {
		opt.durability = Fsync
	}
	e := &env{t: t, opt: opt}
	var err error
	e.dir, err = os.MkdirTemp(opt.base, tempPattern)
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(e.dir)) })
	e.store, e.standby, e.mnt = e.path("store"), e.path("standby"), e.path("mnt")
	for _, d := range []string{e.store, e.standby, e.mnt} {
		must(t, os.Mkdir(d, 0o755))
	}
	must(t, os.Chmod(e.dir, 0o755)) // other users go to the mount
	if opt.store != "" {
		e.store = opt.store
	}
	e.excl, err = exclude.New(opt.exclude)
	must(t, err)
	if opt.prepare != nil {
		opt.prepare(e.store)
		if !opt.noStandby {
			opt.prepare(e.standby)
		}
	}
	if !opt.noStandby { // what begins equal is equal
		var st unix.Stat_t
		must(t, unix.Stat(e.store, &st))
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, e.standby, []unix.Timespec{st.Atim, st.Mtim}, 0))
	}
	e.ring, _, err = oplog.Open(e.path("ring"), oplog.Options{Size: ringSize})
	must(t, err)
	t.Cleanup(func() { must(t, e.ring.Close()) })
	e.log = &testLog{ring: e.ring, flying: map[*testIntent]bool{}}
	e.reader, err = e.ring.NewReader(e.ring.Next())
	must(t, err)
	t.Cleanup(e.reader.Close)
	e.openApplier()
	t.Cleanup(func() { must(t, e.applier.Close()) })
	e.mount()
	t.Cleanup(func() { e.unmount() })
	return e
}

func (e *env) openApplier() {
	var err error
	e.applier, err = apply.Open(apply.Config{
		Store: e.standby, StateFile: e.path("applied"), Node: node, Log: zap.NewNop(),
		Need: e.noteNeed, SyncDone: e.noteDone, Excluded: e.excl.Excluded,
	})
	must(e.t, err)
	if !e.opt.noStandby {
		must(e.t, e.applier.SetApplied(e.ring.Last(), 0))
	}
}

// mount makes an FS on the store and mounts it, in a new epoch as after a
// restart of the daemon.
func (e *env) mount(intents ...record.Record) {
	e.t.Helper()
	var err error
	e.fs, err = New(Config{
		Store: e.store, Log: e.log, Excluded: e.excl.Excluded, DeepExcludes: e.excl.Below,
		Busy:       func() { e.busy.Add(1) },
		Durability: e.opt.durability, Paths: e.opt.paths,
		Position: func(lsn uint64) (uint64, uint64, bool) {
			if !e.fs.Writable() {
				st := e.applier.State()
				return st.Epoch, st.Applied, true
			}
			if lsn == 0 {
				lsn = e.ring.Last()
			}
			epoch, ok := e.ring.EpochOf(lsn)
			return epoch, lsn, ok
		},
		Suspect: func(reason string) {
			e.mu.Lock()
			e.suspect = append(e.suspect, reason)
			e.mu.Unlock()
		},
	})
	must(e.t, err)
	if e.opt.syncStore != nil {
		e.fs.syncStore = e.opt.syncStore
	}
	var mo MountOptions
	if e.opt.traced {
		mo.trace = e.trace.line
	}
	e.m, err = e.fs.Mount(e.mnt, mo)
	must(e.t, err)
	if !e.opt.readOnly {
		e.promote(intents...)
	}
}

// promote does what a node does to become primary.
func (e *env) promote(intents ...record.Record) {
	e.t.Helper()
	e.epoch++
	e.ring.SetEpoch(e.epoch)
	_, err := e.ring.Append(&record.Record{
		Op: record.OpEpoch, Path: "primary", Path2: "cluster", Fields: record.FieldPath | record.FieldPath2,
	}, nil, nil)
	must(e.t, err)
	must(e.t, e.fs.Recover(intents))
	must(e.t, e.m.SetWritableFlag())
	e.fs.SetWritable()
}

func (e *env) unmount() {
	if e.m == nil {
		return
	}
	must(e.t, e.m.Unmount(5*time.Second, true))
	must(e.t, e.fs.Close())
	e.m, e.fs = nil, nil
}

func (e *env) path(name string) string { return filepath.Join(e.dir, name) }

// in is a path in the mount.
func (e *env) in(name string) string { return e.mnt + "/" + name }

// records applies what was appended since the last call to the standby and
// returns it.
func (e *env) records() []record.Record {
	e.t.Helper()
	var out []record.Record
	for {
		ctx, cancel := context.WithCancel(context.Background())
		if e.reader.Released() >= e.ring.Last() {
			cancel()
			return out
		}
		if e.buf == nil {
			e.buf = make([]byte, 0, record.MaxSize)
		}
		batch, _, last, err := e.reader.Read(ctx, e.buf)
		cancel()
		must(e.t, err)
		for len(batch) > 0 {
			var r record.Record
			n, err := record.Decode(batch, &r)
			must(e.t, err)
			batch = batch[n:]
			if err := e.apply(&r); err != nil {
				e.t.Fatalf("standby: %v\nrecord: %s", err, r.String())
			}
			if e.applied != nil {
				e.applied(&r)
			}
			if r.Op != record.OpEpoch {
				r.Data = append([]byte(nil), r.Data...)
				out = append(out, r)
			}
		}
		e.reader.Release(last)
	}
}

func (e *env) apply(r *record.Record) error {
	if e.opt.noStandby && !e.begun && !(r.Op == record.OpSyncBegin && r.Path == node) {
		return nil
	}
	if r.Op == record.OpSyncBegin {
		e.begun = true
	}
	return e.applier.Apply(r)
}

// follow applies records as they come, for workloads; the function ends it.
func (e *env) follow() (stop func()) {
	e.t.Helper()
	e.reader.Hold(true)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer e.reader.Hold(false) // if the standby fails, nobody shall wait for it
		for {
			select {
			case <-quit:
				return
			case <-time.After(time.Millisecond):
				e.records()
			}
		}
	}()
	return func() {
		close(quit)
		<-done
		if !e.t.Failed() {
			e.records()
		}
	}
}

// equal checks that the standby's store is the primary's.
func (e *env) equal() {
	e.t.Helper()
	e.records()
	treetest.Equal(e.t, e.store, e.standby, treediff.Options{
		Exclude: func(p string, _ bool) bool { return e.excl.Excluded(p) },
	})
}

// sound checks that nothing went wrong inside.
func (e *env) sound() {
	e.t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.suspect) > 0 {
		e.t.Errorf("the file system found itself suspect: %q", e.suspect)
	}
}

// testLog is the log as the node joins it, with faults.
type testLog struct {
	ring *oplog.Log

	mu sync.Mutex
	// flying are the intents that are neither appended nor ended.
	flying map[*testIntent]bool
	// dies says that the process dies when r is appended (or, with begin,
	// begun): from then on nothing works.
	dies func(r *record.Record, begin bool) bool
	// last is the last intent begun, as it was then.
	last    record.Record
	dead    bool
	durable []uint64
	wait    func(lsn uint64) error
	// received and applied are the waits of the other modes.
	received, applied int
	waitApplied       func() error
}

type testIntent struct {
	l    *testLog
	slot *oplog.Slot
	rec  record.Record
}

var errDead = errors.New("the process is dead")

func (l *testLog) Begin(r *record.Record) Intent {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		panic(errDead) // nothing of this operation may happen
	}
	in := &testIntent{l: l, rec: *r}
	l.last = *r
	l.flying[in] = true
	if l.dies != nil && l.dies(r, true) {
		l.dead = true
		panic(errDead)
	}
	l.mu.Unlock()
	in.slot = l.ring.Begin(r)
	l.mu.Lock()
	return in
}

func (l *testLog) Append(r *record.Record, data []byte, in Intent) (uint64, error) {
	l.mu.Lock()
	if !l.dead && l.dies != nil && l.dies(r, false) {
		l.dead = true
	}
	dead := l.dead
	l.mu.Unlock()
	if dead {
		return 0, errDead
	}
	var slot *oplog.Slot
	t, _ := in.(*testIntent)
	if t != nil {
		slot = t.slot
	}
	lsn, err := l.ring.Append(r, data, slot)
	if err == nil && t != nil {
		l.mu.Lock()
		delete(l.flying, t)
		l.mu.Unlock()
	}
	return lsn, err
}

func (l *testLog) WaitDurable(lsn uint64) error {
	l.mu.Lock()
	l.durable = append(l.durable, lsn)
	wait := l.wait
	l.mu.Unlock()
	if wait != nil {
		return wait(lsn)
	}
	return nil
}

func (l *testLog) WaitReceived(uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.received++
	return nil
}

func (l *testLog) WaitApplied() error {
	l.mu.Lock()
	l.applied++
	wait := l.waitApplied
	l.mu.Unlock()
	if wait != nil {
		return wait()
	}
	return nil
}

func (in *testIntent) End() {
	in.slot.End()
	in.l.mu.Lock()
	defer in.l.mu.Unlock()
	if !in.l.dead { // the dead end nothing
		delete(in.l.flying, in)
	}
}

// revive ends the death and returns what was in doubt.
func (l *testLog) revive() []record.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []record.Record
	for in := range l.flying {
		out = append(out, in.rec)
	}
	clear(l.flying)
	l.dead, l.dies = false, nil
	return out
}

// waited returns and clears the LSNs that were waited for.
func (l *testLog) waited() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.durable
	l.durable = nil
	return w
}

func must(t testing.TB, err error) {
	if err != nil {
		t.Helper()
		t.Fatal(err)
	}
}

func openFds(t testing.TB) int {
	ents, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	count := 0
	for _, ent := range ents {
		to, err := os.Readlink("/proc/self/fd/" + ent.Name())
		// go-fuse keeps pipes for splice(2), and the runtime its poller.
		if err == nil && to != "/dev/null" && !strings.HasPrefix(to, "pipe:") && !strings.HasPrefix(to, "anon_inode:[event") {
			count++
		}
	}
	return count
}

func listFds(t testing.TB) {
	ents, _ := os.ReadDir("/proc/self/fd")
	for _, ent := range ents {
		to, err := os.Readlink("/proc/self/fd/" + ent.Name())
		t.Log(ent.Name(), to, err)
	}
}

// eventually waits for something that comes true by itself.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
