package apply

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// write stores data.
func (a *Applier) write(rec *record.Record) error {
	h, err := a.file(rec.FileID, rec.Path)
	if err != nil {
		return err
	}
	defer h.release()
	if len(rec.Data) > 0 {
		if err := a.k.pwrite(h.fd, rec.Data, rec.Offset); err != nil {
			return err
		}
	}
	return a.wrote(h, rec)
}

// wrote sets what comes with new contents: the mode if writing cleared suid or
// sgid on the primary, and the times.
func (a *Applier) wrote(h handle, rec *record.Record) error {
	if rec.Has(record.FieldMode) {
		if err := a.k.fchmod(h.fd, rec.Mode); err != nil {
			return err
		}
	}
	return a.fdTimes(h.fd, rec)
}

// fsync hands the file or directory to the workers.
func (a *Applier) fsync(rec *record.Record) error {
	dataOnly := rec.Flags.Has(record.FlagDataOnly)
	if rec.FileID != 0 {
		if f, ok := a.files.lru.Get(rec.FileID); ok && (!a.syncing || linked(f.fd)) {
			return a.sync.add(rec.LSN, f.fd, f.file, dataOnly, rec.Path)
		}
	}
	l, err := a.root.At(rec.Path)
	if err != nil {
		return err
	}
	defer l.Release()
	var st unix.Stat_t
	if err := l.Stat(&st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h, err := a.file(rec.FileID, rec.Path)
		if err != nil {
			return err
		}
		defer h.release()
		return a.sync.add(rec.LSN, h.fd, h.file, dataOnly, rec.Path)
	case unix.S_IFDIR:
		d, err := a.root.Dir(rec.Path)
		if err != nil {
			return err
		}
		defer d.Release()
		return a.sync.add(rec.LSN, d.FD(), inodeOf(&st), dataOnly, rec.Path)
	default:
		// Not to be opened: all of the store, then.
		return a.sync.addWhole(a.root.FD(), false)
	}
}

// copyRange copies within the store.
func (a *Applier) copyRange(rec *record.Record) error {
	src, err := a.file(rec.FileID2, rec.Path2)
	if err != nil {
		return err
	}
	defer src.release()
	dst, err := a.file(rec.FileID, rec.Path)
	if err != nil {
		return err
	}
	defer dst.release()
	if !a.copy.whole(src.file) {
		return diverged("the contents of %q, to be copied, have not all come yet", rec.Path2)
	}
	if err := a.copyBytes(src.fd, rec.Offset2, dst.fd, rec.Offset, rec.Length); err != nil {
		return err
	}
	return a.wrote(dst, rec)
}

// copyBytes copies exactly n bytes, in the kernel if it can.
func (a *Applier) copyBytes(src int, srcOff int64, dst int, dstOff, n int64) error {
	inKernel := true
	var buf []byte
	for n > 0 {
		done, err := 0, error(nil)
		if inKernel {
			done, err = a.k.copyRange(src, srcOff, dst, dstOff, int(min(n, 1<<30)))
			switch {
			case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL),
				errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
				inKernel = false
				continue
			case err == nil && done == 0:
				// Some filesystems say so of what they cannot copy.
				inKernel = false
				continue
			}
		} else {
			if buf == nil {
				buf = make([]byte, min(n, copyBuffer))
			}
			done, err = a.copyChunk(src, srcOff, dst, dstOff, buf[:min(n, int64(len(buf)))])
			if err == nil && done == 0 {
				err = diverged("the source ends %d bytes too soon", n)
			}
		}
		if err != nil {
			return err
		}
		n, srcOff, dstOff = n-int64(done), srcOff+int64(done), dstOff+int64(done)
	}
	return nil
}

const copyBuffer = 256 << 10

// copyChunk copies up to len(buf) bytes; 0 at the source's end.
func (a *Applier) copyChunk(src int, srcOff int64, dst int, dstOff int64, buf []byte) (int, error) {
	for {
		n, err := unix.Pread(src, buf, srcOff)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, fmt.Errorf("read to copy: %w", err)
		case n == 0:
			return 0, nil
		}
		return n, a.k.pwrite(dst, buf[:n], dstOff)
	}
}
