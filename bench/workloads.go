package bench

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// Workload is one thing applications do, timed on a directory of its own.
type Workload struct {
	Name string
	// Ops is how many operations Run does.
	Ops int
	// Prepare makes what Run works on; it is not timed.
	Prepare func(dir string) error
	Run     func(dir string) error
}

// Workloads are the ones measured. scale 1 takes a few seconds each.
func Workloads(scale float64) []Workload {
	n := func(base int) int { return max(1, int(float64(base)*scale)) }
	none := func(string) error { return nil }
	return []Workload{
		{"create small files", n(2000), none, func(d string) error { return createFiles(d, n(2000)) }},
		{"delete small files", n(2000), func(d string) error { return createFiles(d, n(2000)) }, os.RemoveAll},
		{"stat small files", n(2000), func(d string) error { return createFiles(d, n(2000)) }, statTree},
		{"overwrite 8 KiB at random", n(8000), makeFile(32 << 20), func(d string) error { return overwrite(d, n(8000)) }},
		{"write 1 MiB in sequence", n(200), none, func(d string) error { return sequential(d, n(200)) }},
		{"read 8 KiB at random", n(20000), makeFile(32 << 20), func(d string) error { return readRandom(d, n(20000)) }},
		{"append 8 KiB + fdatasync", n(400), none, func(d string) error { return appendSync(d, n(400)) }},
	}
}

const smallFile = 4 << 10

func createFiles(dir string, n int) error {
	data := make([]byte, smallFile)
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprintf("d%03d", i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		path := filepath.Join(sub, fmt.Sprintf("f%05d", i))
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
		// As tar does.
		if err := os.Chtimes(path, time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
			return err
		}
	}
	return nil
}

func statTree(dir string) error {
	return filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil {
			_, err = d.Info()
		}
		return err
	})
}

const bigName = "big"

func makeFile(size int) func(dir string) error {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, bigName), make([]byte, size), 0o644) }
}

// atRandom calls f with block-aligned offsets of the big file.
func atRandom(dir string, n int, flags int, f func(*os.File, []byte, int64) error) (err error) {
	file, err := os.OpenFile(filepath.Join(dir, bigName), flags, 0)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := file.Close(); err == nil {
			err = cerr
		}
	}()
	rng := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 8<<10)
	for range n {
		if err := f(file, buf, rng.Int64N(32<<20/8192)*8192); err != nil {
			return err
		}
	}
	return nil
}

func overwrite(dir string, n int) error {
	return atRandom(dir, n, os.O_RDWR, func(f *os.File, b []byte, off int64) error {
		_, err := f.WriteAt(b, off)
		return err
	})
}

func readRandom(dir string, n int) error {
	return atRandom(dir, n, os.O_RDONLY, func(f *os.File, b []byte, off int64) error {
		_, err := f.ReadAt(b, off)
		if err == io.EOF {
			err = nil
		}
		return err
	})
}

func sequential(dir string, n int) error {
	f, err := os.Create(filepath.Join(dir, bigName))
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for range n {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return f.Close()
}

func appendSync(dir string, n int) error {
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	buf := make([]byte, 8<<10)
	for range n {
		if _, err := f.Write(buf); err != nil {
			return err
		}
		if err := datasync(f); err != nil {
			return err
		}
	}
	return f.Close()
}
