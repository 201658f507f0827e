package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
)

// modelBytes bounds the journal, in eight segments.
const modelBytes = 1 << 20

// model is what a journal should hold: the records from first on.
type model struct {
	first   uint64
	records [][]byte
}

func (m *model) last() uint64 { return m.first + uint64(len(m.records)) - 1 }

// holds checks that the journal is the records of the model from some LSN
// to some other.
func (m *model) holds(t *testing.T, j *Journal, first, last uint64) {
	t.Helper()
	got, err := readAll(j, first, 100+int(first%7)*5<<10)
	if err != nil {
		t.Fatal(err)
	}
	if uint64(len(got)) != last-first+1 || first < m.first || last > m.last() {
		t.Fatalf("%d records from %d, want up to %d, the model has %d to %d", len(got), first, last, m.first, m.last())
	}
	for i, b := range got {
		if !bytes.Equal(b, m.records[first-m.first+uint64(i)]) {
			t.Fatalf("record %d is another", first+uint64(i))
		}
	}
}

// TestModel does random things to a journal and to a model of it.
func TestModel(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { walkModel(t, rand.New(rand.NewPCG(seed, 5))) })
	}
}

func walkModel(t *testing.T, rng *rand.Rand) {
	dir, boot := t.TempDir(), 1
	o := options()
	o.MaxBytes, o.segment = modelBytes, modelBytes/8
	m := &model{first: 1}
	j, _ := open(t, dir, o)
	reopen := func() Recovered {
		t.Helper()
		o.BootID = fmt.Sprintf("boot-%d", boot)
		var rec Recovered
		j, rec = open(t, dir, o)
		return rec
	}
	// restart makes the model what was recovered, which must be part of it.
	restart := func(what string, rec Recovered, least uint64) {
		t.Helper()
		if rec.Last == 0 {
			if least != 0 {
				t.Fatalf("%s: nothing is left, want up to %d: %q", what, least, rec.Problems)
			}
			m.first, m.records = m.last()+1+rng.Uint64N(3), nil
			return
		}
		if rec.Last < least {
			t.Fatalf("%s: ends at %d, want at least %d: %q", what, rec.Last, least, rec.Problems)
		}
		if rec.First > m.last() || rec.Last > m.last() || rec.First < m.first {
			t.Fatalf("%s: %d to %d of %d to %d", what, rec.First, rec.Last, m.first, m.last())
		}
		m.records = m.records[rec.First-m.first : rec.Last-m.first+1]
		m.first = rec.First
	}
	for step := range 600 {
		switch p := rng.IntN(100); {
		case p < 70:
			var batch []byte
			var add [][]byte
			first := m.last() + 1
			for range 1 + rng.IntN(6) {
				b := encoded(first+uint64(len(add)), uint64(boot), 1+rng.IntN(12<<10))
				add, batch = append(add, b), append(batch, b...)
			}
			err := j.Append(batch, first, first+uint64(len(add))-1)
			if errors.Is(err, ErrFull) {
				if j.Size()+int64(len(batch)) < modelBytes-headerSize {
					t.Fatalf("full with %d bytes", j.Size())
				}
				if len(m.records) > 1 {
					if err := j.TrimBefore(m.first + uint64(len(m.records))/2); err != nil {
						t.Fatal(err)
					}
				}
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			m.records = append(m.records, add...)
		case p < 80 && len(m.records) > 0:
			lsn := m.first + rng.Uint64N(uint64(len(m.records))+1)
			before := j.First()
			if err := j.TrimBefore(lsn); err != nil {
				t.Fatal(err)
			}
			if j.First() > max(lsn, before) {
				t.Fatalf("trimmed before %d, begins at %d", lsn, j.First())
			}
		case p < 85 && len(m.records) > 0:
			from := max(m.first, j.First())
			m.holds(t, j, from+rng.Uint64N(m.last()-from+1), m.last())
		case p < 90: // the process is killed between two appends
			rec := reopen()
			if len(rec.Problems) > 0 {
				t.Fatalf("step %d: killed: %q", step, rec.Problems)
			}
			least := uint64(0)
			if len(m.records) > 0 {
				least = m.last()
			}
			restart("killed", rec, least)
		case p < 93 && len(m.records) > 0: // it is killed in the middle of the last write
			segs := segments(t, dir)
			tail := segs[len(segs)-1]
			st, err := os.Stat(tail)
			if err != nil {
				t.Fatal(err)
			}
			cut := min(st.Size(), 1+rng.Int64N(int64(len(m.records[len(m.records)-1]))))
			if err := os.Truncate(tail, st.Size()-cut); err != nil {
				t.Fatal(err)
			}
			least := uint64(0)
			if len(m.records) > 1 && j.First() < m.last() {
				least = m.last() - 1
			}
			restart("torn", reopen(), least)
		case p < 95: // the machine restarts in an orderly way
			if len(m.records) > 0 && j.Empty() {
				t.Fatal("empty")
			}
			if err := j.Seal(); err != nil {
				t.Fatal(err)
			}
			boot++
			rec := reopen()
			if len(rec.Problems) > 0 {
				t.Fatalf("sealed: %q", rec.Problems)
			}
			least := uint64(0)
			if len(m.records) > 0 {
				least = m.last()
			}
			restart("sealed", rec, least)
		case p < 97: // it crashes
			boot++
			rec := reopen()
			if rec.Last != 0 {
				t.Fatalf("believed after a crash: %+v", rec)
			}
			restart("crashed", rec, 0)
		case len(m.records) > 0: // a bit flips anywhere
			segs := segments(t, dir)
			file := segs[rng.IntN(len(segs))]
			st, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			flip(t, file, rng.Int64N(st.Size()))
			restart("flipped", reopen(), 0)
			if len(m.records) == 0 {
				break
			}
			got, err := readAll(j, m.first, 20<<10)
			var damage *DamageError
			if err != nil && !errors.As(err, &damage) {
				t.Fatal(err)
			}
			for i, b := range got {
				if !bytes.Equal(b, m.records[i]) {
					t.Fatalf("record %d was read as good and is another", m.first+uint64(i))
				}
			}
			if err != nil {
				if err := j.Drop(); err != nil {
					t.Fatal(err)
				}
				m.first, m.records = m.last()+1, nil
			}
		}
		if j.Size() > o.MaxBytes {
			t.Fatalf("%d bytes, the bound is %d", j.Size(), o.MaxBytes)
		}
		if len(m.records) > 0 && j.Last() != m.last() {
			t.Fatalf("step %d: ends at %d, want %d", step, j.Last(), m.last())
		}
	}
}
