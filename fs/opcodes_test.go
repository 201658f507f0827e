package fs

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// request is one that go-fuse got, by its own account.
type request struct {
	op       Opcode
	answered bool
	status   string // "OK", or the error
}

// trace is go-fuse's account of every request and reply since the mount.
type trace struct {
	mu     sync.Mutex
	flying map[string]*request // by their unique numbers
	recent []*request
	counts map[string]uint64
}

var (
	received = regexp.MustCompile(`^rx (\d+): (\S+) n\d+ `)
	replied  = regexp.MustCompile(`^tx (\d+): +([^,]+)`)
)

// While it mounts go-fuse opens a file of its own.
const (
	pollHackName = ".go-fuse-epoll-hack"
	pollHackNode = " n18446744073709551615 "
)

// line takes one line of go-fuse's debugging output.
func (tr *trace) line(s string) {
	if strings.Contains(s, pollHackName) || strings.Contains(s, pollHackNode) {
		return
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.flying == nil {
		tr.flying, tr.counts = map[string]*request{}, map[string]uint64{}
	}
	if name, ok := strings.CutPrefix(s, unimplemented); ok && !opcodeNamed(name).Known() {
		// Of these it says no more.
		tr.note(&request{op: opcodeNamed(name)})
	}
	if m := received.FindStringSubmatch(s); m != nil {
		r := &request{op: opcodeNamed(m[2])}
		tr.flying[m[1]] = r
		tr.note(r)
	}
	if m := replied.FindStringSubmatch(s); m != nil {
		if r := tr.flying[m[1]]; r != nil {
			r.answered, r.status = true, m[2]
			delete(tr.flying, m[1])
		}
	}
}

func (tr *trace) note(r *request) {
	tr.recent = append(tr.recent, r)
	tr.counts[r.op.String()]++
}

// take returns the requests since the last call.
func (tr *trace) take() []request {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	var out []request
	for _, r := range tr.recent {
		out = append(out, *r)
	}
	tr.recent = nil
	return out
}

// unseen are the requests that go-fuse answers itself without a word.
var unseen = []Opcode{OpcodeInterrupt, OpcodePoll, OpcodeCopyFileRange64, OpcodeDestroy, OpcodeForget, OpcodeBatchForget}

// checkCounts: the counters have seen what go-fuse has received.
func (e *env) checkCounts() {
	e.t.Helper()
	var diff string
	same := func() bool {
		got := e.fs.Requests()
		e.trace.mu.Lock()
		want := maps.Clone(e.trace.counts)
		e.trace.mu.Unlock()
		for _, op := range unseen {
			delete(got, op.String())
			delete(want, op.String())
		}
		diff = fmt.Sprintf("counted  %v\nreceived %v", got, want)
		return maps.Equal(got, want)
	}
	// A release may still be on its way.
	for deadline := time.Now().Add(10 * time.Second); !same(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			e.t.Errorf("the counters do not agree with go-fuse's trace:\n%s", diff)
			return
		}
	}
}

// promises notes which opcodes were answered with OK and which records came
// with them, in cases where it is clear whose they are.
type promises map[Opcode]map[record.Op]bool

// check compares what was asked and answered in one case, and the records it
// gave, with the table.
func (p *promises) check(t testing.TB, reqs []request, recs []record.Record) {
	t.Helper()
	if err := checkRefused(reqs); err != nil {
		t.Error(err)
	}
	done := map[Opcode]bool{}
	for _, r := range reqs {
		if r.op.Known() && r.status == "OK" && opcodeTable[r.op].effect == mutates {
			done[r.op] = true
		}
	}
	if len(done) > 1 {
		delete(done, OpcodeOpen) // what is opened for something else is not truncated
	}
	var allowed []record.Op
	for op := range done {
		allowed = append(allowed, opcodeTable[op].records...)
	}
	for i := range recs {
		if !slices.Contains(allowed, recs[i].Op) {
			t.Errorf("the table does not promise a %s record of %v", recs[i].Op, slices.Collect(maps.Keys(done)))
		}
		if len(done) != 1 {
			continue
		}
		for op := range done {
			if *p == nil {
				*p = promises{}
			}
			if (*p)[op] == nil {
				(*p)[op] = map[record.Op]bool{}
			}
			(*p)[op][recs[i].Op] = true
		}
	}
}

// checkRefused: no request is of an unknown opcode, and none succeeded that
// the table says is refused.
func checkRefused(reqs []request) error {
	for _, r := range reqs {
		if !r.op.Known() {
			return fmt.Errorf("the kernel sent %s, which the table of opcodes does not have", r.op)
		}
		if opcodeTable[r.op].effect == refused && r.answered && r.status == "OK" {
			return fmt.Errorf("%s was answered with OK; the table says that it is refused (%s)", r.op, opcodeTable[r.op].why)
		}
	}
	return nil
}

// complete: every mutating opcode was driven and gave every record that the
// table promises of it.
func (p *promises) complete(t *testing.T) {
	for op, info := range opcodeTable {
		for _, want := range info.records {
			if !(*p)[Opcode(op)][want] {
				t.Errorf("no case made %s give a %s record", info.name, want)
			}
		}
	}
}

// TestOpcodeTable: the table has everything up to its last opcode, with a
// reason for each that gives no record.
func TestOpcodeTable(t *testing.T) {
	for i, info := range opcodeTable {
		op := Opcode(i)
		if i == 0 || i == 7 || i == 19 { // never given out
			if op.Known() {
				t.Errorf("%s has the number %d", op, i)
			}
			continue
		}
		switch {
		case !op.Known():
			t.Errorf("opcode %d is missing", i)
		case info.effect == mutates && len(info.records) == 0:
			t.Errorf("%s mutates without a record", op)
		case (info.effect == reads || info.effect == refused) && (len(info.records) > 0 || info.why == ""):
			t.Errorf("%s gives no record, and the table does not say why", op)
		}
		if opcodeNamed(op.String()) != op {
			t.Errorf("%s is found as %d", op, opcodeNamed(op.String()))
		}
	}
	if Opcode(54).Known() || opcodeNamed("opcode 54") != 54 || opcodeNamed("OPCODE-60") != 60 || opcodeNamed("?").Known() {
		t.Error("an opcode of a later protocol is taken for a known one")
	}
}

// TestTraceFindsEscapes: what checkRefused has to find, it finds.
func TestTraceFindsEscapes(t *testing.T) {
	for lines, want := range map[string]string{
		"Unimplemented opcode opcode 54":                         "OPCODE-54",
		"rx 8: OPCODE-60 n1  p1":                                 "OPCODE-60",
		"rx 8: IOCTL n2 {Fh 1} p1\ntx 8:     OK, {}":             "IOCTL was answered with OK",
		"rx 8: IOCTL n2 {Fh 1} p1\ntx 8:     38=not implemented": "",
		"rx 8: WRITE n2 {Fh 1} p1\ntx 8:     OK, {5}":            "",
	} {
		var tr trace
		for _, l := range strings.Split(lines, "\n") {
			tr.line(l)
		}
		err := checkRefused(tr.take())
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", lines, err, want)
		}
	}
}

// opcodeCases: the ways into a file system that the other cases do not take.
func opcodeCases() []opCase {
	onF := func(flags int, f func(d dir, fd int) error) func(dir) error {
		return func(d dir) error { return d.with("f", flags, func(fd int) error { return f(d, fd) }) }
	}
	setFlags := func(name string) func(dir) error {
		return func(d dir) error {
			return d.with(name, unix.O_RDONLY, func(fd int) error {
				return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, 0x10) // chattr +i
			})
		}
	}
	return []opCase{
		{name: "chattr", setup: withF, fails: unix.ENOTTY, run: setFlags("f")},
		{name: "chattr of a directory", fails: unix.ENOTTY, run: setFlags(".")},
		{name: "lsattr", setup: withF, fails: unix.ENOTTY, run: onF(unix.O_RDONLY, func(_ dir, fd int) error {
			_, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
			return err
		})},
		{name: "any other ioctl", setup: withF, fails: unix.ENOTTY, run: onF(unix.O_RDWR, func(_ dir, fd int) error {
			return unix.IoctlSetPointerInt(fd, 0x40047602, 1) // FS_IOC_SETVERSION
		})},
		{name: "file without a name, opened so", run: func(d dir) error {
			return d.with(".", unix.O_TMPFILE|unix.O_RDWR, func(fd int) error { return writeAll(fd, "x") })
		}},
		{name: "clone", setup: func(d dir) { withF(d); d.file("g", "") }, fails: unix.EOPNOTSUPP, run: func(d dir) error {
			return d.with("f", unix.O_RDONLY, func(in int) error {
				return d.with("g", unix.O_WRONLY, func(out int) error { return unix.IoctlFileClone(out, in) })
			})
		}},
		{name: "FIBMAP", setup: withF, any: true, run: onF(unix.O_RDONLY, func(_ dir, fd int) error {
			return unix.IoctlSetPointerInt(fd, 1, 0)
		})},
		{name: "sendfile", setup: func(d dir) { withF(d); d.file("g", "") }, run: func(d dir) error {
			return d.with("f", unix.O_RDONLY, func(in int) error {
				return d.with("g", unix.O_WRONLY, func(out int) error {
					_, err := unix.Sendfile(out, in, nil, 7)
					return err
				})
			})
		}, want: []string{"write g 0+7"}},
		{name: "splice", setup: withF, run: onF(unix.O_WRONLY, func(_ dir, fd int) error {
			p := make([]int, 2)
			if err := unix.Pipe2(p, unix.O_CLOEXEC); err != nil {
				return err
			}
			defer unix.Close(p[0])
			defer unix.Close(p[1])
			if err := writeAll(p[1], "12345"); err != nil {
				return err
			}
			_, err := unix.Splice(p[0], nil, fd, nil, 5, 0)
			return err
		}), want: []string{"write f 0+5"}},
		{name: "locks", setup: withF, run: onF(unix.O_RDWR, func(_ dir, fd int) error {
			lock := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
			return errors.Join(unix.Flock(fd, unix.LOCK_EX), unix.FcntlFlock(uintptr(fd), unix.F_SETLKW, &lock),
				unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &lock))
		})},
		{name: "poll", setup: withF, run: onF(unix.O_RDWR, func(_ dir, fd int) error {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
			n, err := unix.Poll(fds, 0)
			if err == nil && n != 1 {
				err = errors.New("not ready")
			}
			return err
		})},
		{name: "statx, lseek, statfs, access, syncfs", setup: withF, run: onF(unix.O_RDWR, func(d dir, fd int) error {
			_, err := unix.Seek(fd, 0, unix.SEEK_HOLE)
			return errors.Join(err, unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_ALL, new(unix.Statx_t)),
				unix.Fstatfs(fd, new(unix.Statfs_t)), unix.Access(d.in("f"), unix.W_OK), unix.Syncfs(fd))
		})},
		{name: "unlink of an excluded file", setup: func(d dir) { d.file("f.skip", "") },
			run: func(d dir) error { return unix.Unlink(d.in("f.skip")) }, want: []string{"setattr . mtime"}},
	}
}
