package apply

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fillStore makes a tree with a link that leads out of it.
func fillStore(t *testing.T) (store, outside string) {
	t.Helper()
	store, outside = t.TempDir(), t.TempDir()
	for _, dir := range []string{"a/b/c", "lost+found", "d"} {
		if err := os.MkdirAll(filepath.Join(store, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"f", "a/b/c/f", "lost+found/x", "d/kept", "d/not"} {
		if err := os.WriteFile(filepath.Join(store, f), []byte(f), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(outside, "precious"), nil, 0o600),
		os.Symlink(outside, filepath.Join(store, "out")), os.Symlink(outside, filepath.Join(store, "a/out"))); err != nil {
		t.Fatal(err)
	}
	return store, outside
}

func tree(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); rel != "." {
			paths = append(paths, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func wantTree(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := tree(t, dir); !slices.Equal(got, want) {
		t.Errorf("%s has %q, want %q", dir, got, want)
	}
}

func TestEmptyStore(t *testing.T) {
	store, outside := fillStore(t)
	salvage := filepath.Join(t.TempDir(), "deep", "salvage")
	excluded := func(path string) bool { return path == "lost+found" }
	moved, err := EmptyStore(store, salvage, excluded)
	if err != nil || moved != 4 {
		t.Fatalf("moved %d, %v", moved, err)
	}
	wantTree(t, store, "lost+found", "lost+found/x")
	wantTree(t, salvage, "a", "a/b", "a/b/c", "a/b/c/f", "a/out", "d", "d/kept", "d/not", "f", "out")
	wantTree(t, outside, "precious")
	if st, err := os.Stat(salvage); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("salvage: %v, %v", st, err)
	}
	// Nothing that was salvaged before is replaced.
	if err := os.WriteFile(filepath.Join(store, "f"), []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	if moved, err := EmptyStore(store, salvage, excluded); err != nil || moved != 1 {
		t.Fatalf("moved %d, %v", moved, err)
	}
	for name, want := range map[string]string{"f": "f", "f.1": "second"} {
		if b, err := os.ReadFile(filepath.Join(salvage, name)); err != nil || string(b) != want {
			t.Errorf("%s is %q, %v", name, b, err)
		}
	}
}

func TestEmptyStoreAcrossFilesystems(t *testing.T) {
	store, _ := fillStore(t)
	salvage := t.TempDir()
	mountTmpfs(t, salvage, "1m")
	before := tree(t, store)
	moved, err := EmptyStore(store, salvage, nil)
	if !errors.Is(err, unix.EXDEV) || moved != 0 || !strings.Contains(err.Error(), "must be on one filesystem") {
		t.Errorf("moved %d, %v", moved, err)
	}
	wantTree(t, store, before...)
}

func TestWipe(t *testing.T) {
	store, outside := fillStore(t)
	excluded := func(path string) bool { return path == "lost+found" || path == "d/kept" }
	if err := Wipe(store, excluded); err != nil {
		t.Fatal(err)
	}
	wantTree(t, store, "d", "d/kept", "lost+found", "lost+found/x")
	if err := Wipe(store, nil); err != nil {
		t.Fatal(err)
	}
	wantTree(t, store)
	wantTree(t, outside, "precious")
	if err := Wipe(filepath.Join(store, "missing"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("wiping what is not there: %v", err)
	}
}
