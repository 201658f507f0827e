package fs

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// holding is a front that, once it is told to, carries mutations out and never
// answers them.
type holding struct {
	front
	on *bool
}

func (h holding) hold(s fuse.Status) fuse.Status {
	if *h.on && s.Ok() {
		fmt.Println("held")
		select {}
	}
	return s
}

type cancelled = <-chan struct{}

func (h holding) Mknod(c cancelled, in *fuse.MknodIn, n string, o *fuse.EntryOut) fuse.Status {
	return h.hold(h.front.Mknod(c, in, n, o))
}

func (h holding) Mkdir(c cancelled, in *fuse.MkdirIn, n string, o *fuse.EntryOut) fuse.Status {
	return h.hold(h.front.Mkdir(c, in, n, o))
}

func (h holding) Symlink(c cancelled, in *fuse.InHeader, to, n string, o *fuse.EntryOut) fuse.Status {
	return h.hold(h.front.Symlink(c, in, to, n, o))
}

func (h holding) Link(c cancelled, in *fuse.LinkIn, n string, o *fuse.EntryOut) fuse.Status {
	return h.hold(h.front.Link(c, in, n, o))
}

func (h holding) Unlink(c cancelled, in *fuse.InHeader, n string) fuse.Status {
	return h.hold(h.front.Unlink(c, in, n))
}

func (h holding) Rmdir(c cancelled, in *fuse.InHeader, n string) fuse.Status {
	return h.hold(h.front.Rmdir(c, in, n))
}

func (h holding) Rename(c cancelled, in *fuse.RenameIn, from, to string) fuse.Status {
	return h.hold(h.front.Rename(c, in, from, to))
}

func (h holding) Create(c cancelled, in *fuse.CreateIn, n string, o *fuse.CreateOut) fuse.Status {
	return h.hold(h.front.Create(c, in, n, o))
}

func (h holding) Open(c cancelled, in *fuse.OpenIn, o *fuse.OpenOut) fuse.Status {
	s := h.front.Open(c, in, o)
	if in.Flags&unix.O_TRUNC == 0 {
		return s
	}
	return h.hold(s)
}

func (h holding) SetAttr(c cancelled, in *fuse.SetAttrIn, o *fuse.AttrOut) fuse.Status {
	return h.hold(h.front.SetAttr(c, in, o))
}

func (h holding) SetXAttr(c cancelled, in *fuse.SetXAttrIn, n string, v []byte) fuse.Status {
	return h.hold(h.front.SetXAttr(c, in, n, v))
}

func (h holding) RemoveXAttr(c cancelled, in *fuse.InHeader, n string) fuse.Status {
	return h.hold(h.front.RemoveXAttr(c, in, n))
}

func (h holding) Fallocate(c cancelled, in *fuse.FallocateIn) fuse.Status {
	return h.hold(h.front.Fallocate(c, in))
}

func (h holding) CopyFileRange(c cancelled, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	n, s := h.front.CopyFileRange(c, in)
	return n, h.hold(s)
}

func (h holding) Write(c cancelled, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, s := h.front.Write(c, in, data)
	return n, h.hold(s)
}

// TestResentEveryOperation: each operation is carried out and not answered. The
// successor gets it again, answers that it succeeded, and records nothing more.
func TestResentEveryOperation(t *testing.T) {
	s := newServed(t, "hold")
	e := &env{t: t, mnt: s.mnt}
	cases := crashCases()
	// Marks in the log tell which records are an operation's.
	mark := func(i int, what string) string { return fmt.Sprintf("case%d.%s", i, what) }
	for i, c := range cases {
		plain, held := dir{e, mark(i, "plain")}, dir{e, mark(i, "held")}
		for _, d := range []dir{plain, held} {
			must(t, unix.Mkdir(s.in(d.name), 0o755))
			crashSetup(d)
		}
		must(t, unix.Mkdir(s.in(mark(i, "first")), 0o755))
		must(t, c.run(plain))
		must(t, unix.Mkdir(s.in(mark(i, "second")), 0o755))
		must(t, s.cmd.Process.Signal(unix.SIGUSR2))
		s.expect("holding")
		done := make(chan error, 1)
		go func() { done <- c.run(held) }()
		s.expect("held")
		s.restart()
		if err := <-done; err != nil { // the watchdog ends a wait in vain
			t.Errorf("%s: carried out, and answered %v", c.name, err)
		}
		must(t, unix.Mkdir(s.in(mark(i, "end")), 0o755))
	}
	s.check = func(records []record.Record) {
		counts, at := map[string]int{}, ""
		for i := range records {
			r := &records[i]
			if r.Op == record.OpMkdir && strings.HasPrefix(r.Path, "case") && !strings.Contains(r.Path, "/") {
				at = r.Path
			} else if r.Op != record.OpEpoch {
				counts[at]++
			}
		}
		for i, c := range cases {
			plain, held := counts[mark(i, "first")], counts[mark(i, "second")]
			if plain == 0 || plain != held {
				t.Errorf("%s gives %d records, and gave %d when it was sent again", c.name, plain, held)
			}
		}
	}
}
