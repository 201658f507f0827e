package apply

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/replfs/replfs/replicate/record"
)

// FuzzState opens a state file that was changed: each 9 bytes of edits are a
// place, by two of them, and seven of a word to put there. Whatever is in it, the
// applier opens it as suspect or not, or refuses it, and what it trusts is sound.
func FuzzState(f *testing.F) {
	dir := f.TempDir()
	store := filepath.Join(dir, "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(dir, "state")
	cfg := Config{Store: store, StateFile: path, BootID: "boot"}
	a, err := Open(cfg)
	if err != nil {
		f.Fatal(err)
	}
	for lsn := uint64(1); lsn < 4; lsn++ {
		if err := a.Apply(&record.Record{LSN: lsn, Epoch: 1, Op: record.OpEpoch}); err != nil {
			f.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		f.Fatal(err)
	}
	sound, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	edit := func(at uint16, v uint64) []byte {
		return append(binary.LittleEndian.AppendUint16(nil, at), binary.LittleEndian.AppendUint64(nil, v)[:7]...)
	}
	for _, at := range []uint16{0, offVersion, offSelect, offPosition, offPosition + 8, offDurable, offIntentLSN, offIntentEpoch, offMeta, offMeta + 4, offMeta + metaSize} {
		f.Add(edit(at, 1))
		f.Add(edit(at, 1<<55))
		f.Add(append(edit(at, 5), edit(offIntentLSN, 9)...))
	}
	f.Fuzz(func(t *testing.T, edits []byte) {
		b := append([]byte(nil), sound...)
		for ; len(edits) >= 9; edits = edits[9:] {
			at := int(binary.LittleEndian.Uint16(edits)) % (len(b) - 7)
			copy(b[at:], edits[2:9])
		}
		for _, old := range []string{path, path + ".damaged-*"} {
			names, err := filepath.Glob(old)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range names {
				if err := os.Remove(n); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := Open(cfg)
		if err != nil {
			return
		}
		s := a.State()
		if s.Durable > s.Applied || s.Pending != 0 && s.Pending <= s.Applied {
			t.Errorf("state %+v", s)
		}
		// The next record is taken or refused; neither may end this process.
		err = a.Apply(&record.Record{LSN: s.Applied + 1, Epoch: s.Epoch, Op: record.OpEpoch})
		if err == nil && a.State().Applied != s.Applied+1 {
			t.Errorf("state %+v", a.State())
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
}
