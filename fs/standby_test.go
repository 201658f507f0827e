package fs

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStandbyRenamed: what is renamed underneath a standby's mount is found
// under its new name at once, whatever the kernel and the table knew of it,
// and what an open descriptor means stays that.
func TestStandbyRenamed(t *testing.T) {
	e := newEnv(t, options{readOnly: true})
	s := e.store
	root.must(t, s, "echo 1 >f0; ln -s target1 l0; ln -s target2 other; setfattr -n user.k -v f f0")
	var held, link int
	hold := func(name string) int {
		fd, err := unix.Open(e.in(name), unix.O_PATH|unix.O_NOFOLLOW, 0)
		must(t, err)
		return fd
	}
	held, link = hold("f0"), hold("l0")
	defer func() { must(t, errors.Join(unix.Close(held), unix.Close(link))) }()
	for i := range 40 {
		from, to := fmt.Sprint("f", i), fmt.Sprint("f", i+1)
		// Another file takes the old name, one that looks like it.
		root.must(t, s, fmt.Sprintf("mv %s %s; echo 2 >%s; setfattr -n user.k -v other %s", from, to, from, from))
		root.must(t, s, fmt.Sprintf("mv l%d l%d; ln -s target3 l%d", i, i+1, i))
		var st unix.Stat_t
		must(t, unix.Stat(e.in(to), &st))
		if b, err := os.ReadFile(e.in(to)); string(b) != "1\n" || err != nil {
			t.Fatalf("%s: %q, %v", to, b, err)
		}
		val := make([]byte, 16)
		if n, err := unix.Getxattr(e.in(to), "user.k", val); err != nil || string(val[:n]) != "f" {
			t.Fatalf("attribute of %s: %q, %v", to, val[:max(n, 0)], err)
		}
		if target, err := os.Readlink(e.in(fmt.Sprint("l", i+1))); target != "target1" || err != nil {
			t.Fatalf("link %d: %q, %v", i+1, target, err)
		}
		// By the descriptors from the beginning, nothing else may be met.
		buf := make([]byte, 64)
		if n, err := unix.Readlinkat(link, "", buf); err == nil && string(buf[:n]) != "target1" {
			t.Fatalf("the link opened at first leads to %q", buf[:n])
		}
		if b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", held)); err == nil && string(b) != "1\n" {
			t.Fatalf("the file opened at first has %q", b)
		}
	}
}

// TestStandbySeesAppliedState: a reader on a standby sees what was applied at
// once: contents, sizes, attributes, names that come and names that go.
func TestStandbySeesAppliedState(t *testing.T) {
	e := newEnv(t, options{readOnly: true})
	s := e.store
	root.must(t, s, "mkdir d; echo start >d/log; touch d/gone")
	f, err := os.Open(e.in("d/log"))
	must(t, err)
	defer f.Close()
	want := "start\n"
	for i := range 50 {
		name := fmt.Sprint("n", i)
		root.must(t, s, fmt.Sprintf("echo %d >>d/log; touch d/%s; chmod %o d/log; rm -f d/gone d/n%d", i, name, 0o600+i%8, i-1))
		want += fmt.Sprintln(i)
		got := make([]byte, len(want)+10)
		if n, err := f.ReadAt(got, 0); string(got[:n]) != want {
			t.Fatalf("an open handle reads %q, %v", got[:n], err)
		}
		if b, err := os.ReadFile(e.in("d/log")); string(b) != want {
			t.Fatalf("a new one %q, %v", b, err)
		}
		st, err := os.Stat(e.in("d/log"))
		must(t, err)
		if st.Size() != int64(len(want)) || st.Mode().Perm() != os.FileMode(0o600+i%8) {
			t.Fatalf("stat: %d bytes, mode %o", st.Size(), st.Mode())
		}
		ents, err := os.ReadDir(e.in("d"))
		must(t, err)
		if len(ents) != 2 || ents[0].Name() != "log" || ents[1].Name() != name {
			t.Fatalf("listing %d: %v", i, ents)
		}
		if _, err := os.Stat(e.in(fmt.Sprint("d/n", i-1))); !errors.Is(err, unix.ENOENT) {
			t.Fatalf("a name that went: %v", err)
		}
	}
	// A mapping is read from the kernel's pages.
	must(t, unix.Truncate(s+"/d/log", 4096))
	m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	defer func() { must(t, unix.Munmap(m)) }()
	if string(m[:5]) != "start" {
		t.Errorf("mapped: %q", m[:5])
	}
}
