package oplog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/replfs/replfs/replicate/record"
)

const testSize = MinSize

// ringPath is a place for a log, on a tmpfs if there is one.
func ringPath(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "oplog-test-")
	if err != nil {
		return filepath.Join(tb.TempDir(), "ring")
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return filepath.Join(dir, "ring")
}

func openLog(tb testing.TB, path string, size int64) (*Log, Recovered) {
	tb.Helper()
	l, rec, err := Open(path, Options{Size: size})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { closeLog(tb, l) })
	return l, rec
}

func closeLog(tb testing.TB, l *Log) {
	tb.Helper()
	if err := l.Close(); err != nil {
		tb.Error(err)
	}
}

func newLog(tb testing.TB) *Log {
	tb.Helper()
	l, _ := openLog(tb, ringPath(tb), testSize)
	return l
}

// pattern fills n bytes that depend on seed.
func pattern(seed uint64, n int) []byte {
	b := make([]byte, n)
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := 0; i+8 <= n; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	for i := n &^ 7; i < n; i++ {
		b[i] = byte(x) + byte(i)
	}
	return b
}

// write is a write record; checkWrite knows what its data must be.
func write(who, seq uint64, n int) (*record.Record, []byte) {
	return &record.Record{
		Op:     record.OpWrite,
		Fields: record.FieldFileID | record.FieldPath | record.FieldOffset | record.FieldLength,
		FileID: who, Path: fmt.Sprintf("dir/file-%d", who), Offset: int64(seq), Length: int64(n),
	}, pattern(who<<40^seq, n)
}

func checkWrite(r *record.Record) error {
	want, data := write(r.FileID, uint64(r.Offset), int(r.Length))
	if r.Op != want.Op || r.Path != want.Path || r.Fields != want.Fields|record.FieldData || string(r.Data) != string(data) {
		return fmt.Errorf("record %s is not what was appended", r)
	}
	return nil
}

func appendN(tb testing.TB, l *Log, n, size int) {
	tb.Helper()
	for range n {
		r, data := write(1, l.Next(), size)
		want := l.Next()
		if lsn, err := l.Append(r, data, nil); err != nil || lsn != want || r.LSN != want {
			tb.Fatalf("Append = %d, %v (record %d), want %d", lsn, err, r.LSN, want)
		}
	}
}

func newReader(tb testing.TB, l *Log, from uint64) *Reader {
	tb.Helper()
	r, err := l.NewReader(from)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.Close)
	return r
}

// decodeAll decodes a batch that must hold first to last.
func decodeAll(batch []byte, first, last uint64) ([]record.Record, error) {
	var rs []record.Record
	for lsn := first; len(batch) > 0; lsn++ {
		var r record.Record
		n, err := record.Decode(batch, &r)
		if err != nil {
			return rs, err
		}
		if r.LSN != lsn {
			return rs, fmt.Errorf("LSN %d where %d should be", r.LSN, lsn)
		}
		rs, batch = append(rs, r), batch[n:]
	}
	if got := first + uint64(len(rs)) - 1; got != last {
		return rs, fmt.Errorf("batch ends at %d, not at %d", got, last)
	}
	return rs, nil
}

// content reads all that is in the log now.
func content(tb testing.TB, l *Log) []record.Record {
	tb.Helper()
	var all []record.Record
	r := newReader(tb, l, l.First())
	for next := l.First(); next <= l.Last(); {
		batch, first, last, err := r.Read(tb.Context(), make([]byte, 0, 1<<20))
		if err != nil || first != next {
			tb.Fatalf("Read = %d, %v, want %d", first, err, next)
		}
		rs, err := decodeAll(batch, first, last)
		if err != nil {
			tb.Fatal(err)
		}
		all, next = append(all, rs...), last+1
	}
	return all
}

func wantErr(tb testing.TB, what string, err, want error) {
	tb.Helper()
	if !errors.Is(err, want) {
		tb.Fatalf("%s: error %v, want %v", what, err, want)
	}
}

// done is a context that is already over: with it a call must not wait.
func done() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
