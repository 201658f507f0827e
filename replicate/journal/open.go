package journal

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/replfs/replfs/replicate/record"
)

// Recovered says what Open found.
type Recovered struct {
	// First and Last bound the records that were kept, 0 if there are none.
	// LastEpoch is Last's epoch.
	First, Last, LastEpoch uint64
	// Bytes is the size of what was kept.
	Bytes int64
	// Problems says what was found wrong and not kept, for people.
	Problems []string
}

func (r *Recovered) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// found is a segment's file as Open found it.
type found struct {
	seg  *segment
	h    header
	size int64
	// epoch is that of the last record, if all of them were read.
	epoch uint64
}

// Open opens the journal in dir, which is made when it is missing. It keeps
// the longest run of segments up to the newest sound record that hang
// together, belong to the cluster, and were written in this boot of the
// machine or sealed before; it removes what it does not keep. The last
// segment's records are checked now, the others' when they are read.
//
// The error is an *IOError that an administrator must see to.
func Open(dir string, o Options) (*Journal, Recovered, error) {
	j, err := newJournal(dir, o)
	if err != nil {
		return nil, Recovered{}, err
	}
	if err := j.os.MakeDir(dir); err != nil {
		return nil, Recovered{}, ioError(err, "make the directory %s", dir)
	}
	var rec Recovered
	all, err := j.look(&rec)
	if err != nil {
		return nil, rec, err
	}
	sl, serr := j.readSeal()
	if serr != nil {
		rec.problem("%s cannot be read: %v", sealName, serr)
	}
	kept, err := j.keep(all, sl, &rec)
	if err != nil {
		return nil, rec, err
	}
	if err := j.takeOver(all, kept, sl != nil || serr != nil); err != nil {
		return nil, rec, err
	}
	if len(j.segs) > 0 {
		rec.First, rec.Last, rec.LastEpoch, rec.Bytes = j.segs[0].first, j.last, kept[len(kept)-1].epoch, j.total
	}
	return j, rec, nil
}

// look lists the segments, oldest first. One whose header is not sound has
// first 0 in it.
func (j *Journal) look(rec *Recovered) ([]found, error) {
	names, err := j.os.List(j.dir)
	if err != nil {
		return nil, ioError(err, "list %s", j.dir)
	}
	var all []found
	for _, name := range names {
		first, ok := parseName(name)
		if !ok {
			if name != sealName {
				rec.problem("%s is not the journal's: left alone", name)
			}
			continue
		}
		e := found{seg: &segment{path: filepath.Join(j.dir, name), first: first}}
		h, size, err := j.inspect(e.seg.path)
		switch {
		case err != nil:
			rec.problem("%s: %v", name, err)
		case h.first != first:
			rec.problem("%s was renamed: it begins at LSN %d", name, h.first)
		case h.cluster != j.o.Cluster:
			rec.problem("%s is that of cluster id %q", name, h.cluster)
		default:
			e.h, e.size = h, size
		}
		all = append(all, e)
	}
	return all, nil
}

func (j *Journal) inspect(path string) (h header, size int64, err error) {
	f, err := j.os.Open(path, false)
	if err != nil {
		return h, 0, err
	}
	defer f.Close()
	if h, err = readHeader(f); err != nil {
		return h, 0, err
	}
	size, err = f.Size()
	return h, size, err
}

// keep finds the segments to be kept, and checks the last one's records.
func (j *Journal) keep(all []found, sl *seal, rec *Recovered) ([]found, error) {
	end := len(all)
	for end > 0 {
		e := &all[end-1]
		if e.h.first != 0 {
			if err := j.checkTail(e, rec); err != nil {
				return nil, err
			}
			if e.seg.last >= e.seg.first {
				break
			}
			rec.problem("%s holds no sound record", filepath.Base(e.seg.path))
		}
		end--
	}
	if end == 0 {
		return nil, nil
	}
	tail := &all[end-1]
	sealed := sl != nil && sl.Cluster == j.o.Cluster && sl.Last == tail.seg.last && sl.TailSize == tail.size
	begin := end
	for begin > 0 {
		e := &all[begin-1]
		if e.h.first == 0 {
			break
		}
		if e.h.boot != j.o.BootID && !sealed {
			rec.problem("%s was written before the machine last started and not sealed: it may have lost what it held", filepath.Base(e.seg.path))
			break
		}
		if begin < end {
			if next := &all[begin]; next.h.prevFirst != e.h.first || next.h.prevSize != e.size {
				rec.problem("%s of %d bytes is not what %s continues", filepath.Base(e.seg.path), e.size, filepath.Base(next.seg.path))
				break
			}
			e.seg.last = all[begin].seg.first - 1
		}
		e.seg.size = e.size
		begin--
	}
	if begin > 0 && begin < end {
		rec.problem("records before LSN %d are given up", all[begin].seg.first)
	}
	return all[begin:end], nil
}

// checkTail reads a last segment and finds its end.
func (j *Journal) checkTail(e *found, rec *Recovered) error {
	f, err := j.os.Open(e.seg.path, true)
	if err != nil {
		return ioError(err, "open %s", e.seg.path)
	}
	defer f.Close()
	last := e.seg.first - 1
	e.seg.index = nil
	end, damage, err := scan(f, headerSize, e.size, e.seg.first, func(off int64, h record.Header, _ []byte) error {
		if n := len(e.seg.index); n < indexEntries && (n == 0 || off-e.seg.index[n-1].off >= j.segmentSize/indexEntries) {
			e.seg.index = append(e.seg.index, place{h.LSN, off})
		}
		last, e.epoch = h.LSN, h.Epoch
		return nil
	})
	if err != nil {
		return ioError(err, "read %s", e.seg.path)
	}
	e.seg.last = last
	if damage != nil {
		rec.problem("%s ends at byte %d of %d, LSN %d: %v", filepath.Base(e.seg.path), end, e.size, last, damage)
		if err := f.Truncate(end); err != nil {
			return ioError(err, "cut %s", e.seg.path)
		}
		e.size = end
	}
	return nil
}

// takeOver makes kept the journal: the rest is removed, and what another
// boot sealed becomes this one's.
func (j *Journal) takeOver(all, kept []found, sealed bool) error {
	for _, e := range all {
		if len(kept) > 0 && e.seg.first >= kept[0].seg.first && e.seg.first <= kept[len(kept)-1].seg.first {
			continue
		}
		if err := j.os.Remove(e.seg.path); err != nil {
			return ioError(err, "remove %s", e.seg.path)
		}
	}
	for _, e := range kept {
		if e.h.boot != j.o.BootID {
			if err := j.adopt(e); err != nil {
				return ioError(err, "take over %s", e.seg.path)
			}
		}
		j.segs = append(j.segs, e.seg)
		j.total += e.seg.size
		j.last = e.seg.last
	}
	if len(kept) > 0 {
		f, err := j.os.Open(kept[len(kept)-1].seg.path, true)
		if err != nil {
			return ioError(err, "open %s", kept[len(kept)-1].seg.path)
		}
		j.cur, j.dirty = f, 0
	}
	if !sealed {
		return nil
	}
	path := filepath.Join(j.dir, sealName)
	if err := j.os.Remove(path); err != nil && !errors.Is(err, errNotExist) {
		return ioError(err, "remove %s", path)
	}
	if err := j.os.SyncDir(j.dir); err != nil {
		return ioError(err, "sync %s", j.dir)
	}
	return nil
}

func (j *Journal) adopt(e found) error {
	f, err := j.os.Open(e.seg.path, true)
	if err != nil {
		return err
	}
	h := e.h
	h.boot = j.o.BootID
	_, err = f.WriteAt(h.encode(), 0)
	return errors.Join(err, f.Close())
}
