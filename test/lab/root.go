package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	// janitorEnv makes a copy of the running program the janitor of the
	// directory in its value.
	janitorEnv = "REPLFS_LAB_JANITOR"
	// markerName is a file in every directory that a janitor may remove; a
	// stray environment variable then does no harm.
	markerName = ".replfs-lab"
)

// init turns a process that newRoot started into a janitor. It has to happen
// here because the program is anyone's: a test binary or the demo.
func init() {
	if dir := os.Getenv(janitorEnv); dir != "" {
		os.Exit(janitor(dir, os.Stdin))
	}
}

// janitor waits until its parent has ended or let go of the pipe, then detaches
// the mounts beneath dir and removes it.
func janitor(dir string, parent io.Reader) int {
	if _, err := io.Copy(io.Discard, parent); err != nil {
		return 1
	}
	if _, err := os.Stat(filepath.Join(dir, markerName)); err != nil {
		return 0 // removed by its owner, as it should be
	}
	var err error
	// The owner's children are being killed at this moment; what they hold or
	// still write may need another try.
	for range 40 {
		if err = sweep(dir); err == nil {
			return 0
		}
		time.Sleep(250 * time.Millisecond)
	}
	return 1
}

// sweep detaches the mounts beneath dir and removes it.
func sweep(dir string) error {
	if err := detachMounts(dir); err != nil {
		return err
	}
	marker := filepath.Join(dir, markerName)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	for _, entry := range entries {
		// The marker goes last: without it nobody would try again.
		if path := filepath.Join(dir, entry.Name()); path != marker {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("remove the lab's directory: %w", err)
			}
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the lab's directory: %w", err)
	}
	return nil
}

// detachMounts unmounts what is mounted beneath dir, stale FUSE mounts too,
// which nobody but the kernel can look into any more.
func detachMounts(dir string) error {
	mounts, err := mountsBeneath(dir)
	if err != nil {
		return err
	}
	for i := len(mounts) - 1; i >= 0; i-- { // the last mounted first
		err := unix.Unmount(mounts[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", mounts[i], err)
		}
	}
	if mounts, err = mountsBeneath(dir); err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("still mounted: %s", strings.Join(mounts, ", "))
	}
	return nil
}

// mountsBeneath lists the mount points at or beneath dir, in the order in which
// they were mounted.
func mountsBeneath(dir string) ([]string, error) {
	infos, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Mountpoint != dir && !strings.HasPrefix(m.Mountpoint, dir+"/"), false
	})
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	var points []string
	for _, info := range infos {
		points = append(points, info.Mountpoint)
	}
	return points, nil
}

// Root is a fresh working directory that a janitor removes, with every mount
// beneath it, if its owner cannot.
type Root struct {
	dir     string
	pipe    *os.File
	janitor *exec.Cmd
}

// NewRoot makes a directory with a random name in parent (default /var/tmp, a
// real disk on most machines) that every user may pass through.
func NewRoot(parent, prefix string) (_ *Root, err error) {
	if parent == "" {
		parent = "/var/tmp"
	}
	if prefix == "" {
		prefix = "replfs-lab-"
	}
	if parent, err = filepath.Abs(parent); err != nil {
		return nil, fmt.Errorf("find the directory for the lab: %w", err)
	}
	// Mount tables show real paths.
	if parent, err = filepath.EvalSymlinks(parent); err != nil {
		return nil, fmt.Errorf("find the directory for the lab: %w", err)
	}
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	r := &Root{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	owner := strconv.Itoa(os.Getpid()) + "\n"
	if err := os.WriteFile(filepath.Join(dir, markerName), []byte(owner), 0o600); err != nil {
		return nil, fmt.Errorf("mark the lab's directory: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open the lab's directory: %w", err)
	}
	if err := r.startJanitor(); err != nil {
		return nil, err
	}
	return r, nil
}

// startJanitor starts the process that cleans up after a death of this one.
func (r *Root) startJanitor() error {
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make the janitor's pipe: %w", err)
	}
	defer func() { _ = read.Close() }() // the janitor has its own copy
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{janitorEnv + "=" + r.dir}
	cmd.Dir = "/"
	cmd.Stdin = read
	// Its own session: neither Ctrl-C nor a hangup of the terminal reaches it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		_ = write.Close()
		return fmt.Errorf("start the janitor: %w", err)
	}
	r.pipe, r.janitor = write, cmd
	return nil
}

// Dir is the absolute path of the directory.
func (r *Root) Dir() string { return r.dir }

// Path joins elements to the directory.
func (r *Root) Path(elem ...string) string {
	return filepath.Join(append([]string{r.dir}, elem...)...)
}

// Close unmounts what is mounted beneath the directory and removes it. The
// processes that use it must have ended.
func (r *Root) Close() error {
	var err error
	for range 20 { // a file system may need a moment after its last user died
		if err = sweep(r.dir); err == nil || errors.Is(err, os.ErrNotExist) {
			err = nil
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if r.janitor != nil {
		err = errors.Join(err, r.pipe.Close(), r.janitor.Wait())
		r.janitor = nil
	}
	return err
}
