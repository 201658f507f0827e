package election

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := OpenStore(dir, "gitlab", "gl-1")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStoreBeginsEmpty(t *testing.T) {
	dir := t.TempDir()
	st := open(t, dir).Get()
	if want := (State{Cluster: "gitlab", Node: "gl-1"}); !reflect.DeepEqual(st, want) || st.Joined() {
		t.Errorf("state %+v, want %+v", st, want)
	}
	// Looking must not make a node seem to have been here.
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("opening left %v, %v", entries, err)
	}
}

func TestStoreKeepsEveryField(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	want := State{
		Cluster: "gitlab", ClusterID: "c1", Node: "gl-1", Role: Primary, Epoch: 1<<63 + 1,
		History: []Epoch{{1, "gl-1", 1}, {2, "gl-2", 100}}, InSync: []string{"gl-2", "gl-3"},
		Floor: 1<<64 - 1, Clean: true, CleanLSN: 1<<53 + 1,
	}
	// A field that is added must be added here, and be kept.
	for i, v := 0, reflect.ValueOf(want); i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Fatalf("the test does not set %s", v.Type().Field(i).Name)
		}
	}
	if err := s.Update(func(st *State) { *st = want }); err != nil {
		t.Fatal(err)
	}
	if got := s.Get(); !reflect.DeepEqual(got, want) {
		t.Errorf("Get = %+v, want %+v", got, want)
	}
	got := open(t, dir).Get()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("reopened: %+v, want %+v", got, want)
	}
	fi, err := os.Stat(filepath.Join(dir, "node.json"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", fi.Mode(), err)
	}
}

func TestStoreKeepsTheLastOfManyUpdates(t *testing.T) {
	dir := t.TempDir()
	for i := range uint64(20) {
		s := open(t, dir)
		if got := s.Get().Floor; got != i {
			t.Fatalf("floor %d, want %d", got, i)
		}
		if err := s.Update(func(st *State) { st.Floor++ }); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the directory has %v, %v, want node.json alone", entries, err)
	}
}

func TestStoreRefusesWhatItCannotTrust(t *testing.T) {
	dir := t.TempDir()
	if err := open(t, dir).Update(func(st *State) { st.Role, st.ClusterID, st.Epoch = Primary, "c1", 7 }); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "node.json")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	damages := map[string][]byte{
		"empty":               {},
		"half":                good[:len(good)/2],
		"zeros after a crash": make([]byte, len(good)),
		"garbage at the end":  append(append([]byte(nil), good...), "}"...),
		"another type":        []byte(`{"cluster":"gitlab","node":"gl-1","epoch":"seven"}`),
		"a negative epoch":    []byte(`{"cluster":"gitlab","node":"gl-1","epoch":-1}`),
		"not an object":       []byte(`[]`),
	}
	for name, b := range damages {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := OpenStore(dir, "gitlab", "gl-1")
			if err == nil {
				t.Fatal("opened")
			}
			for _, w := range []string{file, "damaged", "move the directory"} {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
	for name, b := range map[string]string{"null": "null", "nothing in it": "{}"} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(b), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenStore(dir, "gitlab", "gl-1"); err == nil {
				t.Fatal("opened")
			}
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenStore(dir, "gitlab", "gl-1"); err == nil {
			t.Fatal("opened a directory")
		}
	})
}

func TestStoreOfAnother(t *testing.T) {
	dir := t.TempDir()
	if err := open(t, dir).Update(func(st *State) { st.ClusterID = "c1" }); err != nil {
		t.Fatal(err)
	}
	for _, who := range [][2]string{{"gitlab", "gl-2"}, {"forge", "gl-1"}} {
		_, err := OpenStore(dir, who[0], who[1])
		if err == nil {
			t.Fatalf("opened as %v", who)
		}
		for _, w := range []string{"gl-1", "gitlab", who[0], who[1], "--node"} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("error %q does not say %q", err, w)
			}
		}
	}
	open(t, dir) // still its own
}

func TestStoreIsNotSharedWithCallers(t *testing.T) {
	s := open(t, t.TempDir())
	err := s.Update(func(st *State) {
		st.History, st.InSync = []Epoch{{1, "gl-1", 1}}, []string{"gl-2"}
	})
	if err != nil {
		t.Fatal(err)
	}
	got := s.Get()
	got.History[0].Begin, got.InSync[0] = 99, "x"
	if st := s.Get(); st.History[0].Begin != 1 || st.InSync[0] != "gl-2" {
		t.Errorf("a caller changed the state to %+v", st)
	}
}

// tiny mounts a small tmpfs.
func tiny(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=700"); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestAFailedUpdateChangesNothing(t *testing.T) {
	fill := func(t *testing.T, dir string) (undo func()) {
		file := filepath.Join(dir, "filler")
		if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("filling up: %v", err)
		}
		return func() {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	remount := func(t *testing.T, dir string) (undo func()) {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, breakIt := range map[string]func(*testing.T, string) func(){"full": fill, "read-only": remount} {
		t.Run(name, func(t *testing.T) {
			dir := tiny(t)
			s := open(t, dir)
			if err := s.Update(func(st *State) { st.InSync, st.Floor = []string{"gl-2"}, 5 }); err != nil {
				t.Fatal(err)
			}
			undo := breakIt(t, dir)
			err := s.Update(func(st *State) { st.InSync[0], st.Floor = "x", 6 })
			if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "node.json")) {
				t.Fatalf("error %v, want one that names the file", err)
			}
			for what, st := range map[string]State{"in memory": s.Get(), "in the file": open(t, dir).Get()} {
				if st.Floor != 5 || len(st.InSync) != 1 || st.InSync[0] != "gl-2" {
					t.Errorf("%s: %+v after an update that failed", what, st)
				}
			}
			undo()
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
				t.Errorf("the failure left %v, %v", entries, err)
			}
			if err := s.Update(func(st *State) { st.Floor++ }); err != nil {
				t.Fatal(err)
			}
			if st := open(t, dir).Get(); st.Floor != 6 {
				t.Errorf("floor %d, want 6", st.Floor)
			}
		})
	}
	t.Run("no directory", func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, filepath.Join(dir, "missing"))
		if err := s.Update(func(st *State) { st.Floor = 1 }); err == nil || s.Get().Floor != 0 {
			t.Errorf("error %v, floor %d", err, s.Get().Floor)
		}
	})
}

func TestConcurrentUpdatesAreAllKept(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	const workers, each = 8, 10
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				err := s.Update(func(st *State) {
					st.Floor++
					st.InSync = append(st.InSync, fmt.Sprintf("%d-%d", w, i))
				})
				if err != nil {
					t.Error(err)
				}
				// Whoever reads sees one update or another, never half of one.
				if st := s.Get(); st.Floor != uint64(len(st.InSync)) {
					t.Errorf("floor %d with %d entries", st.Floor, len(st.InSync))
				}
			}
		})
	}
	wg.Wait()
	st := open(t, dir).Get()
	seen := map[string]bool{}
	for _, x := range st.InSync {
		seen[x] = true
	}
	if st.Floor != workers*each || len(seen) != workers*each {
		t.Errorf("kept %d updates, %d of them different, want %d", st.Floor, len(seen), workers*each)
	}
}
