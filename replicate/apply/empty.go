package apply

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/beneath"
)

// EmptyStore moves every entry at the store's top, except those that excluded
// (if set) names, into the directory salvage, which is made (0700) if it is
// missing and must be on the store's filesystem, and makes that durable. An
// entry whose name is taken in salvage gets a number appended. It returns how
// many were moved. The store's Applier must be idle, and drop its caches after.
func EmptyStore(store, salvage string, excluded func(path string) bool) (moved int, err error) {
	from, err := beneath.Open(store, 1)
	if err != nil {
		return 0, fmt.Errorf("empty store: %w", err)
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	if err := os.MkdirAll(salvage, 0o700); err != nil {
		return 0, fmt.Errorf("empty store: create salvage directory: %w", err)
	}
	to, err := beneath.Open(salvage, 1)
	if err != nil {
		return 0, fmt.Errorf("empty store: %w", err)
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	names, err := topLevel(from, excluded)
	if err != nil {
		return 0, fmt.Errorf("empty store: %w", err)
	}
	for _, name := range names {
		if err := salvageEntry(from.FD(), to.FD(), name); err != nil {
			if errors.Is(err, unix.EXDEV) {
				err = fmt.Errorf("%w: %s and %s must be on one filesystem; "+
					"put the salvage directory on the store's, or move the store's contents away by hand",
					err, store, salvage)
			}
			return moved, fmt.Errorf("empty store: %w", err)
		}
		moved++
	}
	if err := errors.Join(fsyncDir(to.FD()), fsyncDir(from.FD())); err != nil {
		return moved, fmt.Errorf("empty store: %w", err)
	}
	return moved, nil
}

func salvageEntry(from, to int, name string) error {
	for i := 0; ; {
		target := name
		if i > 0 {
			target = fmt.Sprintf("%s.%d", name[:min(len(name), 240)], i)
		}
		err := unix.Renameat2(from, name, to, target, unix.RENAME_NOREPLACE)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EEXIST:
			i++
		default:
			return &os.LinkError{Op: "rename", Old: name, New: target, Err: err}
		}
	}
}

// Wipe deletes what is in the store, except what excluded (if set) names, at
// any depth, and the directories above that. It does not make that durable.
// The store's Applier must be idle, and drop its caches after.
func Wipe(store string, excluded func(path string) bool) (err error) {
	root, err := beneath.Open(store, 1)
	if err != nil {
		return fmt.Errorf("wipe store: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	names, err := topLevel(root, excluded)
	if err != nil {
		return fmt.Errorf("wipe store: %w", err)
	}
	for _, name := range names {
		o := beneath.RemoveOptions{}
		if excluded != nil {
			o.Keep = func(rel string) bool { return excluded(name + "/" + rel) }
		}
		if _, err := beneath.RemoveTree(root.FD(), name, o); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("wipe store: %w", err)
		}
	}
	return nil
}

// topLevel lists the names before any is touched, as changing a directory
// while reading it may hide some.
func topLevel(r *beneath.Root, excluded func(path string) bool) (names []string, err error) {
	err = beneath.ReadDir(r.FD(), func(e beneath.Entry) error {
		if name := string(e.Name); excluded == nil || !excluded(name) {
			names = append(names, name)
		}
		return nil
	})
	return names, err
}

func fsyncDir(fd int) error {
	for {
		if err := unix.Fsync(fd); err != unix.EINTR {
			if err != nil {
				return fmt.Errorf("fsync directory: %w", err)
			}
			return nil
		}
	}
}
