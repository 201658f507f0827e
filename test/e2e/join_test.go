package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/test/lab"
)

// fill makes a tree with every kind of thing that a store may hold.
func fill(t *testing.T, root string, files int, rng *rand.Rand) {
	t.Helper()
	long := strings.Repeat("n", 255)
	dirs := []string{root}
	for i := range files / 20 {
		dir := filepath.Join(dirs[rng.IntN(len(dirs))], fmt.Sprintf("d%d", i))
		must(t, os.Mkdir(dir, os.FileMode(0o700|rng.IntN(0o100))))
		dirs = append(dirs, dir)
	}
	deep := root
	for i := range 40 {
		deep = filepath.Join(deep, fmt.Sprintf("deep%d", i))
	}
	must(t, os.MkdirAll(filepath.Join(deep, long), 0o755))
	dirs = append(dirs, deep)
	data := make([]byte, 64<<10)
	for i := range files {
		dir := dirs[rng.IntN(len(dirs))]
		path := filepath.Join(dir, fmt.Sprintf("f%d", i))
		at := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
		}
		n := rng.IntN(2 << 10)
		if i%50 == 0 {
			n = rng.IntN(len(data))
		}
		for j := range n {
			data[j] = byte(rng.Uint32())
		}
		at(os.WriteFile(path, data[:n], 0o600))
		switch i % 25 {
		case 0:
			at(os.Link(path, filepath.Join(dirs[rng.IntN(len(dirs))], fmt.Sprintf("l%d", i))))
		case 1:
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			at(err)
			_, err = f.WriteAt([]byte("after a hole"), int64(rng.IntN(2<<20)))
			at(err)
			at(f.Close())
		case 2:
			at(unix.Setxattr(path, "user.test", data[:rng.IntN(200)], 0))
			at(unix.Setxattr(path, "security.test", []byte("s"), 0))
		case 3:
			at(os.Symlink(strings.Repeat("x/", rng.IntN(1000))+"x", path+".sym"))
		case 4:
			at(unix.Mkfifo(path+".fifo", 0o640))
		case 5:
			at(unix.Mknod(path+".dev", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		case 6:
			at(os.Chown(path, rng.IntN(1e6), rng.IntN(1e6)))
			at(unix.Chmod(path, uint32(rng.IntN(0o10000))))
		case 7:
			at(os.Chtimes(path, time.Unix(rng.Int64N(2e9), 1), time.Unix(rng.Int64N(2e9), rng.Int64N(1e9))))
		case 8:
			at(os.Rename(path, filepath.Join(dir, "odd \xff\n\\ name"+fmt.Sprint(i))))
		}
	}
	must(t, os.Chtimes(deep, time.Unix(1, 2), time.Unix(3, 4)))
}

// TestFirstContact: a standby that begins empty gets what a primary holds,
// while that changes.
func TestFirstContact(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	s := seed(t)
	c := newCluster(t, lab.Options{})
	fill(t, c.Store(one), rounds(2500, 40000), random(s))
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitRole(ctx, one, "primary"))
	l := startLoad(t, ctx, c, one, "load", s)
	time.Sleep(300 * time.Millisecond)
	begun := logMark(t, c, two)
	must(t, c.StartNode(ctx, two))
	must(t, c.WaitInSync(ctx, one, two))
	time.Sleep(300 * time.Millisecond)
	l.stop()
	begun.want(t, msgReceiving, 1)
	equalStores(t, ctx, c, one, two)
	l.verify(c.Mount(two))
	if e := begun.since(t, "copy complete"); len(e) != 1 || e[0].Files < 2500 {
		t.Errorf("what the copy says of itself: %+v", e)
	}
}

// TestStandbyRestarts: a standby that is stopped or killed under load goes on
// where it was.
func TestStandbyRestarts(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	s := seed(t)
	rng := random(s)
	c := started(t, ctx, lab.Options{AckTimeout: time.Second})
	begun, primary := logMark(t, c, two), logMark(t, c, one)
	l := startLoad(t, ctx, c, one, "load", s)
	for i := range rounds(4, 40) {
		sleepRandom(rng, 50*time.Millisecond, 400*time.Millisecond)
		if i%2 == 0 {
			must(t, c.StopNode(two))
		} else {
			must(t, c.KillNode(two))
		}
		sleepRandom(rng, 0, 200*time.Millisecond)
		must(t, c.StartNode(ctx, two))
		must(t, c.WaitInSync(ctx, one, two))
		l.moving(ctx)
	}
	l.stop()
	equalStores(t, ctx, c, one, two)
	l.verify(c.Mount(two))
	begun.want(t, msgReceiving, 0)
	primary.want(t, msgCopying, 0)
	if n := len(primary.since(t, "standby goes on")); n < 4 {
		t.Errorf("the standby went on %d times", n)
	}
}

// TestStandbyRestartsInCopy: a copy that is interrupted, on either side,
// begins anew and ends well; until then the standby knows that it has nothing.
func TestStandbyRestartsInCopy(t *testing.T) {
	ctx := bounded(t, 4*time.Minute)
	s := seed(t)
	c := newCluster(t, lab.Options{})
	fill(t, c.Store(one), 1500, random(s))
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitRole(ctx, one, "primary"))
	l := startLoad(t, ctx, c, one, "first", s)
	must(t, c.StartNode(ctx, two))
	copying(t, ctx, c)
	must(t, c.KillNode(two))
	must(t, c.StartNode(ctx, two))
	copying(t, ctx, c)
	must(t, c.KillNode(one))
	l.stop(gone...)
	must(t, c.StartNode(ctx, one))
	must(t, c.WaitRole(ctx, one, "primary"))
	again := startLoad(t, ctx, c, one, "second", s+1)
	must(t, c.WaitInSync(ctx, one, two))
	again.stop()
	equalStores(t, ctx, c, one, two)
	l.verify(c.Mount(two))
	again.verify(c.Mount(two))
	if salvaged(t, c, two) != "" {
		t.Errorf("parts of a copy were salvaged: %s", salvaged(t, c, two))
	}
}

// copying waits until the standby is in the middle of a complete copy.
func copying(t *testing.T, ctx context.Context, c *lab.Cluster) {
	t.Helper()
	eventually(t, ctx, hang, "a copy is under way", func() error {
		st, err := status(ctx, c, two)
		if err == nil && (st.Sync == nil || st.Sync.Files < 20) {
			err = fmt.Errorf("sync %+v, in sync %v", st.Sync, st.InSync)
		}
		return err
	})
}

// salvaged is the directory with what a node kept of its own, or "".
func salvaged(t *testing.T, c *lab.Cluster, node string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(c.State(node), "salvage", "*"))
	must(t, err)
	if len(found) > 1 {
		t.Fatalf("more than one salvage: %q", found)
	}
	if len(found) == 0 {
		return ""
	}
	return found[0]
}

// TestFullStandby: a standby whose disk is full stops at the record that does
// not fit, says so, counts no more, and goes on when there is room.
func TestFullStandby(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := newCluster(t, lab.Options{})
	must(t, unix.Mount("tmpfs", c.Store(two), "tmpfs", 0, "size=8m,mode=700"))
	start(t, ctx, c)
	begun := logMark(t, c, two)
	path := filepath.Join(c.Mount(one), "big")
	must(t, os.WriteFile(path, bytes.Repeat([]byte("x"), 16<<20), 0o600))
	waitProblem(t, ctx, c, one, "no space")
	waitProblem(t, ctx, c, two, "no space")
	// Nobody waits for it now.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
	if p, err := peer(ctx, c, one, two); err != nil || p.InSync || len(stateOf(t, c, one).InSync) != 0 {
		t.Errorf("a standby that stands still counts as in sync: %+v, %v", p, err)
	}
	refused(t, ctx, c, two, "gl-1 is primary in epoch 1 and cannot hand over: gl-2 is not in sync")
	must(t, unix.Mount("tmpfs", c.Store(two), "tmpfs", unix.MS_REMOUNT, "size=64m"))
	must(t, c.WaitInSync(ctx, one, two))
	equalStores(t, ctx, c, one, two)
	begun.want(t, msgReceiving, 0)
	// Its file system must go before the directory can.
	must(t, c.Process(two).Signal(syscall.SIGTERM))
	_, err = c.Process(two).Wait(hang)
	must(t, err)
	must(t, unix.Unmount(c.Store(two), 0))
}
