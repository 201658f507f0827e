// Package treediff compares two directory trees attribute by attribute, as a
// test of replication needs it: numeric owners, every extended attribute,
// hard-link groups and nanosecond times count, and contents are read rather
// than inferred from sizes and times.
//
// The trees must be quiet while they are compared.
package treediff

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// Kind names the attribute in which two trees differ.
type Kind string

// The attributes that are compared.
const (
	Presence Kind = "presence" // the path exists on one side only
	Type     Kind = "type"     // file, directory, symlink, ...
	Size     Kind = "size"     // of regular files
	Content  Kind = "content"  // of regular files of equal size
	Mode     Kind = "mode"     // permission bits with suid, sgid and sticky
	Owner    Kind = "owner"    // numeric uid:gid
	Xattr    Kind = "xattr"    // any extended attribute, ACLs included
	Hardlink Kind = "hardlink" // which paths share an inode
	Target   Kind = "target"   // of symlinks
	Device   Kind = "device"   // device number of character and block devices
	Mtime    Kind = "mtime"    // to the nanosecond, of every type
)

// absent stands for the side of a Difference on which nothing is there.
const absent = "absent"

// Difference is one attribute of one path that is not the same in both trees.
type Difference struct {
	Path string // relative to the trees' roots, "." for the roots; any bytes
	Kind Kind
	A, B string // what each side has, for people to read
}

// String describes d in one line, whatever bytes its path holds.
func (d Difference) String() string {
	return fmt.Sprintf("%s: %s: %s != %s", strconv.Quote(d.Path), d.Kind, d.A, d.B)
}

// DefaultMaxDifferences is where Compare stops when Options do not say.
const DefaultMaxDifferences = 100

// Options narrow a comparison. The zero value compares everything.
type Options struct {
	// Exclude leaves out a path, and all below it if it is a directory, on
	// both sides. It is not asked about the roots.
	Exclude func(relpath string, isDir bool) bool
	// IgnoreMtime leaves out modification times.
	IgnoreMtime bool
	// MaxDifferences ends the comparison once so many were found;
	// 0 means DefaultMaxDifferences, a negative number no limit.
	MaxDifferences int
}

// Compare reports in what the trees under the directories a and b differ, in
// the order of the walk. As many differences as Options.MaxDifferences means
// that there may be more. Sockets are taken as not there. A path that exists
// on one side only, or differs in type, is one difference whatever lies below
// it. The names of a hard-linked file share their attributes, which are
// compared under the first name only.
//
// The error tells that the comparison could not be made; the differences found
// until then come with it.
func Compare(a, b string, opts Options) ([]Difference, error) {
	if opts.MaxDifferences == 0 {
		opts.MaxDifferences = DefaultMaxDifferences
	}
	c := &comparison{opts: opts, compared: map[inodePair]bool{}}
	err := c.roots(a, b)
	if errors.Is(err, errEnough) {
		return c.diffs, nil
	}
	if err != nil {
		return c.diffs, fmt.Errorf("comparing %s with %s: %w", strconv.Quote(a), strconv.Quote(b), err)
	}
	return c.diffs, nil
}

// errEnough unwinds the walk at MaxDifferences.
var errEnough = errors.New("enough differences")

type comparison struct {
	opts     Options
	diffs    []Difference
	compared map[inodePair]bool // hard-linked pairs whose attributes are done
	links    []linkedPath
	bufA     []byte
	bufB     []byte
}

// report records a difference; it fails with errEnough at the limit.
func (c *comparison) report(path string, kind Kind, a, b string) error {
	c.diffs = append(c.diffs, Difference{Path: path, Kind: kind, A: a, B: b})
	if c.opts.MaxDifferences > 0 && len(c.diffs) >= c.opts.MaxDifferences {
		return errEnough
	}
	return nil
}

func (c *comparison) roots(a, b string) error {
	// The roots themselves may be reached through symlinks.
	ea, err := openEntry(a, unix.AT_FDCWD, a, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer ea.close()
	eb, err := openEntry(b, unix.AT_FDCWD, b, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer eb.close()
	if err := c.attributes(".", ea, eb); err != nil {
		return err
	}
	if err := c.directories(".", ea, eb); err != nil {
		return err
	}
	return c.hardlinks()
}

// wrap says what failed on which path of which tree.
func wrap(what string, e *entry, path string, err error) error {
	return fmt.Errorf("%s %s in %s: %w", what, strconv.Quote(path), strconv.Quote(e.root), err)
}
