package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/test/lab"
)

// syncedFile writes a file on a node's mount and fsyncs it.
func syncedFile(t *testing.T, c *lab.Cluster, node, name string) {
	t.Helper()
	returns(t, name, fsyncOf(t, c, node, name), hang)
}

// withTmpfs makes the store of a node a tmpfs.
func withTmpfs(t *testing.T, c *lab.Cluster, node, options string) (remount func(flags uintptr, options string)) {
	t.Helper()
	must(t, unix.Mount("tmpfs", c.Store(node), "tmpfs", 0, options+",mode=700"))
	return func(flags uintptr, options string) {
		t.Helper()
		must(t, unix.Mount("tmpfs", c.Store(node), "tmpfs", unix.MS_REMOUNT|flags, options))
	}
}

// suggests expects that a node's status says what to do about a problem.
func suggests(t *testing.T, c *lab.Cluster, node, what, do string) {
	t.Helper()
	st, err := status(t.Context(), c, node)
	must(t, err)
	for _, p := range st.Problems {
		if strings.Contains(p.What, what) && strings.Contains(p.What+p.Do, do) {
			return
		}
	}
	t.Errorf("%s does not suggest %q about %q: %+v", node, do, what, st.Problems)
}

// TestReadOnlyStandby: a standby whose store turned read-only stops at the
// record that it cannot apply, says so, is not waited for, and goes on with it.
func TestReadOnlyStandby(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := newCluster(t, lab.Options{})
	remount := withTmpfs(t, c, two, "size=64m")
	start(t, ctx, c)
	syncedFile(t, c, one, "before")
	// A file system with files open for writing cannot be remounted; a daemon
	// that has begun only now has none.
	must(t, c.StopNode(two))
	must(t, c.StartNode(ctx, two))
	must(t, c.WaitInSync(ctx, one, two))
	begun := logMark(t, c, two)
	remount(unix.MS_RDONLY, "")
	syncedFile(t, c, one, "meanwhile")
	waitProblem(t, ctx, c, one, "read-only")
	waitProblem(t, ctx, c, two, "read-only")
	suggests(t, c, one, "gl-2: ", "repair and remount it")
	suggests(t, c, two, "the store does not take", "goes on by itself")
	if in := stateOf(t, c, one).InSync; len(in) != 0 {
		t.Errorf("in sync: %q", in)
	}
	stuck, err := status(ctx, c, two)
	must(t, err)
	syncedFile(t, c, one, "without it") // at once
	remount(0, "")
	must(t, c.WaitInSync(ctx, one, two))
	syncedFile(t, c, one, "after")
	equalStores(t, ctx, c, one, two)
	begun.want(t, msgReceiving, 0)
	if now, err := status(ctx, c, two); err != nil || now.LSN.Applied <= stuck.LSN.Applied {
		t.Errorf("it stood at %d and stands at %d, %v", stuck.LSN.Applied, now.LSN.Applied, err)
	}
}

// TestFailingFsync: the disk of a standby fails to write what was in memory. What
// that was the kernel does not say, so the store is suspect, counts no more at
// once, and gets a complete copy when the disk is mended.
func TestFailingFsync(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := newCluster(t, lab.Options{AckTimeout: 30 * time.Second})
	// A disk that has promised more than it has.
	disk := c.Path("disk")
	must(t, os.Mkdir(disk, 0o700))
	must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "size=24m"))
	im, err := lab.NewImage(ctx, filepath.Join(disk, "img"), c.Store(two), "ext4", imageSize)
	must(t, err)
	start(t, ctx, c)
	syncedFile(t, c, one, "before")
	big := filepath.Join(c.Mount(one), "big")
	must(t, os.WriteFile(big, bytes.Repeat([]byte("x"), 40<<20), 0o600))
	begun := time.Now()
	syncedFile(t, c, one, "big synced") // another file, and the standby's fsync of it need not fail
	f, err := os.OpenFile(big, os.O_WRONLY, 0)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
	if took := time.Since(begun); took > 25*time.Second {
		t.Errorf("the fsyncs took %s: it was found out by ack_timeout", took)
	}
	if in := stateOf(t, c, one).InSync; len(in) != 0 {
		t.Errorf("in sync: %q", in)
	}
	eventually(t, ctx, hang, "both nodes say so", func() error {
		for _, node := range []string{one, two} {
			st, err := status(ctx, c, node)
			if err != nil {
				return err
			}
			if len(st.Problems) == 0 {
				return errors.New(node + " knows of no problem")
			}
		}
		return nil
	})
	if len(logStart(c, two).since(t, "fsync failed: the store cannot be trusted any more")) == 0 {
		t.Error("no fsync failed: the standby stood still for another reason")
	}
	must(t, c.KillNode(two))
	must(t, im.Unmount())
	must(t, unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=400m"))
	if _, err := lab.RunOK(ctx, lab.Command{Name: "mkfs", Path: "/usr/sbin/mkfs.ext4", Args: []string{"-F", filepath.Join(disk, "img")}}); err != nil {
		t.Fatal(err)
	}
	must(t, im.Mount(ctx))
	must(t, os.Chmod(c.Store(two), 0o700))
	must(t, c.StartNode(ctx, two))
	must(t, c.WaitInSync(ctx, one, two))
	for _, name := range []string{"before", "big", "big synced"} {
		if !sameFile(t, filepath.Join(c.Store(one), name), filepath.Join(c.Store(two), name)) {
			t.Errorf("%s differs", name)
		}
	}
}

func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.ReadFile(a)
	must(t, err)
	y, err := os.ReadFile(b)
	must(t, err)
	return bytes.Equal(x, y)
}

// TestFullPrimary: the application hears of a full disk; what did not happen is
// not in the log, what did in part is.
func TestFullPrimary(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	c := newCluster(t, lab.Options{})
	remount := withTmpfs(t, c, one, "size=8m,nr_inodes=64")
	start(t, ctx, c)
	path := filepath.Join(c.Mount(one), "big")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	must(t, err)
	n, err := f.Write(bytes.Repeat([]byte("x"), 16<<20))
	if !errors.Is(err, unix.ENOSPC) || n == 0 {
		t.Errorf("a write of more than fits: %d, %v", n, err)
	}
	last := func() uint64 {
		st, err := status(ctx, c, one)
		must(t, err)
		return st.LSN.Appended
	}
	before := last()
	if n, err := f.Write([]byte("more")); !errors.Is(err, unix.ENOSPC) || n != 0 {
		t.Errorf("a write to a full disk: %d, %v", n, err)
	}
	if now := last(); now > before+1 { // the store moves the mtime, which is a record
		t.Errorf("a write that failed gave %d records", now-before)
	}
	must(t, f.Sync())
	for err = nil; err == nil; {
		var g *os.File
		if g, err = os.CreateTemp(c.Mount(one), "inode"); err == nil {
			must(t, g.Close())
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("more files than fit: %v", err)
	}
	before = last()
	if err := os.Mkdir(filepath.Join(c.Mount(one), "no"), 0o700); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("mkdir on a full disk: %v", err)
	}
	if now := last(); now != before {
		t.Errorf("a mkdir that failed gave %d records", now-before)
	}
	equalStores(t, ctx, c, one, two)
	remount(0, "size=64m,nr_inodes=1000")
	if _, err := f.Write([]byte("more")); err != nil {
		t.Error(err)
	}
	must(t, errors.Join(f.Sync(), f.Close()))
	equalStores(t, ctx, c, one, two)
	if st, err := status(ctx, c, one); err != nil || strings.Contains(problems(st), "suspect") {
		t.Errorf("the primary is suspect: %+v, %v", st, err)
	}
}
