package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/workload"
	"github.com/replfs/replfs/replicate/record"
)

// TestSurvivingName: names that were made before this process, and that it
// never saw, count when the known one goes.
func TestSurvivingName(t *testing.T) {
	e := newEnv(t, options{prepare: func(store string) {
		root.must(t, store, "mkdir -p far/away tmp; echo x >f; ln f far/away/g; ln f tmp/h; touch -d @1 f . far far/away tmp")
	}, exclude: []string{"tmp/"}})
	fd, err := unix.Open(e.in("f"), unix.O_RDWR, 0)
	must(t, err)
	must(t, unix.Unlink(e.in("f")))
	must(t, writeAll(fd, "new"))
	must(t, unix.Fchmod(fd, 0o640))
	must(t, unix.Close(fd))
	var got []string
	for _, r := range e.records() {
		got = append(got, summary(&r, ""))
	}
	if want := "unlink f, write far/away/g 0+3, setattr far/away/g mode"; strings.Join(got, ", ") != want {
		t.Errorf("records %q", got)
	}
	e.equal()
}

// TestInodeReuse: ext4 gives the number of a removed file to the next new one;
// nothing of the old one may stick to it.
func TestInodeReuse(t *testing.T) {
	e := newEnv(t, options{base: disk})
	stop := e.follow()
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for w := range errs {
		wg.Go(func() {
			dir := e.in(fmt.Sprintf("w%d", w))
			err := unix.Mkdir(dir, 0o755)
			for i := 0; i < 250 && err == nil; i++ {
				name := fmt.Sprintf("%s/%d", dir, i%3)
				var fd int
				if fd, err = unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600); err != nil {
					break
				}
				err = writeAll(fd, name)
				if i%2 == 0 { // removed while open, then closed, or the other way
					err = errors.Join(err, unix.Close(fd), unix.Unlink(name))
				} else {
					err = errors.Join(err, unix.Rename(name, name+"x"), writeAll(fd, "y"), unix.Unlink(name+"x"),
						unix.Fchmod(fd, 0o777), writeAll(fd, "z"), unix.Close(fd))
				}
				if i%5 == 0 {
					err = errors.Join(err, unix.Mkdir(name, 0o755), unix.Rmdir(name), unix.Mkfifo(name, 0o600), unix.Unlink(name))
				}
				err = errors.Join(err, os.WriteFile(dir+"/keep", []byte(name), 0o644))
			}
			errs[w] = err
		})
	}
	wg.Wait()
	stop()
	must(t, errors.Join(errs...))
	e.equal()
	e.sound()
}

// TestOpenWhileReplaced: an open that the kernel resolved before a rename over
// the file must get that file or the new one, and write to what its records
// say.
func TestOpenWhileReplaced(t *testing.T) {
	e := newEnv(t, options{})
	stop := e.follow()
	const rounds = 400
	must(t, os.WriteFile(e.in("f"), nil, 0o644))
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for w := range errs {
		wg.Go(func() {
			for i := 0; i < rounds && errs[w] == nil; i++ {
				if w == 0 {
					tmp := e.in("tmp")
					errs[w] = errors.Join(os.WriteFile(tmp, []byte(fmt.Sprint(i)), 0o644), unix.Rename(tmp, e.in("f")))
					continue
				}
				fd, err := unix.Open(e.in("f"), unix.O_RDWR, 0)
				if err == nil {
					err = errors.Join(writeAll(fd, fmt.Sprintf("writer %d, round %d", w, i)), unix.Close(fd))
				}
				errs[w] = err
			}
		})
	}
	wg.Wait()
	stop()
	must(t, errors.Join(errs...))
	e.equal()
	e.sound()
}

// TestNameOfAnother: a name that came to mean another file does not open that
// one in place of the inode asked for.
func TestNameOfAnother(t *testing.T) {
	e := newEnv(t, options{noStandby: true})
	root.must(t, e.mnt, "echo f >f; echo g >g")
	// The kernel may forget what nobody holds.
	held, err := unix.Open(e.in("f"), unix.O_PATH, 0)
	must(t, err)
	defer func() { must(t, unix.Close(held)) }()
	var st unix.Stat_t
	must(t, unix.Stat(e.store+"/f", &st))
	n := e.fs.table.getKey(keyOf(&st))
	must(t, os.Rename(e.store+"/g", e.store+"/f"))
	if fd, err := e.fs.openInode(n, unix.O_RDWR); !errors.Is(err, unix.ESTALE) {
		t.Errorf("opened %d, %v", fd, err)
	}
	if err := e.fs.statInode(n, nil, &st); !errors.Is(err, unix.ESTALE) {
		t.Errorf("stat: %v", err)
	}
}

// TestForget: what the kernel drops leaves the table, and directories their
// descriptors.
func TestForget(t *testing.T) {
	const dirs, files = 100, 200
	e := newEnv(t, options{prepare: func(store string) {
		for d := range dirs {
			must(t, os.Mkdir(fmt.Sprintf("%s/%d", store, d), 0o755))
			for f := range files {
				must(t, unix.Mknod(fmt.Sprintf("%s/%d/%d", store, d, f), unix.S_IFREG|0o644, 0))
			}
		}
	}, noStandby: true})
	before := openFds(t)
	var st unix.Stat_t
	for d := range dirs {
		for f := range files {
			must(t, unix.Lstat(e.in(fmt.Sprintf("%d/%d", d, f)), &st))
		}
	}
	if n := e.fs.table.len(); n < dirs*files/2 { // the kernel may drop some by itself
		t.Errorf("the table holds %d inodes", n)
	}
	if n := openFds(t); n < before+dirs/2 {
		t.Errorf("%d descriptors, %d before", n, before)
	}
	eventually(t, "the table is small again", func() bool {
		must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
		return e.fs.table.len() < 100
	})
	eventually(t, "the descriptors are closed", func() bool { return openFds(t) < before+10 })
	// It works on as if nothing was.
	must(t, unix.Truncate(e.in("5/5"), 7))
	e.sound()
}

// TestWorkload: thousands of random operations of every kind.
func TestWorkload(t *testing.T) {
	for _, base := range []string{tmpfs, disk} {
		t.Run(base, func(t *testing.T) {
			e := newEnv(t, options{base: base, exclude: []string{"d2/", "**/f5"}})
			var ops int
			e.log.dies = func(r *record.Record, begin bool) bool {
				if !begin && r.Op.Mutation() {
					ops++
				}
				return false
			}
			stop := e.follow()
			must(t, e.startWorkload(workload.Options{Seed: 3, Writers: 5, Steps: 5000, MaxBytes: 32 << 20, MaxFiles: 800})(false))
			stop()
			if ops < 1000 {
				t.Errorf("only %d mutations", ops)
			}
			e.equal()
			e.sound()
			if n := e.fs.handles.len(); n > 0 {
				eventually(t, "all handles are closed", func() bool { return e.fs.handles.len() == 0 })
			}
		})
	}
}

func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)
}
