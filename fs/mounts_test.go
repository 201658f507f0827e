package fs

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemount: the mount can be made read-only and back, as a whole and in a
// bind mount of a part.
func TestRemount(t *testing.T) {
	e := newEnv(t, options{})
	must(t, os.Mkdir(e.in("d"), 0o755))
	must(t, os.WriteFile(e.in("d/f"), []byte("x"), 0o644))
	eventually(t, "the flag is settled", func() bool { return mountFlag(t, e.mnt) == "rw" })
	point := e.path("bind")
	must(t, os.Mkdir(point, 0o755))
	must(t, unix.Mount(e.in("d"), point, "", unix.MS_BIND, ""))
	bound := true
	defer func() {
		if bound {
			must(t, unix.Unmount(point, unix.MNT_DETACH))
		}
	}()
	write := func(path string) error { return os.WriteFile(path, []byte("more"), 0o644) }
	e.records()
	must(t, write(point+"/g"))
	if recs := e.records(); len(recs) != 2 || recs[0].Path != "d/g" {
		t.Errorf("records by way of the bind mount: %v", recs)
	}
	must(t, unix.Mount("", point, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if err := write(point + "/g"); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only bind mount: %v", err)
	}
	must(t, write(e.in("d/g")))
	must(t, unix.Mount("", point, "", unix.MS_BIND|unix.MS_REMOUNT, ""))

	must(t, unix.Mount("none", e.mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	for _, path := range []string{e.in("d/g"), point + "/g"} {
		if err := write(path); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to %s, remounted read-only: %v", path, err)
		}
		if _, err := os.ReadFile(path); err != nil {
			t.Error(err)
		}
	}
	must(t, unix.Mount("none", e.mnt, "", unix.MS_REMOUNT, ""))
	must(t, write(e.in("d/h")))
	must(t, unix.Unmount(point, 0))
	bound = false
	e.equal()
	e.sound()
}

// TestNamespaces: processes of other mount, pid and user namespaces use the
// mount as everybody else.
func TestNamespaces(t *testing.T) {
	e := newEnv(t, options{})
	must(t, os.Mkdir(e.in("d"), 0o777))
	must(t, unix.Chmod(e.in("d"), 0o777))
	root.must(t, e.mnt, `unshare --mount --pid --fork sh -ec 'mount --bind d /mnt; echo x >/mnt/f; mv /mnt/f /mnt/g; umount /mnt'`)
	if b, err := os.ReadFile(e.in("d/g")); string(b) != "x\n" {
		t.Errorf("%q, %v", b, err)
	}
	if out, err := git.sh(t, e.mnt, "unshare --map-root-user true"); err == nil {
		git.must(t, e.mnt, `unshare --map-root-user --mount sh -ec 'mount --bind d /mnt; echo y >/mnt/h'`)
		if got := stat(t, e.in("d/h")); got != "666 4001:4001" {
			t.Errorf("by the root of a user namespace: %s", got)
		}
	} else {
		t.Log("no user namespaces for users here:", out)
	}
	e.equal()
	e.sound()
}

// openHandle opens a file by its handle.
func openByHandle(mount string, h unix.FileHandle) (int, error) {
	dir, err := unix.Open(mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return unix.OpenByHandleAt(dir, h, unix.O_RDONLY|unix.O_CLOEXEC)
}

// TestFileHandles: name_to_handle_at(2) gives a handle that opens the same file
// while the kernel knows it; later, and after the daemon was restarted, it is
// ESTALE, and never another file.
func TestFileHandles(t *testing.T) {
	e := newEnv(t, options{})
	const files = 20
	var handles []unix.FileHandle
	for i := range files {
		name := e.in(fmt.Sprint("f", i))
		must(t, os.WriteFile(name, []byte(name), 0o644))
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, name, 0)
		must(t, err)
		handles = append(handles, h)
		// Open, so that the kernel does not drop it.
		open, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		fd, err := openByHandle(e.mnt, h)
		must(t, err)
		buf := make([]byte, 200)
		n, err := unix.Read(fd, buf)
		must(t, errors.Join(err, unix.Close(fd), unix.Close(open)))
		if string(buf[:n]) != name {
			t.Errorf("the handle of %s opens %q", name, buf[:n])
		}
	}
	must(t, os.Remove(e.in("f0")))
	if fd, err := openByHandle(e.mnt, handles[0]); !errors.Is(err, unix.ESTALE) {
		t.Errorf("of a removed file: %d, %v", fd, err)
	}
	e.unmount()
	e.mount()
	// The new daemon's node ids are the old one's again.
	for i := files - 1; i > 0; i-- {
		must(t, unix.Stat(e.in(fmt.Sprint("f", i)), new(unix.Stat_t)))
	}
	for i, h := range handles {
		if fd, err := openByHandle(e.mnt, h); !errors.Is(err, unix.ESTALE) {
			t.Errorf("handle %d after a restart: %d, %v", i, fd, err)
			if err == nil {
				unix.Close(fd)
			}
		}
	}
	e.equal()
}

// TestStatfs: df shows the store.
func TestStatfs(t *testing.T) {
	for _, fstype := range fsTypes {
		t.Run(fstype, func(t *testing.T) {
			e := newEnv(t, options{base: newFilesystem(t, fstype, "")})
			must(t, os.WriteFile(e.in("f"), make([]byte, 1<<20), 0o644))
			fd, err := unix.Open(e.in("f"), unix.O_RDONLY, 0)
			must(t, err)
			must(t, errors.Join(unix.Fsync(fd), unix.Close(fd)))
			var mount, store unix.Statfs_t
			must(t, unix.Statfs(e.mnt, &mount))
			must(t, unix.Statfs(e.store, &store))
			// A known difference: the type, the id, the flags of the mount.
			mount.Type, mount.Fsid, mount.Flags = store.Type, store.Fsid, store.Flags
			if mount != store {
				t.Errorf("mount %+v\nstore %+v", mount, store)
			}
		})
	}
}

// TestRemovedCwd: a directory that is somebody's working directory can be
// removed, and then is what it would be in the store.
func TestRemovedCwd(t *testing.T) {
	e := newEnv(t, options{})
	native := e.path("native")
	must(t, os.Mkdir(native, 0o755))
	var got [2]string
	for i, dir := range []string{native, e.mnt} {
		got[i] = root.must(t, dir, `mkdir -p d/e; cd d/e; rmdir ../e; ls -a; stat -c '%F %h %a' .; chmod 711 .; stat -c %a .
			(echo x >f) 2>&1 | sed 's/.*: //'; mkdir g 2>&1 | sed 's/.*: //'; ls .. ; cd ..; ls; rmdir ../d; cd ..; ls`)
	}
	if got[0] != got[1] {
		t.Errorf("plain directory:\n%s\n\nmount:\n%s", got[0], got[1])
	}
	e.equal()
	e.sound()
}
