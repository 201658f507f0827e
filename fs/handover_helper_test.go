package fs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"

	"github.com/replfs/replfs/internal/treediff"
	"github.com/replfs/replfs/internal/treediff/treetest"
	"github.com/replfs/replfs/internal/workload"
	"github.com/replfs/replfs/replicate/apply"
	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
)

// handedEnv tells a successor the descriptor that it finds the state at.
const handedEnv = "REPLFS_FS_TEST_HANDED"

// hangLimit is how long a test with a helper may take.
var hangLimit = time.Duration(rounds(60, 900)) * time.Second

// servedRing holds all that a test writes.
const servedRing = 256 << 20

// serveLog is the log of a helper, whose fsyncs never end while blocked.
type serveLog struct {
	testLog
	blocked chan struct{}
}

func (l *serveLog) WaitDurable(uint64) error {
	if l.blocked != nil {
		<-l.blocked
	}
	return nil
}

// helperServe mounts a store, or takes the mount over, as a primary. SIGUSR1
// makes it hand over to itself, SIGUSR2 stop answering mutations, SIGTERM end. With block as its last argument
// the first one never acknowledges an fsync.
func helperServe(store, point, ring, block string) int {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTERM)
	if err := serve(store, point, ring, block == "block", signals); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func serve(store, point, ring string, block bool, signals <-chan os.Signal) error {
	log, rec, err := oplog.Open(ring, oplog.Options{Size: servedRing})
	if err != nil {
		return err
	}
	l := &serveLog{testLog: testLog{ring: log, flying: map[*testIntent]bool{}}}
	f, err := New(Config{Store: store, Log: l, Durability: Fsync})
	if err != nil {
		return err
	}
	holds := false
	newFront = func(fs *FS) fuse.RawFileSystem { return holding{front{fs}, &holds} }
	var m *Mount
	if handed := os.Getenv(handedEnv); handed != "" {
		if err := os.Unsetenv(handedEnv); err != nil {
			return err
		}
		state, rerr := readState(handed)
		if rerr != nil {
			return rerr
		}
		m, err = f.Resume(point, state, MountOptions{})
	} else {
		if block {
			l.blocked = make(chan struct{})
		}
		m, err = f.Mount(point, MountOptions{})
	}
	if err != nil {
		return err
	}
	epoch := rec.LastEpoch + 1
	log.SetEpoch(epoch)
	_, err = log.Append(&record.Record{
		Op: record.OpEpoch, Path: "primary", Path2: "cluster", Fields: record.FieldPath | record.FieldPath2,
	}, nil, nil)
	if err != nil {
		return err
	}
	if err := f.Recover(rec.Intents); err != nil {
		return err
	}
	log.ClearIntents()
	if err := m.SetWritableFlag(); err != nil {
		return err
	}
	f.SetWritable()
	fmt.Printf("serving %d\n", epoch)
	for sig := range signals {
		if sig == unix.SIGUSR2 {
			holds = true
			fmt.Println("holding")
			continue
		}
		if sig == unix.SIGTERM {
			return errors.Join(m.Unmount(5*time.Second, true), f.Close(), log.Close())
		}
		if err := m.HandOver(execSelf); err != nil {
			fmt.Println("refused:", err)
		}
	}
	return nil
}

func readState(fd string) ([]byte, error) {
	n, err := strconv.Atoi(fd)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(n), "state")
	defer file.Close()
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(file)
}

func execSelf(state []byte, fds []int) error {
	mem, err := unix.MemfdCreate("state", 0)
	if err != nil {
		return err
	}
	if _, err := unix.Write(mem, state); err != nil {
		return err
	}
	for _, fd := range fds {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return err
		}
	}
	env := append(os.Environ(), fmt.Sprintf("%s=%d", handedEnv, mem))
	return syscall.Exec("/proc/self/exe", os.Args, env)
}

// served is a mount that a helper serves.
type served struct {
	t                              *testing.T
	base, store, standby, mnt, log string
	cmd                            *exec.Cmd
	lines                          *bufio.Reader
	// check, if set, looks at all records of the helper in the end.
	check func([]record.Record)
}

// newServed starts a helper. When the test ends, a standby that has applied
// the helper's log must equal its store.
func newServed(t *testing.T, args ...string) *served {
	t.Helper()
	base, err := os.MkdirTemp(tmpfs, tempPattern)
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(base)) })
	s := &served{t: t, base: base, store: base + "/store", standby: base + "/standby", mnt: base + "/mnt", log: base + "/ring"}
	for _, d := range []string{s.store, s.standby, s.mnt} {
		must(t, os.Mkdir(d, 0o755))
	}
	if len(args) == 0 {
		args = []string{""}
	}
	s.cmd = helperCommand("serve", append([]string{s.store, s.mnt, s.log}, args...)...)
	out, err := s.cmd.StdoutPipe()
	must(t, err)
	s.cmd.Stderr = os.Stderr
	must(t, s.cmd.Start())
	s.lines = bufio.NewReader(out)
	ended := false
	// A mount that is open and not served would hang this process for good.
	watchdog := time.AfterFunc(hangLimit, func() {
		fmt.Fprintln(os.Stderr, "a mount hangs: aborting its connection")
		_ = unix.Unmount(s.mnt, unix.MNT_FORCE)
	})
	t.Cleanup(func() { watchdog.Stop() })
	t.Cleanup(func() {
		if ended {
			return
		}
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		if err := unix.Unmount(s.mnt, unix.MNT_DETACH|unix.MNT_FORCE); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	s.wait()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		must(t, s.cmd.Process.Signal(unix.SIGTERM))
		rest, err := io.ReadAll(s.lines)
		must(t, err)
		if err := s.cmd.Wait(); err != nil {
			t.Fatalf("helper: %v: %s", err, rest)
		}
		ended = true
		s.equal()
	})
	return s
}

func (s *served) in(name string) string { return s.mnt + "/" + name }

// wait waits until the helper serves.
func (s *served) wait() {
	s.t.Helper()
	line, err := s.lines.ReadString('\n')
	if err != nil {
		s.t.Fatalf("helper: %v: %s", err, line)
	}
	if _, err := fmt.Sscanf(line, "serving %d", new(int)); err != nil {
		rest, _ := s.lines.ReadString('\n')
		s.t.Fatalf("helper: %s%s", line, rest)
	}
}

// expect waits for the helper to say something.
func (s *served) expect(want string) {
	s.t.Helper()
	line, err := s.lines.ReadString('\n')
	must(s.t, err)
	if line != want+"\n" {
		s.t.Fatalf("helper: %s, want %s", line, want)
	}
}

// restart has the helper hand over to its successor, and waits for that.
func (s *served) restart() {
	s.t.Helper()
	must(s.t, s.cmd.Process.Signal(unix.SIGUSR1))
	s.wait()
}

// startWorkload is env's.
func (s *served) startWorkload(o workload.Options) (wait func(kill bool) error) {
	return (&env{t: s.t, mnt: s.mnt}).startWorkload(o)
}

// equal applies the helper's log, which has ended, to a standby.
func (s *served) equal() {
	s.t.Helper()
	a, err := apply.Open(apply.Config{
		Store: s.standby, StateFile: s.base + "/applied", Node: node, Log: zap.NewNop(),
		Excluded: func(string) bool { return false },
	})
	must(s.t, err)
	defer func() { must(s.t, a.Close()) }()
	must(s.t, a.SetApplied(0, 0))
	records := s.records()
	for i := range records {
		if err := a.Apply(&records[i]); err != nil {
			s.t.Fatalf("standby: %v\nrecord: %s", err, records[i].String())
		}
	}
	if s.check != nil {
		s.check(records)
	}
	treetest.Equal(s.t, s.store, s.standby, treediff.Options{})
}

// records are all of the helper's log, which nobody may have open.
func (s *served) records() []record.Record {
	s.t.Helper()
	ring, rec, err := oplog.Open(s.log, oplog.Options{Size: servedRing})
	must(s.t, err)
	defer func() { must(s.t, ring.Close()) }()
	if rec.Fresh || rec.First != 1 {
		s.t.Fatalf("the helper's log begins at %d: %s", rec.First, rec.Reason)
	}
	r, err := ring.NewReader(1)
	must(s.t, err)
	defer r.Close()
	var out []record.Record
	buf := make([]byte, 0, record.MaxSize)
	for r.Released() < ring.Last() {
		batch, _, last, err := r.Read(context.Background(), buf)
		must(s.t, err)
		batch = bytes.Clone(batch) // the records refer to it
		for len(batch) > 0 {
			var rec record.Record
			n, err := record.Decode(batch, &rec)
			must(s.t, err)
			batch = batch[n:]
			out = append(out, rec)
		}
		r.Release(last)
	}
	return out
}

// count counts the records of an operation on a path.
func count(records []record.Record, op record.Op, path string) int {
	n := 0
	for i := range records {
		if records[i].Op == op && records[i].Path == path {
			n++
		}
	}
	return n
}
