package fs

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The attribute positionAttr of a file is the position, "epoch/lsn", of its last
// record: of the last change or fsync of the file, or of its names; of a
// directory, of its entries and attributes. It is in no store: it is answered from
// the table, never listed or replicated, and cannot be set.
//
// What is not known of a file, because the table has not had it since its last
// change, is answered by the end of the log, which is behind that change. The
// answer is kept, so that it stays the same until the file changes. On a standby
// the answer is what its store shows of the log.

const (
	reservedPrefix = "user.replfs."
	positionAttr   = reservedPrefix + "position"
	// maxPosition is the length of the longest.
	maxPosition = len("18446744073709551615/18446744073709551615")
)

// touch says which inodes, besides those named already, the record of the
// mutation is about. Nil ones are left out.
func (m *mutation) touch(ns ...*inode) {
	for _, n := range ns {
		if n != nil && m.touched < len(m.about) {
			m.about[m.touched] = n
			m.touched++
		}
	}
}

// noteRecord keeps the LSN of the mutation's record.
func (m *mutation) noteRecord(lsn uint64) {
	for _, n := range m.about[:m.touched] {
		n.lastRecord.Store(lsn)
	}
}

// reserved tells whether the name belongs to the daemon.
func reserved(attr string) bool { return strings.HasPrefix(attr, reservedPrefix) }

// getReserved answers for a reserved attribute.
func (fs *FS) getReserved(header *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if attr != positionAttr || fs.cfg.Position == nil {
		return 0, fuse.ENOATTR
	}
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	n := fs.table.get(header.NodeId)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	n.mu.Lock() // no change of it is under way
	defer n.mu.Unlock()
	if _, tracked := fs.named(n, nil); !tracked {
		return 0, fuse.ENOATTR // it has no records
	}
	var known uint64
	primary := fs.cacheTime() > 0
	if primary {
		known = n.lastRecord.Load()
	}
	epoch, lsn, ok := fs.cfg.Position(known)
	if !ok {
		return 0, fuse.ENOATTR
	}
	if primary && known == 0 {
		n.lastRecord.Store(lsn)
	}
	if len(dest) == 0 {
		return uint32(maxPosition), fuse.OK // it may have grown when it is read
	}
	value := strconv.AppendUint(make([]byte, 0, maxPosition), epoch, 10)
	value = strconv.AppendUint(append(value, '/'), lsn, 10)
	if len(value) > len(dest) {
		return 0, fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// withoutReserved leaves the daemon's names out of a list that the store gave.
func withoutReserved(names []byte) []byte {
	if !bytes.Contains(names, []byte(reservedPrefix)) {
		return names
	}
	return without(names, reservedPrefix)
}

// without leaves the names with a prefix out of a list.
func without(names []byte, prefix string) []byte {
	out := names[:0]
	for rest := names; len(rest) > 0; {
		end := bytes.IndexByte(rest, 0) + 1
		if end == 0 {
			end = len(rest)
		}
		if name := rest[:end]; !bytes.HasPrefix(name, []byte(prefix)) {
			out = append(out, name...)
		}
		rest = rest[end:]
	}
	return out
}
