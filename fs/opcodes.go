package fs

import (
	"fmt"

	"github.com/replfs/replfs/replicate/record"
)

// Opcode says what a request of the kernel asks for: enum fuse_opcode of the
// kernel's include/uapi/linux/fuse.h, up to protocol 7.45.
type Opcode uint32

// The opcodes. 7 and 19 were never given out.
const (
	OpcodeLookup          Opcode = 1
	OpcodeForget          Opcode = 2
	OpcodeGetattr         Opcode = 3
	OpcodeSetattr         Opcode = 4
	OpcodeReadlink        Opcode = 5
	OpcodeSymlink         Opcode = 6
	OpcodeMknod           Opcode = 8
	OpcodeMkdir           Opcode = 9
	OpcodeUnlink          Opcode = 10
	OpcodeRmdir           Opcode = 11
	OpcodeRename          Opcode = 12
	OpcodeLink            Opcode = 13
	OpcodeOpen            Opcode = 14
	OpcodeRead            Opcode = 15
	OpcodeWrite           Opcode = 16
	OpcodeStatfs          Opcode = 17
	OpcodeRelease         Opcode = 18
	OpcodeFsync           Opcode = 20
	OpcodeSetxattr        Opcode = 21
	OpcodeGetxattr        Opcode = 22
	OpcodeListxattr       Opcode = 23
	OpcodeRemovexattr     Opcode = 24
	OpcodeFlush           Opcode = 25
	OpcodeInit            Opcode = 26
	OpcodeOpendir         Opcode = 27
	OpcodeReaddir         Opcode = 28
	OpcodeReleasedir      Opcode = 29
	OpcodeFsyncdir        Opcode = 30
	OpcodeGetlk           Opcode = 31
	OpcodeSetlk           Opcode = 32
	OpcodeSetlkw          Opcode = 33
	OpcodeAccess          Opcode = 34
	OpcodeCreate          Opcode = 35
	OpcodeInterrupt       Opcode = 36
	OpcodeBmap            Opcode = 37
	OpcodeDestroy         Opcode = 38
	OpcodeIoctl           Opcode = 39
	OpcodePoll            Opcode = 40
	OpcodeNotifyReply     Opcode = 41
	OpcodeBatchForget     Opcode = 42
	OpcodeFallocate       Opcode = 43
	OpcodeReaddirplus     Opcode = 44
	OpcodeRename2         Opcode = 45
	OpcodeLseek           Opcode = 46
	OpcodeCopyFileRange   Opcode = 47
	OpcodeSetupmapping    Opcode = 48
	OpcodeRemovemapping   Opcode = 49
	OpcodeSyncfs          Opcode = 50
	OpcodeTmpfile         Opcode = 51
	OpcodeStatx           Opcode = 52
	OpcodeCopyFileRange64 Opcode = 53

	// opcodes is above all of them.
	opcodes = 54
)

// effect is what a request does to the store when it is answered with OK.
type effect int

const (
	// reads: nothing that a standby would have to know.
	reads effect = iota
	// mutates data or metadata; the records say how. A file that no replicated
	// path leads to (nameless, excluded, a socket) gives none, and neither does
	// a request that changes nothing.
	mutates
	// refused: never answered with OK, because it would change what no record
	// tells, or promise what is not kept.
	refused
)

// opcodeInfo is what fs promises of an opcode.
type opcodeInfo struct {
	name   string
	effect effect
	// records are the kinds that one request may give. Most give exactly one;
	// a rename or link that crosses the border of an excluded path gives those
	// of what it means on the other side.
	records []record.Op
	// why is the reason for giving no record, or for refusing.
	why string
}

func gives(ops ...record.Op) []record.Op { return ops }

// opcodeTable has every opcode of the protocol: what is not in it the kernel
// does not send, and a test fails if it does. An opcode of a later protocol is
// answered ENOSYS by go-fuse, counted as unknown, and logged.
var opcodeTable = [opcodes]opcodeInfo{
	OpcodeLookup:     {name: "LOOKUP", why: "reads"},
	OpcodeForget:     {name: "FORGET", why: "concerns the inode table only"},
	OpcodeGetattr:    {name: "GETATTR", why: "reads"},
	OpcodeReadlink:   {name: "READLINK", why: "reads; the store's atimes are not replicated"},
	OpcodeRead:       {name: "READ", why: "reads; the store's atimes are not replicated"},
	OpcodeStatfs:     {name: "STATFS", why: "reads"},
	OpcodeRelease:    {name: "RELEASE", why: "closes a descriptor"},
	OpcodeGetxattr:   {name: "GETXATTR", why: "reads"},
	OpcodeListxattr:  {name: "LISTXATTR", why: "reads"},
	OpcodeOpendir:    {name: "OPENDIR", why: "opens a descriptor"},
	OpcodeReaddir:    {name: "READDIR", why: "reads"},
	OpcodeReleasedir: {name: "RELEASEDIR", why: "closes a descriptor"},
	OpcodeReaddirplus: {name: "READDIRPLUS",
		why: "reads"},
	OpcodeLseek: {name: "LSEEK", why: "finds data and holes; positions are the kernel's"},

	OpcodeCreate:        {name: "CREATE", effect: mutates, records: gives(record.OpCreate, record.OpSetAttr)},
	OpcodeMknod:         {name: "MKNOD", effect: mutates, records: gives(record.OpCreate, record.OpSetAttr)},
	OpcodeMkdir:         {name: "MKDIR", effect: mutates, records: gives(record.OpMkdir, record.OpSetAttr)},
	OpcodeSymlink:       {name: "SYMLINK", effect: mutates, records: gives(record.OpSymlink, record.OpSetAttr)},
	OpcodeLink:          {name: "LINK", effect: mutates, records: gives(record.OpLink, record.OpSetAttr, record.OpState, record.OpStateData, record.OpStateEnd, record.OpFsync)},
	OpcodeUnlink:        {name: "UNLINK", effect: mutates, records: gives(record.OpUnlink, record.OpSetAttr)},
	OpcodeRmdir:         {name: "RMDIR", effect: mutates, records: gives(record.OpRmdir, record.OpSetAttr)},
	OpcodeRename:        {name: "RENAME", effect: mutates, records: renameRecords},
	OpcodeRename2:       {name: "RENAME2", effect: mutates, records: renameRecords},
	OpcodeOpen:          {name: "OPEN", effect: mutates, records: gives(record.OpSetAttr)}, // O_TRUNC
	OpcodeWrite:         {name: "WRITE", effect: mutates, records: gives(record.OpWrite, record.OpFsync)},
	OpcodeSetattr:       {name: "SETATTR", effect: mutates, records: gives(record.OpSetAttr)},
	OpcodeSetxattr:      {name: "SETXATTR", effect: mutates, records: gives(record.OpSetXattr)},
	OpcodeRemovexattr:   {name: "REMOVEXATTR", effect: mutates, records: gives(record.OpRemoveXattr)},
	OpcodeFallocate:     {name: "FALLOCATE", effect: mutates, records: gives(record.OpFallocate)},
	OpcodeCopyFileRange: {name: "COPY_FILE_RANGE", effect: mutates, records: gives(record.OpCopyRange, record.OpWrite)},
	OpcodeFsync:         {name: "FSYNC", effect: mutates, records: gives(record.OpFsync)},
	OpcodeFsyncdir:      {name: "FSYNCDIR", effect: mutates, records: gives(record.OpFsync)},

	OpcodeFlush:           {name: "FLUSH", effect: refused, why: "ENOSYS: close(2) has nothing to do here, and the kernel stops asking"},
	OpcodeAccess:          {name: "ACCESS", effect: refused, why: "never sent: with default_permissions the kernel checks by itself"},
	OpcodeIoctl:           {name: "IOCTL", effect: refused, why: "ENOSYS, the caller gets ENOTTY: inode flags and project ids (chattr) have no record"},
	OpcodeTmpfile:         {name: "TMPFILE", why: "makes a file that no path leads to until LINK gives it one"},
	OpcodePoll:            {name: "POLL", effect: refused, why: "ENOSYS: regular files are always ready, as the kernel then answers itself"},
	OpcodeStatx:           {name: "STATX", why: "reads"},
	OpcodeBmap:            {name: "BMAP", effect: refused, why: "never sent: only for file systems on a block device"},
	OpcodeGetlk:           {name: "GETLK", effect: refused, why: "never sent: locks are left to the kernel"},
	OpcodeSetlk:           {name: "SETLK", effect: refused, why: "never sent: locks are left to the kernel"},
	OpcodeSetlkw:          {name: "SETLKW", effect: refused, why: "never sent: locks are left to the kernel"},
	OpcodeSetupmapping:    {name: "SETUPMAPPING", effect: refused, why: "never sent: DAX, virtiofs only"},
	OpcodeRemovemapping:   {name: "REMOVEMAPPING", effect: refused, why: "never sent: DAX, virtiofs only"},
	OpcodeSyncfs:          {name: "SYNCFS", effect: refused, why: "never sent: virtiofs and fuseblk only"},
	OpcodeCopyFileRange64: {name: "COPY_FILE_RANGE_64", effect: refused, why: "ENOSYS: the kernel falls back to COPY_FILE_RANGE, once for all"},

	OpcodeInit:        {name: "INIT", why: "opens the session"},
	OpcodeDestroy:     {name: "DESTROY", why: "ends the session"},
	OpcodeInterrupt:   {name: "INTERRUPT", why: "asks to give up another request, which answers for itself"},
	OpcodeNotifyReply: {name: "NOTIFY_REPLY", why: "never sent: nobody asks the kernel for its pages"},
	OpcodeBatchForget: {name: "BATCH_FORGET", why: "concerns the inode table only"},
}

var renameRecords = gives(record.OpRename, record.OpRemoveTree, record.OpSetAttr, record.OpState, record.OpStateData, record.OpStateEnd, record.OpFsync)

// Known reports whether the protocol that this version speaks has the opcode.
func (o Opcode) Known() bool { return o < opcodes && opcodeTable[o].name != "" }

// String is the opcode's name as in the kernel's sources, without FUSE_.
func (o Opcode) String() string {
	if o.Known() {
		return opcodeTable[o].name
	}
	return fmt.Sprintf("OPCODE-%d", uint32(o))
}
