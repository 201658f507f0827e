package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/control"
)

const startLimit = 60 * time.Second

// A Target is something to measure: the bare store, or a mount over one.
type Target struct {
	Name  string
	About string
	start func(ctx context.Context, binary string, s *site, name string) (*running, error)
}

// Targets are all that can be measured, the base of the ratios first.
func Targets() []Target {
	return []Target{
		{"bare", "the store's file system itself", startBare},
		{"loopback", "go-fuse's example/loopback, which leaves file content to the kernel (FUSE passthrough)", startLoopback(true)},
		{"loopback-nopass", "the same without passthrough: every read and write goes through the daemon, as in replfs", startLoopback(false)},
		{"bindfs", "bindfs, a C passthrough file system, with its defaults", startBindfs},
		{"alone", "replfs whose standby has never been started", startCluster("async", false)},
		{"async", "replfs, replicating to a standby on this machine, fsync not waiting for it", startCluster("async", true)},
		{"fsync", "the same, fsync waiting for the standby", startCluster("fsync", true)},
	}
}

// notInstalledError says that a target or workload needs what is not there.
type notInstalledError struct{ what string }

func (e *notInstalledError) Error() string { return e.what + " is not installed" }

// running is a started target.
type running struct {
	// dir is where workloads work; store the file system below it.
	dir, store string
	// control asks the primary, nil for what is not replfs.
	control   *control.Client
	replicas  bool
	processes []*process // in the order in which they were started
	signal    syscall.Signal
}

// requests are the FUSE requests so far, by opcode; nil when nobody counts.
func (r *running) requests(ctx context.Context) (map[string]uint64, error) {
	if r.control == nil {
		return nil, nil
	}
	st, err := r.control.Status(ctx)
	if err != nil {
		return nil, err
	}
	return st.Requests, nil
}

// settle waits until nothing of what was done is still under way: replicated,
// and written to the disk.
func (r *running) settle(ctx context.Context) error {
	if err := r.alive(); err != nil {
		return err
	}
	if r.replicas {
		err := poll(ctx, "the standby catches up", 5*time.Minute, func() error {
			st, err := r.control.Status(ctx)
			if err != nil {
				return err
			}
			for _, p := range st.Peers {
				if !p.InSync || p.LSN.Applied < st.LSN.Appended {
					return fmt.Errorf("%s has applied %d of %d", p.Name, p.LSN.Applied, st.LSN.Appended)
				}
			}
			return r.alive()
		})
		if err != nil {
			return err
		}
	}
	d, err := os.Open(r.store)
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("write the store to its disk: %w", err)
	}
	return nil
}

func (r *running) alive() error {
	for _, p := range r.processes {
		if err := p.ended(); err != nil {
			return &goneError{err}
		}
	}
	return nil
}

// stop ends the target's processes, the last started first.
func (r *running) stop() error {
	var errs []error
	for i := len(r.processes) - 1; i >= 0; i-- {
		errs = append(errs, r.processes[i].stop(r.signal))
	}
	return errors.Join(errs...)
}

// kill ends the processes at once: whoever hangs in their mount is freed.
func (r *running) kill() {
	for _, p := range r.processes {
		p.kill()
	}
}

// mkdirs makes the target's own directories.
func mkdirs(paths ...string) error {
	for _, p := range paths {
		if err := os.MkdirAll(p, 0o755); err != nil {
			return fmt.Errorf("make a directory: %w", err)
		}
	}
	return nil
}

func startBare(_ context.Context, _ string, s *site, name string) (*running, error) {
	dir := s.path(name)
	return &running{dir: dir, store: dir}, mkdirs(dir)
}

// startMounter starts a program that mounts point over store.
func startMounter(ctx context.Context, c command, name, store, point string) (*running, error) {
	p, err := c.start(name)
	if err != nil {
		return nil, err
	}
	r := &running{dir: point, store: store, processes: []*process{p}, signal: syscall.SIGTERM}
	err = poll(ctx, "mount "+name, startLimit, func() error {
		if err := r.alive(); err != nil {
			return err
		}
		ok, err := mounted(point)
		if err == nil && !ok {
			err = errors.New("not mounted")
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, r.stop())
	}
	return r, nil
}

func startLoopback(passthrough bool) func(context.Context, string, *site, string) (*running, error) {
	return func(ctx context.Context, binary string, s *site, name string) (*running, error) {
		store, point := s.path(name, "store"), s.path(name, "mount")
		if err := mkdirs(store, point); err != nil {
			return nil, err
		}
		c := command{name: binary, args: []string{"bench", "loopback", "--passthrough=" + strconv.FormatBool(passthrough), store, point}}
		return startMounter(ctx, c, name, store, point)
	}
}

func startBindfs(ctx context.Context, _ string, s *site, name string) (*running, error) {
	bin, err := exec.LookPath("bindfs")
	if err != nil {
		return nil, &notInstalledError{"bindfs"}
	}
	store, point := s.path(name, "store"), s.path(name, "mount")
	if err := mkdirs(store, point); err != nil {
		return nil, err
	}
	return startMounter(ctx, command{name: bin, args: []string{"-f", store, point}}, name, store, point)
}
