package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// nameless opens a file without a name for f.
func (d dir) nameless(flags int, f func(fd int) error) error {
	return d.with(".", unix.O_TMPFILE|unix.O_RDWR|flags, f)
}

// linkOpen gives an open file a name.
func (d dir) linkOpen(fd int, name string) error {
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, d.in(name), unix.AT_SYMLINK_FOLLOW)
}

// TestNamelessRecords: a file without a name gives no record whatever is done
// to it, enters with all that it has when it gets one, and counts from then on.
func TestNamelessRecords(t *testing.T) {
	var seen promises
	fill := func(fd int) error {
		return errors.Join(writeAll(fd, "content"), unix.Fchmod(fd, 0o640), unix.Fchown(fd, 5, 6),
			unix.Fsetxattr(fd, "user.x", []byte("y"), 0), unix.Ftruncate(fd, 3*page), unix.Fallocate(fd, 0, 0, 4*page), unix.Fsync(fd))
	}
	entered := []string{"state n live", "state-data n live", "state-end n live", "fsync n live"}
	runCases(t, options{base: disk, exclude: []string{"*/tmp/"}}, []opCase{
		{name: "never linked", run: func(d dir) error { return d.nameless(0, fill) }},
		{name: "linked", run: func(d dir) error {
			return d.nameless(0, func(fd int) error { return errors.Join(fill(fd), d.linkOpen(fd, "n")) })
		}, want: entered},
		{name: "linked, then written", run: func(d dir) error {
			return d.nameless(0, func(fd int) error {
				return errors.Join(writeAll(fd, "content"), d.linkOpen(fd, "n"), writeAll(fd, "more"), unix.Fchmod(fd, 0o600))
			})
		}, want: append(entered[:4:4], "write n 7+4", "setattr n mode")},
		{name: "linked twice, the first is removed", run: func(d dir) error {
			return d.nameless(0, func(fd int) error {
				return errors.Join(writeAll(fd, "content"), d.linkOpen(fd, "n"), d.linkOpen(fd, "m"), unix.Unlink(d.in("n")), writeAll(fd, "more"))
			})
		}, any: true},
		{name: "empty", run: func(d dir) error {
			return d.nameless(0, func(fd int) error { return d.linkOpen(fd, "n") })
		}, want: []string{"state n live", "state-end n live", "fsync n live"}},
		{name: "synchronous", run: func(d dir) error {
			return d.nameless(unix.O_SYNC, func(fd int) error { return writeAll(fd, "content") })
		}},
		{name: "not to be linked", fails: unix.ENOENT, run: func(d dir) error {
			return d.nameless(unix.O_EXCL, func(fd int) error { return d.linkOpen(fd, "n") })
		}},
		{name: "over an existing name", fails: unix.EEXIST, setup: func(d dir) { d.file("n", "x") }, run: func(d dir) error {
			return d.nameless(0, func(fd int) error { return errors.Join(d.linkOpen(fd, "n"), d.linkOpen(fd, "m")) })
		}, any: true},
		{name: "linked to an excluded name, then in", setup: func(d dir) { must(d.e.t, unix.Mkdir(d.in("tmp"), 0o755)) }, run: func(d dir) error {
			return d.nameless(0, func(fd int) error {
				return errors.Join(writeAll(fd, "content"), d.linkOpen(fd, "tmp/n"), writeAll(fd, "more"), d.linkOpen(fd, "n"), unix.Unlink(d.in("tmp/n")))
			})
		}, want: entered},
		{name: "on a closed descriptor's number", run: func(d dir) error {
			// The store uses the numbers again; a new file must not be taken
			// for one that never had a name.
			for i := range 20 {
				err := d.nameless(0, func(fd int) error { return writeAll(fd, "nameless") })
				d.file(fmt.Sprint("f", i), fmt.Sprint("content ", i))
				if err != nil {
					return err
				}
			}
			return nil
		}, any: true},
	}, &seen)
}

// TestNamelessDies: a process that dies at any record of an entering file
// leaves the standby with all of it or nothing, and never with a part that
// would stay. TestRecoverEveryOperation has the general case; this one has a
// file that needs several records.
func TestNamelessDies(t *testing.T) {
	e := newEnv(t, options{base: disk})
	for point := 1; point < 50; point++ {
		d := dir{e, fmt.Sprint("case", point)}
		must(t, unix.Mkdir(e.in(d.name), 0o755))
		e.records()
		appended := 0
		e.log.mu.Lock()
		e.log.dies = func(_ *record.Record, begin bool) bool {
			if !begin {
				appended++
			}
			return appended == point
		}
		e.log.mu.Unlock()
		err := d.nameless(0, func(fd int) error {
			return errors.Join(writeAll(fd, strings.Repeat("content ", 100_000)), d.linkOpen(fd, "n"))
		})
		died := e.log.died()
		intents := e.log.revive()
		if !died {
			must(t, err)
			if point < 5 {
				t.Errorf("the file entered with %d records only", point-1)
			}
			break
		}
		e.suspect = nil
		e.unmount()
		e.mount(intents...)
		e.equal()
		if t.Failed() {
			t.Fatalf("at record %d", point)
		}
	}
	e.equal()
	e.sound()
}

// TestEntersInOne: a file that enters the replicated tree, by link or rename,
// is on the standby with all of its contents or not at all, at every LSN.
func TestEntersInOne(t *testing.T) {
	e := newEnv(t, options{base: disk, exclude: []string{"tmp/"}})
	d := dir{e, "."}
	content := strings.Repeat("content ", 100_000)
	must(t, unix.Mkdir(e.in("tmp"), 0o755))
	d.file("tmp/f", content)
	d.file("tmp/g", content)
	e.records()
	names := []string{"n", "f", "g"}
	records := 0
	e.applied = func(r *record.Record) {
		records++
		for _, name := range names {
			b, err := os.ReadFile(e.standby + "/" + name)
			if err == nil && string(b) != content || err != nil && !os.IsNotExist(err) {
				t.Errorf("after %s: %d bytes of %s, %v", r.String(), len(b), name, err)
			}
		}
	}
	must(t, d.nameless(0, func(fd int) error { return errors.Join(writeAll(fd, content), d.linkOpen(fd, "n")) }))
	must(t, os.Rename(e.in("tmp/f"), e.in("f")))
	must(t, os.Link(e.in("tmp/g"), e.in("g")))
	e.records()
	if records < 12 {
		t.Errorf("only %d records: the contents should take several", records)
	}
	e.equal()
	e.sound()
}
