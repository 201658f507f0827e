package record

import (
	"hash/crc32"
	"math/rand/v2"
	"path"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

func crcOfHeader(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[HeaderSize:], castagnoli), castagnoli, b[8:HeaderSize])
}

// FuzzDecode decodes b as it is and with its length and checksum put right,
// so that the fuzzer gets past them.
func FuzzDecode(f *testing.F) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 30 {
		f.Add(randomRecord(rng).Append(nil))
	}
	f.Add((&Record{LSN: 1, Epoch: 1, Op: OpSync}).Append(nil))
	f.Add([]byte{})
	f.Add(make([]byte, HeaderSize))
	f.Add(forge(OpState, Version, FieldNames|FieldXattrs, []byte{1, 0, 0, 1, 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		checkDecode(t, b)
		if len(b) < HeaderSize || len(b) > MaxSize {
			return
		}
		n := uint32(len(b))
		b = append([]byte(nil), b...)
		b[0], b[1], b[2], b[3] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
		b[33] = Version
		b[38] &= 0x0f
		b[39] = 0
		seal(b)
		checkDecode(t, b)
	})
}

func checkDecode(t *testing.T, b []byte) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var r Record
	n, err := Decode(b, &r)
	runtime.ReadMemStats(&after)
	// Lists cost up to 40 bytes an element of 2, and twice that to grow.
	if got := after.TotalAlloc - before.TotalAlloc; got > uint64(100*len(b))+64<<10 {
		t.Fatalf("%d bytes allocated for %d", got, len(b))
	}
	if err != nil {
		if n != 0 {
			t.Fatalf("Decode = %d, %v", n, err)
		}
		return
	}
	if n < HeaderSize || n > len(b) {
		t.Fatalf("Decode = %d of %d", n, len(b))
	}
	for _, p := range append([]string{r.Path}, r.Names...) {
		if err := CheckPath(p); err != nil {
			t.Fatalf("decoded %q: %v", p, err)
		}
	}
	// The integers of b may be longer than need be, but not what they say.
	var again Record
	if _, err := Decode(r.Append(nil), &again); err != nil || !reflect.DeepEqual(normal(r), normal(again)) {
		t.Fatalf("again: %v\n%+v\n%+v", err, r, again)
	}
}

// normal makes empty and nil the same.
func normal(r Record) Record {
	if len(r.Data) == 0 {
		r.Data = nil
	}
	for i := range r.Xattrs {
		if len(r.Xattrs[i].Value) == 0 {
			r.Xattrs[i].Value = nil
		}
	}
	return r
}

// FuzzCheckPath: what is let through is already clean, relative, and stays
// beneath where it starts.
func FuzzCheckPath(f *testing.F) {
	for _, p := range []string{"", "a", "a/b/c", "/", "a/", "./a", "../a", "a/../..", "a//b", "a\x00b", "...", strings.Repeat("x", 256)} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		ok := CheckPath(p) == nil
		clean := p == "" || path.Clean(p) == p && !path.IsAbs(p) && p != "." && p != ".." &&
			!strings.HasPrefix(p, "../") && !strings.Contains(p, "\x00")
		for c := range strings.SplitSeq(p, "/") {
			clean = clean && len(c) <= 255
		}
		if ok != clean {
			t.Fatalf("%q: let through %v, clean %v", p, ok, clean)
		}
	})
}
