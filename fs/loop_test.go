package fs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// loopSize is enough for mkfs.xfs, which refuses less than 300 MB. The image is
// sparse.
const loopSize = 320 << 20

// fsTypes are the file systems that stores lie on.
var fsTypes = []string{"tmpfs", "ext4", "xfs", "btrfs"}

// newFilesystem mounts a fresh file system of a type, in an image if it needs a
// device, and returns where. It is gone after the test, and the device with it.
func newFilesystem(t *testing.T, fstype, data string) string {
	t.Helper()
	point, err := os.MkdirTemp(disk, tempPattern)
	must(t, err)
	t.Cleanup(func() { must(t, os.Remove(point)) })
	if fstype == "tmpfs" {
		mountAt(t, "tmpfs", point, fstype, data)
		return point
	}
	image, err := os.CreateTemp(tmpfs, tempPattern)
	must(t, err)
	defer func() { // the device keeps it
		must(t, errors.Join(os.Remove(image.Name()), image.Close()))
	}()
	must(t, image.Truncate(loopSize))
	mkfs(t, fstype, image.Name())
	loop := attachLoop(t, image)
	defer func() { must(t, loop.Close()) }() // the mount keeps it, and detaches it at its end
	mountAt(t, loop.Name(), point, fstype, data)
	return point
}

func mkfs(t *testing.T, fstype, image string) {
	t.Helper()
	args := []string{"-q", "-f", image}
	if fstype == "ext4" {
		args[1] = "-F"
	}
	program, err := exec.LookPath("mkfs." + fstype)
	if err != nil {
		program = filepath.Join("/usr/sbin", "mkfs."+fstype)
	}
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v (scripts/deps test installs it)\n%s", fstype, err, out)
	}
}

// attachLoop gives an image a loop device, which goes when its last user does.
func attachLoop(t *testing.T, image *os.File) *os.File {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skip("this kernel has no loop devices: ", err)
	}
	defer control.Close()
	for range 64 { // another process may take the same free one
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		must(t, err)
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		must(t, err)
		config := unix.LoopConfig{Fd: uint32(image.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop
		}
		if err := errors.Join(err, loop.Close()); !errors.Is(err, unix.EBUSY) {
			t.Fatalf("configure loop device %d: %v", n, err)
		}
	}
	t.Fatal("no loop device is free")
	return nil
}

func mountAt(t *testing.T, source, point, fstype, data string) {
	t.Helper()
	err := unix.Mount(source, point, fstype, 0, data)
	if errors.Is(err, unix.ENODEV) {
		t.Skipf("this kernel has no %s", fstype)
	}
	if err != nil {
		t.Fatalf("mount %s: %v", fstype, err)
	}
	t.Cleanup(func() {
		err := unix.Unmount(point, 0)
		if err == nil {
			return
		}
		t.Errorf("unmount %s: %v", point, err)
		// What a failed test left inside must not keep it.
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			t.Errorf("detach %s: %v", point, err)
		}
	})
	must(t, unix.Chmod(point, 0o755))
}
