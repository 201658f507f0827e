package apply

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// fallocate does what fallocate(2) did on the primary; what the standby's
// filesystem cannot do is done with writes, so that the contents are equal.
func (a *Applier) fallocate(rec *record.Record) error {
	h, err := a.file(rec.FileID, rec.Path)
	if err != nil {
		return err
	}
	defer h.release()
	if rec.Offset < 0 || rec.Length <= 0 || rec.Offset+rec.Length < 0 {
		return diverged("fallocate of %d bytes at %d", rec.Length, rec.Offset)
	}
	if rec.Perm&(unix.FALLOC_FL_COLLAPSE_RANGE|unix.FALLOC_FL_INSERT_RANGE) != 0 {
		err = a.shift(h, rec)
	} else {
		err = a.k.fallocate(h.fd, rec.Perm, rec.Offset, rec.Length)
		if unsupported(err) {
			err = a.emulate(h.fd, rec)
		}
	}
	if err != nil {
		return err
	}
	return a.wrote(h, rec)
}

func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

// emulate gives the file the contents and size that the modes without shifts
// would have; space is not reserved.
func (a *Applier) emulate(fd int, rec *record.Record) error {
	const zeroing = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_WRITE_ZEROES
	const known = zeroing | unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_NO_HIDE_STALE | unix.FALLOC_FL_UNSHARE_RANGE
	if rec.Perm&^known != 0 {
		return fmt.Errorf("fallocate mode %#x: %w by the filesystem of the standby's store, "+
			"nor known to this version of replfs", rec.Perm, unix.EOPNOTSUPP)
	}
	size, err := fileSize(fd)
	if err != nil {
		return err
	}
	end := rec.Offset + rec.Length
	if rec.Perm&zeroing != 0 {
		if err := a.zeros(fd, rec.Offset, min(end, size)); err != nil {
			return err
		}
	}
	if end > size && rec.Perm&unix.FALLOC_FL_KEEP_SIZE == 0 {
		return a.k.truncate(fd, end)
	}
	return nil
}

// zeros overwrites from..to with zeros.
func (a *Applier) zeros(fd int, from, to int64) error {
	if from >= to {
		return nil
	}
	buf := make([]byte, min(to-from, copyBuffer))
	for from < to {
		b := buf[:min(to-from, int64(len(buf)))]
		if err := a.k.pwrite(fd, b, from); err != nil {
			return err
		}
		from += int64(len(b))
	}
	return nil
}

func fileSize(fd int) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("stat: %w", err)
	}
	return st.Size, nil
}

// The facts about a shift: the size before, whether it is done by copying, and
// how many bytes were moved.
const (
	factSize = iota
	factCopying
	factMoved
)

// shift removes (COLLAPSE_RANGE) or inserts (INSERT_RANGE) a range. Doing it
// twice would be wrong, so the facts tell how far it came.
func (a *Applier) shift(h handle, rec *record.Record) error {
	size, err := fileSize(h.fd)
	if err != nil {
		return err
	}
	f, known := a.st.facts(rec.LSN)
	if !known {
		if !a.resumed && a.redo && a.sameTime(h.fd, rec) {
			return nil // the last step of a former time was done
		}
		f = facts{factSize: uint64(size)}
		a.st.setFacts(rec.LSN, f)
		if err := a.k.at("facts"); err != nil {
			return err
		}
	}
	before, after := int64(f[factSize]), int64(f[factSize])
	if rec.Perm&unix.FALLOC_FL_COLLAPSE_RANGE != 0 {
		after -= rec.Length
	} else {
		after += rec.Length
	}
	if rec.Offset >= before || after < rec.Offset {
		return diverged("a file of %d bytes cannot be shifted by %d at %d", before, rec.Length, rec.Offset)
	}
	if f[factCopying] == 0 {
		switch size {
		case after:
			return nil
		case before:
		default:
			return diverged("size is %d, was %d", size, before)
		}
		err := a.k.fallocate(h.fd, rec.Perm, rec.Offset, rec.Length)
		// EINVAL: blocks are larger here than on the primary.
		if err == nil || !unsupported(err) && !errors.Is(err, unix.EINVAL) {
			return err
		}
		a.st.setFact(factCopying, 1)
	}
	if after < before {
		return a.collapseByCopy(h.fd, rec, before)
	}
	return a.insertByCopy(h.fd, rec, before)
}

// sameTime reports whether the file has the time that the record gives it.
func (a *Applier) sameTime(fd int, rec *record.Record) bool {
	var st unix.Stat_t
	return rec.Has(record.FieldMtime) && unix.Fstat(fd, &st) == nil &&
		st.Mtim.Sec == rec.Mtime.Sec && st.Mtim.Nsec == int64(rec.Mtime.Nsec)
}

// collapseByCopy moves what follows the range down. A chunk is never longer
// than the distance, so that a chunk that was written still has its source:
// after an interruption the chunk at the noted place can be moved again.
func (a *Applier) collapseByCopy(fd int, rec *record.Record, size int64) error {
	tail := size - rec.Offset - rec.Length
	err := a.moveChunks(rec, tail, func(moved int64, buf []byte) error {
		to := rec.Offset + moved
		return a.moveChunk(fd, to+rec.Length, to, buf)
	})
	if err != nil {
		return err
	}
	return a.k.truncate(fd, size-rec.Length)
}

// insertByCopy moves what follows the place up, the last chunk first, and
// zeroes the gap.
func (a *Applier) insertByCopy(fd int, rec *record.Record, size int64) error {
	err := a.moveChunks(rec, size-rec.Offset, func(moved int64, buf []byte) error {
		from := size - moved - int64(len(buf))
		return a.moveChunk(fd, from, from+rec.Length, buf)
	})
	if err != nil {
		return err
	}
	return a.zeros(fd, rec.Offset, rec.Offset+rec.Length)
}

// moveChunks calls move for each chunk of tail bytes that is not noted as
// moved, and notes it.
func (a *Applier) moveChunks(rec *record.Record, tail int64, move func(moved int64, buf []byte) error) error {
	f, _ := a.st.facts(rec.LSN)
	moved := int64(f[factMoved])
	if moved >= tail {
		return nil
	}
	buf := make([]byte, min(tail-moved, rec.Length, copyBuffer))
	for moved < tail {
		b := buf[:min(tail-moved, int64(len(buf)))]
		if err := move(moved, b); err != nil {
			return err
		}
		moved += int64(len(b))
		a.st.setFact(factMoved, uint64(moved))
	}
	return nil
}

// moveChunk copies all of buf's length.
func (a *Applier) moveChunk(fd int, from, to int64, buf []byte) error {
	for len(buf) > 0 {
		n, err := a.copyChunk(fd, from, fd, to, buf)
		if err == nil && n == 0 {
			err = diverged("the file became shorter")
		}
		if err != nil {
			return err
		}
		buf, from, to = buf[n:], from+int64(n), to+int64(n)
	}
	return nil
}
