package adopt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// directory looks at the directory that holds the data.
func directory(path string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, refused("%s does not exist", path)
	case err != nil:
		return nil, fmt.Errorf("look at %s: %w", path, err)
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		to, _ := os.Readlink(path) // for the message only
		return nil, refused("%s is a symbolic link to %s: name the directory itself in the config, or move it here", path, to)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil, refused("%s is not a directory", path)
	}
	return &st, nil
}

// vacant refuses a place where something is already.
func vacant(path string) error {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if mounts, err := mountsAt(path); err != nil {
		return err
	} else if len(mounts) > 0 {
		return refused("%s is mounted: stop replfs (systemctl stop replfs), or unmount it", mounts[0])
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return refused("%s exists and is not a directory", path)
	}
	empty, err := isEmpty(path)
	if err != nil {
		return err
	}
	if !empty {
		return refused("%s exists and is not empty: move it away first", path)
	}
	return nil
}

func isEmpty(path string) (bool, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return false, fmt.Errorf("look into %s: %w", path, err)
	}
	return len(entries) == 0, nil
}

// sameFilesystem refuses what rename(2) cannot do: from has the data, and to
// is where it shall be.
func sameFilesystem(from *unix.Stat_t, fromPath, toPath string) error {
	mounts, err := mountsAt(fromPath)
	switch {
	case err != nil:
		return err
	case slices.Contains(mounts, fromPath):
		return refused("%[1]s is the root of a file system of its own, which no rename can move: mount that at %[2]s instead "+
			"(in /etc/fstab, then umount %[1]s; mkdir %[2]s; mount %[2]s)", fromPath, toPath)
	case len(mounts) > 0:
		return refused("%s is mounted inside of %s: unmount it, or mount it elsewhere", mounts[0], fromPath)
	}
	parent := filepath.Dir(toPath)
	var st unix.Stat_t
	if err := unix.Stat(parent, &st); err != nil {
		return fmt.Errorf("look at %s: %w", parent, err)
	}
	if st.Dev != from.Dev {
		return refused("%s and %s are on different file systems: set `store` to a place on that of the data", fromPath, toPath)
	}
	return nil
}

// mountsAt lists what is mounted at path or below, the outermost first.
func mountsAt(path string) ([]string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return nil, fmt.Errorf("read the list of mounts: %w", err)
	}
	var out []string
	for _, m := range infos {
		if within(m.Mountpoint, path) {
			out = append(out, m.Mountpoint)
		}
	}
	return out, nil
}

// within tells whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
