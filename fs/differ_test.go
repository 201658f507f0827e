package fs

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/treediff"
	"github.com/replfs/replfs/internal/treediff/treetest"
)

// differRoot makes what a sequence begins with in a directory.
func differRoot(t testing.TB, root string) {
	t.Helper()
	must(t, os.MkdirAll(root+"/"+differDepth, 0o755))
	base := root + "/" + differDepth
	must(t, os.Chmod(base, 0o1777))
	for _, d := range startDirs {
		path := base + "/" + d.name
		must(t, os.Mkdir(path, 0o700))
		must(t, unix.Chown(path, d.uid, d.gid))
		must(t, unix.Chmod(path, d.mode))
		for _, name := range []string{"a", "b", "b/a"} {
			must(t, os.WriteFile(path+"/"+name, make([]byte, 10000), 0o666))
			if name == "b" {
				must(t, os.Remove(path+"/b"))
				must(t, os.Mkdir(path+"/b", 0o777))
			}
		}
		must(t, os.Symlink("b/a", path+"/c"))
		must(t, unix.Chmod(path, d.mode))
		if d.acl {
			must(t, unix.Setxattr(path, "system.posix_acl_default", []byte(aclOf(7, 5, 0, map[uint32]uint16{4002: 7, 4004: 4})), 0))
		}
	}
}

// run does the sequence in a process of its own.
func (d differ) start(t testing.TB) error {
	t.Helper()
	arg, err := json.Marshal(d)
	must(t, err)
	cmd := helperCommand("differ", string(arg))
	limit := time.AfterFunc(10*time.Minute, func() { _ = cmd.Process.Kill() })
	defer limit.Stop()
	out, err := cmd.CombinedOutput()
	if _, failed := err.(*exec.ExitError); failed {
		return fmt.Errorf("%w: %s", err, out)
	}
	if len(out) > 0 {
		t.Logf("%s", out)
	}
	return err
}

// differSeeds are the seeds to run and the number of steps: always the same
// ones, but in the long run.
func differSeeds(t testing.TB) (seeds []uint64, steps int) {
	steps = 3000
	if s := os.Getenv("REPLFS_STEPS"); s != "" {
		n, err := strconv.Atoi(s)
		must(t, err)
		steps = n
	}
	if s := os.Getenv("REPLFS_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		return []uint64{seed}, steps
	}
	if os.Getenv("REPLFS_LONG") == "1" {
		first := uint64(time.Now().UnixNano()) % 1e9
		for i := range uint64(30) {
			seeds = append(seeds, first+i)
		}
		return seeds, 10000
	}
	return []uint64{1, 2, 3}, steps
}

// TestDiffer: users of every kind, doing anything, cannot tell the mount from
// the file system that the store lies on, and the standby gets it all.
// REPLFS_SEED and REPLFS_STEPS choose one sequence, REPLFS_LONG=1 tries many.
func TestDiffer(t *testing.T) {
	seeds, steps := differSeeds(t)
	for _, fstype := range fsTypes {
		t.Run(fstype, func(t *testing.T) {
			base := newFilesystem(t, fstype, "")
			for _, seed := range seeds {
				differOnce(t, differ{Seed: seed, Steps: steps, Fstype: fstype}, base)
				if t.Failed() {
					return
				}
			}
		})
	}
}

func differOnce(t *testing.T, d differ, base string) {
	// An env of its own for each: the directories are gone afterwards.
	t.Run(fmt.Sprintf("seed %d", d.Seed), func(t *testing.T) {
		e := newEnv(t, options{base: base})
		native := e.path("native")
		must(t, os.Mkdir(native, 0o755))
		differRoot(t, native)
		differRoot(t, e.mnt)
		d.Roots, d.Store = [2]string{native, e.mnt}, e.store
		stop := e.follow()
		err := d.start(t)
		stop()
		if err != nil {
			t.Errorf("REPLFS_SEED=%d: %v", d.Seed, err)
		}
		treetest.Equal(t, native, e.store, treediff.Options{IgnoreMtime: true})
		if t.Failed() {
			t.Logf("repeat it with REPLFS_SEED=%d", d.Seed)
		}
		e.equal()
		e.sound()
	})
}

// TestDifferItself: two plain directories are the same, and the smallest
// difference is found.
func TestDifferItself(t *testing.T) {
	base := newFilesystem(t, "tmpfs", "")
	for _, corrupt := range []int{0, 300} {
		var roots [2]string
		for i := range roots {
			roots[i] = fmt.Sprintf("%s/%d.%d", base, corrupt, i)
			must(t, os.Mkdir(roots[i], 0o755))
			differRoot(t, roots[i])
		}
		err := differ{Seed: 3, Steps: 3000, Roots: roots, Fstype: "tmpfs", Corrupt: corrupt}.start(t)
		if corrupt == 0 {
			must(t, err)
			treetest.Equal(t, roots[0], roots[1], treediff.Options{IgnoreMtime: true})
		} else if err == nil || !strings.Contains(err.Error(), "step 300,") {
			t.Errorf("the difference was not found: %v", err)
		}
	}
}
