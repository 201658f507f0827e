package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"

	"github.com/replfs/replfs/replicate/record"
)

// A segment, little endian:
//
//	  0 u64 magic          8 u32 version       12 u32 size of this header
//	 16 u64 its first LSN 24 u64 the segment before: its first LSN
//	 32 i64 the segment before: its size in bytes (0 and 0: there is none)
//	 40 64 bytes boot id  104 64 bytes cluster id, both padded with NUL
//	168 u32 CRC-32C of the bytes before
//	172 records, encoded as in the log, with dense LSNs
//
// Its name is its first LSN. What a segment says of the one before it shows
// a missing or cut segment without reading all of it.
const (
	segmentMagic   = 0x31474553_46504552 // "REPFSEG1"
	segmentVersion = 1
	headerSize     = 172
	idSize         = 64
	crcAt          = headerSize - 4

	suffix = ".seg"
	digits = 20
	maxLSN = 1 << 62
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is what a segment's header says.
type header struct {
	first     uint64
	prevFirst uint64
	prevSize  int64
	boot      string
	cluster   string
}

func (h *header) encode() []byte {
	b := make([]byte, headerSize)
	binary.LittleEndian.PutUint64(b, segmentMagic)
	binary.LittleEndian.PutUint32(b[8:], segmentVersion)
	binary.LittleEndian.PutUint32(b[12:], headerSize)
	binary.LittleEndian.PutUint64(b[16:], h.first)
	binary.LittleEndian.PutUint64(b[24:], h.prevFirst)
	binary.LittleEndian.PutUint64(b[32:], uint64(h.prevSize))
	copy(b[40:40+idSize], h.boot)
	copy(b[104:104+idSize], h.cluster)
	binary.LittleEndian.PutUint32(b[crcAt:], crc32.Checksum(b[:crcAt], castagnoli))
	return b
}

func decodeHeader(b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, errors.New("shorter than a segment's header")
	}
	b = b[:headerSize]
	if v := binary.LittleEndian.Uint64(b); v != segmentMagic {
		return header{}, errors.New("not a journal segment")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != segmentVersion {
		return header{}, fmt.Errorf("format version %d, this replfs knows %d", v, segmentVersion)
	}
	if got, want := binary.LittleEndian.Uint32(b[crcAt:]), crc32.Checksum(b[:crcAt], castagnoli); got != want {
		return header{}, fmt.Errorf("header checksum %08x, should be %08x", got, want)
	}
	h := header{
		first:     binary.LittleEndian.Uint64(b[16:]),
		prevFirst: binary.LittleEndian.Uint64(b[24:]),
		prevSize:  int64(binary.LittleEndian.Uint64(b[32:])),
		boot:      string(bytes.TrimRight(b[40:40+idSize], "\x00")),
		cluster:   string(bytes.TrimRight(b[104:104+idSize], "\x00")),
	}
	if h.first == 0 || h.first > maxLSN || h.prevFirst >= h.first || h.prevSize < 0 || binary.LittleEndian.Uint32(b[12:]) != headerSize {
		return header{}, fmt.Errorf("impossible header: first LSN %d after a segment of LSN %d with %d bytes", h.first, h.prevFirst, h.prevSize)
	}
	return h, nil
}

func segmentName(first uint64) string { return fmt.Sprintf("%0*d%s", digits, first, suffix) }

// parseName gives the first LSN that a segment's name says.
func parseName(name string) (uint64, bool) {
	d, ok := strings.CutSuffix(name, suffix)
	if !ok || len(d) != digits {
		return 0, false
	}
	first, err := strconv.ParseUint(d, 10, 64)
	return first, err == nil && first > 0 && first <= maxLSN
}

func readHeader(f File) (header, error) {
	b := make([]byte, headerSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return header{}, err
	}
	return decodeHeader(b[:n])
}

// scanBuffer is how much of a segment is read at a time; the largest record
// fits.
const scanBuffer = record.MaxSize

// scan calls f with every sound record from off to end, whose LSNs begin at
// next. It stops at the first that is not sound, and says where and why.
func scan(r io.ReaderAt, off, end int64, next uint64, f func(off int64, h record.Header, encoded []byte) error) (stopped int64, damage, err error) {
	buf := make([]byte, min(scanBuffer, max(0, end-off)))
	for off < end {
		n, err := r.ReadAt(buf[:min(int64(len(buf)), end-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return off, nil, err
		}
		b := buf[:n]
		if n == 0 {
			return off, errors.New("the file ends before it should"), nil
		}
		for used := 0; len(b) > 0; {
			h, err := record.Check(b)
			switch {
			case errors.Is(err, record.ErrShort) && used > 0 && off+int64(len(b)) < end:
				// The rest comes with the next read.
			case err != nil:
				return off, err, nil
			case h.LSN != next:
				return off, fmt.Errorf("LSN %d where %d should be", h.LSN, next), nil
			default:
				if err := f(off, h, b[:h.Size:h.Size]); err != nil {
					return off, nil, err
				}
				b, used, off, next = b[h.Size:], used+h.Size, off+int64(h.Size), next+1
				continue
			}
			break
		}
	}
	return off, nil, nil
}
