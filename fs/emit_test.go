package fs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/workload"
	"github.com/replfs/replfs/replicate/record"
)

// copying is what the standby asks for and says during a complete copy.
type copying struct {
	begun bool
	cmu   sync.Mutex
	needs []neededPath
	done  chan bool
}

type neededPath struct {
	path     string
	contents bool
}

func (c *copying) noteNeed(path string, contents bool) {
	c.cmu.Lock()
	c.needs = append(c.needs, neededPath{path, contents})
	c.cmu.Unlock()
}

func (c *copying) noteDone(_ string, complete bool) { c.done <- complete }

func (c *copying) takeNeeds() []neededPath {
	c.cmu.Lock()
	defer c.cmu.Unlock()
	n := c.needs
	c.needs = nil
	return n
}

// copy makes a complete copy the way the sender does; somebody follows.
func (e *env) copy() (rounds int) {
	e.t.Helper()
	e.done = make(chan bool, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	mark := func(op record.Op) {
		_, err := e.log.Append(&record.Record{
			Op: op, Path: node, Path2: "copy", Fields: record.FieldPath | record.FieldPath2,
		}, nil, nil)
		must(e.t, err)
	}
	mark(record.OpSyncBegin)
	walk := e.fs.NewEmission()
	defer walk.Close()
	must(e.t, walk.Tree(ctx))
	for complete := false; !complete; rounds++ {
		for _, n := range e.takeNeeds() {
			must(e.t, walk.Path(ctx, n.path, n.contents))
		}
		mark(record.OpSyncEnd)
		select {
		case complete = <-e.done:
		case <-ctx.Done():
			e.t.Fatalf("the copy does not become complete: %d rounds, needed %+v, applied %d of %d",
				rounds, e.takeNeeds(), e.applier.State().Applied, e.ring.Last())
		}
	}
	return rounds
}

// TestCopyQuiet: everything that a store can hold arrives.
func TestCopyQuiet(t *testing.T) {
	for _, base := range []string{tmpfs, disk} {
		t.Run(base, func(t *testing.T) {
			e := newEnv(t, options{base: base, noStandby: true, exclude: []string{"lost+found/", "**/*.skip"}})
			root.must(t, e.mnt, `mkdir -p a/b/c a/d lost+found/x; chmod 2750 a; chown 7:8 a/b
				echo 1 >a/f; ln a/f a/b/g; ln a/f z; ln -s ../f a/b/l; ln -s "" x 2>/dev/null; mkfifo a/p; ln a/p a/p2; ln a/b/l a/l2; mknod a/n c 1 3; mknod a/o b 259 70000
				echo x >a/b/no.skip; echo x >lost+found/x/y; : >empty; chmod 6755 z
				setfacl -m u:7:r a/f; : >a/d/before; mkdir a/d/sub; setfacl -d -m u:7:rwx a/d; : >a/d/after; setfattr -n user.k -v v a/f; setfattr -h -n trusted.k -v v a/b/l
				setfattr -n user.root -v v . ; chmod 751 .`)
			must(t, unix.Setxattr(e.in("a/f"), capability, fileCap, 0))
			must(t, unix.Mknod(e.in("a/socket"), unix.S_IFSOCK|0o600, 0))
			d := dir{e, "a"}
			d.file(strings.Repeat("n", 255), "long name")
			d.file("\xff\xfe\n\x01 \"'\\", "no text")
			must(t, d.with("sparse", unix.O_CREAT|unix.O_RDWR, func(fd int) error {
				for _, off := range []int64{1 << 20, 8<<20 + 5, 30 << 20} {
					if _, err := unix.Pwrite(fd, []byte("data"), off); err != nil {
						return err
					}
				}
				return unix.Ftruncate(fd, 32<<20+1)
			}))
			big := make([]byte, 3*emitChunk+77)
			for i := range big {
				big[i] = byte(i * 7 >> 3)
			}
			must(t, os.WriteFile(e.in("a/big"), big, 0o600))
			deep := deepPath(t, e)
			stop := e.follow()
			if rounds := e.copy(); rounds != 1 {
				t.Errorf("a quiet tree took %d rounds", rounds)
			}
			stop()
			e.equal()
			e.sound()
			var st unix.Stat_t
			must(t, unix.Stat(filepath.Join(e.standby, "a/sparse"), &st))
			if st.Blocks*512 > 1<<20 {
				t.Errorf("the sparse file takes %d bytes on the standby", st.Blocks*512)
			}
			if deep <= unix.PathMax {
				t.Errorf("the deepest path has only %d bytes", deep)
			}
			// It follows from here on.
			root.must(t, e.mnt, "echo more >>z; mv a/b a/moved; rm a/f; echo x >>a/moved/g")
			e.equal()
		})
	}
}

// deepPath makes directories whose path is longer than a system call takes,
// by relative steps, and returns its length.
func deepPath(t *testing.T, e *env) int {
	t.Helper()
	name := strings.Repeat("d", 200)
	fd, err := unix.Open(e.mnt, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	length := 0
	for range 25 {
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd, length = next, length+len(name)+1
	}
	f, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY, 0o644)
	must(t, err)
	must(t, writeAll(f, "deep"))
	must(t, unix.Close(f))
	must(t, unix.Close(fd))
	return length
}

// TestCopyBusy: the copy of a tree that several writers change all the while
// becomes complete, and is exact then.
func TestCopyBusy(t *testing.T) {
	seeds := []uint64{11, 12}
	if os.Getenv("REPLFS_LONG") == "1" {
		for range 30 {
			seeds = append(seeds, uint64(time.Now().UnixNano()))
		}
	}
	for _, base := range []string{tmpfs, disk} {
		for _, seed := range seeds {
			t.Run(fmt.Sprintf("%s/%d", base, seed), func(t *testing.T) {
				e := newEnv(t, options{base: base, noStandby: true, exclude: []string{"d1/", "**/f3"}})
				must(t, e.startWorkload(workload.Options{
					Seed: 7, Writers: 4, Steps: 1500, MaxBytes: 16 << 20, MaxFiles: 500,
				})(false)) // something to begin with
				stop := e.follow()
				wait := e.startWorkload(workload.Options{
					Seed: seed, Writers: 3, Steps: 4000, MaxBytes: 32 << 20, MaxFiles: 800,
				})
				time.Sleep(100 * time.Millisecond)
				rounds := e.copy()
				must(t, wait(false))
				stop()
				t.Logf("complete after %d rounds", rounds)
				e.equal()
				e.sound()
			})
		}
	}
}

// TestContentsAgain: what is asked for with its contents is to replace what
// the standby has, of whatever type it is. Else it would be asked for again
// and again.
func TestContentsAgain(t *testing.T) {
	e := newEnv(t, options{})
	root.must(t, e.mnt, "echo x >file; ln -s x symlink; mkfifo fifo; mknod device c 1 3; ln device device2")
	e.records()
	walk := e.fs.NewEmission()
	defer walk.Close()
	for _, name := range []string{"file", "symlink", "fifo", "device"} {
		must(t, walk.Path(context.Background(), name, true))
		rs := e.records()
		if len(rs) == 0 || rs[0].Op != record.OpState || !rs[0].Flags.Has(record.FlagContents) {
			t.Errorf("%s: %v", name, rs)
		}
	}
	e.equal()
}

// TestEmissionOfRemoved: a directory may go between its own record and the
// look into it.
func TestEmissionOfRemoved(t *testing.T) {
	e := newEnv(t, options{})
	root.must(t, e.mnt, "mkdir d")
	var st unix.Stat_t
	n, err := e.fs.table.lookup(e.fs.table.root, "d", &st, refPin)
	must(t, err)
	defer e.fs.table.unpin(n)
	root.must(t, e.mnt, "rmdir d")
	walk := e.fs.NewEmission()
	defer walk.Close()
	must(t, walk.dir(context.Background(), n))
}

// TestEmissionEnds: a walk ends with its context, and a path that is not there
// is no error.
func TestEmissionEnds(t *testing.T) {
	e := newEnv(t, options{})
	root.must(t, e.mnt, "mkdir -p a/b; echo x >a/b/f")
	walk := e.fs.NewEmission()
	defer walk.Close()
	last := e.ring.Last()
	for _, p := range []string{"no", "a/no/f", "a/b/f/x"} {
		must(t, walk.Path(context.Background(), p, false))
	}
	if err := walk.Path(context.Background(), "../x", false); err == nil {
		t.Error("a path out of the store was accepted")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := walk.Path(ctx, "a", false); err == nil {
		t.Error("the walk outlived its context")
	}
	if e.ring.Last() != last {
		t.Error("records for nothing")
	}
}
