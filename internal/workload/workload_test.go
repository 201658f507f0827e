package workload

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/treediff"
	"github.com/replfs/replfs/internal/treediff/treetest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes devices, owners and trusted xattrs: needs root")
	}
}

// tmpfs mounts a new tmpfs for a test.
func tmpfs(t testing.TB, options string) string {
	t.Helper()
	return tmpfsWith(t, 0, options)
}

func tmpfsWith(t testing.TB, flags uintptr, options string) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, options); errors.Is(err, unix.EPERM) {
		t.Skipf("may not mount: %v", err)
	} else {
		must(t, err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

func run(t testing.TB, dir string, opts Options) Stats {
	t.Helper()
	stats, err := Run(t.Context(), dir, opts)
	if err != nil {
		t.Fatalf("%v\n%v", err, stats)
	}
	return stats
}

// TestEveryOpSucceeds wants each operation to get through on filesystems that
// support it, and none to fail for reasons that are not expected.
func TestEveryOpSucceeds(t *testing.T) {
	const steps = 20_000
	onTmpfs := []Op{OpZeroRange, OpZeroRangeKeep, OpCollapseRange, OpInsertRange}
	for name, dir := range map[string]string{"tmpfs": tmpfs(t, "size=1g"), "temp dir": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			var st unix.Statfs_t
			must(t, unix.Statfs(dir, &st))
			for seed := uint64(1); seed <= 3; seed++ {
				stats := run(t, dir, Options{Seed: seed, Steps: steps})
				if seed == 1 {
					t.Logf("\n%v", stats)
				}
				if stats.Steps != steps {
					t.Errorf("seed %d: %d steps, want %d", seed, stats.Steps, steps)
				}
				missing := stats.Missing()
				switch st.Type {
				case unix.TMPFS_MAGIC:
					missing = slices.DeleteFunc(missing, func(op Op) bool { return slices.Contains(onTmpfs, op) })
				case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC:
				default:
					t.Skipf("do not know what filesystem type %#x supports", st.Type)
				}
				if len(missing) > 0 {
					t.Errorf("seed %d: never succeeded: %v", seed, missing)
				}
			}
		})
	}
}

// TestBounds drives growth against tight bounds.
func TestBounds(t *testing.T) {
	tests := map[string]Options{
		"bytes": {MaxBytes: 16 << 20, Only: []Op{OpCreate, OpWriteLarge, OpWriteSparse, OpWriteAppend, OpTruncateGrow,
			OpFallocateKeep, OpCopyRange, OpLink}},
		"files":       {MaxFiles: 300, Only: []Op{OpCreate, OpMkdir, OpLink, OpSymlink, OpRename, OpMknodFifo}},
		"directories": {MaxFiles: 300, Only: []Op{OpMkdir, OpRenameDir}},
		"everything":  {MaxBytes: 16 << 20, MaxFiles: 300},
	}
	for name, opts := range tests {
		t.Run(name, func(t *testing.T) {
			dir := tmpfs(t, "size=200m")
			if opts.MaxBytes == 0 {
				opts.MaxBytes = 100 << 20
			}
			if opts.MaxFiles == 0 {
				opts.MaxFiles = 1000
			}
			opts.Writers, opts.Steps = 3, 500
			mostBytes, mostFiles := int64(0), 0
			stop := watchUse(t, dir)
			for opts.Seed = range 10 {
				run(t, dir, opts)
				bytes, files := weigh(t, dir)
				mostBytes, mostFiles = max(mostBytes, bytes), max(mostFiles, files)
			}
			if mostBytes > opts.MaxBytes || mostFiles > opts.MaxFiles {
				t.Errorf("%d bytes, %d files; bounds %d, %d", mostBytes, mostFiles, opts.MaxBytes, opts.MaxFiles)
			}
			usedBytes, usedFiles := stop()
			if len(opts.Only) > 0 && (usedBytes > opts.MaxBytes || usedFiles > opts.MaxFiles+1) { // and the root
				t.Errorf("meanwhile %d bytes, %d files; bounds %d, %d", usedBytes, usedFiles, opts.MaxBytes, opts.MaxFiles)
			}
			// A workload that shies away from its bounds would prove nothing.
			if mostBytes < opts.MaxBytes/4 && mostFiles < opts.MaxFiles/4 {
				t.Errorf("only %d bytes, %d files; bounds %d, %d", mostBytes, mostFiles, opts.MaxBytes, opts.MaxFiles)
			}
		})
	}
}

// watchUse samples what is used on the filesystem of dir, nameless files
// included, until its result is called, which tells the most that was seen.
func watchUse(t testing.TB, dir string) func() (bytes int64, files int) {
	t.Helper()
	done, stopped := make(chan struct{}), make(chan struct{})
	mostBytes, mostFiles := int64(0), 0
	var failed error
	go func() {
		defer close(stopped)
		for failed == nil {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
			var st unix.Statfs_t
			failed = unix.Statfs(dir, &st)
			mostBytes = max(mostBytes, int64(st.Blocks-st.Bfree)*st.Bsize)
			mostFiles = max(mostFiles, int(st.Files-st.Ffree))
		}
	}()
	return func() (int64, int) {
		close(done)
		<-stopped
		must(t, failed)
		return mostBytes, mostFiles
	}
}

func weigh(t testing.TB, dir string) (bytes int64, files int) {
	t.Helper()
	seen := map[uint64]bool{}
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		files++
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if !seen[st.Ino] {
			seen[st.Ino] = true
			bytes += max(st.Size, st.Blocks*512)
		}
		return nil
	}))
	return bytes, files
}

func TestSeedRepeats(t *testing.T) {
	a, b, c := tmpfs(t, ""), tmpfs(t, ""), tmpfs(t, "")
	opts := Options{Seed: 7, Writers: 1, Steps: 5000, MaxFiles: 400, MaxBytes: 32 << 20}
	first, second := run(t, a, opts), run(t, b, opts)
	if !reflect.DeepEqual(first, second) {
		t.Errorf("same seed, different statistics:\n%v\n%v", first, second)
	}
	treetest.Equal(t, a, b, treediff.Options{IgnoreMtime: true})
	opts.Seed++
	run(t, c, opts)
	diffs, err := treediff.Compare(a, c, treediff.Options{IgnoreMtime: true})
	must(t, err)
	if len(diffs) == 0 {
		t.Error("different seeds, same tree")
	}
}

// TestLeavesNothingOpen ends workloads at any point and looks for leftovers.
func TestLeavesNothingOpen(t *testing.T) {
	dir := tmpfs(t, "")
	run(t, dir, Options{Steps: 100}) // what the runtime opens once is open now
	descriptors := func() []string {
		all, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		var open []string
		for _, fd := range all {
			if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, dir) {
				open = append(open, target)
			}
		}
		return open
	}
	steps := 0
	for i := range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(50+30*i)*time.Millisecond)
		stats, err := Run(ctx, dir, Options{Seed: uint64(i)})
		late := time.Since(deadline(ctx))
		cancel()
		must(t, err)
		if late > 30*time.Second {
			t.Errorf("returned %v after it was cancelled", late)
		}
		steps += stats.Steps
		if open := descriptors(); len(open) > 0 {
			t.Errorf("left open: %q", open)
		}
		maps, err := os.ReadFile("/proc/self/maps")
		must(t, err)
		if strings.Contains(string(maps), dir) {
			t.Error("left a mapping")
		}
	}
	if steps == 0 {
		t.Error("did nothing")
	}
}

func deadline(ctx context.Context) time.Time {
	d, _ := ctx.Deadline()
	return d
}

func TestPauseEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	stats, err := Run(ctx, t.TempDir(), Options{Pause: time.Hour, Writers: 2, Only: []Op{OpMkdir}})
	must(t, err)
	if stats.Steps != 2 {
		t.Errorf("%d steps, want one of each writer", stats.Steps)
	}
	if late := time.Since(deadline(ctx)); late > 30*time.Second {
		t.Errorf("returned %v after it was cancelled", late)
	}
}

// TestNodev wants files that became devices tolerated where none can be opened,
// as on mounts that fusermount makes.
func TestNodev(t *testing.T) {
	dir := tmpfsWith(t, unix.MS_NODEV, "")
	stats := run(t, dir, Options{Steps: 10_000, Only: []Op{OpMknodChar, OpWrite, OpUnlink, OpCreate, OpOpenTrunc, OpWriteHeld}})
	for _, op := range []Op{OpMknodChar, OpWrite, OpCreate, OpWriteHeld} {
		if n := stats.Ops[op]; n.OK == 0 || n.Failed == 0 {
			t.Errorf("%s: %+v, want successes and conflicts", op, n)
		}
	}
}

func TestReadOnly(t *testing.T) {
	dir := tmpfs(t, "")
	run(t, dir, Options{Steps: 2000})
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))

	_, err := Run(t.Context(), dir, Options{Seed: 3, Steps: 2000})
	var failure *Error
	if !errors.As(err, &failure) || !errors.Is(err, unix.EROFS) {
		t.Fatalf("got %v, want an Error for EROFS", err)
	}
	if failure.Op == "" || failure.Seed != 3 || failure.Step == 0 || len(failure.Paths) == 0 {
		t.Errorf("the error does not say what failed: %+v", failure)
	}
	for _, part := range []string{string(failure.Op), "seed 3", "read-only"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}

	stats := run(t, dir, Options{Steps: 2000, TolerateEROFS: true})
	for op, n := range stats.Ops {
		// Neither an fsync nor a utimens that omits both times changes anything.
		if n.OK > 0 && op != OpFsyncDir && op != OpUtimensNow {
			t.Errorf("%s succeeded %d times on a read-only filesystem", op, n.OK)
		}
	}
}

func TestFullDisk(t *testing.T) {
	dir := tmpfs(t, "size=1m")
	opts := Options{Steps: 5000, Only: []Op{OpCreate, OpWrite, OpWriteLarge}}
	if _, err := Run(t.Context(), dir, opts); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	opts.Tolerate = []syscall.Errno{unix.ENOSPC}
	if stats := run(t, dir, Options{Steps: 500, Only: opts.Only, Tolerate: opts.Tolerate}); stats.Ops[OpWriteLarge].Failed == 0 {
		t.Error("nothing failed on a full disk")
	}
}

func TestChoiceOfOps(t *testing.T) {
	stats := run(t, t.TempDir(), Options{Steps: 200, Only: []Op{OpMkdir, OpCreateExcl, OpSymlink}, Weights: map[Op]int{OpSymlink: 0}})
	if len(stats.Ops) != 2 || stats.Ops[OpMkdir].OK == 0 || stats.Ops[OpCreateExcl].OK == 0 {
		t.Errorf("did not do just what was chosen:\n%v", stats)
	}
	if s := stats.String(); !strings.Contains(s, "200 steps") || !strings.Contains(s, string(OpMkdir)) {
		t.Errorf("table lacks something:\n%s", s)
	}
}

func TestRefuses(t *testing.T) {
	outward := t.TempDir()
	must(t, os.Symlink("../x", filepath.Join(outward, "l")))
	tests := []struct {
		dir  string
		opts Options
		want string
	}{
		{outward, Options{}, "lead out"},
		{filepath.Join(outward, "none"), Options{}, "no such file"},
		{t.TempDir(), Options{Weights: map[Op]int{"juggle": 1}}, "juggle"},
		{t.TempDir(), Options{Only: []Op{"juggle"}}, "juggle"},
		{t.TempDir(), Options{Only: []Op{OpMkdir}, Weights: map[Op]int{OpMkdir: 0}}, "weight"},
		{t.TempDir(), Options{MaxBytes: 1 << 20}, "bounds"},
		{t.TempDir(), Options{MaxFiles: 10}, "bounds"},
		{t.TempDir(), Options{Writers: -1}, "negative"},
	}
	for _, tt := range tests {
		tt.opts.Steps += 10
		if _, err := Run(t.Context(), tt.dir, tt.opts); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want an error with %q", tt.opts, err, tt.want)
		}
	}
}
