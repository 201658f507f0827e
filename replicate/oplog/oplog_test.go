package oplog

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/replfs/replfs/replicate/record"
)

func TestAppendAndRead(t *testing.T) {
	now := time.Unix(1700000000, 42)
	path := ringPath(t)
	l, rec, err := Open(path, Options{Size: testSize, Clock: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer closeLog(t, l)
	if !rec.Fresh || rec.Reason != "no log file" {
		t.Fatalf("Recovered = %+v", rec)
	}
	if l.First() != 1 || l.Last() != 0 || l.Next() != 1 || l.LastEpoch() != 0 {
		t.Fatalf("empty log: first %d, last %d, next %d, epoch %d", l.First(), l.Last(), l.Next(), l.LastEpoch())
	}
	l.SetEpoch(7)
	r := &record.Record{Op: record.OpUnlink, Fields: record.FieldPath | record.FieldData, Path: "a", Data: []byte("ignored")}
	if _, err := l.Append(r, nil, nil); err != nil {
		t.Fatal(err)
	}
	l.SetEpoch(8)
	w, data := write(3, 0, 100)
	if _, err := l.Append(w, data, nil); err != nil {
		t.Fatal(err)
	}
	all := content(t, l)
	if len(all) != 2 || all[0].Op != record.OpUnlink || all[0].Path != "a" || all[0].Has(record.FieldData) {
		t.Fatalf("log holds %v", all)
	}
	if all[0].Epoch != 7 || all[1].Epoch != 8 || all[0].Time != now.UnixNano() || l.LastEpoch() != 8 {
		t.Fatalf("log holds %+v", all)
	}
	if err := checkWrite(&all[1]); err != nil {
		t.Fatal(err)
	}
	if e, ok := l.EpochOf(1); !ok || e != 7 {
		t.Fatalf("EpochOf(1) = %d, %v", e, ok)
	}
	if tm, ok := l.TimeOf(2); !ok || !tm.Equal(now) {
		t.Fatalf("TimeOf(2) = %v, %v", tm, ok)
	}
	for _, lsn := range []uint64{0, 3} {
		if _, ok := l.EpochOf(lsn); ok {
			t.Fatalf("EpochOf(%d) exists", lsn)
		}
		if _, ok := l.TimeOf(lsn); ok {
			t.Fatalf("TimeOf(%d) exists", lsn)
		}
	}
	one, two := uint64(len(all[0].Append(nil))), uint64(len(all[1].Append(nil)))
	for lsn, want := range map[uint64]uint64{0: one + two, 1: two, 2: 0, 99: 0} {
		if got := l.BytesAfter(lsn); got != want {
			t.Errorf("BytesAfter(%d) = %d, want %d", lsn, got, want)
		}
	}
}

// An empty but present payload is data.
func TestAppendEmptyData(t *testing.T) {
	l := newLog(t)
	r := &record.Record{Op: record.OpSetXattr, Fields: record.FieldName | record.FieldPath, Path: "f", Name: "user.x"}
	if _, err := l.Append(r, []byte{}, nil); err != nil {
		t.Fatal(err)
	}
	if got := content(t, l)[0]; !got.Has(record.FieldData) || len(got.Data) != 0 {
		t.Fatalf("got %+v", got)
	}
}

func TestAppendTooLarge(t *testing.T) {
	long := strings.Repeat("a", record.MaxPath+1)
	for name, c := range map[string]struct {
		r    record.Record
		data []byte
	}{
		"data":   {record.Record{Op: record.OpWrite}, make([]byte, record.MaxData+1)},
		"path":   {record.Record{Fields: record.FieldPath, Path: long}, nil},
		"path2":  {record.Record{Fields: record.FieldPath2, Path2: long}, nil},
		"name":   {record.Record{Fields: record.FieldName, Name: long[:256]}, nil},
		"xattr":  {record.Record{Fields: record.FieldXattrs, Xattrs: []record.Xattr{{Name: "x", Value: make([]byte, 1<<16+1)}}}, nil},
		"xattrs": {record.Record{Fields: record.FieldXattrs, Xattrs: make([]record.Xattr, 1<<16+1)}, nil},
		"names":  {record.Record{Fields: record.FieldNames, Names: make([]string, 1<<16+1)}, nil},
		"a name": {record.Record{Fields: record.FieldNames, Names: []string{long}}, nil},
		"all": {record.Record{Fields: record.FieldNames | record.FieldData,
			Names: []string{long[1:], long[1:], long[1:], long[1:]}}, make([]byte, record.MaxData)},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLog(t)
			before := c.r.Fields
			if _, err := l.Append(&c.r, c.data, nil); err == nil {
				t.Fatal("appended")
			}
			if c.r.Fields != before || c.r.LSN != 0 || l.Last() != 0 {
				t.Fatalf("something changed: %+v", c.r)
			}
		})
	}
}

func TestLargestRecord(t *testing.T) {
	l := newLog(t)
	r := &record.Record{Op: record.OpState, Fields: record.FieldNames, Names: []string{
		strings.Repeat("a/", record.MaxPath/2-1) + "a", strings.Repeat("b/", record.MaxPath/2-1) + "b", strings.Repeat("c/", record.MaxPath/2-1) + "c",
	}}
	for range 10 {
		if _, err := l.Append(r, make([]byte, record.MaxData), nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := content(t, l); len(got) != 2 || len(got[1].Data) != record.MaxData {
		t.Fatalf("%d records kept, 2 fit", len(got))
	}
}

func TestWrapAround(t *testing.T) {
	l := newLog(t)
	rng := rand.New(rand.NewPCG(1, 2))
	var total uint64
	for l.head < 20*testSize {
		n := rng.IntN(300)
		if rng.IntN(50) == 0 {
			n = rng.IntN(record.MaxData)
		}
		before, head := l.Next(), l.head
		appendN(t, l, 1, n)
		total += l.head - head
		if l.Last() != before || l.head != total {
			t.Fatalf("last %d, head %d; want %d, %d", l.Last(), l.head, before, total)
		}
		if l.head-l.tail > testSize {
			t.Fatalf("%d bytes in use", l.head-l.tail)
		}
	}
	all := content(t, l)
	if all[0].LSN == 1 || all[0].LSN != l.First() {
		t.Fatalf("first record is %d, First %d", all[0].LSN, l.First())
	}
	var sum uint64
	for i := len(all) - 1; i >= 0; i-- {
		if err := checkWrite(&all[i]); err != nil {
			t.Fatal(err)
		}
		if got := l.BytesAfter(all[i].LSN); got != sum {
			t.Fatalf("BytesAfter(%d) = %d, want %d", all[i].LSN, got, sum)
		}
		sum += uint64(len(all[i].Append(nil)))
	}
	if got := l.BytesAfter(1); got != sum || sum < testSize-record.MaxSize-2*indexStep {
		t.Fatalf("BytesAfter(1) = %d, %d bytes are kept", got, sum)
	}
	for _, lsn := range []uint64{0, 1, l.First() - 1, l.Last() + 2} {
		_, err := l.NewReader(lsn)
		wantErr(t, "NewReader", err, ErrGone)
	}
}

func TestReset(t *testing.T) {
	path := ringPath(t)
	l, _ := openLog(t, path, testSize)
	l.SetEpoch(4)
	appendN(t, l, 10, 100)
	r := newReader(t, l, 5)
	if err := l.Reset(0); err == nil {
		t.Fatal("Reset(0) succeeded")
	}
	if err := l.Reset(7); err != nil {
		t.Fatal(err)
	}
	if l.First() != 7 || l.Last() != 6 || l.LastEpoch() != 0 || l.BytesAfter(0) != 0 {
		t.Fatalf("first %d, last %d, epoch %d", l.First(), l.Last(), l.LastEpoch())
	}
	_, _, _, err := r.Read(t.Context(), nil)
	wantErr(t, "Read", err, ErrGone)
	wantErr(t, "Rewind", r.Rewind(6), ErrGone)
	if err := r.Rewind(7); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 1, 10)
	if _, first, last, err := r.Read(t.Context(), nil); err != nil || first != 7 || last != 7 {
		t.Fatalf("Read = %d, %d, %v", first, last, err)
	}
	if err := l.Reset(1000); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	l, rec := openLog(t, path, testSize)
	if rec.Fresh || rec.First != 1000 || rec.Last != 999 || l.Next() != 1000 {
		t.Fatalf("Recovered = %+v", rec)
	}
}

func TestTruncateAfter(t *testing.T) {
	path := ringPath(t)
	l, _ := openLog(t, path, testSize)
	l.SetEpoch(1)
	appendN(t, l, 500, 1000)
	l.SetEpoch(2)
	appendN(t, l, 500, 1000)
	behind, at, past := newReader(t, l, 1), newReader(t, l, 500), newReader(t, l, 502)
	if err := l.TruncateAfter(2000); err != nil || l.Last() != 1000 {
		t.Fatalf("truncating after what is not there: last %d, %v", l.Last(), err)
	}
	if err := l.TruncateAfter(500); err != nil {
		t.Fatal(err)
	}
	if l.Last() != 500 || l.LastEpoch() != 1 || l.BytesAfter(499) == 0 || l.BytesAfter(500) != 0 {
		t.Fatalf("last %d, epoch %d", l.Last(), l.LastEpoch())
	}
	l.SetEpoch(9)
	appendN(t, l, 3, 2000)
	if _, first, last, err := behind.Read(t.Context(), make([]byte, 0, 1<<20)); err != nil || first != 1 || last != 503 {
		t.Fatalf("Read = %d, %d, %v", first, last, err)
	}
	if batch, first, last, err := at.Read(t.Context(), make([]byte, 0, 1<<20)); err != nil || first != 500 || last != 503 {
		t.Fatalf("Read = %d, %d, %v", first, last, err)
	} else if rs, err := decodeAll(batch, first, last); err != nil || rs[1].Epoch != 9 {
		t.Fatalf("%v, %v", rs, err)
	}
	_, _, _, err := past.Read(t.Context(), nil)
	wantErr(t, "Read past the cut", err, ErrGone)

	closeLog(t, l)
	l, rec := openLog(t, path, testSize)
	if rec.Fresh || rec.Last != 503 || rec.LastEpoch != 9 {
		t.Fatalf("Recovered = %+v", rec)
	}
	if err := l.TruncateAfter(0); err != nil || l.Last() != 0 || l.First() != 1 || l.LastEpoch() != 0 {
		t.Fatalf("truncating all: first %d, last %d, %v", l.First(), l.Last(), err)
	}
	if err := l.Reset(100); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 1, 1)
	wantErr(t, "truncating after what is gone", l.TruncateAfter(98), ErrGone)
	if err := l.TruncateAfter(99); err != nil || l.Next() != 100 {
		t.Fatalf("next %d, %v", l.Next(), err)
	}
}

func TestAppendRaw(t *testing.T) {
	ctx := t.Context()
	src := newLog(t)
	src.SetEpoch(3)
	appendN(t, src, 2000, 500)
	batch, _, _, err := newReader(t, src, 1).Read(ctx, make([]byte, 0, 4<<20))
	if err != nil {
		t.Fatal(err)
	}
	l := newLog(t)
	if last, err := l.AppendRaw(ctx, batch); err != nil || last != 2000 || l.LastEpoch() != 3 {
		t.Fatalf("AppendRaw = %d, %v; epoch %d", last, err, l.LastEpoch())
	}
	got, want := content(t, l), content(t, src)
	for i := range want {
		if string(got[i].Append(nil)) != string(want[i].Append(nil)) {
			t.Fatalf("record %d differs", i)
		}
	}
	if last, err := l.AppendRaw(ctx, nil); err != nil || last != 2000 {
		t.Fatalf("AppendRaw(nothing) = %d, %v", last, err)
	}

	// Each on a log that ends at 2000: what comes, what stays.
	next := func(lsn uint64) []byte {
		r, data := write(1, lsn, 50)
		r.LSN, r.Data, r.Fields = lsn, data, r.Fields|record.FieldData
		return r.Append(nil)
	}
	cat := func(bs ...[]byte) (out []byte) {
		for _, b := range bs {
			out = append(out, b...)
		}
		return out
	}
	broken := next(2002)
	broken[len(broken)-1] ^= 1
	for name, c := range map[string]struct {
		in   []byte
		last uint64
		err  error
	}{
		"again":      {next(2000), 2000, ErrOrder},
		"gap":        {next(2002), 2000, ErrOrder},
		"gap inside": {cat(next(2001), next(2003)), 2001, ErrOrder},
		"zero":       {next(0), 2000, ErrOrder},
		"broken":     {cat(next(2001), broken, next(2003)), 2001, ErrCorrupt},
		"cut":        {cat(next(2001), next(2002)[:60]), 2001, ErrCorrupt},
		"cut early":  {cat(next(2001), next(2002)[:3]), 2001, ErrCorrupt},
		"fine":       {cat(next(2001), next(2002)), 2002, nil},
	} {
		t.Run(name, func(t *testing.T) {
			last, err := l.AppendRaw(ctx, c.in)
			wantErr(t, "AppendRaw", err, c.err)
			if last != c.last || l.Last() != c.last {
				t.Fatalf("last = %d, log's %d, want %d", last, l.Last(), c.last)
			}
			if err := l.TruncateAfter(2000); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Closing ends every wait, and nothing touches the mapping afterwards.
func TestClose(t *testing.T) {
	l := newLog(t)
	slot := l.Begin(&record.Record{Op: record.OpMkdir, Fields: record.FieldPath, Path: "d"})
	idle, holder := newReader(t, l, 1), newReader(t, l, 1)
	errs := make(chan error)
	go func() { _, _, _, err := idle.Read(context.Background(), nil); errs <- err }()
	if err := l.Reset(1); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Read", <-errs, ErrGone)
	for _, r := range []*Reader{idle, holder} {
		if err := r.Rewind(1); err != nil {
			t.Fatal(err)
		}
	}
	holder.Hold(true)
	appendN(t, l, 3, record.MaxData)
	if err := idle.Rewind(4); err != nil {
		t.Fatal(err)
	}
	go func() { _, _, _, err := idle.Read(context.Background(), nil); errs <- err }()
	for range 2 {
		go func() { _, err := l.Append(&record.Record{}, make([]byte, record.MaxData), nil); errs <- err }()
	}
	raw := content(t, l)[2]
	raw.LSN = 4
	go func() { _, err := l.AppendRaw(context.Background(), raw.Append(nil)); errs <- err }()
	for l.Waiting() < 3 {
		time.Sleep(time.Millisecond)
	}
	closeLog(t, l)
	for range 4 {
		wantErr(t, "after Close", <-errs, ErrClosed)
	}
	if last := l.Last(); last != 3 || l.First() != 1 || l.Waiting() != 0 {
		t.Fatalf("last %d", last)
	}
	_, err := l.Append(&record.Record{}, nil, slot)
	wantErr(t, "Append", err, ErrClosed)
	_, err = l.NewReader(1)
	wantErr(t, "NewReader", err, ErrClosed)
	wantErr(t, "Reset", l.Reset(1), ErrClosed)
	wantErr(t, "TruncateAfter", l.TruncateAfter(1), ErrClosed)
	wantErr(t, "Rewind", idle.Rewind(1), ErrClosed)
	if _, ok := l.EpochOf(1); ok || l.BytesAfter(1) != 0 {
		t.Fatal("a closed log has records")
	}
	if s := l.Begin(&record.Record{}); s != nil {
		t.Fatal("Begin after Close")
	}
	l.ClearIntents()
	slot.End() // unmaps
	slot.End()
	(*Slot)(nil).End()
	closeLog(t, l)
}

func TestOpenTwice(t *testing.T) {
	path := ringPath(t)
	l, _ := openLog(t, path, testSize)
	appendN(t, l, 1, 1)
	if _, _, err := Open(path, Options{Size: testSize}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("opened twice: %v", err)
	}
	closeLog(t, l)
	if _, rec := openLog(t, path, testSize); rec.Fresh || rec.Last != 1 {
		t.Fatalf("Recovered = %+v", rec)
	}
}

func TestBlockedSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t)
		r := newReader(t, l, 1)
		r.Hold(true)
		appendN(t, l, 3, record.MaxData)
		if _, ok := l.BlockedSince(); ok || l.Waiting() != 0 {
			t.Fatal("blocked too early")
		}
		start := time.Now()
		go func() {
			if _, err := l.Append(&record.Record{}, make([]byte, record.MaxData), nil); err != nil {
				t.Error(err)
			}
		}()
		time.Sleep(5 * time.Second)
		if since, ok := l.BlockedSince(); !ok || !since.Equal(start) || l.Waiting() != 1 {
			t.Fatalf("BlockedSince = %v, %v; started %v", since, ok, start)
		}
		r.Hold(false)
		synctest.Wait()
		if _, ok := l.BlockedSince(); ok || l.Last() != 4 {
			t.Fatal("still blocked")
		}
	})
}
