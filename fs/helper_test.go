package fs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/workload"
)

// The test binary runs itself for what needs a process of its own.
const helperEnv = "REPLFS_FS_TEST_HELPER"

func runHelper(name string) int {
	switch name {
	case "workload":
		return helperWorkload(os.Args[1])
	case "mmap":
		return helperMmap(os.Args[1], os.Args[2])
	case "peer":
		return helperPeer()
	case "differ":
		return helperDiffer(os.Args[1])
	case "mount":
		return helperMount(os.Args[1], os.Args[2])
	case "serve":
		return helperServe(os.Args[1], os.Args[2], os.Args[3], os.Args[4])
	}
	fmt.Fprintln(os.Stderr, "no such helper:", name)
	return 2
}

func helperCommand(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	return cmd
}

// A page fault on a mount that the same process serves stops its world for
// good when the garbage collector wants to: whatever maps files is a helper.

// helperMmap stores to a mapping of the file path, or reads it.
func helperMmap(path, how string) int {
	flags, prot, length := unix.O_RDWR, unix.PROT_READ|unix.PROT_WRITE, 2*page
	if how == "read" {
		flags, prot, length = unix.O_RDONLY, unix.PROT_READ, page
	}
	fd, err := unix.Open(path, flags, 0)
	if err == nil {
		var m []byte
		if m, err = unix.Mmap(fd, 0, length, prot, unix.MAP_SHARED); err == nil {
			switch how {
			case "read":
				fmt.Printf("%q\n", m[:8])
			case "sync":
				m[page] ^= 0xff
				err = unix.Msync(m, unix.MS_SYNC)
			default:
				m[page] ^= 0xff
			}
			err = errors.Join(err, unix.Munmap(m))
		}
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func mmapped(path, how string) error {
	out, err := helperCommand("mmap", path, how).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

type load struct {
	Dir string
	workload.Options
}

func helperWorkload(arg string) int {
	var l load
	if err := json.Unmarshal([]byte(arg), &l); err != nil {
		fmt.Println(err)
		return 2
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	if _, err := workload.Run(ctx, l.Dir, l.Options); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// startWorkload begins a workload in the mount. wait waits for its end, or
// with kill makes it come; it returns what went wrong.
func (e *env) startWorkload(o workload.Options) (wait func(kill bool) error) {
	e.t.Helper()
	o.Tolerate = append(o.Tolerate, unix.EOPNOTSUPP, unix.EXDEV)
	arg, err := json.Marshal(load{e.mnt, o})
	must(e.t, err)
	cmd := helperCommand("workload", string(arg))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(e.t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	return func(kill bool) error {
		if kill {
			must(e.t, cmd.Process.Kill())
		}
		err := <-done
		if err != nil && !kill {
			return fmt.Errorf("%w: %s", err, out.String())
		}
		return nil
	}
}

// shellIn runs a script in a directory of the mount. It goes there by itself:
// the fork in this process would wait for its own server with cmd.Dir, and
// stop the world for good as well.
func shellIn(dir, script string) *exec.Cmd {
	return exec.Command("sh", "-c", `cd "$0" || exit 99; `+script, dir)
}

// user is somebody who runs commands.
type user struct {
	uid, gid uint32
	groups   []uint32
	umask    string
}

// sh runs a shell script as u in dir; its output is trimmed.
func (u user) sh(t testing.TB, dir, script string) (string, error) {
	t.Helper()
	if u.umask != "" {
		script = "umask " + u.umask + "\n" + script
	}
	cmd := shellIn(dir, script)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups},
	}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// must is sh for what has to work.
func (u user) must(t testing.TB, dir, script string) string {
	t.Helper()
	out, err := u.sh(t, dir, script)
	if err != nil {
		t.Fatalf("uid %d: %s: %v\n%s", u.uid, script, err, out)
	}
	return out
}

// refused is sh for what must not work.
func (u user) refused(t testing.TB, dir, script string) {
	t.Helper()
	if out, err := u.sh(t, dir, script); err == nil {
		t.Errorf("uid %d may: %s\n%s", u.uid, script, out)
	}
}

// startLoad is startWorkload with the usual bounds.
func (e *env) startLoad(steps int, tolerate ...syscall.Errno) func(kill bool) error {
	e.t.Helper()
	return e.startWorkload(workload.Options{
		Seed: 7, Writers: 4, Steps: steps, MaxBytes: 16 << 20, MaxFiles: 500, Tolerate: tolerate, TolerateEROFS: len(tolerate) > 0,
	})
}
