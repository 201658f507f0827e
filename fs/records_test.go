package fs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// opCase is one operation and the records that it has to give (I1).
type opCase struct {
	name  string
	setup func(d dir)
	run   func(d dir) error
	want  []string // as summary writes them
	fails error
	any   bool // only the outcome counts
}

// dir is a case's own directory in the mount; paths in records are relative
// to it in a case's want.
type dir struct {
	e    *env
	name string
}

func (d dir) in(name string) string { return d.e.in(d.name + "/" + name) }

// file makes a file with content.
func (d dir) file(name, content string) {
	d.e.t.Helper()
	must(d.e.t, d.with(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, func(fd int) error {
		return writeAll(fd, content)
	}))
}

// with opens a file for f.
func (d dir) with(name string, flags int, f func(fd int) error) error {
	fd, err := unix.Open(d.in(name), flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(f(fd), unix.Close(fd))
}

func writeAll(fd int, content string) error {
	n, err := unix.Write(fd, []byte(content))
	if err == nil && n != len(content) {
		err = fmt.Errorf("wrote %d of %d bytes", n, len(content))
	}
	return err
}

// TestRecords: every operation gives exactly the records that it has to give
// (I1), and every request does what the table of opcodes promises of it.
func TestRecords(t *testing.T) {
	var seen promises
	ran := 0
	for _, group := range []struct {
		name  string
		opt   options
		cases []opCase
	}{
		{"namespace", options{}, namespaceCases()},
		{"content", options{base: disk}, contentCases()},
		{"attributes", options{base: disk}, attributeCases()},
		{"border", options{base: disk, exclude: []string{"*/tmp/", "**/*.skip"}}, borderCases()},
		{"opcodes", options{base: disk, exclude: []string{"**/*.skip"}}, opcodeCases()},
	} {
		t.Run(group.name, func(t *testing.T) { ran += runCases(t, group.opt, group.cases, &seen) - len(group.cases) + 1 })
	}
	if ran == 5 { // else a filter left some out
		seen.complete(t)
	}
}

// runCases runs each case in a directory of its own, and says how many ran.
func runCases(t *testing.T, opt options, cases []opCase, seen *promises) (ran int) {
	opt.traced = true
	e := newEnv(t, opt)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ran++
			e.t = t
			d := dir{e, fmt.Sprintf("case%d", i)}
			must(t, unix.Mkdir(e.in(d.name), 0o755))
			if c.setup != nil {
				c.setup(d)
			}
			e.records()
			e.log.waited()
			e.trace.take()
			err := c.run(d)
			recs := e.records()
			seen.check(t, e.trace.take(), recs)
			if !errors.Is(err, c.fails) || c.fails == nil && err != nil {
				t.Fatalf("error %v, want %v", err, c.fails)
			}
			var got []string
			for i := range recs {
				got = append(got, summary(&recs[i], d.name))
			}
			if !slices.Equal(got, c.want) && !c.any {
				t.Errorf("records\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(c.want, "\n\t"))
			}
			e.checkSyncs(recs)
			e.equal()
			e.sound()
		})
	}
	e.t = t
	e.checkCounts()
	return ran
}

// checkSyncs: every OpFsync that somebody asked for was waited for, and nothing
// else was.
func (e *env) checkSyncs(recs []record.Record) {
	e.t.Helper()
	var want []uint64
	for i := range recs {
		if recs[i].Op == record.OpFsync && !recs[i].Flags.Has(record.FlagLive) {
			want = append(want, recs[i].LSN)
		}
	}
	if got := e.log.waited(); !slices.Equal(got, want) {
		e.t.Errorf("waited for LSNs %d, the syncs have %d", got, want)
	}
}

// summary is the operation, its paths and what else it hangs on.
func summary(r *record.Record, base string) string {
	rel := func(p string) string {
		if p == base {
			return "."
		}
		return strings.TrimPrefix(p, base+"/")
	}
	s := r.Op.String() + " " + rel(r.Path)
	if r.Has(record.FieldPath2) {
		s += " " + rel(r.Path2)
	}
	switch r.Op {
	case record.OpWrite:
		s += fmt.Sprintf(" %d+%d", r.Offset, len(r.Data))
	case record.OpSetAttr:
		s += " " + fieldNames(r.Fields)
	case record.OpFallocate:
		s += fmt.Sprintf(" %d %d+%d", r.Perm, r.Offset, r.Length)
	case record.OpCopyRange:
		s += fmt.Sprintf(" %d->%d+%d", r.Offset2, r.Offset, r.Length)
	case record.OpSetXattr, record.OpRemoveXattr:
		s += " " + r.Name
	case record.OpCreate, record.OpMkdir:
		s += fmt.Sprintf(" %o", r.Mode)
	}
	for flag, name := range map[record.Flags]string{
		record.FlagDataOnly: " data-only", record.FlagExchange: " exchange", record.FlagLast: " last",
		record.FlagRedo: " redo", record.FlagLive: " live", record.FlagMore: "",
	} {
		if r.Flags.Has(flag) {
			s += name
		}
	}
	return s
}

func fieldNames(f record.Field) string {
	var s []string
	for _, n := range []struct {
		f    record.Field
		name string
	}{{record.FieldSize, "size"}, {record.FieldOwner, "owner"}, {record.FieldMode, "mode"}, {record.FieldAtime, "atime"}, {record.FieldMtime, "mtime"}} {
		if f.Has(n.f) {
			s = append(s, n.name)
		}
	}
	return strings.Join(s, ",")
}

func withF(d dir) { d.file("f", "content") }

// namespaceCases: names come and go with exactly one record each.
func namespaceCases() []opCase {
	mknod := func(mode uint32, dev uint64) func(dir) error {
		return func(d dir) error { return unix.Mknod(d.in("n"), mode, int(dev)) }
	}
	rename := func(from, to string, flags uint) func(dir) error {
		return func(d dir) error {
			return unix.Renameat2(unix.AT_FDCWD, d.in(from), unix.AT_FDCWD, d.in(to), flags)
		}
	}
	two := func(d dir) { d.file("a", "a"); d.file("b", "bb") }
	dirs := func(d dir) {
		must(d.e.t, unix.Mkdir(d.in("p"), 0o755))
		must(d.e.t, unix.Mkdir(d.in("q"), 0o755))
		d.file("p/f", "x")
	}
	nop := func(int) error { return nil }
	return []opCase{
		{name: "create", run: func(d dir) error { return d.with("f", unix.O_CREAT|unix.O_WRONLY, nop) },
			want: []string{"create f 100644"}},
		{name: "create excl", run: func(d dir) error { return d.with("f", unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, nop) },
			want: []string{"create f 100644"}},
		{name: "create of what exists", setup: withF, run: func(d dir) error { return d.with("f", unix.O_CREAT|unix.O_RDWR, nop) }},
		{name: "create excl of what exists", setup: withF, fails: unix.EEXIST,
			run: func(d dir) error { return d.with("f", unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, nop) }},
		{name: "mknod regular", run: mknod(unix.S_IFREG|0o4755, 0), want: []string{"create n 104755"}},
		{name: "mknod fifo", run: mknod(unix.S_IFIFO|0o600, 0), want: []string{"create n 10600"}},
		{name: "mknod char", run: mknod(unix.S_IFCHR|0o666, unix.Mkdev(1, 3)), want: []string{"create n 20666"}},
		{name: "mknod block", run: mknod(unix.S_IFBLK|0o660, unix.Mkdev(259, 70000)), want: []string{"create n 60660"}},
		{name: "mknod socket", run: mknod(unix.S_IFSOCK|0o600, 0), want: []string{"setattr . mtime"}},
		{name: "socket and chmod", setup: func(d dir) { must(d.e.t, unix.Mknod(d.in("s"), unix.S_IFSOCK|0o600, 0)) },
			run: func(d dir) error { return unix.Chmod(d.in("s"), 0o666) }},
		{name: "socket unlink", setup: func(d dir) { must(d.e.t, unix.Mknod(d.in("s"), unix.S_IFSOCK|0o600, 0)) },
			run: func(d dir) error { return unix.Unlink(d.in("s")) }, want: []string{"setattr . mtime"}},
		{name: "mkdir", run: func(d dir) error { return unix.Mkdir(d.in("p"), 0o1750) }, want: []string{"mkdir p 41750"}},
		{name: "mkdir of what exists", setup: dirs, fails: unix.EEXIST, run: func(d dir) error { return unix.Mkdir(d.in("p"), 0o755) }},
		{name: "symlink", run: func(d dir) error { return unix.Symlink("some\xffwhere", d.in("l")) },
			want: []string{"symlink l some\xffwhere"}},
		{name: "link", setup: withF, run: func(d dir) error { return unix.Link(d.in("f"), d.in("g")) }, want: []string{"link g f"}},
		{name: "link over", setup: two, fails: unix.EEXIST, run: func(d dir) error { return unix.Link(d.in("a"), d.in("b")) }},
		{name: "unlink", setup: withF, run: func(d dir) error { return unix.Unlink(d.in("f")) }, want: []string{"unlink f last"}},
		{name: "unlink of a link", setup: func(d dir) { withF(d); must(d.e.t, unix.Link(d.in("f"), d.in("g"))) },
			run: func(d dir) error { return unix.Unlink(d.in("f")) }, want: []string{"unlink f"}},
		{name: "unlink of nothing", fails: unix.ENOENT, run: func(d dir) error { return unix.Unlink(d.in("f")) }},
		{name: "rmdir", setup: dirs, run: func(d dir) error { return unix.Rmdir(d.in("q")) }, want: []string{"rmdir q last"}},
		{name: "rmdir not empty", setup: dirs, fails: unix.ENOTEMPTY, run: func(d dir) error { return unix.Rmdir(d.in("p")) }},
		{name: "rename", setup: two, run: rename("a", "c", 0), want: []string{"rename c a"}},
		{name: "rename over", setup: two, run: rename("a", "b", 0), want: []string{"rename b a last"}},
		{name: "rename over a link", setup: func(d dir) { two(d); must(d.e.t, unix.Link(d.in("b"), d.in("c"))) },
			run: rename("a", "b", 0), want: []string{"rename b a"}},
		{name: "rename onto itself", setup: func(d dir) { withF(d); must(d.e.t, unix.Link(d.in("f"), d.in("g"))) },
			run: rename("f", "g", 0)},
		{name: "rename noreplace", setup: two, run: rename("a", "c", unix.RENAME_NOREPLACE), want: []string{"rename c a"}},
		{name: "rename noreplace over", setup: two, fails: unix.EEXIST, run: rename("a", "b", unix.RENAME_NOREPLACE)},
		{name: "rename exchange", setup: two, run: rename("a", "b", unix.RENAME_EXCHANGE), want: []string{"rename b a exchange"}},
		{name: "rename exchange file and directory", setup: func(d dir) { withF(d); dirs(d) },
			run: rename("f", "p", unix.RENAME_EXCHANGE), want: []string{"rename p f exchange"}},
		{name: "rename exchange with nothing", setup: withF, fails: unix.ENOENT, run: rename("f", "g", unix.RENAME_EXCHANGE)},
		{name: "rename whiteout", setup: withF, fails: unix.EINVAL, run: rename("f", "g", unix.RENAME_WHITEOUT)},
		{name: "rename directory", setup: dirs, run: rename("p", "r", 0), want: []string{"rename r p"}},
		{name: "rename directory over", setup: dirs, run: rename("p", "q", 0), want: []string{"rename q p last"}},
		{name: "rename directory over a full one", setup: dirs, fails: unix.ENOTEMPTY, run: rename("q", "p", 0)},
		{name: "rename directory into itself", setup: dirs, fails: unix.EINVAL, run: rename("p", "p/p", 0)},
		{name: "rename elsewhere", setup: dirs, run: rename("p/f", "q/g", 0), want: []string{"rename q/g p/f"}},
		{name: "rename of nothing", fails: unix.ENOENT, run: rename("x", "y", 0)},
		{name: "write below a renamed directory", setup: dirs, run: func(d dir) error {
			return d.with("p/f", unix.O_WRONLY, func(fd int) error {
				return errors.Join(rename("p", "r", 0)(d), writeAll(fd, "abc"))
			})
		}, want: []string{"rename r p", "write r/f 0+3"}},
	}
}
