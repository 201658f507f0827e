package fs

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// attributed makes files with ACLs and other attributes in d.
func attributed(t *testing.T, e *env) {
	t.Helper()
	must(t, os.Mkdir(e.in("d"), 0o755))
	must(t, unix.Setxattr(e.in("d"), defaultACL, []byte(aclOf(7, 5, 0, map[uint32]uint16{4002: 7})), 0))
	must(t, os.WriteFile(e.in("d/f"), []byte("x"), 0o666))
	must(t, unix.Setxattr(e.in("d/f"), accessACL, []byte(aclOf(7, 5, 1, map[uint32]uint16{4001: 7})), 0))
	must(t, unix.Setxattr(e.in("d/f"), "trusted.a", []byte("b"), 0))
	must(t, unix.Setxattr(e.in("d/f"), "security.b", []byte("c"), 0))
}

// TestCopyAttributes: a copy, and a file that enters, have the attributes that
// every file system keeps in a way of its own.
func TestCopyAttributes(t *testing.T) {
	for _, fstype := range fsTypes {
		t.Run(fstype, func(t *testing.T) {
			e := newEnv(t, options{base: newFilesystem(t, fstype, ""), noStandby: true})
			attributed(t, e)
			stop := e.follow()
			e.copy()
			stop()
			e.equal()
			d := dir{e, "d"}
			must(t, d.nameless(0, func(fd int) error { return d.linkOpen(fd, "n") }))
			e.equal()
			e.sound()
		})
	}
	t.Run("to another file system", func(t *testing.T) {
		e := newEnv(t, options{store: newFilesystem(t, "xfs", ""), noStandby: true})
		attributed(t, e)
		stop := e.follow()
		e.copy()
		stop()
		buf := make([]byte, 1000)
		n, err := unix.Listxattr(e.standby+"/d/f", buf)
		must(t, err)
		if got := sorted(string(buf[:n])); got != "security.b,system.posix_acl_access,trusted.a" {
			t.Error(got)
		}
	})
}
