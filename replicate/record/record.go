// Package record defines the records of the replication log: one applied
// mutation each, self-contained, with a binary form that is the same in the
// log, on the wire and in a dump.
package record

import (
	"fmt"
	"time"
)

// Op says what a record did. The numbers are part of the wire format.
type Op uint8

const (
	// OpEpoch opens an epoch: Path is the name of its primary, Path2 the
	// cluster's id. It is the first record of every epoch.
	OpEpoch Op = 1
	// OpFsync asks for Path to be made durable, as fsync(2) or, with
	// FlagDataOnly, fdatasync(2) does. It changes nothing.
	OpFsync Op = 2
	// OpSync asks for all that the records before it changed to be made durable,
	// whether or not an OpFsync asked for it. It has no fields and changes
	// nothing.
	OpSync Op = 3

	// OpCreate makes a regular file, FIFO or device (type in Mode, Rdev).
	OpCreate Op = 10
	// OpMkdir makes a directory.
	OpMkdir Op = 11
	// OpSymlink makes a symbolic link to Path2.
	OpSymlink Op = 12
	// OpLink gives the file Path2 the further name Path.
	OpLink Op = 13
	// OpUnlink removes the name Path of a non-directory.
	OpUnlink Op = 14
	// OpRmdir removes the empty directory Path.
	OpRmdir Op = 15
	// OpRename renames Path2 to Path, with FlagExchange both ways.
	OpRename Op = 16
	// OpRemoveTree removes Path and all below it: it left the replicated part.
	OpRemoveTree Op = 17

	// OpWrite stores Data at Offset.
	OpWrite Op = 20
	// OpSetAttr sets what its fields name: size, owner, mode, times.
	OpSetAttr Op = 21
	// OpFallocate is fallocate(2) with mode Perm on Offset, Length.
	OpFallocate Op = 22
	// OpCopyRange is copy_file_range(2) from Path2 at Offset2 to Path at Offset.
	OpCopyRange Op = 23
	// OpSetXattr sets the extended attribute Name to Data.
	OpSetXattr Op = 24
	// OpRemoveXattr removes the extended attribute Name.
	OpRemoveXattr Op = 25

	// OpSyncBegin starts a complete copy for the node named Path: its store
	// is empty at this LSN. Path2 is the copy's id.
	OpSyncBegin Op = 40
	// OpState says that Path exists with these attributes. A standby that
	// copies makes it if it is missing and leaves it alone if it exists.
	// With Names it is one more name of the file that has those names.
	OpState Op = 41
	// OpStateData is content of Path at Offset as of this LSN.
	OpStateData Op = 42
	// OpStateEnd says that Path has had all of its content.
	OpStateEnd Op = 43
	// OpSyncEnd asks the node named Path whether the copy Path2 is complete.
	OpSyncEnd Op = 44
)

var opNames = map[Op]string{
	OpEpoch: "epoch", OpFsync: "fsync", OpSync: "sync",
	OpCreate: "create", OpMkdir: "mkdir", OpSymlink: "symlink", OpLink: "link",
	OpUnlink: "unlink", OpRmdir: "rmdir", OpRename: "rename", OpRemoveTree: "remove-tree",
	OpWrite: "write", OpSetAttr: "setattr", OpFallocate: "fallocate",
	OpCopyRange: "copy-range", OpSetXattr: "setxattr", OpRemoveXattr: "removexattr",
	OpSyncBegin: "sync-begin", OpState: "state", OpStateData: "state-data",
	OpStateEnd: "state-end", OpSyncEnd: "sync-end",
}

func (o Op) String() string {
	if s, ok := opNames[o]; ok {
		return s
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Known reports whether this version knows the operation.
func (o Op) Known() bool { _, ok := opNames[o]; return ok }

// Mutation reports whether a record of this kind is the one record of a
// mutation that an application made (invariant I1).
func (o Op) Mutation() bool { return o >= OpCreate && o <= OpRemoveXattr }

// SyncOnly reports whether only a standby that copies looks at the record.
func (o Op) SyncOnly() bool { return o >= OpSyncBegin && o <= OpSyncEnd }

// Flags modify an operation.
type Flags uint16

const (
	// FlagDataOnly makes an OpFsync an fdatasync.
	FlagDataOnly Flags = 1 << iota
	// FlagExchange makes an OpRename swap its two names.
	FlagExchange
	// FlagLast: the name that an unlink, rmdir or rename took away was the
	// file's last; FileID (for a rename FileID2) will not be seen again.
	FlagLast
	// FlagRedo: the operation may have been applied before; being applied
	// already is not an error.
	FlagRedo
	// FlagContents makes an OpState empty an existing file, whose content
	// then follows.
	FlagContents
	// FlagMore says of an OpState that content and an OpStateEnd follow.
	FlagMore
	// FlagLive makes every standby apply an OpState…: something entered the
	// replicated part of the tree.
	FlagLive
)

// Has reports whether all of g are set.
func (f Flags) Has(g Flags) bool { return f&g == g }

// Field says which fields of a record are set.
type Field uint32

const (
	FieldFileID Field = 1 << iota
	FieldFileID2
	FieldPath
	FieldPath2
	FieldName
	FieldMode
	FieldPerm
	FieldOwner
	FieldRdev
	FieldSize
	FieldMtime
	FieldAtime
	FieldParentMtime
	FieldParent2Mtime
	FieldOffset
	FieldOffset2
	FieldLength
	FieldXattrs
	FieldNames
	FieldData

	fieldsKnown = FieldData<<1 - 1
)

// Has reports whether all of g are set.
func (f Field) Has(g Field) bool { return f&g == g }

// Timespec is a file time to the nanosecond.
type Timespec struct {
	Sec  int64
	Nsec uint32
}

// Time converts to a time.Time.
func (t Timespec) Time() time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

// Record is one entry of the log. Fields says which of the values below Op
// and Flags count; Append and the decoder keep it. Paths are relative to the
// store, "" is its root, and may hold any byte but NUL.
type Record struct {
	// LSN, Epoch and Time (Unix nanoseconds) are given by the log.
	LSN   uint64
	Epoch uint64
	Time  int64
	Op    Op
	Flags Flags

	Fields Field
	// FileID tells files apart while a primary's process lives, so that a
	// standby need not resolve the path of a hot file again. FileID2 is that
	// of the file a rename replaced or a copy read.
	FileID, FileID2 uint64
	Path, Path2     string
	// Name is an extended attribute's.
	Name string
	// Mode is the resulting st_mode, type included; Perm the mode as asked
	// for (what default ACLs are computed from).
	Mode, Perm uint32
	UID, GID   uint32
	Rdev       uint64
	Size       int64
	// Mtime and Atime are the file's own after the operation; ParentMtime is
	// that of Path's directory, Parent2Mtime of Path2's.
	Mtime, Atime, ParentMtime, Parent2Mtime Timespec
	Offset, Offset2, Length                 int64
	// Xattrs are all extended attributes of an OpState, Names the names a
	// hard-linked file has at this LSN.
	Xattrs []Xattr
	Names  []string
	Data   []byte

	// Request is the kernel's number of the request that asked for it. It
	// never travels: it is for those who have the record in memory.
	Request uint64
}

// Xattr is an extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Has reports whether all the fields are set.
func (r *Record) Has(f Field) bool { return r.Fields&f == f }

// String describes the record for people, without its data.
func (r *Record) String() string {
	s := fmt.Sprintf("%d/%d %s %q", r.Epoch, r.LSN, r.Op, r.Path)
	if r.Has(FieldPath2) {
		s += fmt.Sprintf(" %q", r.Path2)
	}
	if r.Has(FieldName) {
		s += fmt.Sprintf(" name=%q", r.Name)
	}
	if r.Has(FieldOffset) {
		s += fmt.Sprintf(" offset=%d", r.Offset)
	}
	if r.Has(FieldLength) {
		s += fmt.Sprintf(" length=%d", r.Length)
	}
	if r.Has(FieldSize) {
		s += fmt.Sprintf(" size=%d", r.Size)
	}
	if r.Has(FieldMode) {
		s += fmt.Sprintf(" mode=%o", r.Mode)
	}
	if r.Has(FieldOwner) {
		s += fmt.Sprintf(" owner=%d:%d", r.UID, r.GID)
	}
	if r.Has(FieldData) {
		s += fmt.Sprintf(" data=%d", len(r.Data))
	}
	if r.Flags != 0 {
		s += fmt.Sprintf(" flags=%#x", uint16(r.Flags))
	}
	return s
}
