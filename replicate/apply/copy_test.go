package apply

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// copyRig is a rig whose standby receives a complete copy.
type copyRig struct {
	*rig
	needs []string // path, with "!" if contents are needed
	done  []string // id and whether complete
}

// newCopyRig has a primary that setup filled before the copy began.
func newCopyRig(t *testing.T, setup func(*primary)) *copyRig {
	r := &copyRig{rig: tempRig(t)}
	r.crash()
	r.cfg.Need = func(path string, contents bool) {
		if contents {
			path += "!"
		}
		r.needs = append(r.needs, path)
	}
	r.cfg.SyncDone = func(id string, complete bool) { r.done = append(r.done, fmt.Sprint(id, complete)) }
	r.open()
	setup(r.p)
	r.p.log = nil
	r.p.syncRecord(record.OpSyncBegin, "b", "id")
	r.follow()
	if s := r.a.State(); !s.Syncing || s.SyncID != "id" || s.Applied != r.p.lsn {
		t.Fatalf("state %+v after the copy began", s)
	}
	return r
}

// follow applies the log.
func (r *copyRig) follow() {
	r.t.Helper()
	r.apply(r.p.log...)
	r.p.log = nil
}

func (r *copyRig) wantNeeds(want ...string) {
	r.t.Helper()
	if !slices.Equal(r.needs, want) {
		r.t.Fatalf("needs %q, want %q", r.needs, want)
	}
	r.needs = nil
}

// finish walks all of the tree until the copy is complete, and compares.
func (r *copyRig) finish() {
	r.t.Helper()
	w := walker{p: r.p}
	rng := rand.New(rand.NewPCG(1, 1))
	w.push("", false)
	for range 20 {
		for _, n := range r.needs {
			path, contents := strings.CutSuffix(n, "!")
			w.push(path, contents)
		}
		r.needs = nil
		for !w.done() {
			w.step(rng)
			r.follow()
		}
		r.done = nil
		r.p.syncRecord(record.OpSyncEnd, "b", "id")
		r.follow()
		if r.done[0] == "idtrue" {
			if s := r.a.State(); s.Syncing || s.Suspect != "" || s.Durable != s.Applied {
				r.t.Errorf("state %+v after the copy", s)
			}
			r.equal()
			return
		}
	}
	r.t.Fatalf("the copy does not become complete, needs %q", r.needs)
}

func populate(p *primary) {
	p.mkdir("d", 0o2770)
	p.setxattr("d", "system.posix_acl_default", someACL)
	p.create("d/f", 0o640)
	p.write("d/f", pattern(10000, 1), 0)
	p.setxattr("d/f", "user.x", "y")
	p.create("d/cap", 0o755)
	p.write("d/cap", pattern(9000, 2), 0)
	p.setxattr("d/cap", capability, someCap)
	p.chmod("d/cap", 0o4755)
	p.create("sparse", 0o600)
	p.truncate("sparse", 1<<20)
	p.write("sparse", []byte("hole"), 300000)
	p.create("empty", 0o600)
	p.link("empty", "d/empty2")
	p.mkdir("e", 0o755)
	p.link("d/f", "e/f2")
	p.symlink("d/f", "e/sym")
	p.setxattr("e/sym", "trusted.s", "l")
	p.link("e/sym", "e/sym2")
	p.mknod("e/fifo", unix.S_IFIFO|0o620, 0)
	p.mknod("e/null", unix.S_IFCHR|0o620, unix.Mkdev(1, 3))
	p.removexattr("d", "system.posix_acl_default")
	p.mkdir("d/noacl", 0o700)
	p.setxattr("d", "system.posix_acl_default", someACL)
	p.chown("", 7, 8)
	p.chmod("", 0o750)
	p.setxattr("", "user.root", "r")
}

func TestCompleteCopy(t *testing.T) {
	r := newCopyRig(t, populate)
	r.finish()
	r.p.write("d/f", []byte("live again"), 0)
	r.p.create("new", 0o600)
	r.follow()
	r.equal()
	r.restart()
	r.suspect("")
}

// What this node is not meant by, or is over, means nothing to it.
func TestCopyOfOthers(t *testing.T) {
	r := tempRig(t)
	called := false
	r.crash()
	r.cfg.SyncDone = func(string, bool) { called = true }
	r.cfg.Need = func(string, bool) { called = true }
	r.open()
	p := r.p
	p.create("f", 0o644)
	p.syncRecord(record.OpSyncBegin, "c", "id")
	p.must(os.WriteFile(p.at("unlogged"), nil, 0o600))
	p.whole("unlogged", 0)
	p.must(os.Remove(p.at("unlogged")))
	p.syncRecord(record.OpSyncEnd, "c", "id")
	p.syncRecord(record.OpSyncEnd, "b", "id")
	r.catchUp()
	if s := r.a.State(); s.Syncing || called {
		t.Errorf("state %+v, called %v", s, called)
	}
	if r.read("unlogged") == "" {
		t.Error("another node's copy was applied")
	}
}

func TestCopyNeedsEmptyStore(t *testing.T) {
	r := tempRig(t)
	r.p.create("f", 0o644)
	r.p.mkdir("lost+found", 0o700)
	r.catchUp()
	// One that is left over from a copy that came to nothing begins none.
	r.p.syncRecord(record.OpSyncBegin, "b", "another")
	r.p.create("g", 0o600)
	r.p.remove(record.OpUnlink, "g")
	r.catchUp()
	if s := r.a.State(); s.Syncing || s.SyncID != "" || s.Suspect != "" {
		t.Errorf("state %+v after the beginning of no copy", s)
	}
	r.p.lsn = 100
	r.p.must(r.a.BeginFresh(90, 1))
	begin := r.p.syncRecord(record.OpSyncBegin, "b", "id")
	if e := r.refused(begin, true); !strings.Contains(e.Error(), "must be empty") {
		t.Error(e)
	}
	r.p.must(os.Remove(filepath.Join(r.cfg.Store, "f")))
	if e := r.refused(begin, true); !strings.Contains(e.Error(), "lost+found") {
		t.Error(e)
	}
	r.crash()
	r.cfg.Excluded = func(path string) bool { return path == "lost+found" }
	r.open()
	r.apply(begin)
	if s := r.a.State(); !s.Syncing || s.Applied != 101 {
		t.Errorf("state %+v", s)
	}
}

func TestInterruptedCopyStartsAgain(t *testing.T) {
	r := newCopyRig(t, populate)
	r.p.must(r.a.MarkSuspect("before"))
	r.p.stateOf("d", 0)
	r.follow()
	r.reopen()
	if s := r.a.State(); !s.Syncing || s.SyncID != "id" {
		t.Errorf("state %+v", s)
	}
	rec := r.p.stateOf("d/f", 0)
	if err := r.a.Apply(rec); !errors.Is(err, ErrCopyInterrupted) {
		t.Errorf("going on with an interrupted copy: %v", err)
	}
	moved, err := EmptyStore(r.cfg.Store, filepath.Join(filepath.Dir(r.cfg.Store), "salvage"), nil)
	if err != nil || moved != 1 {
		t.Errorf("moved %d, %v", moved, err)
	}
	r.p.log = nil
	r.p.syncRecord(record.OpSyncBegin, "b", "id")
	r.follow()
	r.suspect("before")
	r.finish()
	r.suspect("")
}

// A store that could not be synced is not a copy, however often one asks.
func TestCopyThatCannotBeSynced(t *testing.T) {
	r := newCopyRig(t, func(*primary) {})
	r.probe = func(point string) error {
		if point == "syncfs" {
			return unix.EIO
		}
		return nil
	}
	end := r.p.syncRecord(record.OpSyncEnd, "b", "id")
	if e := r.refused(end, false); !errors.Is(e, unix.EIO) {
		t.Error(e)
	}
	r.probe = nil
	if err := r.a.Apply(end); !errors.Is(err, ErrCopyInterrupted) {
		t.Errorf("ending the copy again: %v", err)
	}
	r.suspect("durable")
	if len(r.done) != 0 || !r.a.State().Syncing {
		t.Errorf("done %q, state %+v", r.done, r.a.State())
	}
}

// The end of a copy is told even if the process was killed before it could.
func TestKillAtTheEndOfACopy(t *testing.T) {
	r := newCopyRig(t, func(*primary) {})
	r.p.stateOf("", 0)
	r.follow()
	end := r.p.syncRecord(record.OpSyncEnd, "b", "id")
	func() {
		defer func() { _ = recover() }()
		r.probe = func(point string) error {
			if point == "applied" {
				panic(killed{point})
			}
			return nil
		}
		r.p.must(r.a.Apply(end))
	}()
	if len(r.done) != 0 {
		t.Fatal("told before it was applied")
	}
	r.reopen()
	r.apply(end)
	if !slices.Equal(r.done, []string{"idtrue"}) || r.a.State().Syncing {
		t.Errorf("done %q, state %+v", r.done, r.a.State())
	}
	r.equal()
}

// Each mutation is applied while what it is about is not there yet.
func TestMutationsAheadOfTheCopy(t *testing.T) {
	base := func(p *primary) {
		p.mkdir("d", 0o755)
		p.create("d/f", 0o644)
		p.write("d/f", pattern(5000, 1), 0)
		p.create("f", 0o644)
		p.write("f", pattern(6000, 2), 0)
		p.create("g", 0o644)
		p.write("g", pattern(7000, 3), 0)
		p.mkdir("e", 0o755)
	}
	have := func(paths ...string) func(p *primary) {
		return func(p *primary) {
			for _, path := range paths {
				if p.stat(path).Mode&unix.S_IFMT == unix.S_IFDIR {
					p.stateOf(path, 0)
				} else {
					p.whole(path, 0)
				}
			}
		}
	}
	for name, c := range map[string]struct {
		have, live func(*primary)
		needs      []string
		gone       []string // what must not be there afterwards
	}{
		"parent missing": {have(), func(p *primary) {
			p.create("d/new", 0o644)
			p.mkdir("d/newdir", 0o755)
			p.symlink("x", "d/sym")
			p.mknod("d/fifo", unix.S_IFIFO|0o600, 0)
			p.link("f", "d/link")
			p.remove(record.OpUnlink, "d/new")
			p.remove(record.OpRmdir, "d/newdir")
			p.remove(record.OpRemoveTree, "d/sym")
		}, nil, nil},
		"target missing": {have("d"), func(p *primary) {
			p.write("d/f", []byte("x"), 0)
			p.truncate("f", 9)
			p.chmod("d/f", 0o600)
			p.chown("f", 1, 1)
			p.setxattr("f", "user.x", "y")
			p.removexattr("f", "user.x")
			p.fallocate("g", unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096)
			p.fsync("f", 0)
			p.fsync("e", 0)
			p.copyRange("f", 0, "g", 0, 5)
			p.remove(record.OpUnlink, "d/f")
			p.remove(record.OpRemoveTree, "e")
		}, nil, nil},
		"link from missing":   {have("d"), func(p *primary) { p.link("f", "d/link") }, []string{"d/link"}, nil},
		"rename from missing": {have("d"), func(p *primary) { p.rename("f", "d/new", 0) }, []string{"d/new"}, nil},
		"rename from missing onto a file": {
			have("d", "d/f"),
			func(p *primary) { p.rename("f", "d/f", 0) }, []string{"d/f"},
			[]string{"d/f"},
		},
		"rename from missing onto a directory": {
			have("e"),
			func(p *primary) { p.rename("d", "e", 0) }, []string{"e"},
			[]string{"e"},
		},
		"rename to missing parent":           {have("f"), func(p *primary) { p.rename("f", "d/f", 0) }, nil, []string{"f"}},
		"rename of a tree to missing parent": {have("d", "d/f"), func(p *primary) { p.rename("d", "e/d", 0) }, nil, []string{"d"}},
		"rename, both missing":               {have(), func(p *primary) { p.rename("d/f", "e/f", 0) }, nil, nil},
		"exchange, second missing": {
			have("d", "f"),
			func(p *primary) { p.rename("f", "d/f", unix.RENAME_EXCHANGE) }, []string{"f"},
			[]string{"f"},
		},
		"exchange, first missing": {
			have("d", "d/f"),
			func(p *primary) { p.rename("f", "d/f", unix.RENAME_EXCHANGE) }, []string{"d/f"},
			[]string{"d/f"},
		},
		"exchange, parent missing": {
			have("f"),
			func(p *primary) { p.rename("f", "d/f", unix.RENAME_EXCHANGE) }, []string{"f"},
			[]string{"f"},
		},
		"exchange, both missing": {have(), func(p *primary) { p.rename("f", "d/f", unix.RENAME_EXCHANGE) }, []string{"f"}, nil},
		"copy from missing": {have("g"), func(p *primary) {
			p.copyRange("f", 0, "g", 6000, 5000)
			// Which depends on the size that the copying gave it.
			p.fallocate("g", unix.FALLOC_FL_COLLAPSE_RANGE, 4096, 4096)
		}, []string{"g!"}, nil},
		"copy from incomplete": {func(p *primary) {
			p.whole("g", 0)
			p.stateOf("f", record.FlagMore)
		}, func(p *primary) {
			p.copyRange("f", 0, "g", 100, 200)
			p.create("h", 0o600)
			p.copyRange("g", 50, "h", 0, 100) // g is incomplete too now
		}, []string{"g!", "h!"}, nil},
		"copy from complete": {have("f", "g"), func(p *primary) { p.copyRange("f", 0, "g", 100, 200) }, nil, nil},
		"shift of incomplete": {func(p *primary) {
			p.stateOf("g", record.FlagMore)
			p.stateData("g", 0, 100)
		}, func(p *primary) {
			p.fallocate("g", unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096)
			p.stateOf("g", record.FlagContents|record.FlagMore)
		}, nil, nil},
		"overwritten while incomplete": {func(p *primary) {
			p.stateOf("g", record.FlagMore)
			p.stateData("g", 0, 4096)
		}, func(p *primary) {
			p.write("g", []byte("live"), 10)
			p.write("g", []byte("live"), 5000)
			p.truncate("g", 6000)
			p.stateData("g", 4096, 4096)
			p.stateEnd("g")
		}, nil, nil},
		"changed under a name that is not here": {func(p *primary) {
			p.link("f", "d/link")
			p.link("g", "d/g")
			p.whole("f", 0, "f", "d/link")
			p.stateOf("g", record.FlagMore, "g", "d/g")
			p.stateData("g", 0, 4096)
		}, func(p *primary) {
			p.write("d/link", []byte("missed"), 10)
			p.chown("d/link", 77, 78)
			p.write("d/g", []byte("missed"), 10)
			p.stateData("g", 4096, 4096)
			p.stateEnd("g") // of contents of which a part is old here
			p.truncate("d/link", 9000)
			p.fallocate("f", unix.FALLOC_FL_COLLAPSE_RANGE, 4096, 4096)
			p.remove(record.OpUnlink, "d/link")
		}, []string{"f!"}, nil},
		"unlinked while incomplete": {
			func(p *primary) { p.stateOf("g", record.FlagMore) },
			func(p *primary) { p.remove(record.OpUnlink, "g") }, nil, []string{"g"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newCopyRig(t, base)
			r.p.stateOf("", 0)
			c.have(r.p)
			r.follow()
			r.a.DropCaches() // an open file is found under any name
			c.live(r.p)
			r.follow()
			r.wantNeeds(c.needs...)
			for _, path := range c.gone {
				if _, err := os.Lstat(filepath.Join(r.cfg.Store, path)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is still there (%v)", path, err)
				}
			}
			r.needs = c.needs
			r.finish()
		})
	}
}

// Another name of a file is made a link to one that is here, and needed if
// none is.
func TestNamesOfOneFile(t *testing.T) {
	r := newCopyRig(t, func(p *primary) {
		p.create("a", 0o644)
		p.write("a", []byte("shared"), 0)
		p.link("a", "b")
		p.create("empty", 0o644)
		p.link("empty", "empty2")
	})
	r.p.stateOf("", 0)
	r.p.stateOf("b", 0, "a", "b")
	r.follow()
	r.wantNeeds("b")
	r.p.whole("a", 0, "a", "b")
	r.p.stateOf("b", 0, "a", "b")
	r.p.stateOf("empty2", 0, "empty", "empty2")
	r.p.stateOf("empty", 0, "empty", "empty2")
	r.follow()
	r.wantNeeds()
	r.equal()
	r.p.syncRecord(record.OpSyncEnd, "b", "id")
	r.follow()
	r.p.syncRecord(record.OpSyncEnd, "b", "other")
	r.p.syncRecord(record.OpSyncEnd, "b", "id")
	r.follow()
	// Something was needed when it was asked first.
	if want := []string{"idfalse", "idtrue"}; !slices.Equal(r.done, want) {
		t.Errorf("done %q, want %q", r.done, want)
	}
}

// A file whose contents never ended keeps the copy from being complete, under
// whatever name, unless it is gone.
func TestIncompleteFileAtTheEnd(t *testing.T) {
	r := newCopyRig(t, populate)
	r.p.stateOf("", 0)
	r.p.stateOf("d", 0)
	r.p.stateOf("e", 0)
	r.p.stateOf("d/f", record.FlagMore)
	r.p.stateOf("sparse", record.FlagMore)
	r.p.rename("d/f", "e/moved", 0)
	r.p.remove(record.OpUnlink, "sparse")
	r.p.syncRecord(record.OpSyncEnd, "b", "id")
	r.follow()
	if want := []string{"idfalse"}; !slices.Equal(r.done, want) {
		t.Errorf("done %q, want %q", r.done, want)
	}
	r.wantNeeds("e/moved!")
	r.needs = []string{"e/moved!"}
	r.finish()
}

// That the contents have all come does not help a file that a mutation passed
// by meanwhile.
func TestStaleFileAtTheEnd(t *testing.T) {
	r := newCopyRig(t, func(p *primary) {
		p.create("g", 0o644)
		p.write("g", pattern(7000, 3), 0)
		p.mkdir("d", 0o755)
		p.link("g", "d/g")
	})
	r.p.stateOf("", 0)
	r.p.stateOf("g", record.FlagMore, "g", "d/g")
	r.p.stateData("g", 0, 4096)
	r.follow()
	r.a.DropCaches()
	r.p.write("d/g", []byte("missed"), 10)
	r.p.stateData("g", 4096, 4096)
	r.p.stateEnd("g")
	r.p.remove(record.OpUnlink, "d/g")
	r.p.stateOf("d", 0)
	r.p.syncRecord(record.OpSyncEnd, "b", "id")
	r.follow()
	r.wantNeeds("g!")
	r.p.whole("g", record.FlagContents)
	r.p.syncRecord(record.OpSyncEnd, "b", "id")
	r.follow()
	if want := []string{"idfalse", "idtrue"}; !slices.Equal(r.done, want) {
		t.Errorf("done %q, want %q", r.done, want)
	}
	r.equal()
}

// A name that a file got where the copy has not come to is a name all the same.
func TestStaleByANameMadeMeanwhile(t *testing.T) {
	r := newCopyRig(t, func(p *primary) {
		p.symlink("x", "s")
		p.mkdir("d", 0o755)
	})
	r.p.stateOf("", 0)
	r.p.stateOf("s", 0)
	r.p.link("s", "d/s")
	r.p.chown("d/s", 7, 7)
	r.p.remove(record.OpUnlink, "d/s")
	r.p.stateOf("d", 0)
	r.p.syncRecord(record.OpSyncEnd, "b", "id")
	r.follow()
	r.wantNeeds("s!")
	r.p.stateOf("s", record.FlagContents)
	r.p.syncRecord(record.OpSyncEnd, "b", "id")
	r.follow()
	if want := []string{"idfalse", "idtrue"}; !slices.Equal(r.done, want) {
		t.Errorf("done %q, want %q", r.done, want)
	}
	r.equal()
}

// An attribute that was set under a name that is not here, and removed under
// one that is.
func TestStaleAttribute(t *testing.T) {
	r := newCopyRig(t, func(p *primary) {
		p.create("g", 0o644)
		p.mkdir("d", 0o755)
		p.link("g", "d/g")
	})
	r.p.stateOf("", 0)
	r.p.whole("g", 0, "g", "d/g")
	r.p.setxattr("d/g", "user.a", "missed")
	r.p.removexattr("g", "user.a")
	r.p.setxattr("g", "user.b", "kept")
	r.p.remove(record.OpUnlink, "d/g")
	r.p.stateOf("d", 0)
	r.p.syncRecord(record.OpSyncEnd, "b", "id")
	r.follow()
	r.wantNeeds("g!")
	r.needs = []string{"g!"}
	r.finish()
	// Once it is complete, an attribute that is not there is a difference.
	if e := r.refused(&record.Record{
		LSN: r.a.State().Applied + 1, Epoch: 1, Op: record.OpRemoveXattr, Path: "g", Name: "user.a",
		Fields: record.FieldPath | record.FieldName,
	}, true); !errors.Is(e, unix.ENODATA) {
		t.Error(e)
	}
}

// A file that is open may be one that lost its last name here, but not on the
// primary.
func TestOpenFileWithoutAName(t *testing.T) {
	r := newCopyRig(t, func(p *primary) {
		p.create("f", 0o644)
		p.mkdir("d", 0o755)
		p.link("f", "d/f")
	})
	r.p.stateOf("", 0)
	r.p.whole("f", 0, "f", "d/f")
	r.p.write("f", []byte("opens it"), 0)
	r.p.remove(record.OpUnlink, "f")
	r.p.stateOf("d", 0)
	n := len(r.p.log)
	r.p.whole("d/f", 0)
	for _, rec := range r.p.log[n:] {
		rec.FileID = 0
		rec.Fields &^= record.FieldFileID
	}
	r.p.write("d/f", []byte("has its id"), 3)
	r.p.fsync("d/f", 0)
	r.follow()
	r.equal()
}

// What enters the tree from an excluded place is applied by every standby.
func TestLiveState(t *testing.T) {
	r := tempRig(t)
	p := r.p
	p.create("f", 0o644)
	n := len(p.log)
	populate(p) // as if it had entered
	p.log, p.lsn = p.log[:n], uint64(n)
	w := walker{p: p}
	w.push("", false)
	for rng := rand.New(rand.NewPCG(2, 2)); !w.done(); {
		w.step(rng)
	}
	// Parents first, as one who emits for an exact standby does.
	slices.SortStableFunc(p.log, func(a, b *record.Record) int { return strings.Count(a.Path, "/") - strings.Count(b.Path, "/") })
	for i, rec := range p.log {
		rec.LSN = uint64(i + 1)
		rec.Flags |= record.FlagLive
	}
	for _, rec := range p.log {
		if rec.Op == record.OpState {
			// All times of directories change with what enters.
			rec.Fields &^= record.FieldParentMtime
		}
	}
	var dirs []*record.Record
	for _, d := range []string{"d", "e", ""} {
		rec := p.setattr(d, func(string, *record.Record) error { return nil })
		dirs = append(dirs, rec)
	}
	for i, rec := range dirs {
		rec.LSN = uint64(len(p.log) - len(dirs) + i + 1)
	}
	r.catchUp()
	r.equal()
	missing := &record.Record{
		LSN: r.a.State().Applied + 1, Epoch: 1, Op: record.OpStateData,
		Flags: record.FlagLive, Path: "missing", Data: []byte("x"),
	}
	if e := r.refused(missing, true); !errors.Is(e, unix.ENOENT) {
		t.Error(e)
	}
}

// A copy is made while the tree is changed at random, the standby lags, and
// what it needs is sent.
func TestCopyUnderRandomLoad(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		seed := uint64(time.Now().UnixNano())
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 3))
			r := newCopyRig(t, func(p *primary) { workload(p, rng, 300) })
			randomCopy(r, rng)
			r.equal()
			for len(r.p.log) < 200 {
				x, y := randomPath(rng), randomPath(rng)
				r.p.step(rng, x, y)
			}
			r.follow()
			r.equal()
		})
	}
}

func randomPath(rng *rand.Rand) string {
	dirs := []string{"", "d0/", "d1/", "d1/sub/"}
	return dirs[rng.IntN(len(dirs))] + string(rune('a'+rng.IntN(6)))
}

func randomCopy(r *copyRig, rng *rand.Rand) {
	r.t.Helper()
	w := walker{p: r.p}
	w.push("", false)
	asked := false
	for turn := 0; ; turn++ {
		if turn > 4000 {
			r.t.Fatal("no end")
		}
		logged := len(r.p.log)
		if turn < 400 && rng.IntN(3) > 0 {
			r.p.step(rng, randomPath(rng), randomPath(rng))
			for _, rec := range r.p.log[logged:] {
				w.shifted(rec)
			}
		} else if !w.done() {
			w.step(rng)
		} else if !asked {
			r.p.syncRecord(record.OpSyncEnd, "b", "id")
			asked = true
		}
		if rng.IntN(8) > 0 && !asked {
			continue // the standby lags
		}
		r.follow()
		for _, n := range r.needs {
			path, contents := strings.CutSuffix(n, "!")
			w.push(path, contents)
		}
		r.needs = nil
		if asked && slices.Contains(r.done, "idtrue") {
			return
		}
		asked, r.done = false, nil
	}
}
