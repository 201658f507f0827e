package apply

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/replicate/record"
)

// A run is a number of records that follow one another in the log, each about
// the data or attributes of an open file. Records of different files do not
// conflict: they are applied at the same time, those of one file in their order.
//
// Meanwhile the store is at no LSN. The intent says so: it names the run's last
// record, and the position stays before the first until all are applied. After a
// kill the run, which does nothing that may not be done twice, is applied again.
type run struct {
	tasks []task
	files []runFile
	ids   map[uint64]int32 // FileID -> files
	inos  map[inode]int32
	epoch uint64
}

// runFile is a file of the run. A worker has it alone.
type runFile struct {
	fd         int
	file       inode
	head, tail int32 // its tasks
	done       int32 // the last that is applied, or -1
}

// task is a record of the run.
type task struct {
	lsn          uint64
	op           record.Op
	flags        record.Flags
	fields       record.Field
	mode         uint32
	uid, gid     uint32
	offset       int64 // or the size
	atime, mtime unix.Timespec
	data         []byte
	path         string
	next         int32 // of the same file, or -1
	late         bool  // its times were left to a later task
}

const (
	// A step that takes longer than slow, and slowByte for each byte, waits for
	// the disk: others shall go on with other files. Where all is in memory,
	// waking them would cost more than they do.
	slow     = 100 * time.Microsecond
	slowByte = time.Nanosecond
	// vectorMax bounds the writes that become one.
	vectorMax = 64
)

// Queue takes a record into the run that ApplyQueued applies. It returns false,
// having done nothing, if the record has to be given to Apply instead, after
// ApplyQueued. The record's data must stay as it is until ApplyQueued returns.
func (a *Applier) Queue(rec *record.Record) bool {
	switch rec.Op {
	case record.OpWrite, record.OpSetAttr, record.OpFsync:
	default:
		return false
	}
	if rec.FileID == 0 || a.closed || a.syncing || a.fresh || a.copyStale {
		return false
	}
	q := &a.queued
	if n := len(q.tasks); n > 0 {
		if rec.LSN != q.tasks[n-1].lsn+1 || rec.Epoch != q.epoch {
			return false
		}
	} else {
		lsn, epoch := a.st.position()
		intent, intentEpoch := a.st.intent()
		if rec.LSN != lsn+1 || rec.Epoch != epoch || intent > lsn && intentEpoch != epoch {
			return false // Apply says what is wrong with it, if anything is
		}
		a.useEpoch(epoch)
		q.epoch = epoch
	}
	f, ok := a.queuedFile(rec)
	if !ok {
		return false
	}
	q.add(f, rec)
	return true
}

// queuedFile is the file of rec within the run, opened if need be. All files of
// a run stay open: it has no more than the cache holds.
func (a *Applier) queuedFile(rec *record.Record) (int32, bool) {
	q := &a.queued
	if i, ok := q.ids[rec.FileID]; ok {
		return i, true
	}
	if len(q.ids) >= a.cfg.OpenFiles-2 {
		return 0, false
	}
	f, ok := a.files.lru.Get(rec.FileID)
	if !ok {
		if rec.Op != record.OpWrite {
			return 0, false // perhaps it is no regular file
		}
		h, err := a.file(rec.FileID, rec.Path)
		if err != nil {
			return 0, false
		}
		f = h.openFile
	}
	if q.ids == nil {
		q.ids, q.inos = map[uint64]int32{}, map[inode]int32{}
	}
	// A file that the primary forgot and looked up again has another id.
	i, ok := q.inos[f.file]
	if !ok {
		i = int32(len(q.files))
		q.files = append(q.files, runFile{fd: f.fd, file: f.file, head: -1, tail: -1, done: -1})
		q.inos[f.file] = i
	}
	q.ids[rec.FileID] = i
	return i, true
}

func (q *run) add(file int32, rec *record.Record) {
	i, f := int32(len(q.tasks)), &q.files[file]
	if f.head < 0 {
		f.head = i
	} else {
		q.tasks[f.tail].next = i
	}
	f.tail = i
	atime, mtime, _ := fileTimes(rec)
	t := task{
		lsn: rec.LSN, op: rec.Op, flags: rec.Flags, fields: rec.Fields, mode: rec.Mode, uid: rec.UID, gid: rec.GID,
		offset: rec.Offset, atime: atime, mtime: mtime, data: rec.Data, path: rec.Path, next: -1,
	}
	if rec.Op == record.OpSetAttr {
		t.offset = rec.Size
	}
	q.tasks = append(q.tasks, t)
}

func (q *run) reset() {
	clear(q.tasks) // they hold data and paths
	q.tasks, q.files = q.tasks[:0], q.files[:0]
	clear(q.ids)
	clear(q.inos)
}

// Queued is how many records wait for ApplyQueued.
func (a *Applier) Queued() int { return len(a.queued.tasks) }

// ApplyQueued applies the run that Queue made. When it returns nil, all of its
// records are applied as with Apply. Otherwise the error is an *Error and names
// the first that could not be; the position is before that one, others behind it
// may be applied, and all from it on have to be given again.
func (a *Applier) ApplyQueued() error {
	q := &a.queued
	if len(q.tasks) == 0 {
		return nil
	}
	defer q.reset()
	last := q.tasks[len(q.tasks)-1].lsn
	intent, _ := a.st.intent()
	resumed := intent >= q.tasks[0].lsn
	a.st.extendIntent(last, q.epoch)
	err := a.k.at("intent")
	if err != nil {
		return q.failed(0, err)
	}
	bad, changed, err := a.applyRun(q)
	if err == nil {
		if err = a.k.at("applied"); err != nil {
			return q.failed(0, err)
		}
		a.st.setPosition(last, q.epoch)
		a.sync.advance(last)
		return nil
	}
	if !changed && !resumed {
		a.st.clearIntent()
		return q.failed(bad, err)
	}
	a.finishTimes(q)
	if bad > 0 {
		// What is before it is applied, whoever had it.
		before := q.tasks[bad-1].lsn
		a.st.setPosition(before, q.epoch)
		a.sync.advance(before)
	}
	return q.failed(bad, err)
}

func (q *run) failed(i int, err error) error {
	t := &q.tasks[i]
	return &Error{LSN: t.lsn, Op: t.op, Path: t.path, Err: hint(err), Divergence: divergence(err)}
}

// applyRun applies the run, with further goroutines when there is something to
// wait for. Should a record fail, all before it are applied all the same: bad is
// then the first that failed. changed says that the store may have changed.
func (a *Applier) applyRun(q *run) (bad int, changed bool, err error) {
	w := runWorkers{a: a, run: q}
	w.bad.Store(math.MaxInt32)
	w.work(min(a.cfg.ApplyWorkers, len(q.files)) - 1)
	w.helpers.Wait()
	return int(w.bad.Load()), w.changed.Load(), w.err
}

// runWorkers is what those who apply a run share.
type runWorkers struct {
	a       *Applier
	run     *run
	helpers sync.WaitGroup
	next    atomic.Int32 // the next file that nobody has
	bad     atomic.Int32 // the first task that failed
	changed atomic.Bool

	mu  sync.Mutex // guards bad against going up, and err
	err error      // of bad
}

// work applies files until there are none left. It gets that many helpers when a
// step is slow.
func (w *runWorkers) work(helpers int) {
	k := kernel{probe: w.a.k.probe}
	for {
		i := w.next.Add(1) - 1
		if int(i) >= len(w.run.files) {
			break
		}
		w.file(&k, &w.run.files[i], &helpers)
	}
	if k.changed {
		w.changed.Store(true)
	}
}

// help starts helpers.
func (w *runWorkers) help(n *int) {
	for ; *n > 0; *n-- {
		w.helpers.Go(func() { w.work(0) })
	}
}

// file applies the tasks of one file but those behind one that failed.
func (w *runWorkers) file(k *kernel, f *runFile, helpers *int) {
	for i := f.head; i >= 0 && i < w.bad.Load(); {
		var begun time.Time
		if *helpers > 0 {
			begun = time.Now()
		}
		last, n, err := w.step(k, f, i)
		if *helpers > 0 && time.Since(begun) > slow+time.Duration(n)*slowByte {
			w.help(helpers)
		}
		if err != nil {
			w.fail(i, err)
			return
		}
		f.done = last
		i = w.run.tasks[last].next
	}
}

func (w *runWorkers) fail(i int32, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i < w.bad.Load() {
		w.bad.Store(i)
		w.err = err
	}
}

// step applies task i, and those behind it that can be done in one go. It
// returns the last that is done, and how many bytes were written.
func (w *runWorkers) step(k *kernel, f *runFile, i int32) (last int32, n int, err error) {
	t := &w.run.tasks[i]
	if k.probe != nil {
		if err := k.at("run"); err != nil {
			return i, 0, err
		}
	}
	switch t.op {
	case record.OpFsync:
		return i, 0, w.a.sync.add(t.lsn, f.fd, f.file, t.flags.Has(record.FlagDataOnly), t.path)
	case record.OpWrite:
		i, n, err = w.write(k, f, i)
		t = &w.run.tasks[i]
	default:
		if t.fields.Has(record.FieldSize) {
			err = k.truncate(f.fd, t.offset)
		}
		if err == nil && t.fields.Has(record.FieldOwner) {
			err = k.fchown(f.fd, t.uid, t.gid)
		}
	}
	if err == nil && t.fields.Has(record.FieldMode) {
		err = k.fchmod(f.fd, t.mode)
	}
	if err == nil {
		err = w.times(k, f, t)
	}
	return i, n, err
}

// write stores the data of task i together with that of tasks which go on where
// it ends.
func (w *runWorkers) write(k *kernel, f *runFile, i int32) (last int32, total int, err error) {
	tasks := w.run.tasks
	t := &tasks[i]
	if w.joins(t) {
		var room [vectorMax][]byte
		vec := append(room[:0], t.data)
		total, last = len(t.data), i
		for len(vec) < vectorMax && w.joins(&tasks[last]) {
			tasks[last].late = true
			last = tasks[last].next
			vec = append(vec, tasks[last].data)
			total += len(tasks[last].data)
		}
		if n, err := k.pwritev(f.fd, vec, t.offset); err == nil && n == total {
			return last, total, nil
		}
		// Which of them does not fit?
		t.late = false
	}
	if len(t.data) > 0 {
		err = k.pwrite(f.fd, t.data, t.offset)
	}
	return i, len(t.data), err
}

// joins tells whether the next task of t's file can be written with it.
func (w *runWorkers) joins(t *task) bool {
	if t.next < 0 || t.fields.Has(record.FieldMode) || len(t.data) == 0 {
		return false
	}
	u := &w.run.tasks[t.next]
	return u.op == record.OpWrite && len(u.data) > 0 && u.offset == t.offset+int64(len(t.data)) && covers(u, t) &&
		t.next < w.bad.Load()
}

// covers tells whether u sets the times that t does.
func covers(u, t *task) bool {
	const times = record.FieldMtime | record.FieldAtime
	return u.fields.Has(t.fields & times)
}

// times sets the times of t unless the next task does.
func (w *runWorkers) times(k *kernel, f *runFile, t *task) error {
	if t.fields&(record.FieldMtime|record.FieldAtime) == 0 {
		return nil
	}
	if t.next >= 0 && w.run.tasks[t.next].op != record.OpFsync && covers(&w.run.tasks[t.next], t) {
		t.late = true
		return nil
	}
	return k.futimes("utimens", f.fd, t.atime, t.mtime)
}

// finishTimes sets the times that were left to tasks which were not applied.
func (a *Applier) finishTimes(q *run) {
	for i := range q.files {
		f := &q.files[i]
		if f.done < 0 || !q.tasks[f.done].late {
			continue
		}
		t := &q.tasks[f.done]
		// If it fails, the record that failed is tried again, and with it those
		// that will set them.
		_ = a.k.futimes("utimens", f.fd, t.atime, t.mtime)
	}
}
