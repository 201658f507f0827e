package oplog

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/replfs/replfs/replicate/record"
)

func intent(path string) *record.Record {
	return &record.Record{
		Op: record.OpRename, Flags: record.FlagExchange,
		Fields: record.FieldPath | record.FieldPath2 | record.FieldFileID | record.FieldOffset | record.FieldLength | record.FieldSize | record.FieldData,
		Path:   path, Path2: "from/" + path, FileID: 12345678901, Offset: 1 << 40, Length: 4096, Size: 99,
		Data: []byte("not kept"),
	}
}

// crash closes the file as the death of the process would: slots in use stay so.
func crash(tb testing.TB, l *Log) {
	tb.Helper()
	l.slots.mu.Lock()
	l.slots.inUse = 0
	l.slots.mu.Unlock()
	closeLog(tb, l)
}

func paths(rs []record.Record) []string {
	var out []string
	for _, r := range rs {
		out = append(out, r.Path)
	}
	slices.Sort(out)
	return out
}

func TestIntents(t *testing.T) {
	path := ringPath(t)
	l, _ := openLog(t, path, testSize)
	l.SetEpoch(5)
	appendN(t, l, 3, 10)
	l.Begin(intent("under way"))
	ended := l.Begin(intent("ended"))
	appended := l.Begin(intent("appended"))
	if lsn, err := l.Append(intent("appended"), nil, appended); err != nil || lsn != 4 {
		t.Fatal(lsn, err)
	}
	ended.End()
	// Killed between the slot's mark and the publication of its record.
	unpublished := l.Begin(intent("unpublished"))
	unpublished.lsn.Store(5)
	crash(t, l)

	// Found again until cleared, also when the LSN is another record's by now.
	for range 3 {
		var rec Recovered
		l, rec = openLog(t, path, testSize)
		if got := paths(rec.Intents); rec.Fresh || rec.IntentsLost || !slices.Equal(got, []string{"under way", "unpublished"}) {
			t.Fatalf("Recovered = %+v", rec)
		}
		got, want := rec.Intents[0], *intent(rec.Intents[0].Path)
		want.Epoch, want.Fields, want.Data = 5, want.Fields&^record.FieldData, nil
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("intent %+v, want %+v", got, want)
		}
		appendN(t, l, 3, 10)
		crash(t, l)
		// What was returned does not live in the mapping.
		if !strings.HasPrefix(rec.Intents[1].Path2, "from/") {
			t.Fatal("changed by Close")
		}
	}
	l, _ = openLog(t, path, testSize)
	if len(l.slots.free) != slotCount-2 {
		t.Fatalf("%d free slots", len(l.slots.free))
	}
	l.ClearIntents()
	l.ClearIntents()
	if len(l.slots.free) != slotCount {
		t.Fatalf("%d free slots", len(l.slots.free))
	}
	crash(t, l)
	if _, rec := openLog(t, path, testSize); len(rec.Intents) != 0 || rec.IntentsLost {
		t.Fatalf("Recovered = %+v", rec)
	}
}

func TestIntentTooLong(t *testing.T) {
	const space = slotSize - slotBytes - record.HeaderSize
	for _, c := range []struct {
		n    int
		lost bool
	}{{space - 2, false}, {space - 1, true}, {10 * slotSize, true}} {
		path := ringPath(t)
		l, _ := openLog(t, path, testSize)
		appendN(t, l, 1, 0)
		l.Begin(&record.Record{Op: record.OpMkdir, Fields: record.FieldPath, Path: "neighbour"})
		// Two bytes of length, then the path.
		long := &record.Record{Op: record.OpUnlink, Fields: record.FieldPath, Path: strings.Repeat("a/", c.n)[:c.n-1] + "b"}
		l.Begin(long)
		crash(t, l)
		l, rec := openLog(t, path, testSize)
		if rec.IntentsLost != c.lost || len(rec.Intents) != map[bool]int{true: 1, false: 2}[c.lost] || rec.Fresh {
			t.Fatalf("%d bytes: lost %v, %d intents", c.n, rec.IntentsLost, len(rec.Intents))
		}
		l.ClearIntents()
		// Appended is appended, however long.
		s := l.Begin(long)
		if _, err := l.Append(long, nil, s); err != nil {
			t.Fatal(err)
		}
		crash(t, l)
		if _, rec := openLog(t, path, testSize); rec.IntentsLost || len(rec.Intents) != 0 {
			t.Fatalf("%d bytes: lost %v, %d intents after Append", c.n, rec.IntentsLost, len(rec.Intents))
		}
	}
}

func TestIntentUnreadable(t *testing.T) {
	for name, spoil := range map[string]func(*Slot){
		"bytes":  func(s *Slot) { s.buf[record.HeaderSize] ^= 1 },
		"length": func(s *Slot) { s.buf[3] = 0xff },
		"state":  func(s *Slot) { s.state.Store(77) },
	} {
		t.Run(name, func(t *testing.T) {
			path := ringPath(t)
			l, _ := openLog(t, path, testSize)
			appendN(t, l, 1, 0)
			spoil(l.Begin(intent("x")))
			crash(t, l)
			for range 2 {
				l, rec := openLog(t, path, testSize)
				if rec.Fresh || !rec.IntentsLost || len(rec.Intents) != 0 {
					t.Fatalf("Recovered = %+v", rec)
				}
				crash(t, l)
			}
		})
	}
}

func TestBeginBlocks(t *testing.T) {
	l := newLog(t)
	var used []*Slot
	for range slotCount {
		used = append(used, l.Begin(intent("x")))
	}
	got := make(chan *Slot)
	go func() { got <- l.Begin(intent("y")) }()
	select {
	case <-got:
		t.Fatal("a 129th slot")
	case <-time.After(10 * time.Millisecond):
	}
	used[5].End()
	s := <-got
	if s != used[5] {
		t.Fatal("not the slot that became free")
	}
	go func() { got <- l.Begin(intent("z")) }()
	time.Sleep(time.Millisecond)
	closeLog(t, l)
	if s := <-got; s != nil {
		t.Fatal("a slot of a closed log")
	}
	for _, s := range used {
		s.End()
	}
}
