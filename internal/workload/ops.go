package workload

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Op names a kind of operation.
type Op string

// The operations.
const (
	OpCreate          Op = "create"         // O_CREAT, also through dangling symlinks
	OpCreateExcl      Op = "create-excl"    // O_CREAT | O_EXCL
	OpOpenTrunc       Op = "open-trunc"     // O_TRUNC of a file
	OpTmpfileLink     Op = "tmpfile-link"   // O_TMPFILE, then given a name
	OpMknodRegular    Op = "mknod-regular"  // mknod of an empty file
	OpMknodFifo       Op = "mknod-fifo"     //
	OpMknodChar       Op = "mknod-char"     // 1:3
	OpMknodSocket     Op = "mknod-socket"   //
	OpMkdir           Op = "mkdir"          //
	OpSymlink         Op = "symlink"        //
	OpLink            Op = "link"           //
	OpUnlink          Op = "unlink"         //
	OpRmdir           Op = "rmdir"          //
	OpRename          Op = "rename"         // to a name that may exist
	OpRenameOver      Op = "rename-over"    // over another file
	OpRenameDir       Op = "rename-dir"     //
	OpRenameDirOver   Op = "rename-dirover" // over an empty directory
	OpRenameNoreplace Op = "rename-noreplace"
	OpRenameExchange  Op = "rename-exchange"
	OpRenameWrite     Op = "rename-write"     // a file renamed while it is written
	OpRenameDirWrite  Op = "rename-dir-write" // its directory renamed meanwhile
	OpWrite           Op = "write"
	OpWriteLarge      Op = "write-large"
	OpWriteSparse     Op = "write-sparse"
	OpWriteAppend     Op = "write-append"
	OpWriteDirect     Op = "write-direct"
	OpWriteSync       Op = "write-sync"     // O_SYNC or O_DSYNC
	OpWriteHeld       Op = "write-held"     // through a descriptor kept over many steps
	OpWriteUnlinked   Op = "write-unlinked" // and truncate, chmod, setxattr
	OpWriteKillpriv   Op = "write-killpriv" // unprivileged: clears suid, sgid, capabilities
	OpMmap            Op = "mmap"           // stores through MAP_SHARED, msync
	OpTruncateShrink  Op = "truncate-shrink"
	OpTruncateGrow    Op = "truncate-grow"
	OpFtruncate       Op = "ftruncate"
	OpFallocate       Op = "fallocate"
	OpFallocateKeep   Op = "fallocate-keepsize"
	OpPunchHole       Op = "fallocate-punch"
	OpZeroRange       Op = "fallocate-zero"
	OpZeroRangeKeep   Op = "fallocate-zero-keepsize"
	OpCollapseRange   Op = "fallocate-collapse"
	OpInsertRange     Op = "fallocate-insert"
	OpCopyRange       Op = "copy-range"
	OpCopyRangeSelf   Op = "copy-range-self" // within one file
	OpChmod           Op = "chmod"
	OpChmodDir        Op = "chmod-dir"
	OpChown           Op = "chown"
	OpLchown          Op = "lchown" // of symlinks
	OpUtimens         Op = "utimens"
	OpUtimensNow      Op = "utimens-now" // UTIME_NOW, UTIME_OMIT
	OpUtimensSymlink  Op = "utimens-symlink"
	OpSetxattrUser    Op = "setxattr-user"
	OpSetxattrTrusted Op = "setxattr-trusted"
	OpSetxattrSymlink Op = "setxattr-symlink"
	OpRemovexattr     Op = "removexattr"
	OpSetACL          Op = "set-acl"
	OpSetDefaultACL   Op = "set-default-acl"
	OpRemoveACL       Op = "remove-acl"
	OpFsync           Op = "fsync"
	OpFdatasync       Op = "fdatasync"
	OpFsyncDir        Op = "fsync-dir"
	opMeasure         Op = "measure" // between steps, to stay within the bounds
	opPurge           Op = "purge"
)

// errConflict is an operation that found nothing to work on, or something else
// than it expected, because of another writer.
var errConflict = errors.New("conflict with another writer")

// spec is how one operation is done, how often, and which errors conflicts
// with other writers explain.
type spec struct {
	op     Op
	weight int
	run    func(*writer) error
	errnos []syscall.Errno
}

// A path's parents and the path itself may go or be replaced at any time.
var pathErrnos = []syscall.Errno{unix.ENOENT, unix.ENOTDIR, unix.ELOOP}

func (s *spec) allows(errno syscall.Errno) bool {
	return slices.Contains(pathErrnos, errno) || slices.Contains(s.errnos, errno)
}

func errnos(e ...syscall.Errno) []syscall.Errno { return e }

var (
	// Opening for writing what turns out to be a directory, or a fifo or
	// socket that nobody reads.
	opening = errnos(unix.EISDIR, unix.ENXIO)
	making  = errnos(unix.EEXIST)
	// The kernel guards what lies in sticky directories that all may write,
	// even from root (fs.protected_regular and its like).
	creating   = errnos(unix.EISDIR, unix.ENXIO, unix.EACCES)
	truncating = errnos(unix.EISDIR, unix.EINVAL, unix.EACCES, unix.ENXIO)
	renaming   = errnos(unix.EEXIST, unix.ENOTEMPTY, unix.EISDIR, unix.EINVAL)
	// Ranges end up beyond a file's end when others truncate it.
	allocating = errnos(unix.EISDIR, unix.ENXIO, unix.EOPNOTSUPP, unix.EINVAL)
	// ENOSPC and E2BIG are an inode's room for attributes; EPERM is "user." on
	// what is neither a file nor a directory.
	attributing = errnos(unix.EISDIR, unix.ENXIO, unix.EOPNOTSUPP, unix.EPERM, unix.EEXIST,
		unix.ENODATA, unix.ENOSPC, unix.E2BIG)
	// EACCES is a default ACL on what is no directory (any more).
	acling = errnos(unix.EOPNOTSUPP, unix.EACCES, unix.EPERM, unix.ENODATA, unix.ENOSPC)
	// ext4 makes no file in a directory that was just removed: EPERM.
	tmpfiling = errnos(unix.EEXIST, unix.EOPNOTSUPP, unix.EPERM)
)

// specs lists all operations, in the order in which Ops does.
func specs() []*spec {
	return []*spec{
		{OpCreate, 30, (*writer).create, creating},
		{OpCreateExcl, 30, (*writer).createExcl, making},
		{OpOpenTrunc, 10, (*writer).openTrunc, creating},
		{OpTmpfileLink, 5, (*writer).tmpfileLink, tmpfiling},
		{OpMknodRegular, 5, (*writer).mknodRegular, making},
		{OpMknodFifo, 5, (*writer).mknodFifo, making},
		{OpMknodChar, 5, (*writer).mknodChar, making},
		{OpMknodSocket, 5, (*writer).mknodSocket, making},
		{OpMkdir, 20, (*writer).mkdir, making},
		{OpSymlink, 15, (*writer).symlink, making},
		{OpLink, 15, (*writer).link, errnos(unix.EEXIST, unix.EPERM)},
		{OpUnlink, 40, (*writer).unlink, errnos(unix.EISDIR)},
		{OpRmdir, 20, (*writer).rmdir, errnos(unix.ENOTEMPTY)},
		{OpRename, 20, (*writer).rename, renaming},
		{OpRenameOver, 10, (*writer).renameOver, renaming},
		{OpRenameDir, 8, (*writer).renameDir, renaming},
		{OpRenameDirOver, 5, (*writer).renameDirOver, renaming},
		{OpRenameNoreplace, 8, (*writer).renameNoreplace, renaming},
		{OpRenameExchange, 8, (*writer).renameExchange, renaming},
		{OpRenameWrite, 4, (*writer).renameWrite, append(slices.Clone(renaming), opening...)},
		{OpRenameDirWrite, 4, (*writer).renameDirWrite, append(slices.Clone(renaming), opening...)},
		{OpWrite, 60, (*writer).write, opening},
		{OpWriteLarge, 5, (*writer).writeLarge, opening},
		{OpWriteSparse, 8, (*writer).writeSparse, opening},
		{OpWriteAppend, 30, (*writer).writeAppend, opening},
		{OpWriteDirect, 8, (*writer).writeDirect, append(slices.Clone(opening), unix.EINVAL)},
		{OpWriteSync, 4, (*writer).writeSync, opening},
		{OpWriteHeld, 15, (*writer).writeHeld, opening},
		{OpWriteUnlinked, 6, (*writer).writeUnlinked, attributing},
		{OpWriteKillpriv, 4, (*writer).writeKillpriv, attributing},
		{OpMmap, 8, (*writer).mmap, opening},
		{OpTruncateShrink, 12, (*writer).truncateShrink, truncating},
		{OpTruncateGrow, 6, (*writer).truncateGrow, truncating},
		{OpFtruncate, 8, (*writer).ftruncate, opening},
		{OpFallocate, 5, (*writer).fallocate, allocating},
		{OpFallocateKeep, 4, (*writer).fallocateKeep, allocating},
		{OpPunchHole, 5, (*writer).punchHole, allocating},
		{OpZeroRange, 4, (*writer).zeroRange, allocating},
		{OpZeroRangeKeep, 3, (*writer).zeroRangeKeep, allocating},
		{OpCollapseRange, 4, (*writer).collapseRange, allocating},
		{OpInsertRange, 4, (*writer).insertRange, allocating},
		{OpCopyRange, 8, (*writer).copyRange, append(slices.Clone(opening), unix.EINVAL)},
		{OpCopyRangeSelf, 4, (*writer).copyRangeSelf, append(slices.Clone(opening), unix.EINVAL)},
		{OpChmod, 15, (*writer).chmod, errnos(unix.EOPNOTSUPP)},
		{OpChmodDir, 5, (*writer).chmodDir, errnos(unix.EOPNOTSUPP)},
		{OpChown, 10, (*writer).chown, nil},
		{OpLchown, 5, (*writer).lchown, nil},
		{OpUtimens, 10, (*writer).utimens, nil},
		{OpUtimensNow, 6, (*writer).utimensNow, nil},
		{OpUtimensSymlink, 4, (*writer).utimensSymlink, nil},
		{OpSetxattrUser, 12, (*writer).setxattrUser, attributing},
		{OpSetxattrTrusted, 6, (*writer).setxattrTrusted, attributing},
		{OpSetxattrSymlink, 4, (*writer).setxattrSymlink, attributing},
		{OpRemovexattr, 10, (*writer).removexattr, attributing},
		{OpSetACL, 5, (*writer).setACL, acling},
		{OpSetDefaultACL, 3, (*writer).setDefaultACL, acling},
		{OpRemoveACL, 4, (*writer).removeACL, acling},
		{OpFsync, 5, (*writer).fsync, opening},
		{OpFdatasync, 4, (*writer).fdatasync, opening},
		{OpFsyncDir, 3, (*writer).fsyncDir, nil},
	}
}

// Ops lists all operations that a workload is made of.
func Ops() []Op {
	var ops []Op
	for _, s := range specs() {
		ops = append(ops, s.op)
	}
	return ops
}

// chooseSpecs applies the options' choice of operations.
func (r *runner) chooseSpecs() error {
	all := Ops()
	for op, weight := range r.opts.Weights {
		if !slices.Contains(all, op) || weight < 0 {
			return fmt.Errorf("weight %d for operation %q: no such operation, or negative", weight, op)
		}
	}
	for _, op := range r.opts.Only {
		if !slices.Contains(all, op) {
			return fmt.Errorf("no such operation: %q", op)
		}
	}
	for _, s := range specs() {
		if weight, ok := r.opts.Weights[s.op]; ok {
			s.weight = weight
		}
		if len(r.opts.Only) > 0 && !slices.Contains(r.opts.Only, s.op) {
			s.weight = 0
		}
		if s.weight > 0 {
			r.specs = append(r.specs, s)
			r.total += s.weight
		}
	}
	if r.total == 0 {
		return errors.New("no operation has a weight")
	}
	return nil
}
