package treediff

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

type inode struct{ dev, ino uint64 }

type inodePair struct{ a, b inode }

// linkedPath is a path that both trees have, hard-linked in at least one.
type linkedPath struct {
	path string
	inodePair
}

func (e *entry) id() inode { return inode{e.st.Dev, e.st.Ino} }

// directories compares what lies below two directories. Only the descriptors
// of the directories on the way down stay open, and names are looked up below
// them, so that a tree may be deeper than PATH_MAX.
func (c *comparison) directories(path string, a, b *entry) error {
	namesA, err := a.names()
	if err != nil {
		return wrap("read directory", a, path, err)
	}
	namesB, err := b.names()
	if err != nil {
		return wrap("read directory", b, path, err)
	}
	for len(namesA) > 0 || len(namesB) > 0 {
		var inA, inB bool
		var name string
		switch {
		case len(namesB) == 0:
			inA, name = true, namesA[0]
		case len(namesA) == 0:
			inB, name = true, namesB[0]
		default:
			order := strings.Compare(namesA[0], namesB[0])
			inA, inB = order <= 0, order >= 0
			name = namesA[0]
			if !inA {
				name = namesB[0]
			}
		}
		if inA {
			namesA = namesA[1:]
		}
		if inB {
			namesB = namesB[1:]
		}
		if err := c.name(path, name, a, b, inA, inB); err != nil {
			return err
		}
	}
	return nil
}

// name compares one name in two directories, which inA and inB say to have it.
func (c *comparison) name(dir, name string, dirA, dirB *entry, inA, inB bool) error {
	path := name
	if dir != "." {
		path = dir + "/" + name
	}
	a, err := c.child(path, name, dirA, inA)
	if err != nil {
		return err
	}
	if a != nil {
		defer a.close()
	}
	b, err := c.child(path, name, dirB, inB)
	if err != nil {
		return err
	}
	if b != nil {
		defer b.close()
	}
	switch {
	case a == nil && b == nil:
		return nil
	case a == nil:
		return c.report(path, Presence, absent, b.typeName())
	case b == nil:
		return c.report(path, Presence, a.typeName(), absent)
	case a.format() != b.format():
		return c.report(path, Type, a.typeName(), b.typeName())
	case a.isDir():
		if err := c.attributes(path, a, b); err != nil {
			return err
		}
		return c.directories(path, a, b)
	}
	if a.st.Nlink > 1 || b.st.Nlink > 1 {
		pair := inodePair{a.id(), b.id()}
		c.links = append(c.links, linkedPath{path, pair})
		if c.compared[pair] {
			return nil
		}
		c.compared[pair] = true
	}
	return c.attributes(path, a, b)
}

// child opens one side's entry; nil is what is not there or does not count.
func (c *comparison) child(path, name string, dir *entry, listed bool) (*entry, error) {
	if !listed {
		return nil, nil
	}
	e, err := openEntry(dir.root, dir.fd, name, unix.O_NOFOLLOW)
	if err != nil {
		return nil, wrap("look at", dir, path, err)
	}
	if e.format() == unix.S_IFSOCK || (c.opts.Exclude != nil && c.opts.Exclude(path, e.isDir())) {
		e.close()
		return nil, nil
	}
	return e, nil
}

// attributes compares two inodes of the same type, all but what is below them.
func (c *comparison) attributes(path string, a, b *entry) error {
	const bits = 0o7777
	if ma, mb := a.st.Mode&bits, b.st.Mode&bits; ma != mb {
		if err := c.report(path, Mode, fmt.Sprintf("%#o", ma), fmt.Sprintf("%#o", mb)); err != nil {
			return err
		}
	}
	if a.st.Uid != b.st.Uid || a.st.Gid != b.st.Gid {
		err := c.report(path, Owner,
			fmt.Sprintf("%d:%d", a.st.Uid, a.st.Gid), fmt.Sprintf("%d:%d", b.st.Uid, b.st.Gid))
		if err != nil {
			return err
		}
	}
	if !c.opts.IgnoreMtime && a.st.Mtim != b.st.Mtim {
		if err := c.report(path, Mtime, stamp(a.st.Mtim), stamp(b.st.Mtim)); err != nil {
			return err
		}
	}
	if err := c.xattrs(path, a, b); err != nil {
		return err
	}
	switch a.format() {
	case unix.S_IFREG:
		return c.contents(path, a, b)
	case unix.S_IFLNK:
		return c.targets(path, a, b)
	case unix.S_IFCHR, unix.S_IFBLK:
		if a.st.Rdev != b.st.Rdev {
			return c.report(path, Device, device(a.st.Rdev), device(b.st.Rdev))
		}
	}
	return nil
}

func (c *comparison) targets(path string, a, b *entry) error {
	ta, err := a.target()
	if err != nil {
		return wrap("readlink", a, path, err)
	}
	tb, err := b.target()
	if err != nil {
		return wrap("readlink", b, path, err)
	}
	if ta != tb {
		ea, eb := excerpts(ta, tb)
		return c.report(path, Target, ea, eb)
	}
	return nil
}

// hardlinks compares how the paths that both trees have fall into groups that
// share an inode. A group is known by its first path in the walk; a path whose
// group is not the same on both sides is a difference.
func (c *comparison) hardlinks() error {
	firstA, firstB := map[inode]string{}, map[inode]string{}
	for _, l := range c.links {
		fa := firstOf(firstA, l.a, l.path)
		fb := firstOf(firstB, l.b, l.path)
		if fa == fb {
			continue
		}
		if err := c.report(l.path, Hardlink, group(l.path, fa), group(l.path, fb)); err != nil {
			return err
		}
	}
	return nil
}

func firstOf(first map[inode]string, id inode, path string) string {
	if p, ok := first[id]; ok {
		return p
	}
	first[id] = path
	return path
}

func group(path, first string) string {
	if path == first {
		return "not linked to an earlier path"
	}
	return "linked to " + strconv.Quote(first)
}

func stamp(t unix.Timespec) string {
	return time.Unix(t.Unix()).UTC().Format("2006-01-02T15:04:05.000000000Z")
}

func device(rdev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
}
