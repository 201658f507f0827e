package fs

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// listed is an entry as getdents64(2) gives it: its name, and the offset of
// what comes after it.
type listed struct {
	name string
	next int64
}

// list reads a directory from where it stands until limit entries are there, or
// its end.
func list(t testing.TB, fd, limit int) []listed {
	t.Helper()
	var out []listed
	buf := make([]byte, 8<<10)
	for len(out) < limit {
		n, err := unix.Getdents(fd, buf)
		must(t, err)
		if n == 0 {
			return out
		}
		for rest := buf[:n]; len(rest) > 0; {
			length := int(rest[16]) | int(rest[17])<<8
			name, _, _ := strings.Cut(string(rest[19:length]), "\x00")
			out = append(out, listed{name, int64(le64(rest[8:]))})
			rest = rest[length:]
		}
	}
	return out
}

// TestLargeDirectory: what stays in a directory while others come and go is
// listed once, by every reader, and a position stays what it is.
func TestLargeDirectory(t *testing.T) {
	const entries = 100_000
	for _, fstype := range fsTypes {
		t.Run(fstype, func(t *testing.T) {
			count, data := entries, "nr_inodes=0"
			if fstype != "tmpfs" { // it takes long to make more
				count, data = 5000, ""
			}
			name := func(i int) string { return fmt.Sprintf("entry%06d", i) }
			e := newEnv(t, options{base: newFilesystem(t, fstype, data), noStandby: true, prepare: func(store string) {
				for i := range count {
					must(t, unix.Mknod(store+"/"+name(i), unix.S_IFREG|0o644, 0))
				}
			}})
			fd, err := unix.Open(e.mnt, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			must(t, err)
			defer unix.Close(fd)
			before := list(t, fd, count/3)
			at := before[len(before)-1].next
			// Every 50th goes, seen already or not; others come.
			gone := map[string]bool{}
			for i := 0; i < count; i += 50 {
				must(t, os.Remove(e.in(name(i))))
				gone[name(i)] = true
				if i%100 == 0 {
					must(t, unix.Mknod(e.in(fmt.Sprint("new", i)), unix.S_IFREG|0o644, 0))
				}
			}
			after := list(t, fd, 2*count)
			seen := map[string]int{}
			for _, l := range append(before[:len(before):len(before)], after...) {
				seen[l.name]++
			}
			for i := range count {
				if n := seen[name(i)]; n != 1 && !gone[name(i)] {
					t.Fatalf("%s is listed %d times", name(i), n)
				}
			}
			// Back to where the rest began, and to a place before that.
			for _, from := range []struct {
				at   int64
				want []listed
			}{{at, after}, {before[len(before)/2].next, before[len(before)/2+1:]}} {
				_, err := unix.Seek(fd, from.at, unix.SEEK_SET)
				must(t, err)
				again := staying(list(t, fd, len(from.want)+entries/50), gone)
				want := staying(from.want, gone)
				if len(want) == 0 || len(again) < len(want) || strings.Join(again[:len(want)], " ") != strings.Join(want, " ") {
					t.Errorf("from offset %d: %d entries, not the %d that were there before", from.at, len(again), len(want))
				}
			}
			// A new reader sees what is there now.
			names, err := os.ReadDir(e.mnt)
			must(t, err)
			store, err := os.ReadDir(e.store)
			must(t, err)
			if len(names) != len(store) {
				t.Errorf("%d entries, the store has %d", len(names), len(store))
			}
			for i := range min(len(names), len(store)) {
				if names[i].Name() != store[i].Name() {
					t.Fatalf("%q, the store has %q", names[i].Name(), store[i].Name())
				}
			}
			e.sound()
		})
	}
}

// staying are the names that nothing happened to.
func staying(entries []listed, gone map[string]bool) []string {
	var out []string
	for _, l := range entries {
		if strings.HasPrefix(l.name, "entry") && !gone[l.name] {
			out = append(out, l.name)
		}
	}
	return out
}
