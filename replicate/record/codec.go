package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"strings"
)

// The binary form, little endian:
//
//	 0 u32 length of the whole record
//	 4 u32 CRC-32C of the body, then of bytes 8..40
//	 8 u64 LSN       16 u64 epoch      24 i64 time
//	32 u8  op        33 u8  version    34 u16 flags   36 u32 fields
//	40 body: the fields that are set, in the order of their bits
//
// Integers are varints, times a varint of seconds and one of nanoseconds,
// strings a varint length and bytes. The data is last and runs to the end.
// The checksum takes the body first, so that it can be computed before the
// LSN is known.

const (
	// HeaderSize is the size of the fixed part.
	HeaderSize = 40
	// Version is the format's version.
	Version = 1
	// MaxPath bounds a path. Longer ones than PATH_MAX can be made by
	// relative steps.
	MaxPath = 256 << 10
	// MaxData bounds a record's data.
	MaxData = 1 << 20
	// MaxSize bounds a whole record.
	MaxSize = 2 << 20
	// maxList bounds the number of extended attributes or names.
	maxList = 1 << 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrCorrupt is wrapped by every decoding error.
var ErrCorrupt = errors.New("corrupt record")

// ErrShort says that the buffer ends before the record does.
var ErrShort = fmt.Errorf("%w: truncated", ErrCorrupt)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// AppendFields appends the body but for the data.
func (r *Record) AppendFields(b []byte) []byte {
	f := r.Fields
	if f&FieldFileID != 0 {
		b = binary.AppendUvarint(b, r.FileID)
	}
	if f&FieldFileID2 != 0 {
		b = binary.AppendUvarint(b, r.FileID2)
	}
	if f&FieldPath != 0 {
		b = appendString(b, r.Path)
	}
	if f&FieldPath2 != 0 {
		b = appendString(b, r.Path2)
	}
	if f&FieldName != 0 {
		b = appendString(b, r.Name)
	}
	if f&FieldMode != 0 {
		b = binary.AppendUvarint(b, uint64(r.Mode))
	}
	if f&FieldPerm != 0 {
		b = binary.AppendUvarint(b, uint64(r.Perm))
	}
	if f&FieldOwner != 0 {
		b = binary.AppendUvarint(b, uint64(r.UID))
		b = binary.AppendUvarint(b, uint64(r.GID))
	}
	if f&FieldRdev != 0 {
		b = binary.AppendUvarint(b, r.Rdev)
	}
	if f&FieldSize != 0 {
		b = binary.AppendUvarint(b, uint64(r.Size))
	}
	if f&FieldMtime != 0 {
		b = appendTime(b, r.Mtime)
	}
	if f&FieldAtime != 0 {
		b = appendTime(b, r.Atime)
	}
	if f&FieldParentMtime != 0 {
		b = appendTime(b, r.ParentMtime)
	}
	if f&FieldParent2Mtime != 0 {
		b = appendTime(b, r.Parent2Mtime)
	}
	if f&FieldOffset != 0 {
		b = binary.AppendUvarint(b, uint64(r.Offset))
	}
	if f&FieldOffset2 != 0 {
		b = binary.AppendUvarint(b, uint64(r.Offset2))
	}
	if f&FieldLength != 0 {
		b = binary.AppendUvarint(b, uint64(r.Length))
	}
	if f&FieldXattrs != 0 {
		b = binary.AppendUvarint(b, uint64(len(r.Xattrs)))
		for _, x := range r.Xattrs {
			b = appendString(b, x.Name)
			b = binary.AppendUvarint(b, uint64(len(x.Value)))
			b = append(b, x.Value...)
		}
	}
	if f&FieldNames != 0 {
		b = binary.AppendUvarint(b, uint64(len(r.Names)))
		for _, n := range r.Names {
			b = appendString(b, n)
		}
	}
	return b
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendTime(b []byte, t Timespec) []byte {
	b = binary.AppendVarint(b, t.Sec)
	return binary.AppendUvarint(b, uint64(t.Nsec))
}

// BodyCRC is the checksum of fields (from AppendFields) and data; the first
// half of a record's.
func BodyCRC(fields, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(fields, castagnoli), castagnoli, data)
}

// PutHeader writes r's header for a body of bodyLen bytes and checksum
// bodyCRC to h, which has at least HeaderSize bytes. It allocates nothing.
func (r *Record) PutHeader(h []byte, bodyLen int, bodyCRC uint32) {
	_ = h[HeaderSize-1]
	binary.LittleEndian.PutUint32(h, uint32(HeaderSize+bodyLen))
	binary.LittleEndian.PutUint64(h[8:], r.LSN)
	binary.LittleEndian.PutUint64(h[16:], r.Epoch)
	binary.LittleEndian.PutUint64(h[24:], uint64(r.Time))
	h[32] = byte(r.Op)
	h[33] = Version
	binary.LittleEndian.PutUint16(h[34:], uint16(r.Flags))
	binary.LittleEndian.PutUint32(h[36:], uint32(r.Fields))
	binary.LittleEndian.PutUint32(h[4:], crc32.Update(bodyCRC, castagnoli, h[8:HeaderSize]))
}

// Append appends the whole encoded record.
func (r *Record) Append(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, HeaderSize)...)
	b = r.AppendFields(b)
	if r.Fields&FieldData != 0 {
		b = append(b, r.Data...)
	}
	body := b[start+HeaderSize:]
	r.PutHeader(b[start:], len(body), crc32.Checksum(body, castagnoli))
	return b
}

// Header is the fixed part of an encoded record.
type Header struct {
	Size       int
	LSN, Epoch uint64
	Time       int64
	Op         Op
	Flags      Flags
}

// PeekHeader reads the header at b's start without checking the body. The
// size it gives lies within the format's bounds but may exceed len(b).
func PeekHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, ErrShort
	}
	n := binary.LittleEndian.Uint32(b)
	if n < HeaderSize || n > MaxSize {
		return Header{}, corrupt("length %d", n)
	}
	return Header{
		Size:  int(n),
		LSN:   binary.LittleEndian.Uint64(b[8:]),
		Epoch: binary.LittleEndian.Uint64(b[16:]),
		Time:  int64(binary.LittleEndian.Uint64(b[24:])),
		Op:    Op(b[32]),
		Flags: Flags(binary.LittleEndian.Uint16(b[34:])),
	}, nil
}

// Check verifies the first record in b (its bounds and checksum, not its
// fields) and returns its header.
func Check(b []byte) (Header, error) {
	h, err := PeekHeader(b)
	if err != nil {
		return h, err
	}
	if len(b) < h.Size {
		return h, ErrShort
	}
	crc := crc32.Checksum(b[HeaderSize:h.Size], castagnoli)
	crc = crc32.Update(crc, castagnoli, b[8:HeaderSize])
	if got := binary.LittleEndian.Uint32(b[4:]); got != crc {
		return h, corrupt("checksum %08x, should be %08x", got, crc)
	}
	return h, nil
}

// Decode reads the first record in b and returns how long it was. Data and
// extended attribute values alias b. Every error wraps ErrCorrupt; nothing
// b says makes it panic or allocate more than a small multiple of len(b).
func Decode(b []byte, r *Record) (int, error) {
	if _, err := Check(b); err != nil {
		return 0, err
	}
	return DecodeChecked(b, r)
}

// DecodeChecked is Decode without verifying the checksum: for memory of this
// process that only holds records which Check has passed.
func DecodeChecked(b []byte, r *Record) (int, error) {
	h, err := PeekHeader(b)
	if err != nil {
		return 0, err
	}
	if len(b) < h.Size {
		return 0, ErrShort
	}
	if v := b[33]; v != Version {
		return 0, corrupt("version %d, this replfs knows %d", v, Version)
	}
	*r = Record{
		LSN: h.LSN, Epoch: h.Epoch, Time: h.Time, Op: h.Op, Flags: h.Flags,
		Fields: Field(binary.LittleEndian.Uint32(b[36:])),
	}
	if r.Fields&^fieldsKnown != 0 {
		return 0, corrupt("unknown fields %#x", uint32(r.Fields))
	}
	d := decoder{b: b[HeaderSize:h.Size]}
	d.fields(r)
	if d.err != nil {
		return 0, fmt.Errorf("lsn %d: %w", h.LSN, d.err)
	}
	if err := r.validate(); err != nil {
		return 0, fmt.Errorf("lsn %d: %w", h.LSN, err)
	}
	return h.Size, nil
}

type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fields(r *Record) {
	f := r.Fields
	if f&FieldFileID != 0 {
		r.FileID = d.uvarint()
	}
	if f&FieldFileID2 != 0 {
		r.FileID2 = d.uvarint()
	}
	if f&FieldPath != 0 {
		r.Path = d.str(MaxPath)
	}
	if f&FieldPath2 != 0 {
		r.Path2 = d.str(MaxPath)
	}
	if f&FieldName != 0 {
		r.Name = d.str(255)
	}
	if f&FieldMode != 0 {
		r.Mode = d.u32()
	}
	if f&FieldPerm != 0 {
		r.Perm = d.u32()
	}
	if f&FieldOwner != 0 {
		r.UID, r.GID = d.u32(), d.u32()
	}
	if f&FieldRdev != 0 {
		r.Rdev = d.uvarint()
	}
	if f&FieldSize != 0 {
		r.Size = d.i63()
	}
	if f&FieldMtime != 0 {
		r.Mtime = d.time()
	}
	if f&FieldAtime != 0 {
		r.Atime = d.time()
	}
	if f&FieldParentMtime != 0 {
		r.ParentMtime = d.time()
	}
	if f&FieldParent2Mtime != 0 {
		r.Parent2Mtime = d.time()
	}
	if f&FieldOffset != 0 {
		r.Offset = d.i63()
	}
	if f&FieldOffset2 != 0 {
		r.Offset2 = d.i63()
	}
	if f&FieldLength != 0 {
		r.Length = d.i63()
	}
	if f&FieldXattrs != 0 {
		for n := d.count(2); n > 0 && d.err == nil; n-- {
			r.Xattrs = append(r.Xattrs, Xattr{Name: d.str(255), Value: d.bytes(1 << 16)})
		}
	}
	if f&FieldNames != 0 {
		for n := d.count(1); n > 0 && d.err == nil; n-- {
			r.Names = append(r.Names, d.str(MaxPath))
		}
	}
	if d.err != nil {
		return
	}
	switch {
	case f&FieldData == 0 && len(d.b) != 0:
		d.err = corrupt("%d bytes after the last field", len(d.b))
	case f&FieldData != 0 && len(d.b) > MaxData:
		d.err = corrupt("%d bytes of data", len(d.b))
	case f&FieldData != 0:
		r.Data = d.b
	}
}

func (d *decoder) uvarint() uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.err = corrupt("bad integer")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) u32() uint32 {
	v := d.uvarint()
	if v > math.MaxUint32 && d.err == nil {
		d.err = corrupt("integer %d too large", v)
	}
	return uint32(v)
}

func (d *decoder) i63() int64 {
	v := d.uvarint()
	if v > math.MaxInt64 && d.err == nil {
		d.err = corrupt("integer %d too large", v)
	}
	return int64(v)
}

func (d *decoder) time() Timespec {
	if d.err != nil {
		return Timespec{}
	}
	s, n := binary.Varint(d.b)
	if n <= 0 {
		d.err = corrupt("bad time")
		return Timespec{}
	}
	d.b = d.b[n:]
	ns := d.u32()
	if ns > 999_999_999 && d.err == nil {
		d.err = corrupt("%d nanoseconds", ns)
	}
	return Timespec{Sec: s, Nsec: ns}
}

func (d *decoder) bytes(limit uint64) []byte {
	n := d.uvarint()
	if d.err != nil {
		return nil
	}
	if n > limit || n > uint64(len(d.b)) {
		d.err = corrupt("string of %d bytes", n)
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) str(limit uint64) string { return string(d.bytes(limit)) }

// count reads a list's length; every element takes at least size bytes.
func (d *decoder) count(size int) uint64 {
	n := d.uvarint()
	if d.err == nil && (n > maxList || n > uint64(len(d.b)/size)) {
		d.err = corrupt("list of %d", n)
		return 0
	}
	return n
}

// validate refuses paths that could not have come from a sane peer. The
// applier still resolves every path beneath the store (invariant I8).
func (r *Record) validate() error {
	if err := CheckPath(r.Path); err != nil {
		return err
	}
	for _, p := range r.Names {
		if err := CheckPath(p); err != nil {
			return err
		}
	}
	// A symlink's target and the ids of a copy or an epoch are not paths.
	if r.Op != OpSymlink && !(r.Op == OpState && r.Mode&sIFMT == sIFLNK) {
		if err := CheckPath(r.Path2); err != nil {
			return err
		}
	}
	if strings.IndexByte(r.Path2, 0) >= 0 || strings.IndexByte(r.Name, 0) >= 0 {
		return corrupt("NUL in a string")
	}
	return nil
}

const (
	sIFMT  = 0o170000
	sIFLNK = 0o120000
)

// CheckPath says whether p may be a path in a record: relative, no empty,
// "." or ".." component, no NUL. "" is the root.
func CheckPath(p string) error {
	if p == "" {
		return nil
	}
	if strings.IndexByte(p, 0) >= 0 {
		return corrupt("NUL in path %q", p)
	}
	for rest, more := p, true; more; {
		var c string
		c, rest, more = strings.Cut(rest, "/")
		if c == "" || c == "." || c == ".." || len(c) > 255 {
			return corrupt("path %q", p)
		}
	}
	return nil
}
