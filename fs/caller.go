package fs

import (
	"bytes"
	"os"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A request names its caller's uid, gid and thread. The rest of the credentials
// is asked of /proc in the rare cases that hang on them: the caller waits for
// its answer meanwhile, so it is still there. If it is not, it has no more than
// the request says.

// inGroup tells whether the caller is in a group, supplementary ones included.
func inGroup(c *fuse.Caller, gid uint32) bool {
	if c.Gid == gid {
		return true
	}
	want := strconv.AppendUint(nil, uint64(gid), 10)
	for _, g := range bytes.Fields(statusOf(c).field("Groups")) {
		if bytes.Equal(g, want) {
			return true
		}
	}
	return false
}

// capable tells whether the caller has a capability, as capable(9) means it: in
// the daemon's user namespace.
func capable(c *fuse.Caller, capability uint) bool {
	s := statusOf(c)
	if s == nil {
		return c.Uid == 0 // of another pid namespace, most likely
	}
	set, err := strconv.ParseUint(string(s.field("CapEff")), 16, 64)
	if err != nil || set&(1<<capability) == 0 {
		return false
	}
	its, err1 := os.Readlink(procOf(c) + "/ns/user")
	ours, err2 := os.Readlink("/proc/self/ns/user")
	return err1 == nil && err2 == nil && its == ours
}

func procOf(c *fuse.Caller) string { return "/proc/" + strconv.FormatUint(uint64(c.Pid), 10) }

// status is the content of /proc/PID/status.
type status []byte

// statusOf reads the status of the caller's thread; nil if it cannot be read or
// is somebody else's by now.
func statusOf(c *fuse.Caller) status {
	if c.Pid == 0 {
		return nil
	}
	b, err := os.ReadFile(procOf(c) + "/status")
	if err != nil {
		return nil
	}
	// Real, effective, saved and file system uid: the last one is the request's.
	ids := bytes.Fields(status(b).field("Uid"))
	if len(ids) != 4 || string(ids[3]) != strconv.FormatUint(uint64(c.Uid), 10) {
		return nil
	}
	return b
}

func (s status) field(name string) []byte {
	for line := range bytes.Lines(s) {
		if value, ok := bytes.CutPrefix(line, []byte(name+":")); ok {
			return bytes.TrimSpace(value)
		}
	}
	return nil
}

// withoutSetID is the mode of a file after a change by a caller who may not
// keep suid and sgid (setattr_should_drop_suidgid in the kernel).
func withoutSetID(st *unix.Stat_t, c *fuse.Caller) uint32 {
	mode := st.Mode
	if mode&unix.S_IFMT == unix.S_IFDIR {
		return mode
	}
	mode &^= unix.S_ISUID
	if mode&unix.S_ISGID != 0 && (mode&unix.S_IXGRP != 0 || !inGroup(c, st.Gid)) {
		mode &^= unix.S_ISGID
	}
	return mode
}

// keepsSetID tells whether the caller of a request that does not say so may
// change a file that has suid or sgid without their being cleared.
func keepsSetID(st *unix.Stat_t, c *fuse.Caller) bool {
	return st.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 || capable(c, unix.CAP_FSETID)
}
