package workload

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

func (w *writer) write() error {
	return w.withSome(0, func(fd int, size int64) error {
		return w.pwrite(fd, size, w.upTo(size), 1+w.upTo(8<<10))
	})
}

func (w *writer) writeLarge() error {
	return w.withSome(0, func(fd int, size int64) error {
		most := min(largeWrite, w.budget.grow)
		return w.pwrite(fd, size, w.upTo(min(size, 2*largeWrite)), most/2+w.upTo(most/2))
	})
}

func (w *writer) writeSparse() error {
	return w.withSome(0, func(fd int, size int64) error {
		gap := w.upTo(256 << 10)
		if w.oneIn(16) {
			gap = w.upTo(w.budget.grow)
		}
		return w.pwrite(fd, size, size+min(gap, w.budget.grow), 1+w.upTo(4<<10))
	})
}

func (w *writer) writeAppend() error {
	return w.withSome(unix.O_APPEND, func(fd int, _ int64) error {
		data := w.some(1 + w.upTo(16<<10))
		w.takes(int64(len(data)))
		err := w.writeAll(data, func(done int) (int, error) { return unix.Write(fd, data[done:]) })
		if err != nil {
			return fmt.Errorf("appending %d: %w", len(data), err)
		}
		return nil
	})
}

func (w *writer) writeDirect() error {
	return w.withSome(unix.O_DIRECT, func(fd int, size int64) error {
		buf := aligned(pageSize * int(1+w.upTo(15)))
		copy(buf, w.some(int64(len(buf))))
		return w.pwriteData(fd, size, w.upTo(size/pageSize)*pageSize, buf)
	})
}

// aligned is a buffer as O_DIRECT wants it; the garbage collector moves nothing.
func aligned(n int) []byte {
	buf := make([]byte, n+pageSize)
	off := -int(uintptr(unsafe.Pointer(&buf[0]))) & (pageSize - 1)
	return buf[off : off+n : off+n]
}

func (w *writer) writeSync() error {
	flags := unix.O_SYNC
	if w.oneIn(2) {
		flags = unix.O_DSYNC
	}
	return w.withSome(flags, func(fd int, size int64) error {
		return w.pwrite(fd, size, w.upTo(size), 1+w.upTo(8<<10))
	})
}

// writeHeld writes to a file that other steps, of this writer and others, may
// have renamed, replaced or unlinked since it was opened.
func (w *writer) writeHeld() error {
	if w.held < 0 {
		path, err := w.file()
		if err != nil {
			return err
		}
		w.held, err = w.open(path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
	}
	size, err := regularSize(w.held)
	if err == nil {
		err = w.pwrite(w.held, size, w.upTo(size), 1+w.upTo(4<<10))
	}
	if err == nil && !w.oneIn(8) {
		return nil
	}
	if cerr := w.release(); cerr != nil && err == nil {
		err = fmt.Errorf("close: %w", cerr)
	}
	return err
}

// writeUnlinked changes a file that has lost a name, mostly its last one.
func (w *writer) writeUnlinked() error {
	path, err := w.file()
	if err != nil {
		return err
	}
	return w.withFile(path, unix.O_RDWR, func(fd int, size int64) error {
		if err := unix.Unlinkat(w.root, path, 0); err != nil {
			return fmt.Errorf("unlink: %w", err)
		}
		w.names.drop(path)
		if err := w.pwrite(fd, size, size, 1+w.upTo(8<<10)); err != nil {
			return err
		}
		if err := unix.Fchmod(fd, w.mode()); err != nil {
			return fmt.Errorf("fchmod: %w", err)
		}
		if err := unix.Ftruncate(fd, w.upTo(size)); err != nil {
			return fmt.Errorf("ftruncate: %w", err)
		}
		if err := unix.Fsetxattr(fd, "user.nameless", w.some(8), 0); err != nil {
			return fmt.Errorf("fsetxattr: %w", err)
		}
		return nil
	})
}

// writeKillpriv writes to a set-uid, set-gid file with capabilities without
// the privilege to keep them, so that the kernel takes them away.
func (w *writer) writeKillpriv() error {
	return w.withSome(0, func(fd int, size int64) error {
		if err := unix.Fchmod(fd, 0o6775); err != nil {
			return fmt.Errorf("fchmod: %w", err)
		}
		if err := unix.Fsetxattr(fd, "security.capability", netRawCapability, 0); err != nil {
			return fmt.Errorf("setting capabilities: %w", err)
		}
		return asNobody(func() error {
			return w.pwrite(fd, size, w.upTo(size), 1+w.upTo(4<<10))
		})
	})
}

// netRawCapability is a security.capability value, version 2: permitted CAP_NET_RAW.
var netRawCapability = []byte{0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// asNobody runs f with an unprivileged file system user id, which belongs to
// the thread.
func asNobody(f func() error) error {
	runtime.LockOSThread()
	old, err := unix.SetfsuidRetUid(65534)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("setfsuid: %w", err)
	}
	err = f()
	_, rerr := unix.SetfsuidRetUid(old)
	if now, _ := unix.SetfsuidRetUid(-1); now != old {
		// The thread stays locked, so that nothing else ever runs on it.
		return errors.Join(err, fmt.Errorf("setfsuid back to %d left %d: %w", old, now, errors.Join(rerr, unix.EIO)))
	}
	runtime.UnlockOSThread()
	return err
}

func (w *writer) truncateShrink() error {
	return w.truncate(func(size int64) int64 { return w.upTo(size - 1) }, 1)
}

func (w *writer) truncateGrow() error {
	return w.truncate(func(size int64) int64 { return size + 1 + w.upTo(64<<10) }, 0)
}

// truncate sets the size by path, of a file of at least the given size.
func (w *writer) truncate(to func(size int64) int64, least int64) error {
	path, err := w.file()
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(w.root, path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size < least {
		return fmt.Errorf("no file of %d bytes or more: %w", least, errConflict)
	}
	size := to(st.Size)
	w.takes(max(0, size-st.Size))
	if err := unix.Truncate(w.abs+path, size); err != nil {
		return fmt.Errorf("truncate from %d to %d: %w", st.Size, size, err)
	}
	return nil
}

func (w *writer) ftruncate() error {
	return w.withSome(0, func(fd int, size int64) error {
		to := w.upTo(size)
		if w.oneIn(3) {
			to = size + w.upTo(64<<10)
		}
		w.takes(max(0, to-size))
		if err := unix.Ftruncate(fd, to); err != nil {
			return fmt.Errorf("ftruncate from %d to %d: %w", size, to, err)
		}
		return nil
	})
}

func (w *writer) fsync() error {
	return w.withSome(0, func(fd int, size int64) error {
		if err := w.pwrite(fd, size, w.upTo(size), 1+w.upTo(1<<10)); err != nil {
			return err
		}
		if err := unix.Fsync(fd); err != nil {
			return fmt.Errorf("fsync: %w", err)
		}
		return nil
	})
}

func (w *writer) fdatasync() error {
	return w.withSome(0, func(fd int, size int64) error {
		if err := w.pwrite(fd, size, w.upTo(size), 1+w.upTo(1<<10)); err != nil {
			return err
		}
		if err := unix.Fdatasync(fd); err != nil {
			return fmt.Errorf("fdatasync: %w", err)
		}
		return nil
	})
}

func (w *writer) fsyncDir() (err error) {
	dir, err := w.existing(directory)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(w.root, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer closeQuietly(fd)
	if err := unix.Fsync(fd); err != nil {
		return fmt.Errorf("fsync: %w", err)
	}
	return nil
}
