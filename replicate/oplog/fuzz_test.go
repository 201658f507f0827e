package oplog

import (
	"encoding/binary"
	"os"
	"testing"

	"github.com/replfs/replfs/replicate/record"
)

// FuzzOpen opens a sound file that was changed: ring, if any, becomes the
// ring's content, then each 12 bytes of edits are a place and a word to put
// there. Whatever Open keeps must be sound and go on working.
func FuzzOpen(f *testing.F) {
	path := ringPath(f)
	sound := soundFile(f, path)
	edit := func(pairs ...uint64) (b []byte) {
		for i := 0; i < len(pairs); i += 2 {
			b = binary.LittleEndian.AppendUint32(b, uint32(pairs[i]))
			b = binary.LittleEndian.AppendUint64(b, pairs[i+1])
		}
		return b
	}
	var raw []byte
	for lsn := uint64(1); lsn < 4; lsn++ {
		r, data := write(1, lsn, 20)
		r.LSN, r.Data, r.Fields = lsn, data, r.Fields|record.FieldData
		raw = r.Append(raw)
	}
	f.Add([]byte{}, []byte{})
	f.Add([]byte{}, raw)
	f.Add([]byte{}, raw[:len(raw)-1])
	f.Add(edit(wordFirst, 3, wordTail, uint64(len(raw)/3)), raw)
	for _, w := range []uint64{wordMagic, wordVersion, wordSize, bytesBootID, wordHead, wordLast, wordTail, wordFirst, wordFlags, wordResetTo} {
		f.Add(edit(w, 1), []byte{})
		f.Add(edit(w, 1<<63), []byte{})
		f.Add(edit(w, 1<<64-1), raw)
	}
	f.Add(edit(headerSize, 2, headerSize+8, 0, headerSize+slotSize, 7), []byte{})
	f.Add(edit(headerSize+slotBytes, 1<<32-1), []byte{})
	f.Add(edit(dataOffset, 0), []byte{})
	f.Add(edit(wordHead, maxOffset, wordTail, maxOffset, wordFirst, maxLSN), []byte{})

	f.Fuzz(func(t *testing.T, edits, ring []byte) {
		b := append([]byte(nil), sound...)
		if len(ring) > 0 {
			n := copy(b[dataOffset:], ring)
			binary.LittleEndian.PutUint64(b[wordTail:], 0)
			binary.LittleEndian.PutUint64(b[wordHead:], uint64(n))
			binary.LittleEndian.PutUint64(b[wordFirst:], 1)
		}
		for ; len(edits) >= 12; edits = edits[12:] {
			at := uint64(binary.LittleEndian.Uint32(edits)) % uint64(len(b)-7)
			copy(b[at:], edits[4:12])
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		l, rec, err := Open(path, Options{Size: testSize, BootID: "boot"})
		if err != nil {
			t.Fatal(err)
		}
		if rec.Fresh == (rec.Reason == "") {
			t.Fatalf("Recovered = %+v", rec)
		}
		for i := range rec.Intents {
			if err := record.CheckPath(rec.Intents[i].Path); err != nil {
				t.Fatal(err)
			}
		}
		checkSound(t, l)
		last := l.Last()
		if last >= maxLSN || l.head >= maxOffset-testSize {
			// No log ever comes here, and one that does ends here.
			closeLog(t, l)
			return
		}
		appendN(t, l, 1, 10)
		l.ClearIntents()
		l.Begin(&record.Record{}).End()
		closeLog(t, l)
		l, rec, err = Open(path, Options{Size: testSize, BootID: "boot"})
		if err != nil {
			t.Fatal(err)
		}
		defer closeLog(t, l)
		if rec.Fresh || rec.Last != last+1 || rec.Intents != nil || rec.IntentsLost {
			t.Fatalf("then Recovered = %+v, last was %d", rec, last)
		}
	})
}

// soundFile is the image of a log that has wrapped and has intents.
func soundFile(tb testing.TB, path string) []byte {
	tb.Helper()
	l, _, err := Open(path, Options{Size: testSize, BootID: "boot"})
	if err != nil {
		tb.Fatal(err)
	}
	appendN(tb, l, 10, 700_000)
	appendN(tb, l, 5, 100)
	l.Begin(intent("a"))
	l.Begin(intent("b"))
	crash(tb, l)
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// checkSound reads everything. Fields may be nonsense, sums may not.
func checkSound(t *testing.T, l *Log) {
	t.Helper()
	r, err := l.NewReader(l.First())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for next := l.First(); next <= l.Last(); {
		batch, first, last, err := r.Read(t.Context(), make([]byte, 0, 1<<20))
		if err != nil || first != next {
			t.Fatalf("Read = %d, %v, want %d", first, err, next)
		}
		for ; len(batch) > 0; next++ {
			h, err := record.Check(batch)
			if err != nil || h.LSN != next {
				t.Fatalf("LSN %d, %v, want %d", h.LSN, err, next)
			}
			batch = batch[h.Size:]
		}
		if last+1 != next {
			t.Fatalf("batch ends at %d, not at %d", last, next-1)
		}
	}
}
