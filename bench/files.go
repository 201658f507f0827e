package bench

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	block       = 8 << 10
	bigSize     = 32 << 20
	bigName     = "big"
	perDir      = 100
	treeEntries = 10000
)

// fileWorkloads are those on files, small and large.
func (m *material) fileWorkloads() []Workload {
	files := m.n(treeEntries)
	hot := func(name, about string, passes int, run func(ctx context.Context, dir string, paths []string) error) Workload {
		return Workload{
			Name: name, About: about, Unit: "file",
			setup: m.untar,
			prepare: func(ctx context.Context, dir string) error {
				paths, err := regularFiles(dir)
				m.setPaths(dir, paths)
				// Twice: a listing makes the kernel forget the directory's atime.
				return errors.Join(err, run(ctx, dir, paths), run(ctx, dir, paths))
			},
			run: func(ctx context.Context, dir string) (sample, error) {
				paths := m.getPaths(dir)
				for range passes {
					if err := run(ctx, dir, paths); err != nil {
						return sample{}, err
					}
				}
				return sample{ops: passes * len(paths)}, nil
			},
		}
	}
	return []Workload{
		{
			Name: "untar", About: fmt.Sprintf("tar -x of %d small files", files), Unit: "file", cleanup: empty,
			run: func(ctx context.Context, dir string) (sample, error) { return sample{ops: files}, m.untar(ctx, dir) },
		},
		{
			Name: "delete", About: fmt.Sprintf("rm -rf of %d small files", files), Unit: "file", prepare: m.untar,
			run: func(ctx context.Context, dir string) (sample, error) {
				_, err := command{name: "rm", args: []string{"-rf", filepath.Join(dir, treeName)}}.run(ctx)
				return sample{ops: files}, err
			},
		},
		hot("find", "hot find -type f -size +1k", 3, func(ctx context.Context, dir string, _ []string) error {
			_, err := command{name: "find", args: []string{dir, "-type", "f", "-size", "+1k"}}.run(ctx)
			return err
		}),
		hot("stat", "hot stat", 5, each(func(path string) error {
			var st unix.Stat_t
			return unix.Lstat(path, &st)
		})),
		hot("open-read-close", "hot open, read, close", 2, each(readWhole)),
		{
			Name: "overwrite", About: "8 KiB overwrites at random", Unit: "write", setup: bigFile,
			run: m.atRandom(20000, os.O_RDWR, func(f *os.File, b []byte, off int64) error {
				_, err := f.WriteAt(b, off)
				return err
			}),
		},
		{
			Name: "write", About: "1 MiB writes in sequence, a new file", Unit: "MiB", cleanup: empty,
			run: func(ctx context.Context, dir string) (sample, error) {
				n := m.n(256)
				return sample{ops: n}, appendTo(ctx, filepath.Join(dir, bigName), 0, make([]byte, 1<<20), n, nil)
			},
		},
		{
			Name: "read", About: "8 KiB reads at random of a cached file", Unit: "read", setup: bigFile,
			prepare: func(_ context.Context, dir string) error {
				_, err := os.ReadFile(filepath.Join(dir, bigName))
				return err
			},
			run: m.atRandom(50000, os.O_RDONLY, func(f *os.File, b []byte, off int64) error {
				_, err := f.ReadAt(b, off)
				return err
			}),
		},
		{
			Name: "append-fdatasync", About: "8 KiB append + fdatasync", Unit: "append", cleanup: empty,
			run: func(ctx context.Context, dir string) (sample, error) {
				n := m.n(400)
				return sample{ops: n}, appendTo(ctx, filepath.Join(dir, "log"), os.O_APPEND, make([]byte, block), n, func(f *os.File) error {
					return unix.Fdatasync(int(f.Fd()))
				})
			},
		},
	}
}

// treeName is the directory that the tarball holds.
const treeName = "tree"

// untar unpacks the small files.
func (m *material) untar(ctx context.Context, dir string) error {
	tarball, err := m.make(ctx, "tree.tar", m.makeTarball)
	if err != nil {
		return err
	}
	_, err = command{name: "tar", args: []string{"-xf", tarball, "-C", dir}}.run(ctx)
	return err
}

// makeTarball packs files of up to 8 KiB, most of them small, a hundred a
// directory.
func (m *material) makeTarball(_ context.Context, path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	rng := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, block)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	when := time.Unix(1e9, 0)
	for i := range m.n(treeEntries) {
		d := fmt.Sprintf("%s/d%03d/", treeName, i/perDir)
		if i%perDir == 0 {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755, ModTime: when}); err != nil {
				return err
			}
		}
		size := 1 + rng.Int64N(1<<(9+rng.IntN(5))) // up to 512 B … 8 KiB
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%sf%05d", d, i), Mode: 0o644, Size: size, ModTime: when}); err != nil {
			return err
		}
		if _, err := w.Write(data[:size]); err != nil {
			return err
		}
	}
	return w.Close()
}

func regularFiles(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			out = append(out, path)
		}
		return err
	})
	return out, err
}

func (m *material) setPaths(dir string, paths []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paths == nil {
		m.paths = map[string][]string{}
	}
	m.paths[dir] = paths
}

func (m *material) getPaths(dir string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.paths[dir]
}

func each(f func(path string) error) func(context.Context, string, []string) error {
	return func(ctx context.Context, _ string, paths []string) error {
		for i, p := range paths {
			if err := canceled(ctx, i); err != nil {
				return err
			}
			if err := f(p); err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
		}
		return nil
	}
}

// readWhole opens, reads and closes a file of at most a block, with no system
// call more than that.
func readWhole(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var buf [block]byte
	_, err = unix.Read(fd, buf[:])
	return errors.Join(err, unix.Close(fd))
}

func bigFile(ctx context.Context, dir string) error {
	return appendTo(ctx, filepath.Join(dir, bigName), 0, make([]byte, 1<<20), bigSize>>20, nil)
}

// atRandom calls f n times with a random block of the big file.
func (m *material) atRandom(n, flags int, f func(*os.File, []byte, int64) error) func(context.Context, string) (sample, error) {
	return func(ctx context.Context, dir string) (s sample, err error) {
		file, err := os.OpenFile(filepath.Join(dir, bigName), flags, 0)
		if err != nil {
			return s, err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		rng := rand.New(rand.NewPCG(1, 2))
		buf := make([]byte, block)
		for s.ops < m.n(n) {
			if err := canceled(ctx, s.ops); err != nil {
				return s, err
			}
			if err := f(file, buf, rng.Int64N(bigSize/block)*block); err != nil && !errors.Is(err, io.EOF) {
				return s, err
			}
			s.ops++
		}
		return s, nil
	}
}

// appendTo writes data n times to a new file, and calls after each time.
func appendTo(ctx context.Context, path string, flags int, data []byte, n int, after func(*os.File) error) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|flags, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for range n {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := f.Write(data); err != nil {
			return err
		}
		if after != nil {
			if err := after(f); err != nil {
				return err
			}
		}
	}
	return nil
}
