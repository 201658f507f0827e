package wire

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/replfs/replfs/replicate/record"
)

// logged is a batch of n records from LSN first on, with text as data.
func logged(first uint64, n int) *Batch {
	b := &Batch{Epoch: 2, First: first, Last: first + uint64(n) - 1}
	for i := range uint64(n) {
		r := record.Record{
			LSN: first + i, Epoch: 2, Op: record.OpWrite, Path: "log/production.log", Offset: int64(i) << 10,
			Data:   fmt.Appendf(nil, "%d: started GET \"/api/v4/projects/%d\" for 127.0.0.1\n", i, i*7),
			Fields: record.FieldPath | record.FieldOffset | record.FieldData,
		}
		b.Records = r.Append(b.Records)
	}
	return b
}

func compressor(tb testing.TB) *Compressor {
	tb.Helper()
	c, err := NewCompressor()
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// compressed is b as it would be sent.
func compressed(tb testing.TB, b *Batch) *Batch {
	tb.Helper()
	z := compressor(tb).Compress(b.Records)
	if z == nil {
		tb.Fatal("text does not become smaller")
	}
	defer z.Free()
	return &Batch{
		Epoch: b.Epoch, First: b.First, Last: b.Last, Records: bytes.Clone(z.ReadOnlyData()),
		Compression: Compression_COMPRESSION_ZSTD, Size: uint32(len(b.Records)),
	}
}

func TestCompression(t *testing.T) {
	var undo Decompressor
	defer undo.Close()
	for _, n := range []int{10, 100, 3000, 15000} {
		b := logged(5, n)
		z := compressed(t, b)
		if len(z.Records) > len(b.Records)/2 {
			t.Errorf("%d bytes of text become %d", len(b.Records), len(z.Records))
		}
		got, err := undo.Records(z)
		if err != nil || !bytes.Equal(got, b.Records) {
			t.Fatalf("%d records: %v", n, err)
		}
		if err := z.Check(got, 2); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatDoesNotBecomeSmallerIsSentAsItIs(t *testing.T) {
	c, noise := compressor(t), randomBytes(BatchSize)
	tries := 0
	for range 1000 {
		if c.wait == 0 {
			tries++
		}
		if c.Compress(noise) != nil {
			t.Fatal("noise became smaller")
		}
	}
	if tries > 25 {
		t.Errorf("%d batches of noise in a row were tried", tries)
	}
	for i := 0; c.Compress(logged(1, 1000).Records) == nil; i++ {
		if i > maxSkip {
			t.Fatal("text after noise is not compressed")
		}
	}
	if c.Compress(logged(1, 1000).Records) == nil || c.Compress(logged(1, 1).Records) != nil {
		t.Error("want text compressed, and one small record not")
	}
}

// bomb is a small frame of many zeros that says size.
func bomb(tb testing.TB, zeros int, size uint32) *Batch {
	tb.Helper()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return &Batch{Compression: Compression_COMPRESSION_ZSTD, Size: size, Records: e.EncodeAll(make([]byte, zeros), nil)}
}

func TestBombs(t *testing.T) {
	zeros := bomb(t, 64<<20, 0).Records
	huge := func(size uint32) *Batch {
		return &Batch{Compression: Compression_COMPRESSION_ZSTD, Size: size, Records: zeros}
	}
	twice := bomb(t, 1<<20, 1<<20)
	twice.Records = append(twice.Records, twice.Records...)
	for name, b := range map[string]*Batch{
		"says little":         huge(1000),
		"says what it is":     huge(64 << 20),
		"says the limit":      huge(MaxBatch),
		"one byte too much":   bomb(t, MaxBatch+1, MaxBatch),
		"a frame too many":    twice,
		"says nothing":        bomb(t, 100, 0),
		"nothing in it":       {Compression: Compression_COMPRESSION_ZSTD, Size: 10},
		"unknown compression": {Compression: 9, Size: 10},
	} {
		var undo Decompressor
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := undo.Records(b)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrBatch) {
			t.Errorf("%s: %v", name, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
			t.Errorf("%s: %d bytes allocated", name, n)
		}
		undo.Close()
	}
}

// FuzzBatch: whatever comes as a batch is refused, or it is sound as far as it
// says.
func FuzzBatch(f *testing.F) {
	b := logged(5, 40)
	z := compressed(f, b)
	f.Add(b.Records, b.First, b.Last, b.Epoch, int32(0), uint32(0))
	f.Add(b.Records[:len(b.Records)-1], b.First, b.Last, b.Epoch, int32(0), uint32(0))
	f.Add(b.Records, b.First+1, b.Last, b.Epoch, int32(0), uint32(0))
	f.Add(z.Records, b.First, b.Last, b.Epoch, int32(1), z.Size)
	f.Add(z.Records, b.First, b.Last, b.Epoch, int32(1), z.Size-1)
	f.Add(bomb(f, 8<<20, 1<<20).Records, b.First, b.Last, b.Epoch, int32(1), uint32(1<<20))
	f.Add([]byte{}, uint64(0), uint64(0), uint64(0), int32(2), uint32(1))
	f.Fuzz(func(t *testing.T, records []byte, first, last, epoch uint64, compression int32, size uint32) {
		in := &Batch{Epoch: epoch, First: first, Last: last, Records: records, Compression: Compression(compression), Size: size}
		var undo Decompressor
		defer undo.Close()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := undo.Records(in)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20+uint64(10*len(records)) {
			t.Fatalf("%d bytes allocated", n)
		}
		if err == nil {
			err = in.Check(got, 1)
		}
		if err != nil {
			if !errors.Is(err, ErrBatch) {
				t.Fatal(err)
			}
			return
		}
		if len(got) > MaxBatch {
			t.Fatalf("%d bytes", len(got))
		}
		for lsn := first; lsn <= last; lsn++ {
			h, err := record.PeekHeader(got)
			if err != nil || h.LSN != lsn || h.Size > len(got) || h.Epoch > epoch || h.Epoch < 1 {
				t.Fatalf("record %d: %+v, %v", lsn, h, err)
			}
			got = got[h.Size:]
		}
		if len(got) != 0 {
			t.Fatalf("%d bytes left", len(got))
		}
	})
}

func BenchmarkCompress(b *testing.B) {
	for name, records := range map[string][]byte{"text": logged(1, 3500).Records, "noise": randomBytes(BatchSize)} {
		b.Run(name, func(b *testing.B) {
			c := compressor(b)
			b.SetBytes(int64(len(records)))
			b.ReportAllocs()
			for b.Loop() {
				if z := c.Compress(records); z != nil {
					z.Free()
				}
			}
		})
	}
}
