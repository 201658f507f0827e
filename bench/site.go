package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// site is where a run works: a directory on the file system to measure, and
// one for sockets and rings on a tmpfs, as on a server, if there is one.
type site struct {
	dir, runtime string
	peer         string // for the standby, if it shall have a file system of its own
	journal      int64  // how many bytes a primary's journal may have, if not the default
}

// addPeer makes a directory for standbys below another parent.
func (s *site) addPeer(parent string) error {
	parent, err := filepath.Abs(parent)
	if err == nil {
		parent, err = filepath.EvalSymlinks(parent)
	}
	if err == nil {
		s.peer, err = os.MkdirTemp(parent, fmt.Sprintf("replfs-bench-%d-", os.Getpid()))
	}
	if err != nil {
		return fmt.Errorf("make the standby's directory: %w", err)
	}
	return nil
}

// node is a path of a node of a cluster.
func (s *site) node(cluster, node, elem string) string {
	if node == "standby" && s.peer != "" {
		return filepath.Join(s.peer, cluster, node, elem)
	}
	return s.path(cluster, node, elem)
}

func newSite(parent string) (*site, error) {
	parent, err := filepath.Abs(parent)
	if err != nil {
		return nil, fmt.Errorf("find the directory to work in: %w", err)
	}
	// The mount table shows real paths.
	if parent, err = filepath.EvalSymlinks(parent); err != nil {
		return nil, fmt.Errorf("find the directory to work in: %w", err)
	}
	// Whose it is shows, should somebody find it.
	prefix := fmt.Sprintf("replfs-bench-%d-", os.Getpid())
	s := &site{}
	if s.dir, err = os.MkdirTemp(parent, prefix); err != nil {
		return nil, fmt.Errorf("make the directory to work in: %w", err)
	}
	// Not below dir: the paths of sockets must be short.
	runtime := os.TempDir()
	for _, d := range []string{"/dev/shm", "/run"} {
		if onTmpfs(d) {
			runtime = d
		}
	}
	if s.runtime, err = os.MkdirTemp(runtime, prefix); err != nil {
		return nil, errors.Join(fmt.Errorf("make the runtime directory: %w", err), s.close())
	}
	for _, d := range []string{s.dir, s.runtime} {
		if err := os.Chmod(d, 0o755); err != nil { // PostgreSQL passes through
			return nil, errors.Join(fmt.Errorf("open the directory to work in: %w", err), s.close())
		}
	}
	return s, nil
}

func (s *site) path(elem ...string) string { return filepath.Join(append([]string{s.dir}, elem...)...) }

// close detaches what is still mounted and removes everything. Whoever used
// it must have ended.
func (s *site) close() error {
	var errs []error
	for _, d := range []string{s.dir, s.peer, s.runtime} {
		if d == "" {
			continue
		}
		// Never remove through a mount.
		if err := detachBelow(d); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := os.RemoveAll(d); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", d, err))
		}
	}
	return errors.Join(errs...)
}

func mountsBelow(dir string) ([]string, error) {
	infos, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, dir+"/"), false
	})
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	var points []string
	for _, m := range infos {
		points = append(points, m.Mountpoint)
	}
	return points, nil
}

func mounted(point string) (bool, error) {
	points, err := mountsBelow(filepath.Dir(point))
	return slices.Contains(points, point), err
}

// detachBelow unmounts what is mounted below dir, dead mounts as well.
func detachBelow(dir string) error {
	var points []string
	for range 20 {
		var err error
		if points, err = mountsBelow(dir); err != nil || len(points) == 0 {
			return err
		}
		for _, p := range slices.Backward(points) {
			// What is busy, or gone already, shows in the next round.
			_ = unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("still mounted: %s", strings.Join(points, ", "))
}

// fsNames are the file systems that people measure on.
var fsNames = map[int64]string{
	unix.TMPFS_MAGIC: "tmpfs", unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs",
	unix.BTRFS_SUPER_MAGIC: "btrfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.FUSE_SUPER_MAGIC: "fuse",
}

func fsName(path string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "unknown"
	}
	if name, ok := fsNames[st.Type]; ok {
		return name
	}
	return fmt.Sprintf("%#x", st.Type)
}

func onTmpfs(path string) bool { return fsName(path) == "tmpfs" }
