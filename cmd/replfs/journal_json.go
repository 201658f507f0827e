package main

import (
	"encoding/json"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/replfs/replfs/replicate/record"
)

// name is a name of the file system in JSON: a string, or, when it is not
// UTF-8, an object with its bytes in base64.
type name string

func (n name) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(n)) {
		return json.Marshal(string(n))
	}
	return json.Marshal(struct {
		Base64 []byte `json:"base64"`
		// Text is for people: what is not UTF-8 in it is replaced.
		Text string `json:"text"`
	}{[]byte(n), strings.ToValidUTF8(string(n), "\ufffd")})
}

// recordJSON is a record with the fields it has.
type recordJSON struct {
	File   string    `json:"file"`
	Offset int64     `json:"file_offset"`
	LSN    uint64    `json:"lsn"`
	Epoch  uint64    `json:"epoch"`
	Time   time.Time `json:"time"`
	Op     string    `json:"op"`
	Flags  []string  `json:"flags,omitempty"`

	FileID       *uint64     `json:"file_id,omitempty"`
	FileID2      *uint64     `json:"file_id2,omitempty"`
	Path         *name       `json:"path,omitempty"`
	Path2        *name       `json:"path2,omitempty"`
	Name         *name       `json:"name,omitempty"`
	Mode         *uint32     `json:"mode,omitempty"`
	Perm         *uint32     `json:"perm,omitempty"`
	UID          *uint32     `json:"uid,omitempty"`
	GID          *uint32     `json:"gid,omitempty"`
	Rdev         *uint64     `json:"rdev,omitempty"`
	Size         *int64      `json:"size,omitempty"`
	Mtime        *time.Time  `json:"mtime,omitempty"`
	Atime        *time.Time  `json:"atime,omitempty"`
	ParentMtime  *time.Time  `json:"parent_mtime,omitempty"`
	Parent2Mtime *time.Time  `json:"parent2_mtime,omitempty"`
	At           *int64      `json:"offset,omitempty"`
	At2          *int64      `json:"offset2,omitempty"`
	Length       *int64      `json:"length,omitempty"`
	Xattrs       []xattrJSON `json:"xattrs,omitempty"`
	Names        []name      `json:"names,omitempty"`
	DataBytes    *int        `json:"data_bytes,omitempty"`
	Data         []byte      `json:"data,omitempty"` // base64
}

type xattrJSON struct {
	Name  name   `json:"name"`
	Value []byte `json:"value"` // base64
}

// fieldOf gives a pointer to what a field of the record holds, if it has it.
func fieldOf[T any](r *record.Record, f record.Field, v T) *T {
	if !r.Has(f) {
		return nil
	}
	return &v
}

func timeOf(r *record.Record, f record.Field, t record.Timespec) *time.Time {
	if y := t.Time().UTC().Year(); y < 0 || y > 9999 {
		return nil // JSON's times have four digits
	}
	return fieldOf(r, f, t.Time().UTC())
}

// writeRecordJSON writes one line.
func writeRecordJSON(w io.Writer, r *record.Record, file string, offset int64, data bool) error {
	out := recordJSON{
		File: file, Offset: offset, LSN: r.LSN, Epoch: r.Epoch, Time: time.Unix(0, r.Time).UTC(),
		Op: r.Op.String(), Flags: r.Flags.Names(),
		FileID: fieldOf(r, record.FieldFileID, r.FileID), FileID2: fieldOf(r, record.FieldFileID2, r.FileID2),
		Path: fieldOf(r, record.FieldPath, name(r.Path)), Path2: fieldOf(r, record.FieldPath2, name(r.Path2)),
		Name: fieldOf(r, record.FieldName, name(r.Name)),
		Mode: fieldOf(r, record.FieldMode, r.Mode), Perm: fieldOf(r, record.FieldPerm, r.Perm),
		UID: fieldOf(r, record.FieldOwner, r.UID), GID: fieldOf(r, record.FieldOwner, r.GID),
		Rdev: fieldOf(r, record.FieldRdev, r.Rdev), Size: fieldOf(r, record.FieldSize, r.Size),
		Mtime: timeOf(r, record.FieldMtime, r.Mtime), Atime: timeOf(r, record.FieldAtime, r.Atime),
		ParentMtime:  timeOf(r, record.FieldParentMtime, r.ParentMtime),
		Parent2Mtime: timeOf(r, record.FieldParent2Mtime, r.Parent2Mtime),
		At:           fieldOf(r, record.FieldOffset, r.Offset), At2: fieldOf(r, record.FieldOffset2, r.Offset2),
		Length: fieldOf(r, record.FieldLength, r.Length), DataBytes: fieldOf(r, record.FieldData, len(r.Data)),
	}
	for _, x := range r.Xattrs {
		out.Xattrs = append(out.Xattrs, xattrJSON{name(x.Name), x.Value})
	}
	for _, n := range r.Names {
		out.Names = append(out.Names, name(n))
	}
	if data {
		out.Data = r.Data
	}
	return json.NewEncoder(w).Encode(out)
}
