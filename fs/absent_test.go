package fs

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAbsentAttributes: that an attribute is not there is remembered only as
// long as it is so.
func TestAbsentAttributes(t *testing.T) {
	e := newEnv(t, options{base: disk})
	mode := func(name string) os.FileMode {
		t.Helper()
		st, err := os.Stat(e.in(name))
		must(t, err)
		return st.Mode().Perm()
	}
	get := func(name string) error {
		_, err := unix.Lgetxattr(e.in(name), capability, make([]byte, 64))
		return err
	}
	for round := range 2 {
		root.must(t, e.mnt, "umask 022; mkdir d; : >d/before; setfacl -d -m u:7:rwx,g::rwx d; umask 077; : >d/with; mkdir d/sub; : >d/sub/f; setfacl -k d; umask 022; : >d/after; : >d/sub/g")
		for name, want := range map[string]os.FileMode{"d/before": 0o644, "d/with": 0o664, "d/sub/f": 0o664, "d/after": 0o644, "d/sub/g": 0o664} {
			if got := mode(name); got != want {
				t.Errorf("round %d: mode of %s is %o, want %o", round, name, got, want)
			}
		}
		for range 2 {
			if err := get("d/before"); !errors.Is(err, unix.ENODATA) {
				t.Errorf("round %d: capabilities of a new file: %v", round, err)
			}
		}
		must(t, unix.Setxattr(e.in("d/before"), capability, fileCap, 0))
		must(t, get("d/before"))
		must(t, unix.Removexattr(e.in("d/before"), capability))
		if err := get("d/before"); !errors.Is(err, unix.ENODATA) {
			t.Errorf("round %d: capabilities that were removed: %v", round, err)
		}
		e.records()
		// Somebody else is primary for a while.
		e.fs.SetReadOnly()
		for _, store := range []string{e.store, e.standby} {
			must(t, unix.Setxattr(store+"/d/before", capability, fileCap, 0))
			root.must(t, store, "setfacl -d -m u:7:rwx,g::rwx d; touch -d @1000000000 d d/before")
		}
		must(t, get("d/before"))
		e.promote()
		must(t, get("d/before"))
		root.must(t, e.mnt, "umask 077; : >d/later")
		if got := mode("d/later"); got != 0o664 {
			t.Errorf("round %d: the mode after the change of roles is %o", round, got)
		}
		e.equal()
		root.must(t, e.mnt, "rm -r d")
	}
	e.equal()
	e.sound()
}
