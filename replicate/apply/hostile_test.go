package apply

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/treediff"
	"github.com/replfs/replfs/internal/treediff/treetest"
	"github.com/replfs/replfs/replicate/record"
)

var unixTime = time.Unix(1_000_000_000, 0)

// everyOp makes one record of each kind about path, with other as its second.
func everyOp(path, other string) []*record.Record {
	const all = record.FieldPath | record.FieldPath2 | record.FieldMtime | record.FieldParentMtime |
		record.FieldParent2Mtime | record.FieldMode | record.FieldOwner | record.FieldFileID
	base := record.Record{
		Path: path, Path2: other, Fields: all, Mode: unix.S_IFREG | 0o777, UID: 1, GID: 1,
		Mtime: record.Timespec{Sec: 1}, ParentMtime: record.Timespec{Sec: 1}, Parent2Mtime: record.Timespec{Sec: 1},
		Name: "trusted.evil", Data: []byte("evil"), Length: 1, FileID: 1,
	}
	var recs []*record.Record
	add := func(op record.Op, change func(*record.Record)) {
		r := base
		r.Op = op
		if change != nil {
			change(&r)
		}
		recs = append(recs, &r)
	}
	for _, op := range []record.Op{
		record.OpFsync, record.OpCreate, record.OpMkdir, record.OpSymlink, record.OpLink, record.OpUnlink,
		record.OpRmdir, record.OpRename, record.OpRemoveTree, record.OpWrite, record.OpSetAttr,
		record.OpFallocate, record.OpCopyRange, record.OpSetXattr, record.OpRemoveXattr,
	} {
		add(op, nil)
	}
	add(record.OpRename, func(r *record.Record) { r.Flags = record.FlagExchange })
	add(record.OpSetAttr, func(r *record.Record) { r.Fields |= record.FieldSize })
	add(record.OpCreate, func(r *record.Record) { r.Mode = unix.S_IFIFO | 0o666 })
	for _, op := range []record.Op{record.OpState, record.OpStateData, record.OpStateEnd} {
		add(op, func(r *record.Record) { r.Flags = record.FlagLive | record.FlagContents | record.FlagMore })
	}
	add(record.OpState, func(r *record.Record) {
		r.Flags = record.FlagLive
		r.Names, r.Fields = []string{other}, r.Fields|record.FieldNames
	})
	return recs
}

// A peer's records reach nothing outside of the store, whatever their paths
// and whatever links are in the store.
func TestConfined(t *testing.T) {
	for _, redo := range []record.Flags{0, record.FlagRedo} {
		base := t.TempDir()
		outside := filepath.Join(base, "outside")
		twin := filepath.Join(base, "twin")
		store := filepath.Join(base, "store")
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, dir := range []string{outside, twin} {
			must(os.MkdirAll(filepath.Join(dir, "d"), 0o755))
			must(os.WriteFile(filepath.Join(dir, "f"), []byte("precious"), 0o644))
			for _, p := range []string{"f", "d", ""} {
				must(os.Chtimes(filepath.Join(dir, p), unixTime, unixTime))
			}
		}
		must(os.Mkdir(store, 0o700))
		must(os.Symlink(outside, filepath.Join(store, "dir")))
		must(os.Symlink("../outside", filepath.Join(store, "rel")))
		must(os.Symlink(filepath.Join(outside, "f"), filepath.Join(store, "file")))
		must(os.Symlink("/proc/self/root"+outside, filepath.Join(store, "magic")))
		must(os.Symlink(filepath.Join(outside, "new"), filepath.Join(store, "dangling")))
		must(os.WriteFile(filepath.Join(store, "own"), []byte("own"), 0o644))
		a, err := Open(Config{Store: store, StateFile: filepath.Join(base, "state"), BootID: "b"})
		must(err)
		lsn := uint64(0)
		try := func(path, other string) {
			for _, rec := range everyOp(path, other) {
				lsn++
				rec.LSN, rec.Epoch = lsn, 1
				rec.Flags |= redo
				if err := a.Apply(rec); err != nil {
					lsn--
					var e *Error
					if !errors.As(err, &e) {
						t.Errorf("%v: %v", rec, err)
					}
				}
				a.DropCaches()
				a.st.clearIntent()
				if !treetest.Equal(t, outside, twin, treediff.Options{}) {
					t.Fatalf("%v changed what is outside", rec)
				}
			}
		}
		// No record goes through a link or out by its path.
		for _, path := range []string{
			"dir/f", "dir/d", "dir/new", "rel/f", "rel/new", "magic/f", "magic/new", "dir/d/new",
			"../outside/f", "..", ".", "./own", "own/..", "own/../../outside/f", outside, outside + "/f", "/",
			"a//b", "own/", "dir/", "nul\x00", "../store/own",
		} {
			before := lsn
			try(path, "own")
			if lsn != before {
				t.Errorf("%q: %d records were applied", path, lsn-before)
			}
			try("own", path)
		}
		// What is done to a link is done to the link.
		for _, path := range []string{"file", "dangling", "dir"} {
			must(os.RemoveAll(filepath.Join(store, "own")))
			must(os.WriteFile(filepath.Join(store, "own"), []byte("own"), 0o644))
			try(path, "own")
		}
		must(a.Close())
	}
}

// Devices and FIFOs are never opened: that would act on them, or wait.
func TestSpecialFilesAreNotOpened(t *testing.T) {
	r := tempRig(t)
	r.p.mknod("fifo", unix.S_IFIFO|0o600, 0)
	r.p.mknod("dev", unix.S_IFCHR|0o600, unix.Mkdev(1, 3))
	// Opening this one fails in another way than being refused does.
	r.p.mknod("nodev", unix.S_IFCHR|0o600, unix.Mkdev(4000, 1))
	r.catchUp()
	for _, path := range []string{"fifo", "dev", "nodev"} {
		for _, op := range []record.Op{record.OpWrite, record.OpFallocate, record.OpCopyRange} {
			r.mustRefuse(&record.Record{
				LSN: r.p.lsn + 1, Epoch: 1, Op: op, Path: path, Path2: path, Data: []byte("x"), Length: 1,
			}, true)
		}
		r.mustRefuse(&record.Record{LSN: r.p.lsn + 1, Epoch: 1, Op: record.OpSetAttr, Path: path, Fields: record.FieldSize}, true)
	}
}

// A mounted filesystem inside the store is not emptied with the tree it is in.
func TestRemoveTreeStopsAtMounts(t *testing.T) {
	r := tempRig(t)
	r.p.mkdir("d", 0o755)
	r.p.mkdir("d/m", 0o755)
	r.catchUp()
	mountTmpfs(t, filepath.Join(r.cfg.Store, "d/m"), "1m")
	r.p.must(os.WriteFile(filepath.Join(r.cfg.Store, "d/m/f"), []byte("kept"), 0o600))
	r.p.remove(record.OpRemoveTree, "d")
	r.mustRefuse(r.p.log[2], true)
	if got := r.read("d/m/f"); got != "kept" {
		t.Errorf("d/m/f is %q", got)
	}
}

func mountTmpfs(t *testing.T, dir, size string) {
	t.Helper()
	if err := unix.Mount("replfs-test", dir, "tmpfs", 0, "size="+size); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skip("may not mount")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func TestFullStore(t *testing.T) {
	dir := t.TempDir()
	mountTmpfs(t, dir, "1m")
	r := newRig(t, t.TempDir(), dir)
	ballast := filepath.Join(dir, "ballast")
	r.p.must(os.WriteFile(ballast, make([]byte, 700<<10), 0o600))
	r.p.create("f", 0o644)
	r.p.write("f", pattern(200<<10, 1), 0)
	r.catchUp()
	r.p.write("f", pattern(300<<10, 2), 100<<10)
	full := r.p.log[2]
	for range 3 {
		if e := r.refused(full, false); !errors.Is(e, unix.ENOSPC) {
			t.Fatal(e)
		}
	}
	if r.a.State().Pending != full.LSN {
		t.Errorf("state %+v: a part of the data was written", r.a.State())
	}
	r.p.must(os.Remove(ballast))
	r.catchUp()
	r.equal()

	r.p.must(os.WriteFile(ballast, make([]byte, 500<<10), 0o600))
	r.p.fallocate("f", 0, 0, 900<<10)
	if e := r.refused(r.p.log[3], false); !errors.Is(e, unix.ENOSPC) {
		t.Fatal(e)
	}
	r.p.must(os.Remove(ballast))
	r.reopen()
	r.catchUp()
	r.equal()
}

// One directory is never left open under a path that another has now.
func TestStaleDirectories(t *testing.T) {
	r := tempRig(t)
	r.p.mkdir("a", 0o755)
	r.p.mkdir("a/sub", 0o755)
	r.p.create("a/sub/1", 0o600)
	r.p.mkdir("b", 0o755)
	r.p.mkdir("b/sub", 0o755)
	r.p.create("b/sub/1", 0o600)
	r.p.rename("a", "b", unix.RENAME_EXCHANGE)
	r.p.create("a/sub/2", 0o600)
	r.p.rename("a/sub", "c", 0)
	r.p.mkdir("a/sub", 0o700)
	r.p.create("a/sub/3", 0o600)
	r.p.remove(record.OpRemoveTree, "a")
	r.p.mkdir("a", 0o700)
	r.p.mkdir("a/sub", 0o700)
	r.p.create("a/sub/4", 0o600)
	r.catchUp()
	r.equal()
}

// What has no name left takes no space: nothing keeps it open.
func TestDeletedFilesAreClosed(t *testing.T) {
	r := tempRig(t)
	r.p.mkdir("d", 0o755)
	r.p.create("d/f", 0o600)
	r.p.remove(record.OpRemoveTree, "d")
	for _, name := range []string{"unlinked", "replaced", "new"} {
		r.p.create(name, 0o600)
		r.p.write(name, []byte("x"), 0)
	}
	r.p.remove(record.OpUnlink, "unlinked")
	r.p.rename("new", "replaced", 0)
	r.catchUp()
	fds, err := os.ReadDir("/proc/self/fd")
	r.p.must(err)
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && strings.HasPrefix(target, r.cfg.Store) && strings.HasSuffix(target, " (deleted)") {
			t.Errorf("still open: %s", target)
		}
	}
}
