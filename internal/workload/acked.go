package workload

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// AckedWriter appends numbered lines to a file and fsyncs each, so that a test
// which kills something meanwhile knows which lines must have survived.
type AckedWriter struct {
	path  string
	pause time.Duration
	last  atomic.Uint64
}

// AckedResult tells how far an AckedWriter came.
type AckedResult struct {
	Last uint64 // the last line whose fsync succeeded; 0 is none
	Err  error  // what made it stop, nil if that was its context
}

// NewAckedWriter prepares to write to the file path, which must not exist, with
// a pause after each line.
func NewAckedWriter(path string, pause time.Duration) *AckedWriter {
	return &AckedWriter{path: path, pause: pause}
}

// Last is the number of the last line that was acknowledged: that and all
// before it must survive. It may be called at any time.
func (w *AckedWriter) Last() uint64 { return w.last.Load() }

// Run creates the file and appends lines 1, 2, 3, ... until ctx is done or a
// call fails. A call that hangs holds it up. It may be called once.
func (w *AckedWriter) Run(ctx context.Context) AckedResult {
	err := w.run(ctx)
	return AckedResult{Last: w.Last(), Err: err}
}

func (w *AckedWriter) run(ctx context.Context) (err error) {
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("acked writer: %w", err)
	}
	defer func() {
		// After another failure, on a dead mount say, close has nothing to add.
		if cerr := f.Close(); cerr != nil && err == nil {
			err = fmt.Errorf("acked writer: %w", cerr)
		}
	}()
	// Without this, not even an fsynced file need have its name after a crash.
	if err := syncDir(filepath.Dir(w.path)); err != nil {
		return fmt.Errorf("acked writer: fsync of the directory: %w", err)
	}
	for n := uint64(1); ctx.Err() == nil; n++ {
		if _, err := f.Write(ackedLine(n)); err != nil {
			return fmt.Errorf("acked writer: line %d: %w", n, err)
		}
		if err := f.Sync(); err != nil {
			return fmt.Errorf("acked writer: line %d: %w", n, err)
		}
		w.last.Store(n)
		if w.pause > 0 {
			sleep(ctx, w.pause)
		}
	}
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// VerifyAcked checks that the file path begins with the lines 1 to last of an
// AckedWriter, intact and in order. Whatever follows was not acknowledged and
// does not matter. With last 0 there need not be a file.
func VerifyAcked(path string, last uint64) (err error) {
	if last == 0 {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%d acknowledged lines lost: %w", last, err)
	}
	defer func() { _ = f.Close() }() // only read
	r := bufio.NewReaderSize(f, 64<<10)
	offset := 0
	for n := uint64(1); n <= last; n++ {
		want := ackedLine(n)
		got, err := r.ReadSlice('\n')
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("%s: reading line %d: %w", path, n, err)
		}
		if string(got) != string(want) {
			return fmt.Errorf("%s: line %d of %d acknowledged, at offset %d, is %.80q, want %.80q",
				path, n, last, offset, got, want)
		}
		offset += len(got)
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ackedLine is line n: number, payload of 0 to 200 digits, and the CRC-32C of
// both, so that a person too can see what became of it.
func ackedLine(n uint64) []byte {
	rng := rand.New(rand.NewPCG(n, 0))
	line := fmt.Appendf(nil, "%012d ", n)
	for range rng.IntN(201) {
		line = append(line, "0123456789abcdef"[rng.IntN(16)])
	}
	return fmt.Appendf(line, " %08x\n", crc32.Checksum(line, castagnoli))
}
