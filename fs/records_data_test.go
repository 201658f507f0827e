package fs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const page = 4096

// contentCases: content changes with exactly one record each, whatever
// way the kernel takes.
func contentCases() []opCase {
	write := func(flags int) func(dir) error {
		return func(d dir) error {
			return d.with("f", flags, func(fd int) error { return writeAll(fd, "12345") })
		}
	}
	fallocate := func(mode uint32, off, length int64) func(dir) error {
		return func(d dir) error {
			return d.with("f", unix.O_RDWR, func(fd int) error { return unix.Fallocate(fd, mode, off, length) })
		}
	}
	onFd := func(flags int, f func(fd int) error) func(dir) error {
		return func(d dir) error { return d.with("f", flags, f) }
	}
	pages := func(d dir) { d.file("f", string(make([]byte, 4*page))) }
	return []opCase{
		{name: "write", setup: withF, run: write(unix.O_WRONLY), want: []string{"write f 0+5"}},
		{name: "write cached", setup: withF, run: write(unix.O_RDWR), want: []string{"write f 0+5"}},
		{name: "append", setup: withF, run: write(unix.O_WRONLY | unix.O_APPEND), want: []string{"write f 7+5"}},
		{name: "append cached", setup: withF, run: write(unix.O_RDWR | unix.O_APPEND), want: []string{"write f 7+5"}},
		{name: "write direct", setup: withF, run: onFd(unix.O_RDWR|unix.O_DIRECT, func(fd int) error {
			return writeAll(fd, string(alignedPage()))
		}), want: []string{"write f 0+4096"}},
		{name: "write sync", setup: withF, run: write(unix.O_WRONLY | unix.O_SYNC), want: []string{"write f 0+5", "fsync f"}},
		{name: "write dsync", setup: withF, run: write(unix.O_WRONLY | unix.O_DSYNC), want: []string{"write f 0+5", "fsync f data-only"}},
		{name: "write sync cached", setup: withF, run: write(unix.O_RDWR | unix.O_SYNC), want: []string{"write f 0+5", "fsync f"}},
		{name: "write dsync cached", setup: withF, run: write(unix.O_RDWR | unix.O_DSYNC), want: []string{"write f 0+5", "fsync f data-only"}},
		{name: "write RWF_DSYNC", setup: withF, run: onFd(unix.O_WRONLY, func(fd int) error {
			_, err := unix.Pwritev2(fd, [][]byte{[]byte("123")}, 2, unix.RWF_DSYNC)
			return err
		}), want: []string{"write f 2+3", "fsync f data-only"}},
		{name: "write far behind the end", setup: withF, run: onFd(unix.O_WRONLY, func(fd int) error {
			_, err := unix.Pwrite(fd, []byte("x"), 1<<30)
			return err
		}), want: []string{"write f 1073741824+1"}},
		{name: "write of 1 MiB", setup: withF, run: onFd(unix.O_WRONLY, func(fd int) error {
			return writeAll(fd, string(make([]byte, 1<<20)))
		}), want: []string{"write f 0+1048576"}},
		{name: "read only descriptor", setup: withF, fails: unix.EBADF, run: write(unix.O_RDONLY)},
		{name: "open truncating", setup: withF, run: onFd(unix.O_WRONLY|unix.O_TRUNC, func(int) error { return nil }),
			want: []string{"setattr f size,mtime"}},
		{name: "open read-only, truncating", setup: withF, run: onFd(unix.O_RDONLY|unix.O_TRUNC, func(int) error { return nil }),
			want: []string{"setattr f size,mtime"}},
		{name: "truncate", setup: withF, run: func(d dir) error { return unix.Truncate(d.in("f"), 3) },
			want: []string{"setattr f size,mtime"}},
		{name: "ftruncate", setup: withF, run: onFd(unix.O_WRONLY, func(fd int) error { return unix.Ftruncate(fd, 1<<20) }),
			want: []string{"setattr f size,mtime"}},
		{name: "ftruncate of what was created to be read", run: func(d dir) error {
			return d.with("f", unix.O_CREAT|unix.O_RDONLY, func(int) error { return unix.Truncate(d.in("f"), 9) })
		}, want: []string{"create f 100644", "setattr f size,mtime"}},
		{name: "truncate too far", setup: withF, fails: unix.EFBIG, run: func(d dir) error { return unix.Truncate(d.in("f"), 1<<62) }},
		{name: "fallocate", setup: withF, run: fallocate(0, 0, page), want: []string{"fallocate f 0 0+4096"}},
		{name: "fallocate keep size", setup: withF, run: fallocate(unix.FALLOC_FL_KEEP_SIZE, 0, page), want: []string{"fallocate f 1 0+4096"}},
		{name: "punch hole", setup: pages, run: fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, page, page),
			want: []string{"fallocate f 3 4096+4096"}},
		{name: "zero range", setup: pages, run: fallocate(unix.FALLOC_FL_ZERO_RANGE, 3*page, 2*page), want: []string{"fallocate f 16 12288+8192"}},
		// The kernel keeps these from every FUSE file system.
		{name: "collapse range", setup: pages, fails: unix.EOPNOTSUPP, run: fallocate(unix.FALLOC_FL_COLLAPSE_RANGE, 0, page)},
		{name: "copy range", setup: func(d dir) { pages(d); d.file("g", "g") }, run: copyRange("f", "g", page, 8192, page),
			want: []string{"copy-range g f 4096->8192+4096"}},
		{name: "copy range within", setup: pages, run: copyRange("f", "f", 0, 8192, page), want: []string{"copy-range f f 0->8192+4096"}},
		{name: "copy range of nothing", setup: func(d dir) { pages(d); d.file("g", "g") }, run: copyRange("g", "f", 5, 0, page)},
		{name: "msync", setup: pages, run: func(d dir) error { return mmapped(d.in("f"), "sync") },
			want: []string{"write f 4096+4096", "fsync f data-only"}},
		{name: "munmap and close", setup: pages, run: func(d dir) error { return mmapped(d.in("f"), "") },
			want: []string{"write f 4096+4096"}},
		{name: "fsync", setup: withF, run: onFd(unix.O_RDONLY, unix.Fsync), want: []string{"fsync f"}},
		{name: "fdatasync", setup: withF, run: onFd(unix.O_RDWR, unix.Fdatasync), want: []string{"fsync f data-only"}},
		{name: "fsync of a directory", run: func(d dir) error { return d.with(".", unix.O_RDONLY|unix.O_DIRECTORY, unix.Fsync) },
			want: []string{"fsync ."}},
		{name: "file without a name", setup: withF, run: func(d dir) error {
			return d.with("f", unix.O_RDWR, func(fd int) error {
				// None of this reaches a standby, whose file is gone.
				return errors.Join(unix.Unlink(d.in("f")), writeAll(fd, "12345"), unix.Ftruncate(fd, 2*page),
					unix.Fchmod(fd, 0o600), unix.Fchown(fd, 5, 5), unix.Fsetxattr(fd, "user.a", []byte("b"), 0),
					unix.Fremovexattr(fd, "user.a"), unix.Fallocate(fd, 0, 0, page), unix.Fsync(fd),
					mmapped(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), "sync"))
			})
		}, want: []string{"unlink f last"}},
	}
}

func copyRange(from, to string, offIn, offOut int64, length int) func(dir) error {
	return func(d dir) error {
		return d.with(from, unix.O_RDONLY, func(in int) error {
			return d.with(to, unix.O_WRONLY, func(out int) error {
				_, err := unix.CopyFileRange(in, &offIn, out, &offOut, length, 0)
				return err
			})
		})
	}
}

func alignedPage() []byte {
	b := make([]byte, 2*page)
	skip := page - int(uintptr(unsafe.Pointer(&b[0]))%page)
	return b[skip : skip+page]
}

// TestTruncateTime: as natively, truncate(2) to the size that a file has leaves
// its mtime on some file systems, and ftruncate(2) changes it on all.
func TestTruncateTime(t *testing.T) {
	for _, fstype := range fsTypes {
		t.Run(fstype, func(t *testing.T) {
			e := newEnv(t, options{base: newFilesystem(t, fstype, "")})
			native := e.path("native")
			must(t, os.Mkdir(native, 0o755))
			var got [2][]string
			for i, base := range []string{native, e.mnt} {
				f := base + "/f"
				must(t, os.WriteFile(f, make([]byte, page), 0o644))
				for _, call := range []func() error{
					func() error { return unix.Truncate(f, page) },
					func() error { return with(f, unix.O_RDWR, func(fd int) error { return unix.Ftruncate(fd, page) }) },
					func() error { return unix.Truncate(f, page+1) },
					func() error { return unix.Truncate(f, 0) },
					func() error { return with(f, unix.O_RDONLY|unix.O_TRUNC, func(int) error { return nil }) },
					func() error { return with(f, unix.O_WRONLY|unix.O_TRUNC, func(int) error { return nil }) },
				} {
					must(t, unix.UtimesNanoAt(unix.AT_FDCWD, f, old, 0))
					must(t, call())
					got[i] = append(got[i], times(t, f))
				}
			}
			if !slices.Equal(got[0], got[1]) {
				t.Errorf("plain directory %q, mount %q", got[0], got[1])
			}
			e.equal()
			e.sound()
		})
	}
}
