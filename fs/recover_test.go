package fs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/workload"
	"github.com/replfs/replfs/replicate/record"
)

// crashCase is an operation that a crash interrupts.
type crashCase struct {
	name string
	run  func(d dir) error
}

func crashCases() []crashCase {
	rename := func(from, to string, flags uint) func(dir) error {
		return func(d dir) error {
			return unix.Renameat2(unix.AT_FDCWD, d.in(from), unix.AT_FDCWD, d.in(to), flags)
		}
	}
	open := func(name string, flags int, f func(fd int) error) func(dir) error {
		return func(d dir) error { return d.with(name, flags, f) }
	}
	fallocate := func(mode uint32, off, length int64) func(dir) error {
		return open("f", unix.O_RDWR, func(fd int) error { return unix.Fallocate(fd, mode, off, length) })
	}
	setx := func(name string, value []byte) func(dir) error {
		return func(d dir) error { return unix.Setxattr(d.in("f"), name, value, 0) }
	}
	return []crashCase{
		{"create", open("n", unix.O_CREAT|unix.O_WRONLY, func(int) error { return nil })},
		{"mknod", func(d dir) error { return unix.Mknod(d.in("n"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }},
		{"mkfifo", func(d dir) error { return unix.Mkfifo(d.in("n"), 0o600) }},
		{"socket", func(d dir) error { return unix.Mknod(d.in("n"), unix.S_IFSOCK|0o600, 0) }},
		{"mkdir", func(d dir) error { return unix.Mkdir(d.in("n"), 0o711) }},
		{"symlink", func(d dir) error { return unix.Symlink("f", d.in("n")) }},
		{"link", func(d dir) error { return unix.Link(d.in("f"), d.in("n")) }},
		{"link of a nameless file", func(d dir) error {
			return d.nameless(0, func(fd int) error { return errors.Join(writeAll(fd, "content"), d.linkOpen(fd, "n")) })
		}},
		{"link in", func(d dir) error { return unix.Link(d.in("tmp/f"), d.in("n")) }},
		{"unlink", func(d dir) error { return unix.Unlink(d.in("g")) }},
		{"unlink of a link", func(d dir) error { return unix.Unlink(d.in("f")) }},
		{"rmdir", func(d dir) error { return unix.Rmdir(d.in("empty")) }},
		{"rename", rename("g", "n", 0)},
		{"rename over", rename("g", "f", 0)},
		{"rename exchange", rename("f", "p", unix.RENAME_EXCHANGE)},
		{"rename directory", rename("p", "empty/n", 0)},
		{"rename directory over", rename("p", "empty", 0)},
		{"rename out", rename("f", "tmp/n", 0)},
		{"rename directory out", rename("p", "tmp/n", 0)},
		{"rename in", rename("tmp/f", "n", 0)},
		{"rename in over", rename("tmp/f", "g", 0)},
		{"rename directory in", rename("tmp/p", "n", 0)},
		{"rename a socket over", rename("s", "p/f", 0)},
		{"rename over a socket", rename("p/f", "s", 0)},
		{"exchange with a socket", rename("p/f", "s", unix.RENAME_EXCHANGE)},
		{"write", open("f", unix.O_WRONLY, func(fd int) error { return writeAll(fd, "NEW") })},
		{"write large", open("f", unix.O_WRONLY, func(fd int) error { return writeAll(fd, string(make([]byte, 1<<20))) })},
		{"append", open("f", unix.O_WRONLY|unix.O_APPEND, func(fd int) error { return writeAll(fd, "NEW") })},
		{"open truncating", open("f", unix.O_WRONLY|unix.O_TRUNC, func(int) error { return nil })},
		{"truncate", func(d dir) error { return unix.Truncate(d.in("f"), 100) }},
		{"chmod", func(d dir) error { return unix.Chmod(d.in("f"), 0o6711) }},
		{"chmod of a directory", func(d dir) error { return unix.Chmod(d.in("p"), 0o1777) }},
		{"chown", func(d dir) error { return unix.Chown(d.in("f"), 5, 6) }},
		{"lchown", func(d dir) error { return unix.Lchown(d.in("l"), 5, 6) }},
		{"utimens", func(d dir) error { return unix.Utimes(d.in("f"), []unix.Timeval{{Sec: 1}, {Sec: 2}}) }},
		{"setxattr", setx("user.a", []byte("b"))},
		{"setxattr empty", setx("user.a", nil)},
		{"acl", setx(accessACL, acl(7, 6))},
		{"removexattr", func(d dir) error { return unix.Removexattr(d.in("f"), "user.x") }},
		{"fallocate", fallocate(0, 0, 1<<20)},
		{"punch", fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, page, page)},
		{"copy range", copyRange("f", "g", 0, 0, 3*page)},
		{"copy range in", copyRange("tmp/f", "g", 0, 0, 3*page)},
	}
}

// crashSetup is what the operations of crashCases work on.
func crashSetup(d dir) {
	t := d.e.t
	for _, p := range []string{"p", "empty", "tmp", "tmp/p"} {
		must(t, unix.Mkdir(d.in(p), 0o755))
	}
	for _, name := range []string{"f", "g", "p/f", "tmp/f", "tmp/p/a", "tmp/p/b"} {
		d.file(name, name+string(make([]byte, 4*page)))
	}
	must(t, unix.Link(d.in("f"), d.in("f2")))
	must(t, unix.Symlink("f", d.in("l")))
	must(t, unix.Mknod(d.in("s"), unix.S_IFSOCK|0o600, 0))
	must(t, unix.Setxattr(d.in("f"), "user.x", []byte("y"), 0))
	must(t, unix.Setxattr(d.in("f"), capability, fileCap, 0))
}

// TestRecoverEveryOperation: the process dies before or after the system call
// of each operation; the next one makes the standby equal to what the store
// holds.
func TestRecoverEveryOperation(t *testing.T) {
	e := newEnv(t, options{base: disk, exclude: []string{"*/tmp/"}})
	for i, c := range crashCases() {
		t.Run(c.name, func(t *testing.T) {
			e.t = t
			for point := 0; point < 100; point++ {
				d := dir{e, fmt.Sprintf("case%d.%d", i, point)}
				must(t, unix.Mkdir(e.in(d.name), 0o755))
				crashSetup(d)
				e.records()
				// Point 0 is before the system call, n the nth record.
				appended := 0
				e.log.mu.Lock()
				e.log.dies = func(_ *record.Record, begin bool) bool {
					if begin {
						return point == 0
					}
					appended++
					return appended == point
				}
				e.log.mu.Unlock()
				err := c.run(d)
				died := e.log.died()
				intents := e.log.revive()
				if !died {
					must(t, err)
					if point < 2 {
						t.Fatal("the operation gave no record to die at")
					}
					e.equal()
					break
				}
				e.suspect = nil
				if len(intents) != 1 {
					t.Errorf("point %d: %d intents are in doubt", point, len(intents))
				}
				e.unmount()
				e.mount(intents...)
				e.equal()
				if t.Failed() {
					t.Fatalf("at point %d, error %v", point, err)
				}
			}
			e.sound()
		})
	}
	e.t = t
}

func (l *testLog) died() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

// TestRecoverWorkload: the process dies again and again amid several writers.
func TestRecoverWorkload(t *testing.T) {
	for _, base := range []string{tmpfs, disk} {
		t.Run(base, func(t *testing.T) {
			e := newEnv(t, options{base: base, exclude: []string{"d1/", "**/f3"}})
			rng := rand.New(rand.NewPCG(1, 2))
			for round := range 6 {
				left := 100 + rng.IntN(1500)
				died := make(chan struct{})
				e.log.mu.Lock()
				e.log.dies = func(*record.Record, bool) bool {
					if left--; left == 0 {
						close(died)
						return true
					}
					return false
				}
				e.log.mu.Unlock()
				stop := e.follow()
				wait := e.startWorkload(workload.Options{
					Seed: uint64(round), Writers: 4, MaxBytes: 8 << 20, MaxFiles: 300, Tolerate: []unix.Errno{unix.EIO},
				})
				select {
				case <-died:
				case <-time.After(2 * time.Minute):
					t.Error("the workload did not come so far")
				}
				must(t, wait(true))
				stop()
				intents := e.log.revive()
				e.suspect = nil
				e.unmount()
				e.mount(intents...)
				e.equal()
				if t.Failed() {
					for i := range intents {
						t.Log("in doubt:", intents[i].String())
					}
					t.FailNow()
				}
			}
			e.sound()
		})
	}
}
