package fs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// peer is a helper process that is told what to do line by line, and answers
// each line with one.
type peer struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func newPeer(t testing.TB) *peer {
	t.Helper()
	p := &peer{t: t, cmd: helperCommand("peer")}
	var err error
	p.in, err = p.cmd.StdinPipe()
	must(t, err)
	out, err := p.cmd.StdoutPipe()
	must(t, err)
	p.out = bufio.NewReader(out)
	must(t, p.cmd.Start())
	t.Cleanup(func() {
		// It ends at the end of its input, and does not hang for good.
		limit := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
		defer limit.Stop()
		must(t, p.in.Close())
		must(t, p.cmd.Wait())
	})
	return p
}

// ask gives the process a command and returns its answer.
func (p *peer) ask(format string, args ...any) string {
	p.t.Helper()
	_, err := fmt.Fprintf(p.in, format+"\n", args...)
	must(p.t, err)
	limit := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer limit.Stop()
	line, err := p.out.ReadString('\n')
	must(p.t, err)
	return strings.TrimSpace(line)
}

// helperPeer serves the commands. State stays between them: descriptors by
// number, one mapping.
func helperPeer() int {
	var mapping []byte
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		f := strings.Fields(in.Text())
		fmt.Println(peerCommand(f, &mapping))
	}
	return 0
}

func peerCommand(f []string, mapping *[]byte) string {
	number := func(i int) int {
		n, err := strconv.Atoi(f[i])
		if err != nil {
			panic(err)
		}
		return n
	}
	switch f[0] {
	case "open": // PATH FLAGS
		fd, err := unix.Open(f[1], number(2)|unix.O_CLOEXEC, 0o644)
		return outcome(err, "%d", fd)
	case "close": // FD
		return outcome(unix.Close(number(1)), "")
	case "flock": // FD HOW
		return outcome(unix.Flock(number(1), number(2)|unix.LOCK_NB), "")
	case "lock": // FD COMMAND TYPE START LENGTH
		l := unix.Flock_t{Type: int16(number(3)), Start: int64(number(4)), Len: int64(number(5))}
		return outcome(unix.FcntlFlock(uintptr(number(1)), number(2), &l), "")
	case "append": // FD COUNT TAG
		for i := range number(2) {
			line := fmt.Sprintf("%s %d %s\n", f[3], i, strings.Repeat(f[3], pieceLength(i)))
			if err := writeAll(number(1), line); err != nil {
				return outcome(err, "")
			}
		}
		return "ok"
	case "map": // FD LENGTH
		m, err := unix.Mmap(number(1), 0, number(2), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		*mapping = m
		return outcome(err, "")
	case "set": // AT VALUE
		(*mapping)[number(1)] = byte(number(2))
		return "ok"
	case "get": // AT
		return strconv.Itoa(int((*mapping)[number(1)]))
	case "msync":
		return outcome(unix.Msync(*mapping, unix.MS_SYNC), "")
	case "unmap":
		return outcome(unix.Munmap(*mapping), "")
	case "write": // FD TEXT
		return outcome(writeAll(number(1), f[2]), "")
	case "read": // FD
		buf := make([]byte, 100)
		n, err := unix.Read(number(1), buf)
		return outcome(err, "%q", buf[:max(n, 0)])
	}
	return "no such command"
}

// TestLocks: flock(2), fcntl(2) and open file description locks exclude other
// processes as they do in the store, and go with their holder.
func TestLocks(t *testing.T) {
	e := newEnv(t, options{})
	native := e.path("native")
	must(t, os.Mkdir(native, 0o755))
	var got [2]string
	for i, dir := range []string{native, e.mnt} {
		a, b := newPeer(t), newPeer(t)
		var said []string
		say := func(p *peer, format string, args ...any) string {
			answer := p.ask(format, args...)
			said = append(said, fmt.Sprintf(format, args...)+": "+answer)
			return answer
		}
		path := dir + "/f"
		fa, fb := a.ask("open %s %d", path, unix.O_CREAT|unix.O_RDWR), b.ask("open %s %d", path, unix.O_RDWR)
		say(a, "flock %s %d", fa, unix.LOCK_SH)
		say(b, "flock %s %d", fb, unix.LOCK_SH)
		say(a, "flock %s %d", fa, unix.LOCK_EX)
		say(b, "flock %s %d", fb, unix.LOCK_UN)
		say(a, "flock %s %d", fa, unix.LOCK_EX)
		say(b, "flock %s %d", fb, unix.LOCK_SH)
		for _, command := range []int{unix.F_SETLK, unix.F_OFD_SETLK} {
			say(a, "lock %s %d %d 0 100", fa, command, unix.F_WRLCK)
			say(b, "lock %s %d %d 50 1", fb, command, unix.F_RDLCK)
			say(b, "lock %s %d %d 100 1", fb, command, unix.F_WRLCK)
			say(a, "lock %s %d %d 0 0", fa, command, unix.F_WRLCK)
			say(a, "lock %s %d %d 0 60", fa, command, unix.F_UNLCK)
			say(b, "lock %s %d %d 50 1", fb, command, unix.F_WRLCK)
			for _, p := range []*peer{a, b} {
				say(p, "lock %s %d %d 0 0", fa, command, unix.F_UNLCK)
			}
		}
		say(a, "lock %s %d %d 0 0", fa, unix.F_SETLK, unix.F_WRLCK)
		say(a, "close %s", fa)
		say(b, "lock %s %d %d 0 0", fb, unix.F_SETLK, unix.F_WRLCK)
		say(b, "flock %s %d", fb, unix.LOCK_EX)
		got[i] = strings.ReplaceAll(strings.Join(said, "\n"), dir, "")
	}
	if got[0] != got[1] || !strings.Contains(got[0], "EAGAIN") {
		t.Errorf("plain directory:\n%s\n\nmount:\n%s", got[0], got[1])
	}
	e.equal()
}

// pieceLength is how long the piece i is: now and then it takes more than one
// request.
func pieceLength(i int) int {
	if i%50 == 49 {
		return 1200 << 10
	}
	return i * 37 % 3000
}

// TestAppends: what several processes append at once is all there, each piece
// in one.
func TestAppends(t *testing.T) {
	e := newEnv(t, options{})
	const count, writers = 150, 4
	done := make(chan string)
	for w := range writers {
		p := newPeer(t)
		flags := unix.O_CREAT | unix.O_APPEND | unix.O_WRONLY
		if w%2 == 1 {
			flags = unix.O_CREAT | unix.O_APPEND | unix.O_RDWR
		}
		fd := p.ask("open %s %d", e.in("log"), flags)
		go func() { done <- p.ask("append %s %d %c", fd, count, 'a'+w) }()
	}
	for range writers {
		if answer := <-done; answer != "ok" {
			t.Error(answer)
		}
	}
	b, err := os.ReadFile(e.in("log"))
	must(t, err)
	next := map[string]int{}
	for _, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		tag, rest, _ := strings.Cut(line, " ")
		i := next[tag]
		if rest != fmt.Sprintf("%d %s", i, strings.Repeat(tag, pieceLength(i))) {
			t.Fatalf("piece %d of %q is %.60q", i, tag, line)
		}
		next[tag]++
	}
	if len(next) != writers || next["a"] != count || next["d"] != count {
		t.Errorf("pieces: %v", next)
	}
	e.equal()
	e.sound()
}

// TestSharedMapping: two processes share a writable mapping, readers see what
// they store, and it reaches the standby by msync(2), or when it is unmapped.
func TestSharedMapping(t *testing.T) {
	e := newEnv(t, options{})
	must(t, os.WriteFile(e.in("f"), make([]byte, 3*page), 0o644))
	e.records()
	a, b := newPeer(t), newPeer(t)
	for _, p := range []*peer{a, b} {
		fd := p.ask("open %s %d", e.in("f"), unix.O_RDWR)
		if got := p.ask("map %s %d", fd, 3*page) + p.ask("close %s", fd); got != "okok" {
			t.Fatal(got)
		}
	}
	a.ask("set 5 17")
	b.ask("set %d 18", 2*page)
	if x, y := b.ask("get 5"), a.ask("get %d", 2*page); x != "17" || y != "18" {
		t.Errorf("they see %s and %s of each other", x, y)
	}
	buf := make([]byte, 3*page)
	fd, err := unix.Open(e.in("f"), unix.O_RDONLY, 0)
	must(t, err)
	_, err = unix.Pread(fd, buf, 0)
	must(t, errors.Join(err, unix.Close(fd)))
	if buf[5] != 17 || buf[2*page] != 18 {
		t.Errorf("read(2) sees %d and %d", buf[5], buf[2*page])
	}
	if got := a.ask("msync"); got != "ok" {
		t.Error(got)
	}
	writes := 0
	for _, r := range e.records() {
		if r.Op == record.OpWrite {
			writes++
		}
	}
	if writes == 0 {
		t.Error("msync gave no write")
	}
	e.equal()
	b.ask("set 6 19")
	if got := a.ask("unmap") + b.ask("unmap"); got != "okok" {
		t.Error(got)
	}
	eventually(t, "what was unmapped has arrived", func() bool {
		e.records()
		got, err := os.ReadFile(e.standby + "/f")
		return err == nil && got[5] == 17 && got[6] == 19 && got[2*page] == 18
	})
	e.equal()
	e.sound()
}

// TestFifo: two processes talk through a FIFO of the mount; nothing of it is
// recorded but the FIFO.
func TestFifo(t *testing.T) {
	e := newEnv(t, options{})
	must(t, unix.Mkfifo(e.in("p"), 0o600))
	e.records()
	a, b := newPeer(t), newPeer(t)
	fa := a.ask("open %s %d", e.in("p"), unix.O_RDONLY|unix.O_NONBLOCK)
	fb := b.ask("open %s %d", e.in("p"), unix.O_WRONLY|unix.O_NONBLOCK)
	if got := a.ask("read %s", fa); got != "EAGAIN" {
		t.Errorf("an empty FIFO: %s", got)
	}
	if got := b.ask("write %s hello", fb) + a.ask("read %s", fa); got != `ok"hello"` {
		t.Errorf("through the FIFO: %s", got)
	}
	b.ask("close %s", fb)
	if got := a.ask("read %s", fa); got != `""` {
		t.Errorf("after the writer closed: %s", got)
	}
	if recs := e.records(); len(recs) != 0 {
		t.Errorf("records: %v", recs)
	}
	e.equal()
}

// TestUnixSocket: a socket bound in the mount is found through it, with the
// rights that its mode gives.
func TestUnixSocket(t *testing.T) {
	e := newEnv(t, options{})
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	address := &unix.SockaddrUnix{Name: e.in("s")}
	must(t, unix.Bind(fd, address))
	must(t, unix.Listen(fd, 1))
	if err := unix.Bind(fd, address); err == nil {
		t.Error("bound twice")
	}
	connect := func() error {
		c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		must(t, err)
		defer unix.Close(c)
		return unix.Connect(c, address)
	}
	must(t, connect())
	bob, err := startActor(actors[2])
	must(t, err)
	defer bob.stop()
	must(t, unix.Chmod(e.in("s"), 0o600))
	bob.do(func() { err = connect() })
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("another user, mode 0600: %v", err)
	}
	must(t, unix.Chmod(e.in("s"), 0o666))
	bob.do(func() { err = connect() })
	if err != nil && !errors.Is(err, unix.EAGAIN) { // the queue is full
		t.Errorf("another user, mode 0666: %v", err)
	}
	must(t, os.Remove(e.in("s")))
	if err := connect(); !errors.Is(err, unix.ENOENT) {
		t.Errorf("after it was removed: %v", err)
	}
	e.equal()
	e.sound()
}
