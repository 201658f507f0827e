package apply

import (
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// enterRig has a directory d, in a log of its own the records of a file d/f
// that enters it.
func enterRig(t *testing.T) (r *rig, recs []*record.Record) {
	t.Helper()
	r = tempRig(t)
	p := r.p
	p.mkdir("d", 0o755)
	r.catchUp()
	n := len(p.log)
	p.create("d/f", 0o640)
	p.write("d/f", make([]byte, 10_000), 0)
	p.truncate("d/f", 12_000)
	p.setxattr("d/f", "user.a", "b")
	p.chown("d/f", 5, 6)
	p.chmod("d/f", 0o4750)
	p.utimes("d/f", record.Timespec{Sec: 1}, record.Timespec{Sec: 2})
	p.log, p.lsn = p.log[:n], uint64(n)
	p.whole("d/f", record.FlagLive)
	recs = p.log[n:]
	for _, rec := range recs {
		rec.Flags |= record.FlagLive
	}
	p.parent(recs[len(recs)-1])
	return r, recs
}

// absent checks that nothing of the file is in the store.
func (r *rig) absent(was unix.Stat_t) {
	r.t.Helper()
	var st unix.Stat_t
	r.p.must(unix.Stat(filepath.Join(r.cfg.Store, "d"), &st))
	if err := unix.Access(filepath.Join(r.cfg.Store, "d/f"), unix.F_OK); !errors.Is(err, unix.ENOENT) || st.Mtim != was.Mtim {
		r.t.Fatalf("a part of the file is there: %v; the directory is of %v, was of %v", err, st.Mtim, was.Mtim)
	}
}

// TestEnteringInOne: of a file that enters the tree nothing is there until all
// of it is.
func TestEnteringInOne(t *testing.T) {
	r, recs := enterRig(t)
	var was unix.Stat_t
	r.p.must(unix.Stat(filepath.Join(r.cfg.Store, "d"), &was))
	for _, rec := range recs[:len(recs)-1] {
		r.apply(rec)
		r.absent(was)
	}
	r.apply(recs[len(recs)-1])
	r.equal()
	if len(r.a.entering) != 0 {
		t.Errorf("still entering: %d", len(r.a.entering))
	}
}

// TestEnteringKilled: a process that is killed while a file enters leaves
// nothing of it or all, and then asks for a complete copy or goes on.
func TestEnteringKilled(t *testing.T) {
	gone, there := 0, 0
	for point := 1; ; point++ {
		r, recs := enterRig(t)
		var was unix.Stat_t
		r.p.must(unix.Stat(filepath.Join(r.cfg.Store, "d"), &was))
		passed := 0
		r.probe = func(at string) error {
			if passed++; passed == point {
				panic(killed{at})
			}
			return nil
		}
		at, done := r.applyUntilKilled()
		r.probe = nil
		if done {
			break
		}
		r.reopen()
		if r.read("d/f") != "no such file or directory" && unix.Access(filepath.Join(r.cfg.Store, "d/f"), unix.F_OK) == nil {
			there++
			r.catchUp()
			r.equal()
			continue
		}
		r.absent(was)
		next := recs[r.a.State().Applied-recs[0].LSN+1]
		if next.Op == record.OpState {
			r.catchUp() // from the beginning
			r.equal()
			continue
		}
		gone++
		if e := r.refused(next, true); !errors.Is(e, unix.ENOENT) {
			t.Fatalf("killed at %s, then: %v", at, e)
		}
	}
	if gone == 0 || there == 0 {
		t.Errorf("killed %d times before, %d times after the file was there", gone, there)
	}
}

// TestEnteringAgain: an error is no reason to begin anew.
func TestEnteringAgain(t *testing.T) {
	for point := 1; ; point++ {
		r, recs := enterRig(t)
		passed := 0
		r.probe = func(string) error {
			if passed++; passed == point {
				return unix.EIO
			}
			return nil
		}
		failed := false
		for _, rec := range recs {
			if err := r.a.Apply(rec); err != nil {
				failed = true
				r.apply(rec)
			}
		}
		r.probe = nil
		r.equal()
		if !failed {
			break
		}
	}
}
