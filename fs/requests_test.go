package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// asked counts the requests that f makes the kernel send, by opcode, without
// the FORGETs, whose time is the kernel's own choice.
func (e *env) asked(f func()) map[string]uint64 {
	e.t.Helper()
	before := e.settled()
	f()
	out := map[string]uint64{}
	for op, n := range e.settled() {
		if n -= before[op]; n > 0 {
			out[op] = n
		}
	}
	return out
}

// settled returns the counts when no release is on its way any more.
func (e *env) settled() map[string]uint64 {
	e.t.Helper()
	var counts map[string]uint64
	eventually(e.t, "every file is released", func() bool {
		counts = e.fs.Requests()
		return counts["OPEN"]+counts["CREATE"] <= counts["RELEASE"] && counts["OPENDIR"] <= counts["RELEASEDIR"]
	})
	delete(counts, OpcodeForget.String())
	return counts
}

// atMost checks the sum of the requests, over a number of operations.
func atMost(t testing.TB, what string, got map[string]uint64, ops int, each, extra uint64) {
	t.Helper()
	var sum uint64
	for _, n := range got {
		sum += n
	}
	if limit := uint64(ops)*each + extra; sum > limit {
		t.Errorf("%d x %s took %d requests, at most %d are right: %v", ops, what, sum, limit, got)
	}
	t.Logf("%s: %.2f requests, %v", what, float64(sum)/float64(ops), got)
}

// run runs a program that works in the mount.
func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// TestRequestCounts: an operation costs as many requests as it has to and no
// more. A request is what an operation on the mount costs most of its time; one
// more a file is a regression that no functional test would find.
func TestRequestCounts(t *testing.T) {
	// Small enough that no file's content crosses one of tar's records, which
	// would be written in two parts.
	const files, dirs, size = 200, 4, 500
	e := newEnv(t, options{})
	// The kernel asks once for what is answered with ENOSYS.
	root.must(t, e.mnt, "echo x >f; cat f; rm f")

	src := filepath.Join(e.dir, "src")
	for i := range files {
		d := fmt.Sprintf("%s/d%d", src, i%dirs)
		must(t, os.MkdirAll(d, 0o755))
		must(t, os.WriteFile(fmt.Sprintf("%s/f%d", d, i), make([]byte, size), 0o644))
	}
	tarball := e.path("src.tar")
	run(t, "tar", "-cf", tarball, "-C", src, ".")

	// LOOKUP, GETATTR of the directory, CREATE, GETXATTR security.capability,
	// WRITE, SETATTR of the times, the owner and the mode, RELEASE.
	got := e.asked(func() { run(t, "tar", "-xf", tarball, "-C", e.mnt) })
	atMost(t, "file made by tar", got, files, 9, 10*(dirs+1))
	if n := got["CREATE"]; n != files {
		t.Errorf("%d files made by %d CREATEs", files, n)
	}
	if n := got["SETATTR"]; n > 3*(files+dirs+1) {
		t.Errorf("%d files and %d directories made with %d SETATTRs", files, dirs, n)
	}

	var names []string
	for i := range files {
		names = append(names, e.in(fmt.Sprintf("d%d/f%d", i%dirs, i)))
	}
	each := func(f func(name string) error) func() {
		return func() {
			for _, n := range names {
				must(t, f(n))
			}
		}
	}
	var st unix.Stat_t
	stat := each(func(n string) error { return unix.Stat(n, &st) })
	stat()
	atMost(t, "hot stat", e.asked(stat), files, 0, 0)

	buf := make([]byte, 4096)
	read := each(func(n string) error {
		fd, err := unix.Open(n, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		k, err := unix.Read(fd, buf)
		if err == nil && k != size {
			err = fmt.Errorf("read %d bytes", k)
		}
		return err
	})
	read()
	atMost(t, "hot open, read, close", e.asked(read), files, 2, 0)

	find := func() { run(t, "find", e.mnt, "-type", "f", "-size", "+0") }
	find()
	find() // the listing that filled the cache made the kernel forget the directory's atime
	atMost(t, "directory of a hot find", e.asked(find), dirs+1, 2, 2)

	for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR} {
		fd, err := unix.Open(names[0], flags|unix.O_CLOEXEC, 0)
		must(t, err)
		write := func() {
			for i := range files {
				_, err := unix.Pwrite(fd, buf, int64(i)*4096)
				must(t, err)
			}
		}
		write() // the first may have to read a page that it changes in part
		before := e.fs.Requests()
		write()
		after := e.fs.Requests()
		got := map[string]uint64{}
		for op, n := range after {
			if n -= before[op]; n > 0 && op != OpcodeForget.String() {
				got[op] = n
			}
		}
		atMost(t, fmt.Sprintf("write(2) with flags %#x", flags), got, files, 1, 0)
		must(t, unix.Close(fd))
	}

	remove := each(os.Remove)
	// UNLINK, and GETATTR of the directory that the one before has changed.
	atMost(t, "unlink", e.asked(remove), files, 2, 0)
	e.equal()
	e.sound()
}

// TestRequestsAreCounted: what the counters show is what was asked, and an
// opcode that nobody knows shows too.
func TestRequestsAreCounted(t *testing.T) {
	e := newEnv(t, options{})
	before := e.busy.Load()
	got := e.asked(func() {
		for i := range 5 {
			must(t, unix.Mkdir(e.in(fmt.Sprint("d", i)), 0o755))
		}
	})
	if got["MKDIR"] != 5 {
		t.Errorf("5 directories made: %v", got)
	}
	if n := e.busy.Load() - before; n < 5 {
		t.Errorf("5 directories made, said to be busy %d times", n)
	}
	l := fuseLog{fs: e.fs}
	for _, line := range []string{"Unimplemented opcode opcode 54\n", "Unimplemented opcode BMAP\n", "something else\n"} {
		_, err := l.Write([]byte(line))
		must(t, err)
	}
	if got := e.fs.Requests(); got["UNKNOWN"] != 1 || got["BMAP"] != 1 {
		t.Errorf("unimplemented opcodes are counted as %v", got)
	}
}

// TestRequestsOfAPack: what is written from front to end in pieces that end
// anywhere, by who made it read-only, as git does with packs, costs a request a
// piece, and is read back right by that descriptor and by others.
func TestRequestsOfAPack(t *testing.T) {
	e := newEnv(t, options{})
	const pieces, size = 300, 4000
	fd, err := unix.Open(e.in("pack"), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o444)
	must(t, err)
	var want []byte
	before := e.fs.Requests()["WRITE"]
	for i := range pieces {
		piece := bytes.Repeat([]byte{byte(i)}, size)
		must(t, writeAll(fd, string(piece)))
		want = append(want, piece...)
	}
	if n := e.fs.Requests()["WRITE"] - before; n != pieces {
		t.Errorf("%d pieces took %d WRITEs", pieces, n)
	}
	other, err := os.ReadFile(e.in("pack"))
	must(t, err)
	got := make([]byte, len(want))
	_, err = unix.Pread(fd, got, 0)
	must(t, err)
	_, err = unix.Pwrite(fd, []byte("index"), 12)
	must(t, errors.Join(err, unix.Close(fd)))
	if !bytes.Equal(got, want) || !bytes.Equal(other, want) {
		t.Error("it is read back otherwise than it was written")
	}
	copy(want[12:], "index")
	if other, err = os.ReadFile(e.in("pack")); err != nil || !bytes.Equal(other, want) {
		t.Errorf("after it was changed: %v", err)
	}
	e.equal()
	e.sound()
}
