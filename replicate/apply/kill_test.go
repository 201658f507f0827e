package apply

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// workload logs n random mutations of a small tree, in which names, inodes and
// file ids are used again and again.
func workload(p *primary, rng *rand.Rand, n int) {
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	path := func() string {
		dir := pick("", "", "d0/", "d1/", "d1/sub/")
		return dir + pick("a", "b", "c", "e", "f", "g")
	}
	p.mkdir("d0", 0o755)
	p.mkdir("d1", 0o2750)
	p.mkdir("d1/sub", 0o700)
	for len(p.log) < n {
		p.step(rng, path(), path())
	}
}

// step logs at most one record; most choices of paths allow few operations.
func (p *primary) step(rng *rand.Rand, x, y string) {
	is := func(path string, format uint32) bool {
		return p.exists(path) && p.stat(path).Mode&unix.S_IFMT == format
	}
	if !p.exists(parentOf(x)) || !p.exists(parentOf(y)) {
		return
	}
	if !p.exists(x) {
		switch rng.IntN(8) {
		case 0:
			p.mkdir(x, 0o755)
		case 1:
			p.symlink(y, x)
		case 2:
			p.mknod(x, unix.S_IFIFO|0o640, 0)
		case 3:
			if p.exists(y) && !is(y, unix.S_IFDIR) {
				p.link(y, x)
			}
		default:
			p.create(x, uint32(rng.IntN(0o1000)))
		}
		return
	}
	st := p.stat(x)
	if r := rng.IntN(20); r < 6 {
		p.stepNames(rng, x, y, is)
		return
	} else if r == 6 {
		p.chown(x, rng.Uint32N(1000), rng.Uint32N(1000))
		return
	} else if r == 7 && st.Mode&unix.S_IFMT != unix.S_IFLNK {
		p.chmod(x, rng.Uint32N(0o10000))
		return
	} else if r == 8 {
		p.setxattr(x, "trusted.x", fmt.Sprint(rng.Uint64()))
		return
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		p.stepData(rng, x, y, st.Size, is)
	}
}

func (p *primary) stepNames(rng *rand.Rand, x, y string, is func(string, uint32) bool) {
	inside := func(a, b string) bool { return a == b || len(b) > len(a) && b[:len(a)+1] == a+"/" }
	switch {
	case is(x, unix.S_IFDIR):
		if p.exists(y) || inside(x, y) {
			p.remove(record.OpRemoveTree, x)
		} else {
			p.rename(x, y, 0)
		}
	case rng.IntN(2) == 0:
		p.remove(record.OpUnlink, x)
	case p.exists(y) && p.stat(y).Ino != p.stat(x).Ino && rng.IntN(2) == 0 && !inside(y, x):
		p.rename(x, y, unix.RENAME_EXCHANGE)
	case p.exists(y) && p.stat(y).Ino != p.stat(x).Ino && !is(y, unix.S_IFDIR):
		p.rename(x, y, 0)
	}
}

func (p *primary) stepData(rng *rand.Rand, x, y string, size int64, is func(string, uint32) bool) {
	const block = 4096
	switch r := rng.IntN(12); {
	case r == 0:
		p.truncate(x, rng.Int64N(40000))
	case r == 1 && size > 3*block:
		p.fallocate(x, unix.FALLOC_FL_COLLAPSE_RANGE, block*rng.Int64N(2), block)
	case r == 2 && size > 2*block && size < 1<<20:
		p.fallocate(x, unix.FALLOC_FL_INSERT_RANGE, block*rng.Int64N(2), block)
	case r == 3:
		p.fallocate(x, unix.FALLOC_FL_ZERO_RANGE, rng.Int64N(30000), 1+rng.Int64N(9000))
	case r == 4 && size > 0 && is(y, unix.S_IFREG) && p.stat(y).Ino != p.stat(x).Ino:
		p.copyRange(x, 0, y, rng.Int64N(20000), size)
	case r == 5:
		p.fsync(x, record.Flags(rng.IntN(2))*record.FlagDataOnly)
	default:
		p.write(x, pattern(1+rng.IntN(20000), byte(rng.Uint32())), rng.Int64N(30000))
	}
}

// bursts logs until there are n records, most of them data of a few files, as
// many in a row as a run holds, and now and then something else.
func bursts(p *primary, rng *rand.Rand, n int) {
	files := make([]string, 12)
	for i := range files {
		files[i] = fmt.Sprintf("burst%d", i)
		p.create(files[i], 0o4755)
	}
	p.link(files[0], "linked")
	files = append(files, "linked")
	for len(p.log) < n {
		f := files[rng.IntN(len(files))]
		switch r := rng.IntN(100); {
		case r == 0:
			p.setxattr(f, "trusted.x", fmt.Sprint(rng.Uint64()))
		case r == 1:
			p.mkdir(fmt.Sprintf("dir%d", len(p.log)), 0o755)
		case r == 2:
			// The primary forgets the file and looks it up again.
			delete(p.ids, p.stat(f).Ino)
		case r < 6:
			p.truncate(f, rng.Int64N(50000))
		case r < 9:
			p.chmod(f, rng.Uint32N(0o10000))
		case r < 11:
			p.chown(f, rng.Uint32N(1000), rng.Uint32N(1000))
		case r < 16:
			p.fsync(f, record.Flags(rng.IntN(2))*record.FlagDataOnly)
		case r < 60:
			p.write(f, pattern(1+rng.IntN(9000), byte(rng.Uint32())), p.stat(f).Size) // append
		default:
			p.write(f, pattern(1+rng.IntN(9000), byte(rng.Uint32())), rng.Int64N(50000))
		}
	}
}

func TestRandomWorkload(t *testing.T) {
	for fs, dir := range filesystems(t) {
		t.Run(fs, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			r := newRig(t, t.TempDir(), dir)
			workload(r.p, rand.New(rand.NewPCG(seed, 0)), 3000)
			r.catchUp()
			r.equal()
		})
	}
}

// childEnv makes the test binary the child that TestSigkill kills: it names
// the directory with the log.
const childEnv = "REPLFS_APPLY_TEST_CHILD"

func childConfig(dir, store string) Config {
	return Config{Store: store, StateFile: filepath.Join(dir, "state"), Node: "b"}
}

// child applies what of the log is not applied, and exits 0 at its end.
func child() int {
	dir := os.Getenv(childEnv)
	if err := runChild(dir, os.Getenv(childEnv+"_STORE")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runChild(dir, store string) error {
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	a, err := Open(childConfig(dir, store))
	if err != nil {
		return err
	}
	s := a.State()
	if s.Suspect != "" {
		return fmt.Errorf("state %+v", s)
	}
	for len(log) > 0 {
		h, err := record.PeekHeader(log)
		if err != nil {
			return err
		}
		if h.LSN > s.Applied {
			break
		}
		log = log[h.Size:]
	}
	fmt.Println("ready") // to be killed while it applies
	for len(log) > 0 {
		var rec record.Record
		n, err := record.Decode(log, &rec)
		if err != nil {
			return err
		}
		log = log[n:]
		if err := applyNext(a, &rec); err != nil {
			return err
		}
	}
	if err := a.ApplyQueued(); err != nil {
		return err
	}
	return a.Close()
}

// applyNext applies in runs, as a standby that is behind does.
func applyNext(a *Applier, rec *record.Record) error {
	if a.Queued() < 300 && a.Queue(rec) {
		return nil
	}
	if err := a.ApplyQueued(); err != nil {
		return err
	}
	if a.Queue(rec) {
		return nil
	}
	return a.Apply(rec)
}

// A process that is killed again and again at random ends with the store that
// one which is not would have made.
func TestSigkill(t *testing.T) {
	records := 4000
	if testing.Short() {
		records = 1500
	}
	for fs, base := range filesystems(t) {
		t.Run(fs, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 1))
			store, err := os.MkdirTemp(base, "store-")
			if err != nil {
				t.Fatal(err)
			}
			p := newPrimary(t, t.TempDir())
			p.must(copyAttrs(p.dir, store))
			workload(p, rng, records/2)
			bursts(p, rng, records)
			dir := t.TempDir()
			var log []byte
			for _, rec := range p.log {
				log = rec.Append(log)
			}
			p.must(os.WriteFile(filepath.Join(dir, "log"), log, 0o600))
			kills := 0
			for delay := time.Duration(0); !runAndKill(t, dir, store, delay); kills++ {
				delay = time.Duration(rng.IntN(5_000)) * time.Microsecond
				if kills > 60 {
					delay = time.Hour // closing takes longer
				}
			}
			t.Logf("killed %d times", kills)
			if kills < 3 {
				t.Errorf("killed only %d times", kills)
			}
			r := rig{t: t, p: p, cfg: childConfig(dir, store)}
			r.equal()
			a, err := Open(r.cfg)
			if err != nil {
				t.Fatal(err)
			}
			if s := a.State(); s.Applied != p.lsn || s.Suspect != "" {
				t.Errorf("state %+v, want LSN %d", s, p.lsn)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// runAndKill runs the child and kills it that long after it is ready; done
// says that it finished before.
func runAndKill(t *testing.T, dir, store string, after time.Duration) (done bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir, childEnv+"_STORE="+store)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("child: %v, %v", err, cmd.Wait())
	}
	timer := time.AfterFunc(after, func() {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
	})
	err = cmd.Wait()
	timer.Stop()
	if err == nil {
		return true
	}
	var e *exec.ExitError
	if !errors.As(err, &e) || e.Exited() {
		t.Fatalf("child: %v", err)
	}
	return false
}
