package apply

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// benchApplier is an applier on a filesystem in memory, where what it costs
// is its own.
func benchApplier(b *testing.B) (*Applier, string) {
	b.Helper()
	dir, err := os.MkdirTemp(memory(), "apply-bench-")
	if err != nil {
		b.Fatal(err)
	}
	store := filepath.Join(dir, "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		b.Fatal(err)
	}
	a, err := Open(Config{Store: store, StateFile: filepath.Join(dir, "state")})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := a.Close(); err != nil {
			b.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	return a, store
}

func benchApply(b *testing.B, a *Applier, next func(i int, r *record.Record)) {
	b.Helper()
	lsn := a.State().Applied
	var r record.Record
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		next(i, &r)
		i++
		lsn++
		r.LSN, r.Epoch = lsn, 1
		if err := a.Apply(&r); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(i)/b.Elapsed().Seconds(), "records/s")
}

func benchCreate(path string, id uint64) record.Record {
	return record.Record{
		Op: record.OpCreate, Path: path, FileID: id, Mode: unix.S_IFREG | 0o644, Perm: 0o644,
		Mtime: record.Timespec{Sec: 1, Nsec: 1}, ParentMtime: record.Timespec{Sec: 1, Nsec: 1},
		Fields: record.FieldPath | record.FieldFileID | record.FieldMode | record.FieldPerm | record.FieldOwner |
			record.FieldMtime | record.FieldParentMtime,
	}
}

func BenchmarkCreate(b *testing.B) {
	a, store := benchApplier(b)
	for d := range 64 {
		if err := os.MkdirAll(filepath.Join(store, fmt.Sprintf("repo/objects/%02x", d)), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	benchApply(b, a, func(i int, r *record.Record) {
		*r = benchCreate(fmt.Sprintf("repo/objects/%02x/%038x", i%64, i), uint64(i+1))
	})
}

func benchWrites(b *testing.B, size int, offset func(i int) int64) {
	a, _ := benchApplier(b)
	lsn := uint64(0)
	const files = 32
	for i := range uint64(files) {
		r := benchCreate(fmt.Sprintf("f%d", i), i+1)
		lsn++
		r.LSN, r.Epoch = lsn, 1
		if err := a.Apply(&r); err != nil {
			b.Fatal(err)
		}
	}
	data := make([]byte, size)
	b.SetBytes(int64(size))
	benchApply(b, a, func(i int, r *record.Record) {
		*r = record.Record{
			Op: record.OpWrite, Path: "f", FileID: uint64(i%files + 1), Offset: offset(i / files), Data: data,
			Mtime:  record.Timespec{Sec: int64(i)},
			Fields: record.FieldPath | record.FieldFileID | record.FieldOffset | record.FieldData | record.FieldMtime,
		}
	})
}

func BenchmarkOverwrite8K(b *testing.B) {
	benchWrites(b, 8<<10, func(i int) int64 { return int64(i%128) << 13 })
}

func BenchmarkAppend1K(b *testing.B) {
	// Starting over bounds the memory it takes.
	benchWrites(b, 1<<10, func(i int) int64 { return int64(i%(1<<14)) << 10 })
}
