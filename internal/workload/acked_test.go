package workload

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAckedWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "acked")
	w := NewAckedWriter(path, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result := make(chan AckedResult, 1)
	go func() { result <- w.Run(ctx) }()
	for w.Last() < 20 {
		last := w.Last()
		if err := VerifyAcked(path, last); err != nil {
			t.Fatalf("while it is written: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	r := <-result
	if r.Err != nil || r.Last < 20 || r.Last != w.Last() {
		t.Errorf("result %+v, last %d", r, w.Last())
	}
	must(t, VerifyAcked(path, r.Last))
	if err := VerifyAcked(path, r.Last+1); err == nil {
		t.Error("a line that was never written is there")
	}
	if r := NewAckedWriter(path, 0).Run(t.Context()); !errors.Is(r.Err, os.ErrExist) || r.Last != 0 {
		t.Errorf("writing to a file that exists: %+v", r)
	}
}

func TestAckedWriterStopsAtErrors(t *testing.T) {
	dir := tmpfs(t, "size=64k")
	path := filepath.Join(dir, "acked")
	r := NewAckedWriter(path, 0).Run(t.Context())
	if !errors.Is(r.Err, unix.ENOSPC) || r.Last == 0 {
		t.Fatalf("result %+v, want lines and then ENOSPC", r)
	}
	must(t, VerifyAcked(path, r.Last))

	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if r := NewAckedWriter(path+"2", 0).Run(t.Context()); !errors.Is(r.Err, unix.EROFS) || r.Last != 0 {
		t.Errorf("result %+v, want EROFS", r)
	}
}

func TestVerifyAckedFindsDamage(t *testing.T) {
	const last = 50
	var lines [][]byte
	for n := uint64(1); n <= last; n++ {
		lines = append(lines, ackedLine(n))
	}
	whole := bytes.Join(lines, nil)
	without := func(i int) []byte {
		return bytes.Join(append(append([][]byte{}, lines[:i]...), lines[i+1:]...), nil)
	}
	flipped := bytes.Clone(whole)
	flipped[len(whole)/2] ^= 1
	zeroed := bytes.Clone(whole)
	copy(zeroed[len(whole)-20:], make([]byte, 20))
	swapped := bytes.Join(append([][]byte{lines[1], lines[0]}, lines[2:]...), nil)
	tests := []struct {
		name string
		data []byte
		bad  string // what the error says, if there is one
	}{
		{"whole", whole, ""},
		{"a torn line after the last", append(bytes.Clone(whole), "00000"...), ""},
		{"zeros after the last", append(bytes.Clone(whole), make([]byte, 100_000)...), ""},
		{"first line lost", without(0), "line 1 of 50"},
		{"a line lost", without(29), "line 30 of 50"},
		{"last line lost", without(49), "line 50 of 50"},
		{"last newline lost", whole[:len(whole)-1], "line 50 of 50"},
		{"a bit flipped", flipped, "of 50"},
		{"zeros at the end", zeroed, "line 50 of 50"},
		{"order", swapped, "line 1 of 50"},
		{"empty", nil, "line 1 of 50"},
		{"a hole in its place", make([]byte, 200_000), "line 1 of 50"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "acked")
			must(t, os.WriteFile(path, tt.data, 0o600))
			err := VerifyAcked(path, last)
			if (err == nil) != (tt.bad == "") || err != nil && !strings.Contains(err.Error(), tt.bad) {
				t.Errorf("got %v, want an error with %q", err, tt.bad)
			}
		})
	}
	none := filepath.Join(t.TempDir(), "none")
	must(t, VerifyAcked(none, 0))
	if err := VerifyAcked(none, 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}
