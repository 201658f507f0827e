package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/replfs/replfs/test/lab"
)

// work holds the directories of all clusters, so that what they leave behind
// can be found. Its janitor outlives a test binary that is killed.
var work *lab.Root

// init keeps the main thread for the main goroutine: a thread that enters a
// namespace ends there, and the main thread would stay in it instead.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if other := roles[os.Getenv(roleEnv)]; other != nil {
		if err := other(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(run(m))
}

// roleEnv makes the test binary something else than the tests.
const roleEnv = "REPLFS_E2E_ROLE"

var roles = map[string]func() error{"server": serveWrites, "daemon": mortalDaemon}

func run(m *testing.M) int {
	var err error
	if work, err = lab.NewRoot("", "replfs-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	janitors := len(children())
	code := m.Run()
	if err := leftBehind(janitors); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: the tests left something behind:", err)
		code = 1
	}
	if err := work.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// leftBehind looks for processes, mounts, network namespaces and files of ours.
// What was just killed has a moment to vanish.
func leftBehind(janitors int) error {
	var err error
	for range 50 {
		if err = errors.Join(leftProcesses(janitors), leftMounts(), leftNamespaces(), leftFiles()); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// children are the command lines of the processes that this one started.
func children() []string {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	var out []string
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// The name, in parentheses, may hold anything.
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			out = append(out, fmt.Sprintf("%s %s %q", filepath.Base(filepath.Dir(path)), fields[0], strings.ReplaceAll(string(cmd), "\x00", " ")))
		}
	}
	return out
}

// leftProcesses: the janitors of this package's directory, and of the binary
// if the lab had to build it, are in use until the end.
func leftProcesses(janitors int) error {
	if os.Getenv(lab.BinaryEnv) == "" {
		janitors++
	}
	if c := children(); len(c) > janitors {
		return fmt.Errorf("processes: %s", strings.Join(c, "; "))
	}
	return nil
}

func leftMounts() error {
	infos, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, work.Dir()+"/"), false
	})
	if err != nil {
		return err
	}
	for _, m := range infos {
		return fmt.Errorf("mount: %s (%s)", m.Mountpoint, m.FSType)
	}
	return nil
}

// leftNamespaces: a namespace of the lab has no name, so that it lives as long
// as a process is in it or a descriptor refers to it.
func leftNamespaces() error {
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return err
	}
	var open []string
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "net:[") {
			open = append(open, to)
		}
	}
	// The lab's spawner keeps the one that it began in.
	if own, err := os.Readlink("/proc/self/ns/net"); err == nil && len(open) == 1 && open[0] == own {
		open = nil
	}
	if len(open) > 0 {
		return fmt.Errorf("network namespaces: %s", strings.Join(open, ", "))
	}
	return nil
}

func leftFiles() error {
	entries, err := os.ReadDir(work.Dir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			return fmt.Errorf("file: %s", filepath.Join(work.Dir(), e.Name()))
		}
	}
	return nil
}
