package workload

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

func (w *writer) create() error {
	path := w.fresh()
	flags := unix.O_CREAT | unix.O_RDWR | unix.O_NONBLOCK
	if !w.oneIn(4) {
		flags |= unix.O_NOFOLLOW
	}
	return w.openToMake(path, flags)
}

func (w *writer) createExcl() error {
	return w.openToMake(w.fresh(), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY)
}

// openToMake opens with O_CREAT and mostly writes a little.
func (w *writer) openToMake(path string, flags int) (err error) {
	fd, err := w.open(path, flags, w.mode())
	if err != nil {
		return err
	}
	defer func() {
		if cerr := unix.Close(fd); cerr != nil && err == nil {
			err = fmt.Errorf("close: %w", cerr)
		}
	}()
	size, err := regularSize(fd)
	if err != nil {
		return err
	}
	w.madeSome(path) // perhaps through a symlink
	if w.oneIn(4) {
		return nil
	}
	return w.pwrite(fd, size, 0, 1+w.upTo(16<<10))
}

func (w *writer) openTrunc() (err error) {
	path, err := w.existing(regular, regular, regular, link)
	if err != nil {
		return err
	}
	flags := unix.O_TRUNC | unix.O_RDWR | unix.O_NONBLOCK
	if w.oneIn(2) {
		flags |= unix.O_CREAT
	}
	return w.openToMake(path, flags)
}

func (w *writer) tmpfileLink() (err error) {
	dir, path := w.note(w.dirAbove(maxDepth)), w.fresh()
	fd, err := unix.Openat(w.root, dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, w.mode())
	if err != nil {
		return fmt.Errorf("open with O_TMPFILE: %w", err)
	}
	defer func() {
		if cerr := unix.Close(fd); cerr != nil && err == nil {
			err = fmt.Errorf("close: %w", cerr)
		}
	}()
	if err := w.pwrite(fd, 0, 0, 1+w.upTo(8<<10)); err != nil {
		return err
	}
	if err := unix.Linkat(fd, "", w.root, path, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("linkat: %w", err)
	}
	w.made(path, regular)
	return nil
}

func (w *writer) mknodRegular() error { return w.mknod(unix.S_IFREG, 0, regular) }
func (w *writer) mknodFifo() error    { return w.mknod(unix.S_IFIFO, 0, special) }
func (w *writer) mknodSocket() error  { return w.mknod(unix.S_IFSOCK, 0, special) }

// mknodChar makes /dev/null, on which stray writes do no harm.
func (w *writer) mknodChar() error {
	return w.mknod(unix.S_IFCHR, int(unix.Mkdev(1, 3)), special)
}

func (w *writer) mknod(format uint32, dev int, k kind) error {
	path := w.fresh()
	if err := unix.Mknodat(w.root, path, format|w.mode(), dev); err != nil {
		return fmt.Errorf("mknod of type %#o: %w", format, err)
	}
	w.made(path, k)
	return nil
}

func (w *writer) mkdir() error {
	path := w.freshDir()
	if err := unix.Mkdirat(w.root, path, w.mode()|0o700); err != nil {
		return fmt.Errorf("mkdir: %w", err)
	}
	w.made(path, directory)
	return nil
}

func (w *writer) symlink() error {
	path, target := w.fresh(), ""
	switch w.rng.IntN(4) {
	case 0:
		target = danglingRoot + fmt.Sprintf("%x", w.some(1+w.upTo(150)))
	case 1:
		target = dirNames[w.rng.IntN(len(dirNames))]
	default: // may exist, dangle, or be the link itself
		target = fileNames[w.rng.IntN(len(fileNames))]
	}
	if err := unix.Symlinkat(target, w.root, path); err != nil {
		return fmt.Errorf("symlink to %q: %w", target, err)
	}
	w.made(path, link)
	return nil
}

func (w *writer) link() error {
	from, err := w.existing(regular, regular, link, special)
	if err != nil {
		return err
	}
	to := w.fresh()
	if err := unix.Linkat(w.root, from, w.root, to, 0); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	w.madeSome(to)
	return nil
}

func (w *writer) unlink() error {
	path, err := w.existing(regular, link, special)
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(w.root, path, 0); err != nil {
		return fmt.Errorf("unlink: %w", err)
	}
	w.names.drop(path)
	return nil
}

// rmdir mostly meets directories that are not empty; a few tries find one.
func (w *writer) rmdir() error {
	var last error
	for range 4 {
		path, err := w.existing(directory)
		if err != nil {
			return err
		}
		err = unix.Unlinkat(w.root, path, unix.AT_REMOVEDIR)
		if err == nil {
			w.names.drop(path)
			return nil
		}
		last = fmt.Errorf("rmdir of %q: %w", path, err)
		if !errors.Is(err, unix.ENOTEMPTY) {
			break
		}
	}
	return last
}

func (w *writer) rename() error {
	from, err := w.existing(regular, link, special)
	if err != nil {
		return err
	}
	return w.renameTo(from, w.fresh(), 0)
}

func (w *writer) renameOver() error {
	from, err := w.existing(regular, link, special)
	if err != nil {
		return err
	}
	to, err := w.existing(regular, link, special)
	if err != nil {
		return err
	}
	return w.renameTo(from, to, 0)
}

func (w *writer) renameDir() error {
	from, err := w.existing(directory)
	if err != nil {
		return err
	}
	return w.renameTo(from, w.freshDir(), 0)
}

func (w *writer) renameDirOver() error {
	from, err := w.existing(directory)
	if err != nil {
		return err
	}
	to := w.freshDir()
	// An empty directory there is what rename may replace.
	if err := unix.Mkdirat(w.root, to, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("mkdir of %q: %w", to, err)
	} else if err == nil {
		w.made(to, directory)
	}
	return w.renameTo(from, to, 0)
}

func (w *writer) renameNoreplace() error {
	from, err := w.existing(regular, link, special, directory)
	if err != nil {
		return err
	}
	return w.renameTo(from, w.fresh(), unix.RENAME_NOREPLACE)
}

func (w *writer) renameExchange() error {
	from, err := w.existing(regular, link, special, directory)
	if err != nil {
		return err
	}
	to, err := w.existing(regular, link, special, directory)
	if err != nil {
		return err
	}
	return w.renameTo(from, to, unix.RENAME_EXCHANGE)
}

func (w *writer) renameTo(from, to string, flags uint) error {
	if depth(to)+w.names.height(from) > maxHeight {
		return fmt.Errorf("would get too deep: %w", errConflict)
	}
	w.budget.bytes.Add(512) // a directory may grow
	if err := unix.Renameat2(w.root, from, w.root, to, flags); err != nil {
		return fmt.Errorf("rename of %q to %q with flags %#x: %w", from, to, flags, err)
	}
	if flags == unix.RENAME_EXCHANGE {
		w.names.exchange(from, to)
	} else {
		w.names.move(from, to)
	}
	return nil
}

// mode is a random mode for a new file.
func (w *writer) mode() uint32 {
	modes := []uint32{0o644, 0o600, 0o755, 0o666, 0o640, 0o400, 0o4755, 0o2775, 0o1777}
	return modes[w.rng.IntN(len(modes))]
}

func kindOf(mode uint32) kind {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return regular
	case unix.S_IFDIR:
		return directory
	case unix.S_IFLNK:
		return link
	default:
		return special
	}
}
