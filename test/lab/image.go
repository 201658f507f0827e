package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Image is a file system in a file, mounted where a node has its store. What
// was not made durable on it can be thrown away, as a crash of the machine would.
type Image struct {
	file, point, fstype string
}

// NewImage makes a file system of a type (ext4, xfs) and size and mounts it at
// point, for root alone. The owner of the directory that both are in unmounts it.
func NewImage(ctx context.Context, file, point, fstype string, size int64) (*Image, error) {
	f, err := os.Create(file)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("make the file of a file system: %w", err)
	}
	if _, err := RunOK(ctx, Command{Name: "mkfs", Path: "/usr/sbin/mkfs." + fstype, Args: []string{file}}); err != nil {
		return nil, err
	}
	im := &Image{file, point, fstype}
	if err := im.Mount(ctx); err != nil {
		return nil, err
	}
	if err := os.Chmod(point, 0o700); err != nil {
		return nil, fmt.Errorf("close the file system to others: %w", err)
	}
	return im, nil
}

// Mount mounts it, with options as of mount -o.
func (im *Image) Mount(ctx context.Context) error {
	_, err := RunOK(ctx, Command{Name: "mount", Path: "/bin/mount", Args: []string{"-t", im.fstype, "-o", "loop", im.file, im.point}})
	return err
}

// Unmount unmounts it, once who used it has let go.
func (im *Image) Unmount() error {
	var err error
	for range 100 {
		if err = unix.Unmount(im.point, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", im.point, err)
	}
	return nil
}

// Remount changes a mount's flags, such as unix.MS_RDONLY.
func (im *Image) Remount(flags uintptr) error {
	if err := unix.Mount("none", im.point, "", unix.MS_REMOUNT|flags, ""); err != nil {
		return fmt.Errorf("remount %s: %w", im.point, err)
	}
	return nil
}

const (
	// shutdownIoctl is EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN: _IOR('X', 125, __u32).
	shutdownIoctl = 0x8004587d
	// shutdownNoLogFlush leaves what is in memory there.
	shutdownNoLogFlush = 2
	// freezeIoctl is FIFREEZE, _IOWR('X', 119, int), thawIoctl FITHAW, the next one.
	freezeIoctl = 0xc0045877
	thawIoctl   = 0xc0045878
)

// Cut takes the file system down as if the machine lost its power: nothing that
// is in memory reaches the disk any more, and every use of it fails.
func (im *Image) Cut() error {
	d, err := os.Open(im.point)
	if err != nil {
		return fmt.Errorf("open %s: %w", im.point, err)
	}
	defer func() { _ = d.Close() }() // it is of no use any more
	if err := unix.IoctlSetPointerInt(int(d.Fd()), shutdownIoctl, shutdownNoLogFlush); err != nil {
		return fmt.Errorf("shut the file system at %s down: %w", im.point, err)
	}
	return nil
}

// Freeze makes what is in memory durable, and then every change wait.
func (im *Image) Freeze() error { return im.control(freezeIoctl) }

// Thaw ends a freeze.
func (im *Image) Thaw() error { return im.control(thawIoctl) }

func (im *Image) control(req uint) error {
	d, err := os.Open(im.point)
	if err != nil {
		return fmt.Errorf("open %s: %w", im.point, err)
	}
	defer func() { _ = d.Close() }() // only an ioctl was made
	if err := unix.IoctlSetInt(int(d.Fd()), req, 0); err != nil {
		return fmt.Errorf("freeze or thaw %s: %w", im.point, err)
	}
	return nil
}

// Restart brings a file system that was cut back as it is on its disk.
func (im *Image) Restart(ctx context.Context) error {
	if err := im.Unmount(); err != nil {
		return err
	}
	return im.Mount(ctx)
}
