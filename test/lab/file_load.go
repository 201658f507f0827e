package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// FileKind is a way in which programs make files durable.
type FileKind string

const (
	// NewFiles are written, fsynced, and then their directory is.
	NewFiles FileKind = "new files"
	// Appends to one file a worker, each with fdatasync, as a database's log.
	Appends FileKind = "appends"
	// Renames are files made aside, fsynced, and renamed into place, whose
	// directory is fsynced, as git's refs and packs.
	Renames FileKind = "renames"
	// SyncWrites append through O_DSYNC.
	SyncWrites FileKind = "O_DSYNC writes"
	// Unsynced are new files that nobody made durable: a crash may take them,
	// and a test that cannot see that sees nothing.
	Unsynced FileKind = "files without fsync"
)

// fileSize is that of every write: whole pages, as of a database.
const fileSize = 8 << 10

// FileLoad writes files in one way and remembers what it made durable.
type FileLoad struct {
	*Load
	kind FileKind
}

// StartFileLoad starts workers that write in the directory dir, which exists.
func StartFileLoad(ctx context.Context, dir string, kind FileKind, workers int) (*FileLoad, error) {
	l := &FileLoad{kind: kind}
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the directory of a load: %w", err)
	}
	logs := make([]*os.File, workers)
	if kind == Appends || kind == SyncWrites {
		flags := os.O_CREATE | os.O_WRONLY
		if kind == SyncWrites {
			flags |= unix.O_DSYNC
		}
		for w := range logs {
			if logs[w], err = os.OpenFile(filepath.Join(dir, l.log(w)), flags, 0o600); err != nil {
				return nil, fmt.Errorf("make the file of a worker: %w", err)
			}
		}
		if err := d.Sync(); err != nil {
			return nil, fmt.Errorf("make the files of the workers durable: %w", err)
		}
	}
	step := func(_ context.Context, ledger *ledger, w int) error {
		e := ledger.attempt(w)
		if err := l.write(d, logs[w], e); err != nil {
			return fmt.Errorf("write %s: %w", kind, err)
		}
		ledger.ack(e)
		if kind == Unsynced {
			time.Sleep(time.Millisecond) // they are not to fill the disk
		}
		return nil
	}
	l.Load = startLoad(ctx, workers, step, func(w int) {
		if logs[w] != nil {
			_ = logs[w].Close() // what counts was synced
		}
	})
	context.AfterFunc(ctx, func() {
		l.wg.Wait()
		_ = d.Close()
	})
	return l, nil
}

func (l *FileLoad) log(worker int) string { return fmt.Sprintf("log-%d", worker) }

func (l *FileLoad) file(e entry) string { return fmt.Sprintf("file-%d-%d", e.worker, e.seq) }

// write makes one entry.
func (l *FileLoad) write(dir, log *os.File, e entry) error {
	at := int64(e.seq-1) * fileSize
	switch l.kind {
	case Appends:
		if _, err := log.WriteAt(fileContent(e), at); err != nil {
			return err
		}
		return unix.Fdatasync(int(log.Fd()))
	case SyncWrites:
		_, err := log.WriteAt(fileContent(e), at)
		return err
	}
	path := filepath.Join(dir.Name(), l.file(e))
	name := path
	if l.kind == Renames {
		name = path + ".lock"
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(fileContent(e))
	if l.kind != Unsynced && err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil || l.kind == Unsynced {
		return err
	}
	if l.kind == Renames {
		if err := os.Rename(name, path); err != nil {
			return err
		}
	}
	return dir.Sync()
}

// fileContent is what an entry's bytes have to be.
func fileContent(e entry) []byte {
	line := fmt.Sprintf("%s of the load\n", e)
	return bytes.Repeat([]byte(line), fileSize/len(line)+1)[:fileSize]
}

// Verify looks for everything acknowledged in a copy of the directory. What was
// not acknowledged may be there in part.
func (l *FileLoad) Verify(dir string) (Report, error) {
	if err := l.stopped(); err != nil {
		return Report{}, err
	}
	found := make(map[entry]bool)
	note := func(e entry, got []byte) {
		right := bytes.Equal(got, fileContent(e))
		if right || l.ledger.isAcked(e) {
			found[e] = right
		}
	}
	for w, last := range l.ledger.attempted {
		if l.kind == Appends || l.kind == SyncWrites {
			b, err := os.ReadFile(filepath.Join(dir, l.log(w)))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return Report{}, fmt.Errorf("read the file of a worker: %w", err)
			}
			for seq := 1; seq <= last && seq*fileSize <= len(b); seq++ {
				note(entry{w, seq}, b[(seq-1)*fileSize:seq*fileSize])
			}
			continue
		}
		for seq := 1; seq <= last; seq++ {
			e := entry{w, seq}
			b, err := os.ReadFile(filepath.Join(dir, l.file(e)))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return Report{}, fmt.Errorf("read what a load wrote: %w", err)
			}
			note(e, b)
		}
	}
	return l.ledger.compare(string(l.kind), found), nil
}
