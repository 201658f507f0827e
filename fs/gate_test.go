package fs

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReadOnly: a closed gate refuses every mutation, those of handles opened
// before included, and lets everything be read.
func TestReadOnly(t *testing.T) {
	e := newEnv(t, options{base: disk})
	d := dir{e, "d"}
	must(t, unix.Mkdir(e.in("d"), 0o755))
	crashSetup(d)
	fd, err := unix.Open(d.in("f"), unix.O_RDWR, 0)
	must(t, err)
	cached, err := unix.Open(d.in("g"), unix.O_RDWR, 0)
	must(t, err)
	e.fs.SetReadOnly()
	if e.fs.Writable() {
		t.Error("still writable")
	}
	last := e.ring.Last()
	for _, c := range crashCases() {
		if err := c.run(d); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for name, f := range map[string]func() error{
		"write":     func() error { _, err := unix.Write(fd, []byte("x")); return err },
		"cached":    func() error { _, err := unix.Write(cached, []byte("x")); return err },
		"ftruncate": func() error { return unix.Ftruncate(fd, 0) },
		"fchmod":    func() error { return unix.Fchmod(fd, 0o600) },
		"fallocate": func() error { return unix.Fallocate(fd, 0, 0, page) },
		"fsetxattr": func() error { return unix.Fsetxattr(fd, "user.q", nil, 0) },
	} {
		if err := f(); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s of an open file: %v", name, err)
		}
	}
	if err := unix.Fsync(fd); err != unix.EROFS {
		t.Errorf("fsync of a file that was written to: %v", err)
	}
	rd, err := unix.Open(d.in("f2"), unix.O_RDONLY, 0)
	must(t, err)
	must(t, unix.Fsync(rd)) // the store's alone
	must(t, unix.Close(rd))
	if b, err := os.ReadFile(d.in("f2")); err != nil || !strings.HasPrefix(string(b), "f\x00") {
		t.Errorf("read: %q, %v", b[:min(len(b), 5)], err)
	}
	if e.ring.Last() != last {
		t.Errorf("records were made: %v", e.records())
	}
	e.fs.SetWritable()
	must(t, writeAll(fd, "again"))
	must(t, errors.Join(unix.Close(fd), unix.Close(cached)))
	e.equal()
}

// TestFreeze: a frozen gate holds mutations back, and none is under way when
// Freeze returns.
func TestFreeze(t *testing.T) {
	e := newEnv(t, options{})
	tid := make(chan int)
	var quit atomic.Bool
	var done atomic.Int64
	ended := make(chan error)
	go func() {
		var err error
		for !quit.Load() && err == nil {
			err = errors.Join(unix.Mkdir(e.in("d"), 0o755), unix.Rmdir(e.in("d")))
			done.Add(1)
		}
		ended <- err
	}()
	for range 20 {
		at := done.Load()
		eventually(t, "the writer works", func() bool { return done.Load() > at })
		e.fs.Freeze()
		last := e.ring.Last()
		time.Sleep(5 * time.Millisecond)
		if now := e.ring.Last(); now != last {
			t.Fatalf("%d records came while frozen", now-last)
		}
		e.fs.Thaw()
	}
	quit.Store(true)
	must(t, <-ended)
	e.equal()

	// Signals do not interrupt what waits, as they would not on the store.
	e.fs.Freeze()
	made := make(chan error)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		made <- unix.Mkdir(e.in("made"), 0o755)
	}()
	interrupted := <-tid
	for range 50 {
		must(t, unix.Tgkill(os.Getpid(), interrupted, unix.SIGURG))
		time.Sleep(time.Millisecond)
	}
	e.fs.Thaw()
	must(t, <-made)
	must(t, unix.Rmdir(e.in("made")))
	e.fs.Freeze()
	// Closing lets what waits go, refused.
	refused := make(chan error)
	go func() { refused <- unix.Mkdir(e.in("refused"), 0o755) }()
	time.Sleep(20 * time.Millisecond)
	e.fs.SetReadOnly()
	if err := <-refused; !errors.Is(err, unix.EROFS) {
		t.Errorf("a mutation that waited: %v", err)
	}
	ents, err := os.ReadDir(e.store)
	if err != nil || len(ents) > 0 {
		t.Errorf("the store has %v, %v", ents, err)
	}
}

// TestPromoteAfterChanges: a standby's store changes under its mount; what the
// kernel and processes kept from before must not decide about records after.
func TestPromoteAfterChanges(t *testing.T) {
	for _, base := range []string{tmpfs, disk} {
		t.Run(base, func(t *testing.T) {
			e := newEnv(t, options{base: base})
			root.must(t, e.mnt, "mkdir -p a/b/c gone; echo 1 >a/b/f; echo 1 >a/log; echo content 1 >cached; ln a/b/f link; mkdir list; touch list/x")
			e.records()
			e.fs.SetReadOnly()
			e.m.SetReadOnlyFlag(true)
			eventually(t, "the kernel's flag", func() bool { return mountFlag(t, e.mnt) == "ro" })

			// What the kernel has seen, as a standby:
			root.must(t, e.mnt, "cat cached >/dev/null; ls list a/b gone >/dev/null; ! ls late 2>/dev/null")
			read, err := unix.Open(e.in("a/b/f"), unix.O_RDONLY, 0)
			must(t, err)
			// Pages come into the kernel's cache by mapping alone.
			must(t, mmapped(e.in("cached"), "read"))
			inside := shellIn(e.in("a/b"), `read go; echo new >here; mkdir sub; echo x >>f; mv f g`)
			start, err := inside.StdinPipe()
			must(t, err)
			must(t, inside.Start())
			eventually(t, "the working directory", func() bool {
				wd, _ := os.Readlink("/proc/" + itoa(inside.Process.Pid) + "/cwd")
				return wd == e.in("a/b")
			})

			// Both stores change as by records.
			for _, store := range []string{e.store, e.standby} {
				root.must(t, store, `mkdir x; mv a/b x/moved; rm -r gone; echo other >a/b; echo is here >late; touch list/y
					echo content 2 >cached; touch -d @1000000000.5 x x/moved a a/b late list list/y cached .`)
			}
			if out := root.must(t, e.mnt, "cat late cached; ls list; stat -c %F a/b"); out != "is here\ncontent 2\nx\ny\nregular file" {
				t.Errorf("the standby's mount shows %q", out)
			}
			e.promote()
			if mountFlag(t, e.mnt) != "rw" {
				t.Error("the kernel's flag says read-only")
			}
			if out := root.must(t, e.mnt, "cat late cached; ls list; ! ls gone 2>/dev/null"); out != "is here\ncontent 2\nx\ny" {
				t.Errorf("the new primary's mount shows %q", out)
			}
			_, err = start.Write([]byte("go\n"))
			must(t, err)
			must(t, inside.Wait())
			must(t, unix.Fchmod(read, 0o604))
			must(t, unix.Close(read))
			// Looked up first: the kernel cannot move its dentry amid a rename.
			root.must(t, e.mnt, "echo y >>link; ls x >/dev/null; mv x/moved back")
			var paths []string
			for _, r := range e.records() {
				paths = append(paths, r.Op.String()+" "+r.Path)
			}
			for _, want := range []string{"create x/moved/here", "mkdir x/moved/sub", "rename x/moved/g", "rename back"} {
				if !strings.Contains(strings.Join(paths, "\n"), want) {
					t.Errorf("no %q among the records %q", want, paths)
				}
			}
			e.equal()
			e.sound()
		})
	}
}

// TestAppendAcrossRoles: the kernel knows the size from before; an append
// goes to the end all the same.
func TestAppendAcrossRoles(t *testing.T) {
	e := newEnv(t, options{})
	root.must(t, e.mnt, "echo 1 >log")
	fd, err := unix.Open(e.in("log"), unix.O_WRONLY|unix.O_APPEND, 0)
	must(t, err)
	must(t, writeAll(fd, "2\n"))
	e.records()
	e.fs.SetReadOnly()
	for _, store := range []string{e.store, e.standby} {
		root.must(t, store, "echo 3 >>log; touch -d @1000000001 log")
	}
	e.promote()
	must(t, writeAll(fd, "4\n"))
	must(t, unix.Close(fd))
	if b, err := os.ReadFile(e.in("log")); string(b) != "1\n2\n3\n4\n" {
		t.Errorf("the file is %q, %v", b, err)
	}
	e.equal()
}

// TestRolesUnderLoad: the gate opens and closes while writers work; every
// mutation that was answered is in the log and no other.
func TestRolesUnderLoad(t *testing.T) {
	e := newEnv(t, options{})
	stop := e.follow()
	// The kernel says EIO, at close, when it could not write back mapped pages.
	// A write(2) of several requests is short when the gate closes in it; the
	// workload takes that where the disk may be full.
	wait := e.startLoad(3000, unix.EROFS, unix.EIO, unix.ENOSPC)
	for i := range 30 {
		time.Sleep(20 * time.Millisecond)
		switch i % 3 {
		case 0:
			e.fs.SetReadOnly()
			time.Sleep(5 * time.Millisecond)
			e.fs.SetWritable()
		case 1:
			e.fs.Freeze()
			time.Sleep(5 * time.Millisecond)
			e.fs.Thaw()
		}
	}
	must(t, wait(false))
	stop()
	e.equal()
	e.sound()
}
