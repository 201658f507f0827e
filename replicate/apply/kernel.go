package apply

import (
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/beneath"
)

// kernel makes the system calls that change the store. Tests set probe to
// fail or to stop at the call that point names ("+" after it: when it
// succeeded).
type kernel struct {
	probe func(point string) error
	// changed says that something in the store may have changed since it was
	// cleared. Only the applying goroutine uses it.
	changed bool
}

// do makes a call, again if a signal interrupted it.
func (k *kernel) do(point string, call func() error) error {
	if err := k.at(point); err != nil {
		return err
	}
	err := call()
	for err == unix.EINTR {
		err = call()
	}
	if err != nil {
		return &os.SyscallError{Syscall: point, Err: err}
	}
	k.changed = true
	if k.probe != nil {
		return k.probe(point + "+")
	}
	return nil
}

// at is a place where tests can stop.
func (k *kernel) at(point string) error {
	if k.probe == nil {
		return nil
	}
	if err := k.probe(point); err != nil {
		return &os.SyscallError{Syscall: point, Err: err}
	}
	return nil
}

// partial is do for calls that may have changed something although they fail.
func (k *kernel) partial(point string, call func() error) error {
	k.changed = true
	return k.do(point, call)
}

func (k *kernel) create(l beneath.Loc, perm uint32) (fd int, err error) {
	err = k.do("create", func() error {
		fd, err = unix.Openat(l.FD, l.Name, unix.O_CREAT|unix.O_EXCL|fileFlags, perm&0o7777)
		return err
	})
	return fd, err
}

func (k *kernel) mknod(l beneath.Loc, mode uint32, dev uint64) error {
	return k.do("mknod", func() error { return unix.Mknodat(l.FD, l.Name, mode, int(dev)) })
}

func (k *kernel) mkdir(l beneath.Loc, perm uint32) error {
	return k.do("mkdir", func() error { return unix.Mkdirat(l.FD, l.Name, perm&0o7777) })
}

func (k *kernel) symlink(target string, l beneath.Loc) error {
	return k.do("symlink", func() error { return unix.Symlinkat(target, l.FD, l.Name) })
}

func (k *kernel) link(from, to beneath.Loc) error {
	return k.do("link", func() error { return unix.Linkat(from.FD, from.Name, to.FD, to.Name, 0) })
}

func (k *kernel) unlink(l beneath.Loc, flags int) error {
	return k.do("unlink", func() error { return unix.Unlinkat(l.FD, l.Name, flags) })
}

func (k *kernel) rename(from, to beneath.Loc, flags uint) error {
	return k.do("rename", func() error {
		return unix.Renameat2(from.FD, from.Name, to.FD, to.Name, flags)
	})
}

func (k *kernel) pwrite(fd int, b []byte, off int64) error {
	for {
		n := 0
		err := k.partial("pwrite", func() (err error) {
			n, err = unix.Pwrite(fd, b, off)
			return err
		})
		if err != nil {
			return err
		}
		if b, off = b[n:], off+int64(n); len(b) == 0 {
			return nil
		}
	}
}

// pwritev may write less than all.
func (k *kernel) pwritev(fd int, vec [][]byte, off int64) (n int, err error) {
	err = k.partial("pwritev", func() error {
		n, err = unix.Pwritev(fd, vec, off)
		return err
	})
	return n, err
}

func (k *kernel) truncate(fd int, size int64) error {
	return k.partial("ftruncate", func() error { return unix.Ftruncate(fd, size) })
}

func (k *kernel) fallocate(fd int, mode uint32, off, length int64) error {
	return k.partial("fallocate", func() error { return unix.Fallocate(fd, mode, off, length) })
}

func (k *kernel) copyRange(src int, srcOff int64, dst int, dstOff int64, n int) (done int, err error) {
	err = k.partial("copy_file_range", func() error {
		done, err = unix.CopyFileRange(src, &srcOff, dst, &dstOff, n, 0)
		return err
	})
	return done, err
}

func (k *kernel) chown(l beneath.Loc, uid, gid uint32) error {
	return k.do("chown", func() error {
		return unix.Fchownat(l.FD, l.Name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (k *kernel) fchown(fd int, uid, gid uint32) error {
	return k.do("chown", func() error { return unix.Fchown(fd, int(uid), int(gid)) })
}

func (k *kernel) fchmod(fd int, mode uint32) error {
	return k.do("chmod", func() error { return unix.Fchmod(fd, mode&0o7777) })
}

// chmod changes the mode without opening the file for real, which would act
// on a device.
func (k *kernel) chmod(l beneath.Loc, mode uint32) error {
	mode &= 0o7777
	return k.do("chmod", func() error {
		err := unix.Fchmodat(l.FD, l.Name, mode, unix.AT_SYMLINK_NOFOLLOW)
		if err != unix.EOPNOTSUPP {
			return err
		}
		// Older than Linux 6.6, or a symbolic link, which has no mode.
		return withPath(l, func(path string, st *unix.Stat_t) error {
			if st.Mode&unix.S_IFMT == unix.S_IFLNK {
				return unix.EOPNOTSUPP
			}
			return unix.Chmod(path, mode)
		})
	})
}

// omit leaves a time as it is.
var omit = unix.Timespec{Nsec: unix.UTIME_OMIT}

func (k *kernel) futimes(point string, fd int, atime, mtime unix.Timespec) error {
	ts := [2]unix.Timespec{atime, mtime}
	return k.do(point, func() error {
		_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
		if e != 0 {
			return e
		}
		return nil
	})
}

func (k *kernel) utimes(l beneath.Loc, atime, mtime unix.Timespec) error {
	return k.do("utimens", func() error {
		ts := [2]unix.Timespec{atime, mtime}
		return unix.UtimesNanoAt(l.FD, l.Name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (k *kernel) setxattr(l beneath.Loc, name string, value []byte) error {
	return k.do("setxattr", func() error {
		return withPath(l, func(path string, _ *unix.Stat_t) error {
			return unix.Setxattr(path, name, value, 0)
		})
	})
}

func (k *kernel) fsetxattr(fd int, name string, value []byte) error {
	return k.do("setxattr", func() error { return unix.Fsetxattr(fd, name, value, 0) })
}

func (k *kernel) removexattr(l beneath.Loc, name string) error {
	return k.do("removexattr", func() error {
		return withPath(l, func(path string, _ *unix.Stat_t) error {
			return unix.Removexattr(path, name)
		})
	})
}

// withPath calls f with a path that leads to exactly the object at l, whatever
// its type: the calls that follow links stop there.
func withPath(l beneath.Loc, f func(path string, st *unix.Stat_t) error) error {
	fd, err := l.Open(unix.O_PATH, 0)
	if err != nil {
		return errno(err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	return f("/proc/self/fd/"+strconv.Itoa(fd), &st)
}

// syncJob runs in a worker, and closes the job's descriptor.
func (k *kernel) syncJob(j *syncJob) (err error) {
	defer func() {
		if e := unix.Close(j.fd); e != nil && err == nil {
			err = fmt.Errorf("close after fsync of %q: %w", j.path, e)
		}
	}()
	point, call := "fsync", unix.Fsync
	switch {
	case j.whole:
		point, call = "syncfs", unix.Syncfs
	case j.dataOnly:
		point, call = "fdatasync", unix.Fdatasync
	}
	if k.probe != nil {
		err = k.at("worker." + point)
	}
	if err == nil {
		err = unix.EINTR
		for err == unix.EINTR {
			err = call(j.fd)
		}
	}
	if err != nil {
		what := strconv.Quote(j.path)
		if j.whole {
			what = "of the store"
		}
		return fmt.Errorf("%s %s (record %d): %w", point, what, j.lsn, err)
	}
	return nil
}

// syncfs makes the filesystem of fd durable.
func (k *kernel) syncfs(fd int) error {
	return k.do("syncfs", func() error { return unix.Syncfs(fd) })
}
