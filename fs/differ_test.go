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

// knownDifferences are all in which the mount differs from the store's own file
// system, and why. docs/ARCHITECTURE.md has the same list for people. What has
// no function here the sequences leave out, because the two sides would go on
// differing: TestKnownDifferences shows it.
var knownDifferences = []struct {
	what, why string
	here      func(fstype string, o *op, plain, mount string) bool
}{
	{
		"statx(2) with AT_STATX_DONT_SYNC gives no time of birth",
		"the kernel answers from what it has cached, and it caches no such time (fuse_update_get_attr)",
		func(_ string, o *op, plain, mount string) bool {
			return o.kind.name == "statx" && o.flags&unix.AT_STATX_DONT_SYNC != 0 && strings.ReplaceAll(plain, "born true", "born false") == mount
		},
	},
	{
		"on a btrfs store, listxattr(2) hides trusted.* from those who may not read them, as the other file systems do",
		"btrfs alone shows the names to everybody (btrfs_listxattr)",
		func(fstype string, o *op, plain, _ string) bool {
			return fstype == "btrfs" && strings.HasSuffix(o.kind.name, "listxattr") && strings.Contains(plain, "trusted.")
		},
	},
	{
		"chown(2) with neither an owner nor a group does nothing: it clears no suid or sgid and is never refused",
		"the kernel sends a request that asks for nothing (fuse_setattr)",
		nil,
	},
	{
		"on a tmpfs store, removing the access ACL of a file of another group does not clear sgid",
		"tmpfs alone does that (simple_set_acl); the kernel's request does not say that the caller is not of the group",
		nil,
	},
	{
		"on a tmpfs store, a store to a shared mapping changes the mtime, as POSIX has it",
		"it arrives as a write; tmpfs itself does not notice it",
		nil,
	},
	{
		"on a btrfs store, punching a hole where there is one already clears suid and sgid, as on the other file systems",
		"btrfs returns before it would (btrfs_punch_hole); nothing tells the daemon so for certain",
		nil,
	},
	{
		"O_DIRECT takes any offset, length and buffer",
		"FUSE asks for no alignment, and the daemon's own descriptor has no O_DIRECT",
		nil,
	},
	{
		"an O_PATH descriptor alone does not keep a regular file whose last name is gone: but for fstat(2), ESTALE",
		"the kernel says nothing to the daemon about O_PATH; to keep a descriptor of every removed file would cost each unlink two calls",
		nil,
	},
	{
		"what is read from or written to a FIFO or a device does not change its times",
		"the kernel does it itself and leaves a FUSE inode's times alone (S_NOCMTIME)",
		nil,
	},
	{
		"st_blocks may be out of date until the file is changed",
		"the kernel caches attributes, and a file system allocates when it writes back",
		nil,
	},
}

// known tells whether a difference has to be.
func known(fstype string, o *op, plain, mount string) bool {
	for _, k := range knownDifferences {
		if k.here != nil && k.here(fstype, o, plain, mount) {
			return true
		}
	}
	return false
}

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

// differSeeds are the seeds to run, each with its number of steps.
func differSeeds(t testing.TB) (seeds []uint64, steps int) {
	steps = 2000
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
	seeds = []uint64{1, uint64(time.Now().UnixNano()) % 1e9}
	if os.Getenv("REPLFS_LONG") == "1" {
		for i := range uint64(30) {
			seeds = append(seeds, seeds[1]+1+i)
		}
		steps = 10000
	}
	return seeds, steps
}

// TestDiffer: users of every kind, doing anything, cannot tell the mount from
// the file system that the store lies on, and the standby gets it all.
// REPLFS_SEED repeats one sequence, REPLFS_LONG=1 tries many.
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
