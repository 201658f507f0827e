package apply

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The state file is one page that is mapped shared, so that what is stored
// survives this process however it ends. The words change with every record,
// one atomic store at a time, in an order that is right at each of them:
//
//	   0 magic, version
//	  16 which of the two positions counts
//	  24 two positions of {LSN, epoch, check}
//	  72 durable LSN
//	  80 the intent: all records behind the position up to this LSN, of this
//	     epoch, may be applied, in part or wholly
//	  96 the facts about it: LSN, three words
//	1024 two slots with what changes rarely (meta): the valid one with the
//	     higher sequence number counts
//
// Surviving the machine is another matter: only rare changes are synced.
const (
	stateSize  = 4096
	stateMagic = "replfsAS"
	// stateVersion 1 was the same, but its intent was always the record behind
	// the position. It is taken over; who knows only 1 must not take this one.
	stateVersion    = 2
	stateVersionOld = 1

	offVersion     = 8
	offSelect      = 16
	offPosition    = 24
	positionSize   = 24
	offDurable     = 72
	offIntentLSN   = 80
	offIntentEpoch = 88
	offFactsLSN    = 96
	offFacts       = 104
	offMeta        = 1024
	metaSize       = 1536

	maxReason = 512
	maxSyncID = 255
)

var (
	// ErrForeign says that the state file is something else's.
	ErrForeign = errors.New("not a state file of replfs")
	errCorrupt = errors.New("corrupt state file")

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// meta is the part of the state that changes rarely.
type meta struct {
	seq     uint64
	fresh   bool
	inSync  bool
	syncing bool
	clean   bool // closed with the store synced, at the position below
	suspect bool

	cleanLSN, cleanEpoch uint64
	storeIno             uint64
	bootID               string
	syncID               string // of the copy that runs or was the last to be complete
	reason               string
}

const (
	metaFresh = 1 << iota
	metaInSync
	metaSyncing
	metaClean
	metaSuspect
)

type facts [3]uint64

// stateFile is the mapped file. One goroutine at a time may change the words
// of one kind (position, intent, durable, meta).
type stateFile struct {
	f    *os.File
	mem  []byte
	meta meta
}

// openState maps the file, making it if it does not exist. It is locked until
// close. If the file is damaged it is kept aside and made anew, with damage
// saying so.
func openState(path string) (s *stateFile, damage error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		s, err = createState(path)
		return s, nil, err
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open state file: %w", err)
	}
	s, err = mapState(f)
	if errors.Is(err, errCorrupt) {
		damage = err
		aside := fmt.Sprintf("%s.damaged-%s", path, time.Now().UTC().Format("20060102T150405.000000000"))
		if err := os.Rename(path, aside); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("keep the damaged state file: %w", err), f.Close())
		}
		damage = fmt.Errorf("%w (kept as %s)", damage, aside)
		if err := f.Close(); err != nil {
			return nil, nil, fmt.Errorf("close the damaged state file: %w", err)
		}
		s, err = createState(path)
		return s, damage, err
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("state file %s: %w", path, err), f.Close())
	}
	return s, nil, nil
}

// createState makes a file that is complete when it gets its name.
func createState(path string) (*stateFile, error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".new-*")
	if err != nil {
		return nil, fmt.Errorf("create state file: %w", err)
	}
	s, err := initState(f, path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create state file %s: %w", path, err), f.Close(), os.Remove(f.Name()))
	}
	if err := syncDir(dir); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func initState(f *os.File, path string) (*stateFile, error) {
	// Written, not just sized: a hole would fault on a full disk.
	page := make([]byte, stateSize)
	copy(page, stateMagic)
	binary.NativeEndian.PutUint64(page[offVersion:], stateVersion)
	binary.NativeEndian.PutUint64(page[offPosition+16:], positionCheck(0, 0))
	m := meta{fresh: true}
	m.encode(page[offMeta : offMeta+metaSize])
	if _, err := f.Write(page); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	s, err := mapState(f)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return nil, errors.Join(err, unix.Munmap(s.mem))
	}
	return s, nil
}

func mapState(f *os.File) (*stateFile, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if err == unix.EWOULDBLOCK {
			return nil, errors.New("another process uses it")
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	head := make([]byte, min(st.Size(), int64(len(stateMagic))))
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	switch {
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%w: not a regular file", ErrForeign)
	case string(head) != stateMagic[:len(head)]:
		return nil, fmt.Errorf("%w: starts with %q", ErrForeign, head)
	case st.Size() != stateSize:
		return nil, fmt.Errorf("%w: %d bytes instead of %d", errCorrupt, st.Size(), stateSize)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, stateSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	s := &stateFile{f: f, mem: mem}
	if err := s.check(); err != nil {
		return nil, errors.Join(err, unix.Munmap(mem))
	}
	return s, nil
}

// check reads the meta and verifies the rest.
func (s *stateFile) check() error {
	switch v := s.load(offVersion); v {
	case stateVersion, stateVersionOld:
	default:
		return fmt.Errorf("version %d, this replfs knows %d: it was written by a newer one; install that again, "+
			"or move the file away, which makes this node get a complete copy", v, stateVersion)
	}
	sel := s.load(offSelect)
	if sel > 1 {
		return fmt.Errorf("%w: position %d", errCorrupt, sel)
	}
	lsn, epoch := s.position()
	if s.load(offPosition+positionSize*int(sel)+16) != positionCheck(lsn, epoch) {
		return fmt.Errorf("%w: checksum of the position", errCorrupt)
	}
	if d := s.load(offDurable); d > lsn {
		return fmt.Errorf("%w: durable to %d but applied to %d", errCorrupt, d, lsn)
	}
	found := false
	for i := range 2 {
		var m meta
		if m.decode(s.mem[offMeta+i*metaSize:offMeta+(i+1)*metaSize]) && (!found || m.seq > s.meta.seq) {
			s.meta, found = m, true
		}
	}
	if !found {
		return fmt.Errorf("%w: checksum", errCorrupt)
	}
	s.store(offVersion, stateVersion)
	return nil
}

func (s *stateFile) word(off int) *uint64 {
	return (*uint64)(unsafe.Pointer(&s.mem[off]))
}
func (s *stateFile) load(off int) uint64     { return atomic.LoadUint64(s.word(off)) }
func (s *stateFile) store(off int, v uint64) { atomic.StoreUint64(s.word(off), v) }

func positionCheck(lsn, epoch uint64) uint64 {
	return ^(lsn*0x9e3779b97f4a7c15 ^ bits.RotateLeft64(epoch*0xc2b2ae3d27d4eb4f, 32))
}

func (s *stateFile) position() (lsn, epoch uint64) {
	off := offPosition + positionSize*int(s.load(offSelect))
	return s.load(off), s.load(off + 8)
}

func (s *stateFile) setPosition(lsn, epoch uint64) {
	sel := 1 - s.load(offSelect)
	off := offPosition + positionSize*int(sel)
	s.store(off, lsn)
	s.store(off+8, epoch)
	s.store(off+16, positionCheck(lsn, epoch))
	s.store(offSelect, sel)
}

func (s *stateFile) intent() (lsn, epoch uint64) {
	return s.load(offIntentLSN), s.load(offIntentEpoch)
}

// setIntent stores the LSN last: it is what makes the intent count.
func (s *stateFile) setIntent(lsn, epoch uint64) {
	if l, e := s.intent(); l == lsn && e == epoch {
		return
	}
	s.store(offIntentLSN, 0)
	s.store(offIntentEpoch, epoch)
	s.store(offIntentLSN, lsn)
}

// extendIntent makes the intent reach to lsn, if it does not reach further.
func (s *stateFile) extendIntent(lsn, epoch uint64) {
	switch l, e := s.intent(); {
	case e != epoch:
		s.setIntent(lsn, epoch)
	case l < lsn:
		s.store(offIntentLSN, lsn)
	}
}

// clearIntent takes the facts back first: they belong to the intent.
func (s *stateFile) clearIntent() {
	s.store(offFactsLSN, 0)
	s.store(offIntentLSN, 0)
}

// facts returns what was noted about the record lsn.
func (s *stateFile) facts(lsn uint64) (f facts, ok bool) {
	if s.load(offFactsLSN) != lsn {
		return f, false
	}
	for i := range f {
		f[i] = s.load(offFacts + 8*i)
	}
	return f, true
}

func (s *stateFile) setFacts(lsn uint64, f facts) {
	s.store(offFactsLSN, 0)
	for i, v := range f {
		s.store(offFacts+8*i, v)
	}
	s.store(offFactsLSN, lsn)
}

// setFact changes one word of the facts that are set.
func (s *stateFile) setFact(i int, v uint64) { s.store(offFacts+8*i, v) }

// update changes the meta, in the slot that does not count, and syncs it to
// the disk. If that fails the change still counts for this boot.
func (s *stateFile) update(change func(*meta)) error {
	m := s.meta
	change(&m)
	if m == s.meta {
		return nil
	}
	m.seq++
	slot := offMeta + int(m.seq%2)*metaSize
	m.encode(s.mem[slot : slot+metaSize])
	s.meta = m
	return s.sync()
}

func (s *stateFile) sync() error {
	for {
		err := unix.Msync(s.mem, unix.MS_SYNC)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("sync state file: %w", err)
		}
	}
}

func (s *stateFile) close() error {
	err := unix.Munmap(s.mem)
	s.mem = nil
	if err = errors.Join(err, s.f.Close()); err != nil {
		return fmt.Errorf("close state file: %w", err)
	}
	return nil
}

// encode fills the slot: u32 CRC-32C of the rest, u32 length of the rest, then
// the fields. The checksum makes a slot that was not finished not count.
func (m *meta) encode(slot []byte) {
	b := make([]byte, 8, len(slot))
	b = binary.LittleEndian.AppendUint64(b, m.seq)
	var flags uint64
	for i, on := range []bool{m.fresh, m.inSync, m.syncing, m.clean, m.suspect} {
		if on {
			flags |= 1 << i
		}
	}
	for _, v := range []uint64{flags, m.cleanLSN, m.cleanEpoch, m.storeIno} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	for _, s := range []string{m.bootID, m.syncID, m.reason} {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)-8))
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	clear(slot[copy(slot, b):])
}

func (m *meta) decode(slot []byte) bool {
	n := binary.LittleEndian.Uint32(slot[4:])
	const fixed = 40
	if n < fixed+6 || n > uint32(len(slot)-8) {
		return false
	}
	if binary.LittleEndian.Uint32(slot) != crc32.Checksum(slot[4:8+n], castagnoli) {
		return false
	}
	b := slot[8 : 8+n]
	m.seq = binary.LittleEndian.Uint64(b)
	flags := binary.LittleEndian.Uint64(b[8:])
	m.cleanLSN = binary.LittleEndian.Uint64(b[16:])
	m.cleanEpoch = binary.LittleEndian.Uint64(b[24:])
	m.storeIno = binary.LittleEndian.Uint64(b[32:])
	m.fresh, m.inSync, m.syncing = flags&metaFresh != 0, flags&metaInSync != 0, flags&metaSyncing != 0
	m.clean, m.suspect = flags&metaClean != 0, flags&metaSuspect != 0
	b = b[fixed:]
	for _, s := range []*string{&m.bootID, &m.syncID, &m.reason} {
		if len(b) < 2 {
			return false
		}
		n := int(binary.LittleEndian.Uint16(b))
		if b = b[2:]; len(b) < n {
			return false
		}
		*s, b = string(b[:n]), b[n:]
	}
	return true
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", path, err)
	}
	return nil
}
