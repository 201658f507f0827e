package fs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// below matches what is in a directory, and it.
func below(dir string) func(string) bool {
	return func(p string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
}

// asked are the waits since the last call, by kind.
func (l *testLog) asked() (received, applied, durable int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	received, applied, durable = l.received, l.applied, len(l.durable)
	l.received, l.applied, l.durable = 0, 0, nil
	return received, applied, durable
}

// wants checks which waits an operation asked for.
func (l *testLog) wants(t *testing.T, what string, received, applied, durable int) {
	t.Helper()
	if r, a, d := l.asked(); r != received || a != applied || d != durable {
		t.Errorf("%s: waited %d times for received, %d for applied, %d for durable; want %d, %d, %d",
			what, r, a, d, received, applied, durable)
	}
}

func newDurabilityEnv(t *testing.T) *env {
	e := newEnv(t, options{paths: []PathDurability{
		{below("async/strict"), Fsync}, {below("async"), Async}, {below("received"), Received}, {below("sync"), Sync},
	}})
	for _, d := range []string{"async", "async/strict", "received", "fsync", "sync"} {
		must(t, unix.Mkdir(e.in(d), 0o755))
	}
	e.log.asked()
	return e
}

// TestDurabilityByPath: the first rule that matches decides, for files and
// directories, fsync, fdatasync and O_SYNC.
func TestDurabilityByPath(t *testing.T) {
	e := newDurabilityEnv(t)
	for _, c := range []struct {
		dir                        string
		received, applied, durable int
	}{
		{"async", 0, 0, 0}, {"async/strict", 0, 0, 1}, {"received", 1, 0, 0}, {"fsync", 0, 0, 1}, {"sync", 0, 1, 1},
	} {
		path := e.in(c.dir + "/f")
		fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY, 0o644)
		must(t, err)
		e.log.wants(t, c.dir+" create", 0, c.applied, 0)
		must(t, writeAll(fd, "x"))
		e.log.wants(t, c.dir+" write", 0, c.applied, 0)
		must(t, unix.Fsync(fd))
		e.log.wants(t, c.dir+" fsync", c.received, 0, c.durable)
		must(t, unix.Fdatasync(fd))
		e.log.wants(t, c.dir+" fdatasync", c.received, 0, c.durable)
		must(t, unix.Close(fd))
		for name, flag := range map[string]int{"O_SYNC": unix.O_SYNC, "O_DSYNC": unix.O_DSYNC} {
			fd, err := unix.Open(path, unix.O_WRONLY|flag, 0)
			must(t, err)
			must(t, writeAll(fd, "y"))
			must(t, unix.Close(fd))
			e.log.wants(t, c.dir+" "+name, c.received, 0, c.durable)
		}
		dir, err := unix.Open(e.in(c.dir), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Fsync(dir))
		must(t, unix.Close(dir))
		e.log.wants(t, c.dir+" fsync of the directory", c.received, 0, c.durable)
	}
	e.equal()
}

// TestDurabilityAfterRename: what a file is called when it is fsynced counts,
// not what it was when it was opened.
func TestDurabilityAfterRename(t *testing.T) {
	e := newDurabilityEnv(t)
	fd, err := unix.Open(e.in("async/f"), unix.O_CREAT|unix.O_RDWR, 0o644)
	must(t, err)
	sync := func(what string, received, applied, durable int) {
		t.Helper()
		must(t, writeAll(fd, "x"))
		must(t, unix.Fsync(fd))
		e.log.wants(t, what, received, applied, durable)
	}
	sync("before", 0, 0, 0)
	must(t, os.Rename(e.in("async/f"), e.in("fsync/f")))
	sync("moved", 0, 0, 1)
	must(t, os.Rename(e.in("fsync/f"), e.in("received/f")))
	sync("moved again", 1, 0, 0)

	// Entering or leaving a directory whose mutations wait is one that waits.
	must(t, os.Rename(e.in("received/f"), e.in("sync/f")))
	e.log.wants(t, "rename into sync", 0, 1, 0)
	sync("in sync", 0, 1, 1)
	must(t, os.Rename(e.in("sync/f"), e.in("fsync/f")))
	e.log.wants(t, "rename out of sync", 0, 1, 0)

	// A directory above it moves.
	must(t, unix.Mkdir(e.in("fsync/d"), 0o755))
	must(t, os.Rename(e.in("fsync/f"), e.in("fsync/d/f")))
	e.log.asked()
	sync("in a directory", 0, 0, 1)
	must(t, os.Rename(e.in("fsync/d"), e.in("async/d")))
	sync("the directory moved", 0, 0, 0)

	// Of two names the stricter counts, until it is gone.
	must(t, os.Link(e.in("async/d/f"), e.in("fsync/link")))
	sync("with two names", 0, 0, 1)
	must(t, os.Remove(e.in("fsync/link")))
	sync("with one left", 0, 0, 0)
	must(t, unix.Close(fd))
	e.equal()
}

// TestSyncWaits: with sync every mutation waits until it is applied, with no
// lock held, and an error takes the place of its answer when that cannot come
// true.
func TestSyncWaits(t *testing.T) {
	e := newEnv(t, options{base: disk, durability: Sync, exclude: []string{"*/tmp/"}})
	var failing, locked atomic.Bool
	e.log.mu.Lock()
	e.log.waitApplied = func() error {
		free := false
		for deadline := time.Now().Add(time.Minute); !free && time.Now().Before(deadline); {
			if free = e.fs.tree.TryLock(); free {
				e.fs.tree.Unlock()
			} else {
				time.Sleep(time.Millisecond) // a request that does not wait has it
			}
		}
		if !free {
			locked.Store(true)
		}
		if failing.Load() {
			return errors.New("no longer the primary")
		}
		return nil
	}
	e.log.mu.Unlock()
	for _, c := range crashCases() {
		t.Run(c.name, func(t *testing.T) {
			e.t = t
			d := dir{e, strings.ReplaceAll(c.name, " ", "_")}
			must(t, unix.Mkdir(e.in(d.name), 0o755))
			crashSetup(d)
			e.records()
			e.log.asked()
			must(t, c.run(d))
			if _, applied, _ := e.log.asked(); applied == 0 {
				t.Error("nobody waited")
			}
			if locked.Load() {
				t.Fatal("waited with the tree locked")
			}

			d.name += "_failing"
			must(t, unix.Mkdir(e.in(d.name), 0o755))
			crashSetup(d)
			failing.Store(true)
			err := c.run(d)
			failing.Store(false)
			if !errors.Is(err, unix.EIO) {
				t.Errorf("an operation that was not acknowledged: %v", err)
			}
			e.equal()
		})
	}
	e.t = t
	// What could not be answered left no handle and no inode behind.
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	eventually(t, "handles are closed", func() bool { return e.fs.handles.len() == 0 })
	for _, name := range []string{"create_failing/n", "mkdir_failing/n", "open_truncating_failing/f", "link_failing/n"} {
		if _, err := os.Lstat(e.in(name)); err != nil {
			t.Errorf("%s was made: %v", name, err)
		}
	}
	e.sound()
}

// TestSyncForgets: an entry whose maker was answered EIO is held by nobody.
func TestSyncForgets(t *testing.T) {
	e := newEnv(t, options{durability: Sync})
	e.file(t, "f", "content")
	inodes := func() int {
		e.fs.table.mu.Lock()
		defer e.fs.table.mu.Unlock()
		return len(e.fs.table.byID)
	}
	before := inodes()
	e.log.mu.Lock()
	e.log.waitApplied = func() error { return errors.New("no") }
	e.log.mu.Unlock()
	for _, err := range []error{
		unix.Mkdir(e.in("d"), 0o755), unix.Mkfifo(e.in("p"), 0o600), unix.Symlink("x", e.in("l")),
		os.WriteFile(e.in("n"), nil, 0o600), unix.Link(e.in("f"), e.in("f2")),
	} {
		if !errors.Is(err, unix.EIO) {
			t.Errorf("not acknowledged: %v", err)
		}
	}
	if now := inodes(); now != before || e.fs.handles.len() != 0 {
		t.Errorf("%d inodes and %d handles, there were %d", now, e.fs.handles.len(), before)
	}
	e.equal()
}

func (e *env) file(t *testing.T, name, content string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(e.mnt, name), []byte(content), 0o644))
}

// TestFsyncInParallel: the standbys can begin while this node's fsync runs, and
// several of those run at a time.
func TestFsyncInParallel(t *testing.T) {
	const writers = 4
	began, finish := make(chan struct{}, writers), make(chan struct{})
	e := newEnv(t, options{syncStore: func(fd int, _ bool) error {
		began <- struct{}{}
		<-finish
		return unix.Fsync(fd)
	}})
	done := make(chan error, writers)
	for i := range writers {
		go func() {
			fd, err := unix.Open(e.in("f"+itoa(i)), unix.O_CREAT|unix.O_WRONLY, 0o644)
			if err == nil {
				err = errors.Join(writeAll(fd, "x"), unix.Fsync(fd), unix.Close(fd))
			}
			done <- err
		}()
	}
	for range writers {
		select {
		case <-began:
		case <-time.After(time.Minute):
			t.Fatal("the fsyncs of several files do not run at the same time")
		}
	}
	syncs := 0
	for _, r := range e.records() { // what the standby has at this moment
		if r.Op.String() == "fsync" {
			syncs++
		}
	}
	if syncs != writers {
		t.Errorf("the standby knows of %d fsyncs while those of this node run", syncs)
	}
	if got := e.log.waited(); len(got) != 0 {
		t.Errorf("waits for the standby of %v before this node is done", got)
	}
	close(finish)
	for range writers {
		must(t, <-done)
	}
	e.log.wants(t, "four fsyncs", 0, 0, writers)
}

// TestDurabilityCost: once a file's path is known, asking for its durability
// allocates nothing, with rules and without.
func TestDurabilityCost(t *testing.T) {
	for name, paths := range map[string][]PathDurability{"no rules": nil, "rules": {{below("sync"), Sync}, {below("a"), Async}}} {
		e := newEnv(t, options{paths: paths})
		e.file(t, "f", "")
		fd, err := unix.Open(e.in("f"), unix.O_RDONLY, 0)
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(e.store, "f"), &st))
		n := e.fs.table.getKey(keyOf(&st))
		if got := testing.AllocsPerRun(100, func() {
			p := passage{fs: e.fs}
			e.fs.named(n, nil)
			p.changes(n)
		}); got != 0 {
			t.Errorf("%s: %v allocations a mutation", name, got)
		}
		must(t, unix.Close(fd))
	}
}
