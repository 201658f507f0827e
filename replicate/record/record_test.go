package record

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

var allOps = []Op{
	OpEpoch, OpFsync, OpSync, OpCreate, OpMkdir, OpSymlink, OpLink, OpUnlink, OpRmdir, OpRename, OpRemoveTree,
	OpWrite, OpSetAttr, OpFallocate, OpCopyRange, OpSetXattr, OpRemoveXattr,
	OpSyncBegin, OpState, OpStateData, OpStateEnd, OpSyncEnd,
}

// randomRecord makes a record that the format allows, with only the fields
// set that Fields names.
func randomRecord(rng *rand.Rand) *Record {
	str := func(n int) string {
		b := make([]byte, rng.IntN(n))
		for i := range b {
			b[i] = byte(1 + rng.IntN(255))
		}
		return string(b)
	}
	path := func() string {
		var cs []string
		for range rng.IntN(6) {
			c := strings.ReplaceAll(str(30), "/", "_")
			if c == "" || c == "." || c == ".." {
				c = "x"
			}
			cs = append(cs, c)
		}
		return strings.Join(cs, "/")
	}
	integer := func() uint64 { return rng.Uint64() >> rng.IntN(64) }
	signed := func() int64 { return int64(integer() & math.MaxInt64) }
	stamp := func() Timespec {
		return Timespec{Sec: int64(integer()), Nsec: uint32(rng.IntN(1_000_000_000))}
	}
	full := Record{
		FileID: integer(), FileID2: integer(), Path: path(), Path2: path(), Name: str(255),
		Mode: uint32(integer()), Perm: uint32(integer()), UID: uint32(integer()), GID: uint32(integer()),
		Rdev: integer(), Size: signed(), Mtime: stamp(), Atime: stamp(), ParentMtime: stamp(), Parent2Mtime: stamp(),
		Offset: signed(), Offset2: signed(), Length: signed(), Data: []byte(str(3000)),
	}
	for range 1 + rng.IntN(5) {
		full.Xattrs = append(full.Xattrs, Xattr{Name: str(200), Value: []byte(str(500))})
		full.Names = append(full.Names, path())
	}
	r := &Record{
		LSN: rng.Uint64(), Epoch: rng.Uint64(), Time: int64(rng.Uint64()),
		Op: allOps[rng.IntN(len(allOps))], Flags: Flags(rng.Uint32()),
		Fields: Field(rng.Uint32()) & fieldsKnown,
	}
	src, dst := reflect.ValueOf(&full).Elem(), reflect.ValueOf(r).Elem()
	for f, names := range fieldValues {
		if !r.Has(f) {
			continue
		}
		for _, name := range names {
			dst.FieldByName(name).Set(src.FieldByName(name))
		}
	}
	return r
}

// fieldValues says which values of a Record a field stands for.
var fieldValues = map[Field][]string{
	FieldFileID: {"FileID"}, FieldFileID2: {"FileID2"}, FieldPath: {"Path"}, FieldPath2: {"Path2"},
	FieldName: {"Name"}, FieldMode: {"Mode"}, FieldPerm: {"Perm"}, FieldOwner: {"UID", "GID"}, FieldRdev: {"Rdev"},
	FieldSize: {"Size"}, FieldMtime: {"Mtime"}, FieldAtime: {"Atime"}, FieldParentMtime: {"ParentMtime"},
	FieldParent2Mtime: {"Parent2Mtime"}, FieldOffset: {"Offset"}, FieldOffset2: {"Offset2"}, FieldLength: {"Length"},
	FieldXattrs: {"Xattrs"}, FieldNames: {"Names"}, FieldData: {"Data"},
}

func TestRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	prefix := []byte("prefix")
	for range 5000 {
		want := randomRecord(rng)
		b := want.Append(bytes.Clone(prefix))
		if !bytes.HasPrefix(b, prefix) {
			t.Fatal("Append changed what was there")
		}
		b = b[len(prefix):]
		size := len(b)
		b = append(b, "what follows"...)
		var got Record
		n, err := Decode(b, &got)
		if err != nil || n != size {
			t.Fatalf("%s: Decode = %d, %v; want %d", want, n, err, size)
		}
		if !reflect.DeepEqual(&got, want) {
			t.Fatalf("got  %+v\nwant %+v", got, *want)
		}
		h, err := PeekHeader(b[:HeaderSize])
		if err != nil || h != (Header{size, want.LSN, want.Epoch, want.Time, want.Op, want.Flags}) {
			t.Fatalf("header %+v, %v", h, err)
		}
	}
}

// What the log does in parts gives the same bytes as Append.
func TestEncodingInParts(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		r := randomRecord(rng)
		fields := r.AppendFields(nil)
		var data []byte
		if r.Has(FieldData) {
			data = r.Data
		}
		b := make([]byte, HeaderSize)
		r.PutHeader(b, len(fields)+len(data), BodyCRC(fields, data))
		b = append(append(b, fields...), data...)
		if want := r.Append(nil); !bytes.Equal(b, want) {
			t.Fatalf("%s: differs", r)
		}
	}
}

// Every field bit has values, and no value leaks into a record without it.
func TestFieldsAreSeparate(t *testing.T) {
	if len(fieldValues) != 20 || fieldsKnown != 1<<20-1 {
		t.Fatalf("%d fields, known %#x", len(fieldValues), uint32(fieldsKnown))
	}
	r := Record{
		FileID: 1, FileID2: 2, Path: "p", Path2: "q", Name: "n", Mode: 3, Perm: 4, UID: 5, GID: 6, Rdev: 7, Size: 8,
		Mtime: Timespec{9, 10}, Atime: Timespec{11, 12}, ParentMtime: Timespec{13, 14}, Parent2Mtime: Timespec{15, 16},
		Offset: 17, Offset2: 18, Length: 19, Xattrs: []Xattr{{"x", []byte("v")}}, Names: []string{"m"}, Data: []byte("d"),
	}
	for f, names := range fieldValues {
		r.Fields = f
		var got, want Record
		if _, err := Decode(r.Append(nil), &got); err != nil {
			t.Fatal(err)
		}
		want.Fields = f
		for _, name := range names {
			reflect.ValueOf(&want).Elem().FieldByName(name).Set(reflect.ValueOf(r).FieldByName(name))
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%#x: got %+v, want %+v", uint32(f), got, want)
		}
	}
}

// Any one bit changed, and any cut, is noticed.
func TestDamageIsNoticed(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 20 {
		sound := randomRecord(rng).Append(nil)
		var r Record
		for n := range sound {
			if _, err := Decode(sound[:n], &r); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("cut at %d of %d: %v", n, len(sound), err)
			}
		}
		for i := range 8 * min(len(sound), 600) {
			b := bytes.Clone(sound)
			b[i/8] ^= 1 << (i % 8)
			if _, err := Decode(b, &r); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("bit %d of byte %d of %d: %v", i%8, i/8, len(sound), err)
			}
		}
	}
	if _, err := PeekHeader(make([]byte, HeaderSize-1)); !errors.Is(err, ErrShort) {
		t.Errorf("short header: %v", err)
	}
	if _, err := Check((&Record{Fields: FieldPath, Path: "a"}).Append(nil)[:HeaderSize]); !errors.Is(err, ErrShort) {
		t.Errorf("short record: %v", err)
	}
}

// forge gives a record with a right checksum around any body.
func forge(op Op, version byte, fields Field, body []byte) []byte {
	b := make([]byte, HeaderSize, HeaderSize+len(body))
	b = append(b, body...)
	r := Record{LSN: 1, Op: op, Fields: fields}
	r.PutHeader(b, len(body), BodyCRC(body, nil))
	if version != Version {
		b[33] = version
		seal(b)
	}
	return b
}

// seal makes b's length and checksum right.
func seal(b []byte) {
	var r Record
	h, err := PeekHeader(b)
	if err != nil {
		panic(err)
	}
	version, fields := b[33], [4]byte(b[36:40])
	r.LSN, r.Epoch, r.Time, r.Op, r.Flags = h.LSN, h.Epoch, h.Time, h.Op, h.Flags
	r.Fields = Field(fields[0]) | Field(fields[1])<<8 | Field(fields[2])<<16 | Field(fields[3])<<24
	r.PutHeader(b, len(b)-HeaderSize, BodyCRC(b[HeaderSize:], nil))
	if version != Version {
		b[33] = version
		crc := crcOfHeader(b)
		b[4], b[5], b[6], b[7] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
	}
}

func TestDecodeRefuses(t *testing.T) {
	long := bytes.Repeat([]byte{0xff}, 10)
	max32 := []byte{0xff, 0xff, 0xff, 0xff, 0x1f}
	max64 := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}
	str := func(s string) []byte { return appendString(nil, s) }
	for name, b := range map[string][]byte{
		"version":          forge(OpWrite, 2, 0, nil),
		"unknown field":    forge(OpWrite, Version, fieldsKnown+1, nil),
		"trailing bytes":   forge(OpWrite, Version, 0, []byte{1}),
		"no integer":       forge(OpWrite, Version, FieldFileID, nil),
		"endless integer":  forge(OpWrite, Version, FieldFileID, long),
		"mode":             forge(OpWrite, Version, FieldMode, max32),
		"negative size":    forge(OpWrite, Version, FieldSize, max64),
		"negative offset":  forge(OpWrite, Version, FieldOffset, max64),
		"no time":          forge(OpWrite, Version, FieldMtime, nil),
		"half a time":      forge(OpWrite, Version, FieldMtime, []byte{2}),
		"nanoseconds":      forge(OpWrite, Version, FieldMtime, []byte{2, 0x80, 0x94, 0xeb, 0xdc, 0x03}),
		"string past end":  forge(OpWrite, Version, FieldPath, []byte{2, 'a'}),
		"string enormous":  forge(OpWrite, Version, FieldPath, max64),
		"path too long":    forge(OpWrite, Version, FieldPath, str(strings.Repeat("a/", MaxPath/2)+"b")),
		"name too long":    forge(OpSetXattr, Version, FieldName, str(strings.Repeat("n", 256))),
		"NUL in name":      forge(OpSetXattr, Version, FieldName, str("a\x00")),
		"absolute":         forge(OpWrite, Version, FieldPath, str("/etc/passwd")),
		"parent":           forge(OpWrite, Version, FieldPath, str("a/../../b")),
		"parent 2":         forge(OpLink, Version, FieldPath2, str("../b")),
		"parent in state":  forge(OpState, Version, FieldPath2, str("../b")),
		"parent in names":  forge(OpState, Version, FieldNames, append([]byte{1}, str("..")...)),
		"NUL in target":    forge(OpSymlink, Version, FieldPath2, str("a\x00b")),
		"xattrs enormous":  forge(OpState, Version, FieldXattrs, max64),
		"xattrs past end":  forge(OpState, Version, FieldXattrs, []byte{2, 1, 'x', 0}),
		"names past end":   forge(OpState, Version, FieldNames, []byte{3, 1, 'x'}),
		"too many names":   forge(OpState, Version, FieldNames, append([]byte{0x81, 0x80, 0x04}, make([]byte, 1<<17)...)),
		"value too long":   forge(OpState, Version, FieldXattrs, append([]byte{1, 1, 'x', 0x81, 0x80, 0x04}, make([]byte, 1<<17)...)),
		"too much data":    forge(OpWrite, Version, FieldData, make([]byte, MaxData+1)),
		"length too large": {0, 0, 0x21, 0, 39: 0},
		"length too small": {39, 0, 0, 0, 50: 0},
	} {
		var r Record
		if n, err := Decode(b, &r); !errors.Is(err, ErrCorrupt) || n != 0 {
			t.Errorf("%s: Decode = %d, %v", name, n, err)
		}
	}
	// Symbolic links' targets are not paths.
	for _, b := range [][]byte{
		forge(OpSymlink, Version, FieldPath2, str("/../x//y")),
		(&Record{Op: OpState, Fields: FieldMode | FieldPath2, Mode: sIFLNK | 0o777, Path2: "/x"}).Append(nil),
	} {
		var r Record
		if _, err := Decode(b, &r); err != nil {
			t.Error(err)
		}
	}
}

func TestCheckPath(t *testing.T) {
	for _, p := range []string{"", "a", "a/b", ".a", "..a", "a/...", "a b\n\xff/c", strings.Repeat("n", 255) + "/x"} {
		if err := CheckPath(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	for _, p := range []string{"/", "/a", "a/", "a//b", ".", "..", "a/.", "./a", "../a", "a/../b", "a\x00", "a/" + strings.Repeat("n", 256)} {
		if err := CheckPath(p); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

func TestOps(t *testing.T) {
	mutations, syncs := 0, 0
	names := map[string]bool{}
	for _, o := range allOps {
		if !o.Known() || names[o.String()] || strings.HasPrefix(o.String(), "op(") {
			t.Errorf("op %d: %s", uint8(o), o)
		}
		names[o.String()] = true
		if o.Mutation() {
			mutations++
		}
		if o.SyncOnly() {
			syncs++
		}
		if o.Mutation() && o.SyncOnly() {
			t.Errorf("%s is two things", o)
		}
	}
	if len(opNames) != len(allOps) || mutations != 14 || syncs != 5 {
		t.Errorf("%d ops, %d mutations, %d of copies", len(opNames), mutations, syncs)
	}
	if o := Op(200); o.Known() || o.String() != "op(200)" {
		t.Errorf("op 200: %s", o)
	}
}

func TestString(t *testing.T) {
	r := Record{LSN: 7, Epoch: 2, Op: OpWrite, Path: "a\nb", Fields: FieldPath | FieldPath2 | FieldName | FieldOffset |
		FieldLength | FieldSize | FieldMode | FieldOwner | FieldData, Path2: "q", Name: "n", Offset: 1, Length: 2, Size: 3,
		Mode: 0o100644, UID: 4, GID: 5, Data: []byte("secret"), Flags: FlagRedo}
	want := `2/7 write "a\nb" "q" name="n" offset=1 length=2 size=3 mode=100644 owner=4:5 data=6 flags=0x8`
	if got := r.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !r.Flags.Has(FlagRedo) || r.Flags.Has(FlagRedo|FlagLast) {
		t.Error("Flags.Has")
	}
	if ts := (Timespec{1, 2}).Time(); !ts.Equal(time.Unix(1, 2)) {
		t.Error(ts)
	}
}
