package fs

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/workload"
)

// limitDirs leaves only so many descriptors for directories.
func (e *env) limitDirs(n int) {
	e.fs.table.mu.Lock()
	e.fs.table.dirs.limit = n
	e.fs.table.mu.Unlock()
}

func (e *env) openDirs() int {
	e.fs.table.mu.Lock()
	defer e.fs.table.mu.Unlock()
	return e.fs.table.dirs.count
}

// TestFewDirectories: a mount that may keep few directories open works as one
// that may keep many, for a random load of everything.
func TestFewDirectories(t *testing.T) {
	for _, limit := range []int{0, 3} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			e := newEnv(t, options{base: disk})
			e.limitDirs(limit)
			stop := e.follow()
			wait := e.startWorkload(workload.Options{Seed: 5, Writers: 4, Steps: 3000, MaxBytes: 16 << 20, MaxFiles: 600})
			must(t, wait(false))
			stop()
			e.equal()
			e.sound()
			eventually(t, "directories are closed", func() bool {
				e.fs.janitor.wake()
				return e.openDirs() <= limit
			})
		})
	}
}

// TestEvictedDirectories: what was closed is opened again by whoever needs it:
// by relative steps, after renames above it, and not in place of another.
func TestEvictedDirectories(t *testing.T) {
	e := newEnv(t, options{})
	root.must(t, e.mnt, "mkdir -p a/b/c/d other; echo x >a/b/c/d/f; mkdir gone")
	deep, err := unix.Open(e.in("a/b/c"), unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	gone, err := unix.Open(e.in("gone"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	root.must(t, e.mnt, "rmdir gone")
	e.limitDirs(0)
	closed := func() {
		t.Helper()
		// The one that lost its name cannot be opened again, so it stays.
		eventually(t, "directories are closed", func() bool { e.fs.janitor.wake(); return e.openDirs() == 1 })
	}
	closed()
	var st unix.Stat_t
	must(t, unix.Fstat(gone, &st))
	if st.Nlink != 0 {
		t.Errorf("a removed directory has %d links", st.Nlink)
	}
	must(t, unix.Fstatat(deep, "d/f", &st, 0))
	closed()
	root.must(t, e.mnt, "mv a/b other/b2; mkdir -p a/b/c/d; echo other >a/b/c/d/f")
	closed()
	fd, err := unix.Openat(deep, "d/f", unix.O_RDWR|unix.O_APPEND, 0)
	must(t, err)
	must(t, writeAll(fd, "y"))
	must(t, unix.Close(fd))
	closed()
	must(t, unix.Mkdirat(deep, "made", 0o755))
	closed()
	must(t, unix.Renameat(deep, "d", unix.AT_FDCWD, e.in("moved")))
	must(t, errors.Join(unix.Close(deep), unix.Close(gone)))
	if b, err := os.ReadFile(e.in("moved/f")); string(b) != "x\ny" {
		t.Errorf("%q, %v", b, err)
	}
	e.equal()
	e.sound()
}

// TestForgotten: what the kernel cached and forgot leaves neither descriptors
// nor memory, and what it caches takes little.
func TestForgotten(t *testing.T) {
	const dirs, files = 400, 250
	e := newEnv(t, options{noStandby: true, prepare: func(store string) {
		for d := range dirs {
			dir := fmt.Sprintf("%s/directory-%d", store, d)
			must(t, os.Mkdir(dir, 0o755))
			for f := range files {
				must(t, os.WriteFile(fmt.Sprintf("%s/file-%d", dir, f), nil, 0o644))
			}
		}
	}})
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // pools keep what they have for one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	known := func() int {
		e.fs.table.mu.Lock()
		defer e.fs.table.mu.Unlock()
		return len(e.fs.table.byID)
	}
	root.must(t, e.mnt, "stat . >/dev/null")
	before, fds := heap(), openFds(t)
	root.must(t, e.mnt, "find . -type f -size +1k")
	if n := known(); n < dirs*files {
		t.Fatalf("%d inodes are known", n)
	}
	taken := float64(heap() - before)
	each := taken / float64(known())
	t.Logf("%d inodes, %.0f bytes each", known(), each)
	if each > 600 {
		t.Errorf("a cached inode takes %.0f bytes", each)
	}
	e.fs.SetReadOnly()
	eventually(t, "the kernel forgets", func() bool { return known() < 10 })
	e.fs.table.shrink()
	e.fs.janitor.wake()
	eventually(t, "descriptors are closed", func() bool { return openFds(t) <= fds })
	if left := float64(heap()) - float64(before); left > taken/2 {
		t.Errorf("of %.0f bytes, %.0f are left", taken, left)
	}
}
