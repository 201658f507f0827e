package fs

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// attrKinds are the operations on attributes.
var attrKinds = []opKind{
	{"chmod", 8, func(g *gen, o *op) { o.path, o.mode = g.path(), g.perm() }, func(_ *side, o *op) string {
		return outcome(unix.Chmod(o.path, o.mode), "")
	}},
	{"fchmod", 4, func(g *gen, o *op) { o.slot, o.mode = g.IntN(slots), g.perm() }, func(s *side, o *op) string {
		return outcome(unix.Fchmod(s.fds[o.slot], o.mode), "")
	}},
	{"fchmodat2", 2, func(g *gen, o *op) { o.path, o.mode = g.path(), g.perm() }, func(_ *side, o *op) string {
		return outcome(unix.Fchmodat(unix.AT_FDCWD, o.path, o.mode, unix.AT_SYMLINK_NOFOLLOW), "")
	}},
	{"chown", 7, genChown, func(_ *side, o *op) string { return outcome(unix.Chown(o.path, o.a, o.b), "") }},
	{"lchown", 2, genChown, func(_ *side, o *op) string { return outcome(unix.Lchown(o.path, o.a, o.b), "") }},
	{"fchown", 4, genChown, func(s *side, o *op) string { return outcome(unix.Fchown(s.fds[o.slot], o.a, o.b), "") }},
	{"utimensat", 8, func(g *gen, o *op) {
		o.path, o.flags = g.path(), pick(g, 0, 0, unix.AT_SYMLINK_NOFOLLOW)
		genTimes(g, o)
	}, func(_ *side, o *op) string {
		err := unix.UtimesNanoAt(unix.AT_FDCWD, o.path, o.times(), o.flags)
		if err != nil {
			return outcome(err, "")
		}
		var st unix.Stat_t
		err = unix.Fstatat(unix.AT_FDCWD, o.path, &st, o.flags)
		if o.a == unix.UTIME_OMIT {
			return outcome(err, "%s", show(&st))
		}
		return outcome(err, "%s atime %s", show(&st), moment(st.Atim))
	}},
	{"futimens", 4, func(g *gen, o *op) {
		o.slot = g.IntN(slots)
		genTimes(g, o)
	}, func(s *side, o *op) string {
		if s.lost(o.slot) {
			return "a known difference"
		}
		return outcome(unix.UtimesNanoAt(s.fds[o.slot], "", o.times(), unix.AT_EMPTY_PATH), "")
	}},
	{"setxattr", 8, genXattr, func(_ *side, o *op) string {
		return outcome(unix.Setxattr(o.path, o.path2, []byte(o.text), o.flags), "")
	}},
	{"lsetxattr", 2, genXattr, func(_ *side, o *op) string {
		return outcome(unix.Lsetxattr(o.path, o.path2, []byte(o.text), o.flags), "")
	}},
	{"fsetxattr", 4, genXattr, func(s *side, o *op) string {
		return outcome(unix.Fsetxattr(s.fds[o.slot], o.path2, []byte(o.text), o.flags), "")
	}},
	{"getxattr", 6, genXattr, func(_ *side, o *op) string {
		return showXattr(func(buf []byte) (int, error) { return unix.Getxattr(o.path, o.path2, buf) })
	}},
	{"fgetxattr", 3, genXattr, func(s *side, o *op) string {
		return showXattr(func(buf []byte) (int, error) { return unix.Fgetxattr(s.fds[o.slot], o.path2, buf) })
	}},
	{"listxattr", 5, genXattr, func(_ *side, o *op) string {
		return listXattr(func(buf []byte) (int, error) { return unix.Listxattr(o.path, buf) })
	}},
	{"llistxattr", 2, genXattr, func(_ *side, o *op) string {
		return listXattr(func(buf []byte) (int, error) { return unix.Llistxattr(o.path, buf) })
	}},
	{"flistxattr", 2, genXattr, func(s *side, o *op) string {
		return listXattr(func(buf []byte) (int, error) { return unix.Flistxattr(s.fds[o.slot], buf) })
	}},
	{"removexattr", 4, genRemoveXattr, func(_ *side, o *op) string { return outcome(unix.Removexattr(o.path, o.path2), "") }},
	{"fremovexattr", 2, genRemoveXattr, func(s *side, o *op) string {
		return outcome(unix.Fremovexattr(s.fds[o.slot], o.path2), "")
	}},
}

func genChown(g *gen, o *op) {
	o.path, o.slot = g.path(), g.IntN(slots)
	o.a = pick(g, -1, -1, 0, 4001, 4002, 4003)
	o.b = pick(g, -1, 0, 4001, 4002, 4100, 4200)
	if o.a == -1 && o.b == -1 { // a known difference
		o.b = 4100
	}
}

// genTimes chooses the atime (a, n) and the mtime (b, off2).
func genTimes(g *gen, o *op) {
	choose := func() (nsec int, sec int64) {
		switch g.IntN(4) {
		case 0:
			return unix.UTIME_OMIT, 0
		case 1:
			return unix.UTIME_NOW, 0
		default:
			return g.IntN(1e9), int64(1e9 + g.IntN(1e6))
		}
	}
	o.a, o.n = choose()
	o.b, o.off2 = choose()
}

func (o *op) times() []unix.Timespec {
	return []unix.Timespec{{Sec: o.n, Nsec: int64(o.a)}, {Sec: o.off2, Nsec: int64(o.b)}}
}

// genXattr chooses a name (path2) and a value (text).
func genXattr(g *gen, o *op) {
	o.path, o.slot = g.path(), g.IntN(slots)
	o.path2 = pick(g, "user.a", "user.b", "user.a", "trusted.t", "security.x", "security.capability",
		"system.posix_acl_access", "system.posix_acl_access", "system.posix_acl_default",
		"user.", "nonsense", "system.nonsense", "user."+strings.Repeat("n", 250), "user."+strings.Repeat("n", 251))
	o.text = pick(g, "", "value", "\x00\xff", strings.Repeat("v", 1000))
	o.flags = pick(g, 0, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE, 8)
	switch o.path2 {
	case "security.capability":
		o.text = pick(g, string(fileCap), "wrong")
	case "system.posix_acl_access", "system.posix_acl_default":
		none := ""
		if g.fstype == "tmpfs" { // to set none is to remove it, a known difference
			none = "wrong"
		}
		o.text = pick(g, none, "wrong",
			aclOf(7, 5, 5, nil), aclOf(6, 4, 0, nil), // no more than a mode
			aclOf(7, 5, 1, map[uint32]uint16{4002: 7}), aclOf(6, 6, 0, map[uint32]uint16{4001: 6, 4004: 4}), aclOf(7, 7, 7, map[uint32]uint16{4004: 0}))
	}
}

func genRemoveXattr(g *gen, o *op) {
	genXattr(g, o)
	if g.fstype == "tmpfs" && o.path2 == "system.posix_acl_access" { // a known difference
		o.path2 = "user.a"
	}
}

// aclOf is a POSIX ACL as an attribute's value.
func aclOf(owner, group, others uint16, users map[uint32]uint16) string {
	const undefined = 0xffffffff
	var b []byte
	entry := func(tag, perm uint16, id uint32) {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, perm)
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	b = binary.LittleEndian.AppendUint32(b, 2)
	entry(1, owner, undefined)
	for id := uint32(4000); id < 4010; id++ {
		if perm, ok := users[id]; ok {
			entry(2, perm, id)
		}
	}
	entry(4, group, undefined)
	if len(users) > 0 {
		entry(0x10, group, undefined)
	}
	entry(0x20, others, undefined)
	return string(b)
}

// showXattr asks for the size, with too little room, and for the value.
func showXattr(get func([]byte) (int, error)) string {
	size, err := get(nil)
	small, smallErr := get(make([]byte, 2))
	buf := make([]byte, 64<<10)
	n, fullErr := get(buf)
	return fmt.Sprintf("%s; %s; %s", outcome(err, "%d", size), outcome(smallErr, "%d", small), outcome(fullErr, "%x", buf[:max(n, 0)]))
}

func listXattr(list func([]byte) (int, error)) string {
	size, err := list(nil)
	small, smallErr := list(make([]byte, 2))
	buf := make([]byte, 64<<10)
	n, fullErr := list(buf)
	return fmt.Sprintf("%s; %s; %s", outcome(err, "%d", size), outcome(smallErr, "%d", small), outcome(fullErr, "%q", sorted(string(buf[:max(n, 0)]))))
}
