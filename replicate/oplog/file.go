package oplog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The file, in native byte order (it never leaves the machine):
//
//	     0  header: see the word* constants
//	64 KiB  128 intent slots of 8 KiB: state, LSN, an encoded record
//	   …    the ring
//
// The ring is mapped twice, one copy after the other, so that a record that
// wraps around its end is contiguous in memory.
const (
	magic         = 0x314f4c50_46504552 // "REPFPLO1"
	formatVersion = 1

	// Sections start at multiples of the largest page size there is.
	sectionAlign = 64 << 10
	headerSize   = sectionAlign
	slotCount    = 128
	slotSize     = 8 << 10
	dataOffset   = headerSize + slotCount*slotSize

	bootIDSize = 64

	wordMagic   = 0
	wordVersion = 8
	wordSize    = 16
	bytesBootID = 64
	// Words that change with every record have a cache line of their own.
	wordHead    = 256
	wordLast    = 264
	wordTail    = 320
	wordFirst   = 328
	wordFlags   = 384
	wordResetTo = 392

	// flagFresh: nothing was appended since the file was made.
	flagFresh = 1

	// maxLSN and maxOffset keep arithmetic on what a file says from overflowing.
	maxLSN    = 1 << 62
	maxOffset = 1 << 62
)

// mapping is the mapped file.
type mapping struct {
	file   *os.File
	base   unsafe.Pointer
	length uintptr

	magic, version, ringSize *atomic.Uint64
	head, last, tail, first  *atomic.Uint64
	flags, resetTo           *atomic.Uint64

	bootID []byte
	slots  []byte
	ring   []byte // twice the ring
	size   uint64 // of the ring
}

// openFile opens or creates the file at path for a ring of size bytes, takes
// its lock, reserves its space and maps it. fresh says why its content means
// nothing; "" is that it may.
func openFile(path string, size uint64) (m *mapping, fresh string, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, "", fmt.Errorf("opening the log: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, "", fmt.Errorf("the log %s is in use by another process", path)
		}
		return nil, "", fmt.Errorf("locking the log %s: %w", path, err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, "", fmt.Errorf("opening the log: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, "", fmt.Errorf("the log %s is not a regular file", path)
	}
	if st.Mode().Perm() != 0o600 {
		if err := f.Chmod(0o600); err != nil {
			return nil, "", fmt.Errorf("protecting the log: %w", err)
		}
	}
	total := int64(dataOffset + size)
	switch st.Size() {
	case total:
	case 0:
		fresh = "no log file"
	default:
		fresh = "size changed"
	}
	if fresh != "" {
		// To nothing first, so that all of it reads as zeros.
		for _, n := range []int64{0, total} {
			if err := f.Truncate(n); err != nil {
				return nil, "", fmt.Errorf("sizing the log: %w", err)
			}
		}
	}
	// Also of a file that exists: its maker may have died before this. A
	// store to a page the filesystem cannot provide would be a SIGBUS.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, total); err != nil {
		if fresh != "" {
			err = errors.Join(err, f.Truncate(0))
		}
		return nil, "", fmt.Errorf("reserving %d MiB for the log %s: %w", total>>20, path, err)
	}
	m, err = mapFile(f, size)
	return m, fresh, err
}

func mapFile(f *os.File, size uint64) (*mapping, error) {
	length := uintptr(dataOffset + 2*size)
	base, err := unix.MmapPtr(-1, 0, nil, length, unix.PROT_NONE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserving memory for the log: %w", err)
	}
	const prot = unix.PROT_READ | unix.PROT_WRITE
	// MAP_POPULATE: appends must not wait for page faults on the first lap.
	_, err = unix.MmapPtr(int(f.Fd()), 0, base, uintptr(dataOffset+size), prot,
		unix.MAP_SHARED|unix.MAP_FIXED|unix.MAP_POPULATE)
	if err == nil {
		_, err = unix.MmapPtr(int(f.Fd()), dataOffset, unsafe.Add(base, dataOffset+size), uintptr(size), prot,
			unix.MAP_SHARED|unix.MAP_FIXED)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mapping the log: %w", err), unix.MunmapPtr(base, length))
	}
	word := func(off int) *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Add(base, off)) }
	b := unsafe.Slice((*byte)(base), length)
	return &mapping{
		file: f, base: base, length: length,
		magic: word(wordMagic), version: word(wordVersion), ringSize: word(wordSize),
		head: word(wordHead), last: word(wordLast), tail: word(wordTail), first: word(wordFirst),
		flags: word(wordFlags), resetTo: word(wordResetTo),
		bootID: b[bytesBootID : bytesBootID+bootIDSize],
		slots:  b[headerSize:dataOffset],
		ring:   b[dataOffset:],
		size:   size,
	}, nil
}

// format makes an empty log whose next record is LSN 1. The magic number
// comes last: a log half made is no log.
func (m *mapping) format(bootID string) {
	m.magic.Store(0)
	m.version.Store(formatVersion)
	m.ringSize.Store(m.size)
	clear(m.bootID)
	copy(m.bootID, bootID)
	m.head.Store(0)
	m.tail.Store(0)
	m.first.Store(1)
	m.last.Store(0)
	m.flags.Store(flagFresh)
	m.resetTo.Store(0)
	clear(m.slots)
	m.magic.Store(magic)
}

// at gives n bytes of the ring at the offset off; n is at most the ring's size.
func (m *mapping) at(off, n uint64) []byte {
	p := off % m.size
	return m.ring[p : p+n : p+n]
}

// recordSize reads the size of the record at off, which was checked when it
// came into the ring.
func (m *mapping) recordSize(off uint64) uint64 {
	return uint64(binary.LittleEndian.Uint32(m.at(off, 4)))
}

// close unmaps the file and gives up its lock.
func (m *mapping) close() error {
	err := unix.MunmapPtr(m.base, m.length)
	if err != nil {
		err = fmt.Errorf("unmapping the log: %w", err)
	}
	return errors.Join(err, m.file.Close())
}
