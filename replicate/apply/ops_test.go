package apply

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// acl is a POSIX ACL as the kernel stores it: entries of tag, perm, id.
func acl(entries ...[3]uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

const noID = ^uint32(0)

var (
	someACL = acl([3]uint32{1, 7, noID}, [3]uint32{2, 6, 12}, [3]uint32{4, 5, noID},
		[3]uint32{16, 7, noID}, [3]uint32{32, 4, noID})
	// cap_net_bind_service+ep, without a root id.
	someCap = string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
)

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>8) ^ byte(i)*7 + seed
	}
	return b
}

// scenarios are what every kind of record is tested with. A step that needs
// what the filesystem lacks fails the primary, which skips it.
var scenarios = map[string]func(p *primary){
	"create": func(p *primary) {
		p.create("f", 0o640)
		p.create("suid", 0o6755)
		p.create("sgid", 0o2711)
		p.create("none", 0)
		p.create(strings.Repeat("n", 255), 0o600)
		p.create("odd \xff\n\"name", 0o600)
	},
	"special": func(p *primary) {
		p.mknod("fifo", unix.S_IFIFO|0o622, 0)
		p.mknod("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3))
		p.mknod("blk", unix.S_IFBLK|0o660, unix.Mkdev(7, 300))
		p.chmod("fifo", 0o4600)
		p.chown("null", 5, 6)
		p.utimes("blk", record.Timespec{Sec: 1, Nsec: 2}, record.Timespec{Sec: 3, Nsec: 4})
		p.setxattr("fifo", "trusted.t", "v")
	},
	"mkdir": func(p *primary) {
		p.mkdir("d", 0o755)
		p.mkdir("d/e", 0o700)
		p.chmod("d", 0o3775)
		p.mkdir("d/inherits-sgid", 0o755)
		p.create("d/inherits-gid", 0o644)
		p.chmod("", 0o711)
		p.chown("", 3, 4)
	},
	"default-acl": func(p *primary) {
		p.mkdir("d", 0o755)
		p.setxattr("d", "system.posix_acl_default", someACL)
		p.create("d/f", 0o666)
		p.mkdir("d/sub", 0o777)
		p.mknod("d/fifo", unix.S_IFIFO|0o660, 0)
		p.setxattr("d/f", "system.posix_acl_access", someACL)
		p.removexattr("d", "system.posix_acl_default")
	},
	"symlink": func(p *primary) {
		p.symlink("/etc/passwd", "abs")
		p.symlink(strings.Repeat("x/", 2000), "long")
		p.chown("abs", 9, 9)
		p.utimes("long", record.Timespec{Sec: 10}, record.Timespec{Sec: -5, Nsec: 999999999})
		p.setxattr("abs", "trusted.t", "of a link")
		p.removexattr("abs", "trusted.t")
	},
	"link": func(p *primary) {
		p.create("f", 0o644)
		p.mkdir("d", 0o755)
		p.link("f", "d/g")
		p.write("d/g", []byte("shared"), 0)
		p.symlink("nowhere", "s")
		p.link("s", "d/s")
		p.remove(record.OpUnlink, "f")
		p.write("d/g", []byte("later"), 10)
	},
	"remove": func(p *primary) {
		p.mkdir("d", 0o755)
		p.create("d/f", 0o644)
		p.write("d/f", []byte("x"), 0)
		p.remove(record.OpUnlink, "d/f")
		p.create("d/f", 0o600)
		p.write("d/f", []byte("another"), 0)
		p.remove(record.OpUnlink, "d/f")
		p.remove(record.OpRmdir, "d")
		p.mkdir("d", 0o700)
		p.create("d/new", 0o600)
	},
	"remove-tree": func(p *primary) {
		p.mkdir("d", 0o755)
		for i := range 5 {
			p.mkdir(fmt.Sprintf("d/%d", i), 0o755)
			p.create(fmt.Sprintf("d/%d/f", i), 0o644)
			p.symlink("..", fmt.Sprintf("d/%d/up", i))
		}
		p.remove(record.OpRemoveTree, "d/3")
		p.create("f", 0o644)
		p.remove(record.OpRemoveTree, "f")
		p.remove(record.OpRemoveTree, "d")
	},
	"rename": func(p *primary) {
		p.mkdir("d", 0o755)
		p.create("a", 0o644)
		p.write("a", []byte("a"), 0)
		p.create("d/b", 0o600)
		p.write("d/b", []byte("b"), 0)
		p.rename("a", "d/b", 0)
		p.write("d/b", []byte("after"), 1)
		p.mkdir("e", 0o700)
		p.rename("d", "e/d", 0)
		p.write("e/d/b", []byte("moved"), 3)
		p.create("e/d/c", 0o644)
		p.mkdir("empty", 0o700)
		p.rename("e/d", "empty", 0)
		p.create("empty/new", 0o644)
	},
	"exchange": func(p *primary) {
		p.mkdir("d", 0o755)
		p.create("a", 0o644)
		p.write("a", []byte("a"), 0)
		p.mkdir("d/b", 0o755)
		p.create("d/b/in", 0o600)
		p.rename("a", "d/b", unix.RENAME_EXCHANGE)
		p.create("a/more", 0o600)
		p.write("d/b", []byte("exchanged"), 0)
	},
	"write": func(p *primary) {
		p.create("f", 0o644)
		p.write("f", pattern(100000, 1), 0)
		p.write("f", pattern(5000, 2), 7)
		p.write("f", pattern(10, 3), 1<<20)
		p.truncate("f", 1234567)
		p.truncate("f", 99)
		p.write("f", []byte("end"), 99)
	},
	"write-clears-suid": func(p *primary) {
		p.create("f", 0o755)
		p.chmod("f", 0o6755)
		r := p.write("f", []byte("x"), 0)
		p.must(unix.Chmod(p.at("f"), 0o755))
		r.Mode = unix.S_IFREG | 0o755
		r.Fields |= record.FieldMode
	},
	"capability": func(p *primary) {
		p.create("f", 0o755)
		p.setxattr("f", capability, someCap)
		p.write("f", []byte("x"), 0)
		p.add(record.OpRemoveXattr, "f", func(r *record.Record) {
			r.Name = capability // which the write removed by itself
			r.Fields |= record.FieldName
		})
		p.setxattr("f", capability, someCap)
		p.chmod("f", 0o700)
	},
	"setattr": func(p *primary) {
		p.create("f", 0o644)
		p.chown("f", 65534, 4_000_000_000)
		p.chmod("f", 0o7777)
		p.chown("f", 1, 1)
		p.utimes("f", record.Timespec{Sec: 5, Nsec: 6}, record.Timespec{Sec: 7, Nsec: 8})
		p.setattr("f", func(path string, r *record.Record) error {
			r.Size, r.UID, r.GID, r.Mode = 4096, 2, 3, 0o4711
			r.Fields |= record.FieldSize | record.FieldOwner | record.FieldMode
			return errors.Join(unix.Truncate(path, 4096), unix.Chown(path, 2, 3), unix.Chmod(path, 0o4711))
		})
	},
	"xattr": func(p *primary) {
		p.create("f", 0o644)
		p.setxattr("f", "user.a", "1")
		p.setxattr("f", "user.a", "replaced")
		p.setxattr("f", "trusted.empty", "")
		p.setxattr("", "user.root", "of the root")
		p.mkdir("d", 0o755)
		p.setxattr("d", "user.d", strings.Repeat("v", 2000))
		p.removexattr("f", "user.a")
		p.removexattr("", "user.root")
	},
	"fallocate": func(p *primary) {
		p.create("f", 0o644)
		p.write("f", pattern(50000, 9), 0)
		p.fallocate("f", 0, 40000, 40000)
		p.fallocate("f", unix.FALLOC_FL_KEEP_SIZE, 70000, 50000)
		p.fallocate("f", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5000, 10000)
		p.fallocate("f", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 79000, 10000)
	},
	"zero-range": func(p *primary) {
		p.create("f", 0o644)
		p.write("f", pattern(50000, 9), 0)
		p.fallocate("f", unix.FALLOC_FL_ZERO_RANGE, 100, 5000)
		p.fallocate("f", unix.FALLOC_FL_ZERO_RANGE, 49000, 5000)
		p.fallocate("f", unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 53000, 5000)
	},
	"collapse": func(p *primary) {
		p.create("f", 0o644)
		p.write("f", pattern(50001, 9), 0)
		p.fallocate("f", unix.FALLOC_FL_COLLAPSE_RANGE, 8192, 8192)
	},
	"insert": func(p *primary) {
		p.create("f", 0o644)
		p.write("f", pattern(50001, 9), 0)
		p.fallocate("f", unix.FALLOC_FL_INSERT_RANGE, 4096, 12288)
	},
	"copy-range": func(p *primary) {
		p.create("f", 0o644)
		p.write("f", pattern(300000, 5), 0)
		p.create("g", 0o644)
		p.copyRange("f", 17, "g", 4096, 290000)
		p.copyRange("g", 4096, "g", 400000, 5000)
	},
	"fsync": func(p *primary) {
		p.mkdir("d", 0o755)
		p.create("d/f", 0o644)
		p.write("d/f", []byte("x"), 0)
		p.fsync("d/f", 0)
		p.fsync("d/f", record.FlagDataOnly)
		p.fsync("d", 0)
		p.fsync("", 0)
		p.mknod("fifo", unix.S_IFIFO|0o600, 0)
		p.fsync("fifo", 0)
	},
	"epoch": func(p *primary) {
		p.create("f", 0o644)
		p.write("f", []byte("old epoch"), 0)
		p.create("h", 0o644)
		p.epoch++
		clear(p.ids)
		p.next = 0
		p.add(record.OpEpoch, "a", nil)
		p.write("h", []byte("has the id that f had"), 0)
		p.create("g", 0o644)
		p.write("g", []byte("new epoch"), 0)
	},
	"deep": func(p *primary) {
		path := strings.Repeat("d", 250)
		p.mkdir(path, 0o755)
		for range 3 {
			path += "/" + strings.Repeat("d", 250)
			p.mkdir(path, 0o755)
		}
		p.create(path+"/f", 0o644)
	},
}

// eachScenario runs f for every scenario, with the standby on each filesystem
// and the primary on the disk, which supports everything.
func eachScenario(t *testing.T, f func(t *testing.T, newRig func() *rig, run func(*primary))) {
	for fs, sdir := range filesystems(t) {
		for name, run := range scenarios {
			t.Run(fs+"/"+name, func(t *testing.T) {
				pdir := t.TempDir()
				f(t, func() *rig { return newRig(t, pdir, sdir) }, run)
			})
		}
	}
}

func TestOperations(t *testing.T) {
	eachScenario(t, func(t *testing.T, newRig func() *rig, run func(*primary)) {
		r := newRig()
		run(r.p)
		r.catchUp()
		r.equal()
		if s := r.a.State(); s.Applied != r.p.lsn || s.Epoch != r.p.epoch || s.Pending != 0 || s.Fresh {
			t.Errorf("state %+v after record %d/%d", s, r.p.epoch, r.p.lsn)
		}
		r.restart()
		if s := r.a.State(); s.Applied != r.p.lsn || s.Durable != r.p.lsn || s.Suspect != "" {
			t.Errorf("state %+v after a restart at %d", s, r.p.lsn)
		}
	})
}

// Every record is also right when nothing of it is cached.
func TestOperationsUncached(t *testing.T) {
	eachScenario(t, func(t *testing.T, newRig func() *rig, run func(*primary)) {
		r := newRig()
		run(r.p)
		for _, rec := range r.p.log {
			r.apply(rec)
			r.a.DropCaches()
		}
		r.equal()
	})
}

// A kill between any two steps of any record leaves what applying the record
// again finishes.
func TestKillAtEveryStep(t *testing.T) {
	eachScenario(t, func(t *testing.T, newRig func() *rig, run func(*primary)) {
		r := newRig()
		run(r.p)
		log := r.p
		for n := 0; ; n++ {
			r = newRig()
			r.p.dir, r.p.log = log.dir, log.log
			left := n
			r.probe = func(point string) error {
				if strings.HasPrefix(point, "worker.") {
					return nil // in a worker
				}
				if left--; left < 0 {
					panic(killed{point})
				}
				return nil
			}
			at, done := r.applyUntilKilled()
			if !done {
				r.reopen()
				r.catchUp()
			}
			if !r.equalQuietly() {
				t.Errorf("killed at step %d, %s", n, at)
				r.equal()
			}
			r.crash()
			if done {
				if n < len(log.log) {
					t.Errorf("only %d steps", n)
				}
				return
			}
		}
	})
}

// A call that fails once, wherever, leaves what applying again finishes.
func TestFailAtEveryStep(t *testing.T) {
	eachScenario(t, func(t *testing.T, newRig func() *rig, run func(*primary)) {
		r := newRig()
		run(r.p)
		log := r.p
		for n, failed := 0, true; failed; n++ {
			r = newRig()
			r.p.dir, r.p.log = log.dir, log.log
			left := n
			failed = false
			r.probe = func(point string) error {
				if strings.HasPrefix(point, "worker.") {
					return nil
				}
				if left--; left == -1 {
					failed = true
					return unix.ENOSPC
				}
				return nil
			}
			for _, rec := range r.p.log {
				err := r.a.Apply(rec)
				if err == nil {
					continue
				}
				var e *Error
				if !errors.As(err, &e) || e.Divergence || !errors.Is(err, unix.ENOSPC) {
					t.Fatalf("step %d: %v", n, err)
				}
				r.apply(rec)
			}
			r.equal()
			r.crash()
		}
	})
}

func TestRedoFlag(t *testing.T) {
	// A record with FlagRedo is applied twice, as what comes after it tells
	// the standby nothing about it.
	eachScenario(t, func(t *testing.T, newRig func() *rig, run func(*primary)) {
		r := newRig()
		run(r.p)
		var lsn uint64
		for _, rec := range r.p.log {
			for range 2 {
				again := *rec
				lsn++
				again.LSN = lsn
				again.Flags |= record.FlagRedo
				r.apply(&again)
			}
		}
		r.equal()
	})
}

func TestNotTheNextRecord(t *testing.T) {
	r := tempRig(t)
	r.p.create("f", 0o644)
	r.p.create("g", 0o644)
	r.p.epoch = 0
	r.p.create("h", 0o644)
	for _, i := range []int{1, 0, 0, 1, 2, 1} {
		rec := r.p.log[i]
		applied := r.a.State().Applied
		err := r.a.Apply(rec)
		if want := rec.LSN == applied+1 && rec.Epoch > 0; want != (err == nil) {
			t.Fatalf("record %d after %d: %v", rec.LSN, applied, err)
		}
		if err != nil && !errors.Is(err, ErrOrder) {
			t.Fatalf("record %d after %d: %v", rec.LSN, applied, err)
		}
	}
}

func TestDivergence(t *testing.T) {
	r := tempRig(t)
	r.p.create("f", 0o644)
	r.p.write("f", []byte("0123456789"), 0)
	r.p.mkdir("d", 0o755)
	r.p.create("d/f", 0o644)
	r.catchUp()
	lsn := r.p.lsn + 1
	rec := func(op record.Op, path, path2 string, more ...func(*record.Record)) *record.Record {
		rec := &record.Record{
			LSN: lsn, Epoch: 1, Op: op, Path: path, Path2: path2, Mode: unix.S_IFREG | 0o600,
			Fields: record.FieldPath | record.FieldPath2, Length: 4096, Name: "user.x",
		}
		for _, f := range more {
			f(rec)
		}
		return rec
	}
	for _, bad := range []*record.Record{
		rec(record.OpCreate, "f", ""),
		rec(record.OpCreate, "missing/f", ""),
		rec(record.OpCreate, "f/below-a-file", ""),
		rec(record.OpMkdir, "d", ""),
		rec(record.OpSymlink, "f", "x"),
		rec(record.OpLink, "new", "missing"),
		rec(record.OpLink, "d/f", "f"),
		rec(record.OpUnlink, "missing", ""),
		rec(record.OpUnlink, "d", ""),
		rec(record.OpUnlink, "", ""),
		rec(record.OpRmdir, "d", ""),
		rec(record.OpRmdir, "", ""),
		rec(record.OpRemoveTree, "missing", ""),
		rec(record.OpRemoveTree, "", ""),
		rec(record.OpRename, "new", "missing"),
		rec(record.OpRename, "d", "f"),
		rec(record.OpRename, "", "f"),
		rec(record.OpRename, "f", "missing", func(r *record.Record) { r.Flags = record.FlagExchange }),
		rec(record.OpWrite, "missing", ""),
		rec(record.OpWrite, "d", ""),
		rec(record.OpSetAttr, "missing", "", func(r *record.Record) { r.Fields |= record.FieldMode }),
		rec(record.OpSetAttr, "", "", func(r *record.Record) { r.Fields |= record.FieldSize }),
		rec(record.OpFallocate, "missing", ""),
		rec(record.OpFallocate, "f", "", func(r *record.Record) { r.Length = -1 }),
		rec(record.OpFallocate, "f", "", func(r *record.Record) { r.Perm = unix.FALLOC_FL_COLLAPSE_RANGE }),
		rec(record.OpCopyRange, "d/f", "f"), // the source is too short
		rec(record.OpCopyRange, "d/f", "missing"),
		rec(record.OpSetXattr, "missing", ""),
		rec(record.OpRemoveXattr, "f", ""),
		rec(record.OpFsync, "missing", ""),
	} {
		for range 2 { // asking again is no excuse
			e := r.refused(bad, true)
			if bad.Op != record.OpCopyRange && bad.Op != record.OpFallocate && r.a.State().Pending != 0 {
				t.Errorf("%v is pending, though nothing of it was done: %v", bad, e)
			}
		}
		r.a.st.clearIntent()
	}
	if got := r.read("f"); got != "0123456789" {
		t.Errorf("f is %q", got)
	}
	r.p.write("f", []byte("goes on"), 0)
	r.p.log = r.p.log[len(r.p.log)-1:]
	r.catchUp()
}

// Half of a record of an epoch that lost is not finished with the record that
// won its LSN.
func TestPartOfAnotherEpochsRecord(t *testing.T) {
	r := tempRig(t)
	r.p.create("f", 0o644)
	r.probe = func(point string) error {
		if point == "chown" || point == "utimens" {
			return unix.EIO
		}
		return nil
	}
	r.mustRefuse(r.p.log[0], false)
	if r.a.State().Pending != 1 {
		t.Fatalf("state %+v, want record 1 pending", r.a.State())
	}
	r.reopen()
	other := *r.p.log[0]
	other.Path, other.Epoch = "g", 2
	r.mustRefuse(&other, true)
	r.apply(r.p.log[0])
	r.equal()
}

// A file that is finished as one's own must look like it.
func TestRedoOfCreateMeetsAnotherFile(t *testing.T) {
	r := tempRig(t)
	r.p.create("f", 0o644)
	r.probe = func(point string) error {
		if point == "utimens" {
			return unix.EIO
		}
		return nil
	}
	r.mustRefuse(r.p.log[0], false)
	r.probe = nil
	path := filepath.Join(r.cfg.Store, "f")
	r.p.must(os.WriteFile(path, []byte("someone's"), 0o600))
	r.mustRefuse(r.p.log[0], true)
	r.p.must(os.Remove(path))
	r.p.must(os.Mkdir(path, 0o700))
	r.mustRefuse(r.p.log[0], true)
	r.p.must(os.Remove(path))
	r.catchUp()
	r.equal()
}

func TestUnknownOperation(t *testing.T) {
	r := tempRig(t)
	r.mustRefuse(&record.Record{LSN: 1, Epoch: 1, Op: 99}, false)
}

func TestRecordIsNotKept(t *testing.T) {
	r := tempRig(t)
	r.p.create("f", 0o644)
	rec := r.p.write("f", []byte("data"), 0)
	r.catchUp()
	copy(rec.Data, bytes.Repeat([]byte("x"), 4))
	r.p.fsync("f", 0)
	r.catchUp()
	r.equal()
}
