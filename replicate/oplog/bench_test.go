package oplog

import (
	"context"
	"fmt"
	"testing"

	"github.com/replfs/replfs/replicate/record"
)

const benchSize = 64 << 20

// newBenchLog makes a log and goes around it once, as one in use has.
func newBenchLog(b *testing.B) *Log {
	b.Helper()
	l, _ := openLog(b, ringPath(b), benchSize)
	appendN(b, l, benchSize/(512<<10)+2, 512<<10)
	return l
}

func benchRecord() *record.Record {
	return &record.Record{
		Op: record.OpWrite,
		Fields: record.FieldFileID | record.FieldPath | record.FieldOffset | record.FieldLength |
			record.FieldSize | record.FieldMtime,
		FileID: 123456, Path: "git-data/repositories/@hashed/6b/86/6b86b273ff34.git/objects/pack/tmp_pack_x",
		Offset: 1 << 20, Length: 100, Size: 1 << 21, Mtime: record.Timespec{Sec: 1700000000, Nsec: 123456789},
	}
}

var benchSizes = []struct {
	name string
	n    int
}{{"100B", 100}, {"8KiB", 8 << 10}, {"1MiB", 1 << 20}}

func BenchmarkAppend(b *testing.B) {
	for _, c := range benchSizes {
		b.Run(c.name, func(b *testing.B) {
			l, r, data := newBenchLog(b), benchRecord(), pattern(1, c.n)
			b.SetBytes(int64(c.n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.Append(r, data, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendParallel(b *testing.B) {
	for _, c := range benchSizes {
		b.Run(c.name, func(b *testing.B) {
			l, data := newBenchLog(b), pattern(1, c.n)
			b.SetBytes(int64(c.n))
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				r := benchRecord()
				for pb.Next() {
					s := l.Begin(r)
					if _, err := l.Append(r, data, s); err != nil {
						b.Error(err)
					}
					s.End()
				}
			})
		})
	}
}

// What a copy costs that does nothing else, to compare with.
func BenchmarkMemcpy(b *testing.B) {
	for _, c := range benchSizes {
		b.Run(c.name, func(b *testing.B) {
			ring, data := make([]byte, benchSize), pattern(1, c.n)
			b.SetBytes(int64(c.n))
			for i := 0; b.Loop(); i = (i + c.n) % (benchSize - c.n) {
				copy(ring[i:], data)
			}
		})
	}
}

func BenchmarkBeginEnd(b *testing.B) {
	l, r := newBenchLog(b), benchRecord()
	b.ReportAllocs()
	for b.Loop() {
		l.Begin(r).End()
	}
}

func BenchmarkRead(b *testing.B) {
	for _, n := range []int{100, 8 << 10} {
		b.Run(fmt.Sprintf("%dB", n), func(b *testing.B) {
			l, _ := openLog(b, ringPath(b), benchSize)
			appendN(b, l, benchSize/(n+200), n)
			from := l.First()
			r, err := l.NewReader(from)
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			buf := make([]byte, 0, 1<<20)
			b.SetBytes(1 << 20)
			b.ReportAllocs()
			for b.Loop() {
				batch, _, last, err := r.Read(b.Context(), buf)
				if err != nil || len(batch) == 0 {
					b.Fatal(err)
				}
				if l.BytesAfter(last) < 1<<20 {
					if err := r.Rewind(from); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

func BenchmarkAppendRaw(b *testing.B) {
	src, _ := openLog(b, ringPath(b), testSize)
	l := newBenchLog(b)
	if err := src.Reset(l.Next()); err != nil {
		b.Fatal(err)
	}
	r, err := src.NewReader(l.Next())
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	appendN(b, src, 3000, 150)
	batch, first, _, err := r.Read(b.Context(), make([]byte, 0, 1<<20))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(batch)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.AppendRaw(context.Background(), batch); err != nil {
			b.Fatal(err)
		}
		if err := l.TruncateAfter(first - 1); err != nil {
			b.Fatal(err)
		}
	}
}
