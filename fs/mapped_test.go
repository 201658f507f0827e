package fs

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMappedAtDemotion: what was stored in a shared mapping is written back
// when it is asked for before a demotion; what comes too late is told.
func TestMappedAtDemotion(t *testing.T) {
	e := newEnv(t, options{})
	must(t, os.Mkdir(e.in("d"), 0o755))
	must(t, os.WriteFile(e.in("d/f"), make([]byte, 3*page), 0o644))
	p := newPeer(t)
	fd := p.ask("open %s %d", e.in("d/f"), unix.O_RDWR)
	if got := p.ask("map %s %d", fd, 3*page) + p.ask("close %s", fd); got != "okok" {
		t.Fatal(got)
	}
	e.records()
	p.ask("set 5 17")
	p.ask("set %d 18", 2*page)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e.fs.FlushMapped(ctx)
	e.records()
	for _, dir := range []string{e.store, e.standby} {
		got, err := os.ReadFile(dir + "/d/f")
		must(t, err)
		if got[5] != 17 || got[2*page] != 18 {
			t.Errorf("%s has %d and %d", dir, got[5], got[2*page])
		}
	}
	if n, files := e.fs.LostPages(); n != 0 || len(files) != 0 {
		t.Errorf("lost: %d, %q", n, files)
	}
	p.ask("set 6 19")
	e.fs.SetReadOnly()
	if got := p.ask("msync"); got != "EIO" && got != "EROFS" {
		t.Errorf("msync behind a closed gate: %s", got)
	}
	if n, files := e.fs.LostPages(); n == 0 || !slices.Equal(files, []string{"d/f"}) {
		t.Errorf("lost: %d, %q", n, files)
	}
	p.ask("unmap")
	e.equal()
	e.promote()
	if n, _ := e.fs.LostPages(); n != 0 {
		t.Errorf("lost, once primary again: %d", n)
	}
	e.equal()
	e.sound()
}
