package apply

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// A node that was primary has sockets and excluded files of its own; the next
// primary's records must find their place all the same.
func TestWhatDoesNotTravelMakesWay(t *testing.T) {
	const file = record.FieldPath | record.FieldMode
	dir := func(op record.Op, path string) record.Record {
		return record.Record{Op: op, Path: path, Mode: unix.S_IFDIR | 0o755, Fields: file}
	}
	for name, c := range map[string]struct {
		has  []string // in the store before; sockets end in .sock, directories in /
		rec  record.Record
		gone []string
	}{
		"create over a socket":  {[]string{"a.sock"}, record.Record{Op: record.OpCreate, Path: "a.sock", Mode: unix.S_IFREG | 0o644, Fields: file}, nil},
		"mkdir over a socket":   {[]string{"a.sock"}, dir(record.OpMkdir, "a.sock"), nil},
		"symlink over a socket": {[]string{"a.sock"}, record.Record{Op: record.OpSymlink, Path: "a.sock", Path2: "x", Fields: record.FieldPath | record.FieldPath2}, nil},
		"link over a socket":    {[]string{"a.sock", "f"}, record.Record{Op: record.OpLink, Path: "a.sock", Path2: "f", Fields: record.FieldPath | record.FieldPath2}, nil},
		"directory over socket": {[]string{"a.sock", "d/"}, record.Record{Op: record.OpRename, Path: "a.sock", Path2: "d", Fields: record.FieldPath | record.FieldPath2}, []string{"d"}},
		"rmdir with a socket":   {[]string{"d/", "d/a.sock"}, dir(record.OpRmdir, "d"), []string{"d"}},
		"rmdir with excluded":   {[]string{"d/", "d/tmp/", "d/tmp/x"}, dir(record.OpRmdir, "d"), []string{"d"}},
		"directory over one with a socket": {[]string{"d/", "e/", "e/a.sock"},
			record.Record{Op: record.OpRename, Path: "e", Path2: "d", Fields: record.FieldPath | record.FieldPath2}, []string{"d", "e/a.sock"}},
	} {
		t.Run(name, func(t *testing.T) {
			a, store := openWith(t, c.has)
			c.rec.LSN, c.rec.Epoch = 1, 1
			if err := a.Apply(&c.rec); err != nil {
				t.Fatal(err)
			}
			for _, p := range c.gone {
				if _, err := os.Lstat(filepath.Join(store, p)); !os.IsNotExist(err) {
					t.Errorf("%s is still there: %v", p, err)
				}
			}
		})
	}
	t.Run("what enters over a socket", func(t *testing.T) {
		a, store := openWith(t, []string{"a.sock", "b.sock"})
		const all = file | record.FieldSize
		for i, rec := range []record.Record{
			{Op: record.OpState, Flags: record.FlagLive, Path: "a.sock", Mode: unix.S_IFIFO | 0o644, Fields: file},
			{Op: record.OpState, Flags: record.FlagLive | record.FlagMore, Path: "b.sock", Mode: unix.S_IFREG | 0o644, Size: 1, Fields: all},
			{Op: record.OpStateData, Flags: record.FlagLive, Path: "b.sock", Data: []byte("y"), Fields: record.FieldPath | record.FieldOffset | record.FieldData},
			{Op: record.OpStateEnd, Flags: record.FlagLive, Path: "b.sock", Size: 1, Fields: record.FieldPath | record.FieldSize},
		} {
			rec.LSN, rec.Epoch = uint64(i+1), 1
			if err := a.Apply(&rec); err != nil {
				t.Fatal(err)
			}
		}
		if b, err := os.ReadFile(filepath.Join(store, "b.sock")); string(b) != "y" {
			t.Errorf("%q, %v", b, err)
		}
		if st, err := os.Lstat(filepath.Join(store, "a.sock")); err != nil || st.Mode().Type() != os.ModeNamedPipe {
			t.Errorf("%v, %v", st, err)
		}
	})
	t.Run("what travels stays", func(t *testing.T) {
		a, store := openWith(t, []string{"d/", "d/a.sock", "d/f"})
		rec := dir(record.OpRmdir, "d")
		rec.LSN, rec.Epoch = 1, 1
		if err := a.Apply(&rec); err == nil {
			t.Fatal("a directory with a file was removed")
		}
		for _, p := range []string{"d/f", "d/a.sock"} {
			if _, err := os.Lstat(filepath.Join(store, p)); err != nil {
				t.Error(err)
			}
		}
	})
}

func openWith(t *testing.T, has []string) (*Applier, string) {
	t.Helper()
	store := t.TempDir()
	for _, p := range has {
		full := filepath.Join(store, p)
		var err error
		switch {
		case strings.HasSuffix(p, "/"):
			err = os.Mkdir(full, 0o755)
		case strings.HasSuffix(p, ".sock"):
			err = unix.Mknod(full, unix.S_IFSOCK|0o600, 0)
		default:
			err = os.WriteFile(full, []byte("x"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	a, err := Open(Config{
		Store: store, StateFile: filepath.Join(t.TempDir(), "state"), Node: "b",
		Excluded: func(p string) bool { return strings.HasPrefix(p, "d/tmp") },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a, store
}
