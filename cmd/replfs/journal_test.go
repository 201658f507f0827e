package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/replfs/replfs/replicate/journal"
	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
)

// odd is a name that is not UTF-8.
const odd = "dir/\xff\xfe name\n"

// logOf makes a ring and a journal with n records each, and leaves both open.
func logOf(t *testing.T, n int) (ring, dir string, log *oplog.Log) {
	t.Helper()
	ring, dir = filepath.Join(t.TempDir(), "x.ring"), filepath.Join(t.TempDir(), "journal")
	log, _, err := oplog.Open(ring, oplog.Options{Size: oplog.MinSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	log.SetEpoch(3)
	j, _, err := journal.Open(dir, journal.Options{Cluster: "c", BootID: "b", MaxBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	for i := range n {
		r := &record.Record{
			Op: record.OpWrite, Flags: record.FlagMore, Path: odd, Offset: int64(i), Mtime: record.Timespec{Sec: 1700000000, Nsec: 7},
			Xattrs: []record.Xattr{{Name: "user.x", Value: []byte{0, 1}}}, Names: []string{"a", "\xfe"},
			Fields: record.FieldPath | record.FieldOffset | record.FieldMtime | record.FieldXattrs | record.FieldNames,
		}
		if _, err := log.Append(r, make([]byte, 100<<10), nil); err != nil {
			t.Fatal(err)
		}
		r.Data, r.Fields = make([]byte, 100<<10), r.Fields|record.FieldData
		if err := j.Append(r.Append(nil), r.LSN, r.LSN); err != nil {
			t.Fatal(err)
		}
	}
	return ring, dir, log
}

func TestJournalDumpText(t *testing.T) {
	ring, dir, _ := logOf(t, 30)
	for _, path := range []string{ring, dir} {
		lines := strings.Split(strings.TrimSpace(must(t, "journal", "dump", path)), "\n")
		if len(lines) != 30 {
			t.Fatalf("%s: %d lines", path, len(lines))
		}
		want := fmt.Sprintf("3/1 write %q offset=0 data=102400", odd)
		if !strings.Contains(lines[0], want) || !strings.HasPrefix(lines[0], "20") || !strings.Contains(lines[0], `user.x="\x00\x01"`) {
			t.Errorf("%s: %q, want %q", path, lines[0], want)
		}
	}
	if got := must(t, "journal", "dump", "--from", "29", ring, dir); strings.Count(got, "\n") != 4 {
		t.Errorf("from 29: %q", got)
	}
	if got := must(t, "journal", "dump", "--from", "3", "--to", "4", dir); strings.Count(got, "\n") != 2 {
		t.Errorf("3 to 4: %q", got)
	}
	if got := must(t, "journal", "dump", "--data", "--to", "1", dir); len(got) < 400<<10 {
		t.Errorf("with data: %d bytes", len(got))
	}
	fails(t, exitUsage, []string{"lies behind"}, "journal", "dump", "--from", "3", "--to", "2", dir)
	fails(t, exitFailed, []string{"no such file"}, "journal", "dump", filepath.Join(dir, "missing"))
}

func TestJournalDumpJSON(t *testing.T) {
	ring, dir, _ := logOf(t, 2)
	for _, path := range []string{ring, dir} {
		lines := strings.Split(strings.TrimSpace(must(t, "journal", "dump", "--json", "--data", path)), "\n")
		if len(lines) != 2 {
			t.Fatalf("%d lines", len(lines))
		}
		var r struct {
			File   string
			LSN    uint64
			Epoch  uint64
			Op     string
			Flags  []string
			Path   struct{ Base64 []byte }
			Mtime  string
			Offset int64
			Names  []any
			Xattrs []struct {
				Name  string
				Value []byte
			}
			DataBytes int `json:"data_bytes"`
			Data      string
		}
		if err := json.Unmarshal([]byte(lines[1]), &r); err != nil {
			t.Fatal(err)
		}
		data, err := base64.StdEncoding.DecodeString(r.Data)
		if err != nil || len(data) != 100<<10 || r.DataBytes != len(data) {
			t.Errorf("data: %d bytes, %v", len(data), err)
		}
		if r.LSN != 2 || r.Epoch != 3 || r.Op != "write" || string(r.Path.Base64) != odd || r.Offset != 1 ||
			r.Mtime != "2023-11-14T22:13:20.000000007Z" || r.Names[0] != "a" || string(r.Xattrs[0].Value) != "\x00\x01" ||
			len(r.Flags) != 1 || r.Flags[0] != "more" {
			t.Errorf("%+v", r)
		}
	}
}

func TestJournalDumpSaysWhatIsDamaged(t *testing.T) {
	ring, dir, log := logOf(t, 100)
	segs, err := journal.Segments(dir)
	if err != nil || len(segs) < 2 {
		t.Fatal(segs, err)
	}
	damage := func(path string, off int64) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("XXXX"), off); err != nil {
			t.Fatal(err)
		}
	}
	damage(segs[0], 200<<10)
	other := filepath.Join(dir, "other")
	writeFile(t, other, "hello, this is no log")
	code, out, stderr := replfs(t, "journal", "dump", segs[0], other, segs[1], ring)
	if code != exitFailed || !strings.Contains(stderr, segs[0]+" is damaged at byte ") || !strings.Contains(stderr, other+": neither") ||
		!strings.Contains(stderr, "2 of 4 files") {
		t.Errorf("exit code %d, stderr %s", code, stderr)
	}
	for _, lsn := range []uint64{1, 100, log.First()} {
		if !strings.Contains(out, fmt.Sprintf(" 3/%d write", lsn)) {
			t.Errorf("record %d is missing", lsn)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(ring)
	if err != nil {
		t.Fatal(err)
	}
	damage(ring, st.Size()/2)
	fails(t, exitFailed, []string{ring + ": byte "}, "journal", "dump", ring)
}

// TestJournalDumpWhileAppending: what is overwritten while it is read is left
// out, never taken for damage.
func TestJournalDumpWhileAppending(t *testing.T) {
	ring, _, log := logOf(t, 60)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
			}
			if _, err := log.Append(&record.Record{Op: record.OpWrite}, make([]byte, 10<<10), nil); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 50 {
		must(t, "journal", "dump", ring)
	}
	close(quit)
	<-done
}
