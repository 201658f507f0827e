package workload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	largeWrite = 1 << 20
	// stepSlack covers blocks for names, attributes and rounding in one step.
	stepSlack = 128 << 10
	// stepNames is the most names that one step makes.
	stepNames = 4
	// danglingRoot begins the absolute targets that symlinks are made with.
	danglingRoot = "/nonexistent-replfs-workload/"
)

// budget keeps the tree within its bounds. Every step adds the most that it
// may have taken, so that the sums are never too low; when they reach the
// bounds, the writers are stopped and the tree is measured, and thinned out if
// it is more than half full.
type budget struct {
	world    sync.RWMutex // read-locked by steps
	maxBytes int64
	maxFiles int64
	grow     int64 // the most bytes that one part of a step may add
	reserve  int64 // bytes that steps under way may add
	names    int64 // names that steps under way may add
	bytes    atomic.Int64
	files    atomic.Int64
}

func (b *budget) init(opts Options) error {
	writers := int64(opts.Writers)
	b.maxBytes, b.maxFiles = opts.MaxBytes, int64(opts.MaxFiles)
	b.grow = min(2*largeWrite, opts.MaxBytes/(16*writers))
	b.reserve = writers * (2*b.grow + stepSlack)
	b.names = writers * stepNames
	if b.grow < stepSlack || b.maxFiles < 8*b.names {
		return fmt.Errorf("bounds too tight for %d writers: they need %d bytes and %d files",
			writers, 16*writers*stepSlack, 8*b.names)
	}
	return nil
}

// spent says that the next step might break the bounds.
func (b *budget) spent() bool {
	return b.bytes.Load()+b.reserve > b.maxBytes || b.files.Load()+b.names > b.maxFiles
}

// found is one name met in the tree.
type found struct {
	path  string
	kind  kind
	bytes int64
	inode inode
	// target is that of a symlink.
	target string
}

type inode struct{ dev, ino uint64 }

// measure lists the tree, parents before what they hold.
func (r *runner) measure() ([]found, error) {
	var tree []found
	err := r.measureBelow(".", &tree)
	return tree, err
}

func (r *runner) measureBelow(dir string, tree *[]found) error {
	names, err := r.list(dir)
	if err != nil {
		return fmt.Errorf("listing %q: %w", dir, err)
	}
	for _, name := range names {
		f := found{path: join(dir, name)}
		var st unix.Stat_t
		if err := unix.Fstatat(r.root, f.path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("stat %q: %w", f.path, err)
		}
		f.inode = inode{st.Dev, st.Ino}
		f.bytes = max(st.Size, st.Blocks*512)
		f.kind = kindOf(st.Mode)
		if f.kind == link {
			buf := make([]byte, unix.PathMax)
			n, err := unix.Readlinkat(r.root, f.path, buf)
			if err != nil {
				return fmt.Errorf("readlink %q: %w", f.path, err)
			}
			f.target = string(buf[:n])
		}
		*tree = append(*tree, f)
		if f.kind == directory {
			if err := r.measureBelow(f.path, tree); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *runner) list(dir string) ([]string, error) {
	fd, err := unix.Openat(r.root, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), dir)
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, errors.Join(err, f.Close())
}

// checkConfined refuses symlinks through which writers, who are root and
// follow symlinks, could reach files outside the tree.
func (r *runner) checkConfined(tree []found) error {
	for _, f := range tree {
		if f.kind != link || strings.HasPrefix(f.target, danglingRoot) {
			continue
		}
		if strings.HasPrefix(f.target, "/") || slices.Contains(strings.Split(f.target, "/"), "..") {
			return fmt.Errorf("symlink %q may lead out of the directory, to %q", f.path, f.target)
		}
	}
	return nil
}

// adopt makes what was measured what the writers know.
func (r *runner) adopt(tree []found) {
	names := newNamespace()
	bytes, seen := int64(0), map[inode]bool{}
	for _, f := range tree {
		names.set(f.path, f.kind)
		if !seen[f.inode] {
			seen[f.inode] = true
			bytes += f.bytes
		}
	}
	r.names.mu.Lock()
	r.names.byKind, r.names.where = names.byKind, names.where
	r.names.mu.Unlock()
	r.budget.bytes.Store(bytes)
	r.budget.files.Store(int64(len(tree)))
}

// rebalance brings the tree back well below its bounds.
func (r *runner) rebalance(ctx context.Context, w *writer) error {
	b := &r.budget
	b.world.Lock()
	defer b.world.Unlock()
	if !b.spent() || ctx.Err() != nil {
		return nil // another writer was faster
	}
	tree, err := r.measure()
	if err != nil {
		return w.failure(opMeasure, err)
	}
	r.adopt(tree)
	if b.bytes.Load() <= b.maxBytes/2 && b.files.Load() <= b.maxFiles/2 {
		return nil
	}
	if err := r.purge(ctx, tree, w); err != nil {
		if !r.tolerated(&spec{}, err) {
			return w.failure(opPurge, err)
		}
		// Read-only or the like: nothing grows now, but do not try too often.
		sleep(ctx, 20*time.Millisecond)
	}
	if tree, err = r.measure(); err != nil {
		return w.failure(opMeasure, err)
	}
	r.adopt(tree)
	return nil
}

// purge removes random files until the tree is a third full, then some of the
// directories that are empty.
func (r *runner) purge(ctx context.Context, tree []found, w *writer) error {
	w.paths = w.paths[:0]
	links := map[inode]int{}
	var files, dirs []found
	for _, f := range tree {
		links[f.inode]++
		if f.kind == directory {
			dirs = append(dirs, f)
		} else {
			files = append(files, f)
		}
	}
	w.rng.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	bytes, count := r.budget.bytes.Load(), int64(len(tree))
	for _, f := range files {
		if ctx.Err() != nil || bytes <= r.budget.maxBytes/3 && count <= r.budget.maxFiles/3 {
			break
		}
		if err := unix.Unlinkat(r.root, f.path, 0); err != nil {
			w.note(f.path)
			return fmt.Errorf("unlink: %w", err)
		}
		count--
		if links[f.inode]--; links[f.inode] == 0 {
			bytes -= f.bytes
		}
	}
	slices.Reverse(dirs) // children first
	for _, d := range dirs {
		if ctx.Err() != nil {
			break
		}
		if count <= r.budget.maxFiles/3 && w.oneIn(2) {
			continue
		}
		err := unix.Unlinkat(r.root, d.path, unix.AT_REMOVEDIR)
		if err != nil && !errors.Is(err, unix.ENOTEMPTY) {
			w.note(d.path)
			return fmt.Errorf("rmdir: %w", err)
		}
		if err == nil {
			count--
		}
	}
	return nil
}

// sleep waits for d or until ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
