package fs

import (
	"fmt"
	"log"
	"strings"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"
)

// requestCounts counts the requests of a mount by opcode; the last one counts
// those that the table does not have.
//
// It sees what go-fuse hands to the file system, and by go-fuse's log the
// opcodes that it does not implement (BMAP, SYNCFS, and any that is newer than
// go-fuse). It cannot see what go-fuse answers silently: INIT (counted when it
// is over), DESTROY, INTERRUPT, POLL and COPY_FILE_RANGE_64, which reach
// nothing of ours, the lookup that go-fuse sends itself on mounting, and that
// FORGETs came as one BATCH_FORGET. go-fuse's trace, which the tests read,
// shows them all.
type requestCounts [opcodes + 1]atomic.Uint64

func (c *requestCounts) add(op Opcode) { c[min(op, opcodes)].Add(1) }

// Requests returns how many requests of each opcode the kernel has sent since
// the mount was made. Opcodes that never came are left out.
func (fs *FS) Requests() map[string]uint64 {
	out := make(map[string]uint64)
	for op := range Opcode(opcodes) {
		if n := fs.requests[op].Load(); n > 0 {
			out[op.String()] = n
		}
	}
	if n := fs.requests[opcodes].Load(); n > 0 {
		out["UNKNOWN"] = n
	}
	return out
}

// unimplemented is how go-fuse's log tells of an opcode without a handler.
const unimplemented = "Unimplemented opcode "

// fuseLog is where go-fuse logs to.
type fuseLog struct {
	fs    *FS
	trace func(line string)
}

func (fs *FS) fuseLogger(trace func(string)) *log.Logger { return log.New(fuseLog{fs, trace}, "", 0) }

func (l fuseLog) Write(p []byte) (int, error) {
	line := strings.TrimSuffix(string(p), "\n")
	if l.trace != nil {
		l.trace(line)
	}
	if name, ok := strings.CutPrefix(line, unimplemented); ok {
		op := opcodeNamed(name)
		l.fs.requests.add(op)
		if !op.Known() {
			l.fs.log.Warn("the kernel asked for something that this version does not know; it was refused", zap.String("opcode", name))
		}
		return len(p), nil
	}
	if l.trace == nil {
		l.fs.log.Info("go-fuse", zap.String("message", line))
	}
	return len(p), nil
}

// opcodeNamed is the opcode that go-fuse calls so: by its name, or its number
// when it knows none.
func opcodeNamed(name string) Opcode {
	for op := range Opcode(opcodes) {
		if op.Known() && opcodeTable[op].name == name {
			return op
		}
	}
	var n uint32
	for _, format := range []string{"OPCODE-%d", "opcode %d"} {
		if _, err := fmt.Sscanf(name, format, &n); err == nil {
			return Opcode(n)
		}
	}
	return opcodes
}

// counted is the file system as go-fuse sees it: every request is counted,
// then answered by FS. It embeds nothing, so that a request which a later
// go-fuse adds does not compile before it is counted.
type counted struct{ fs front }

var _ fuse.RawFileSystem = counted{}

func (c counted) add(h *fuse.InHeader) {
	c.fs.requests.add(Opcode(h.Opcode))
	if c.fs.cfg.Busy != nil {
		c.fs.cfg.Busy()
	}
}

func (c counted) String() string      { return c.fs.String() }
func (c counted) SetDebug(debug bool) { c.fs.SetDebug(debug) }
func (c counted) OnUnmount()          { c.fs.OnUnmount() }

func (c counted) Init(s *fuse.Server) {
	c.fs.requests.add(OpcodeInit)
	c.fs.Init(s)
}

func (c counted) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	c.add(h)
	return c.fs.Lookup(cancel, h, name, out)
}

func (c counted) Forget(nodeid, nlookup uint64) {
	c.fs.requests.add(OpcodeForget)
	c.fs.Forget(nodeid, nlookup)
}

func (c counted) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.GetAttr(cancel, in, out)
}

func (c counted) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.SetAttr(cancel, in, out)
}

func (c counted) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Mknod(cancel, in, name, out)
}

func (c counted) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Mkdir(cancel, in, name, out)
}

func (c counted) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	c.add(h)
	return c.fs.Unlink(cancel, h, name)
}

func (c counted) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	c.add(h)
	return c.fs.Rmdir(cancel, h, name)
}

func (c counted) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Rename(cancel, in, oldName, newName)
}

func (c counted) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Link(cancel, in, name, out)
}

func (c counted) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	c.add(h)
	return c.fs.Symlink(cancel, h, target, name, out)
}

func (c counted) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	c.add(h)
	return c.fs.Readlink(cancel, h)
}

func (c counted) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Access(cancel, in)
}

func (c counted) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	c.add(h)
	return c.fs.GetXAttr(cancel, h, attr, dest)
}

func (c counted) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	c.add(h)
	return c.fs.ListXAttr(cancel, h, dest)
}

func (c counted) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.SetXAttr(cancel, in, attr, data)
}

func (c counted) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	c.add(h)
	return c.fs.RemoveXAttr(cancel, h, attr)
}

func (c counted) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Create(cancel, in, name, out)
}

func (c counted) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Tmpfile(cancel, in, out)
}

func (c counted) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Open(cancel, in, out)
}

func (c counted) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	c.add(&in.InHeader)
	return c.fs.Read(cancel, in, buf)
}

func (c counted) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Lseek(cancel, in, out)
}

func (c counted) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.GetLk(cancel, in, out)
}

func (c counted) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.SetLk(cancel, in)
}

func (c counted) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.SetLkw(cancel, in)
}

func (c counted) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	c.add(&in.InHeader)
	c.fs.Release(cancel, in)
}

func (c counted) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	c.add(&in.InHeader)
	return c.fs.Write(cancel, in, data)
}

// Writev is asked first with the same request: Write counts it.
func (c counted) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

func (c counted) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	c.add(&in.InHeader)
	return c.fs.CopyFileRange(cancel, in)
}

func (c counted) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Ioctl(cancel, in, inbuf, out, outbuf)
}

func (c counted) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Flush(cancel, in)
}

func (c counted) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Fsync(cancel, in)
}

func (c counted) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Fallocate(cancel, in)
}

func (c counted) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.OpenDir(cancel, in, out)
}

func (c counted) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.ReadDir(cancel, in, out)
}

func (c counted) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.ReadDirPlus(cancel, in, out)
}

func (c counted) ReleaseDir(in *fuse.ReleaseIn) {
	c.add(&in.InHeader)
	c.fs.ReleaseDir(in)
}

func (c counted) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.FsyncDir(cancel, in)
}

func (c counted) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	c.add(h)
	return c.fs.StatFs(cancel, h, out)
}

func (c counted) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	c.add(&in.InHeader)
	return c.fs.Statx(cancel, in, out)
}
