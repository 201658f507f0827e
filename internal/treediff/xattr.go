package treediff

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// xattrs compares all extended attributes that the kernel shows to this
// process: trusted ones need CAP_SYS_ADMIN.
func (c *comparison) xattrs(path string, a, b *entry) error {
	xa, err := a.xattrs()
	if err != nil {
		return wrap("read xattrs of", a, path, err)
	}
	xb, err := b.xattrs()
	if err != nil {
		return wrap("read xattrs of", b, path, err)
	}
	names := slices.Collect(maps.Keys(xa))
	for name := range xb {
		if _, ok := xa[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		va, inA := xa[name]
		vb, inB := xb[name]
		if inA == inB && va == vb {
			continue
		}
		ea, eb := excerpts(va, vb)
		if err := c.report(path, Xattr, describeXattr(name, ea, inA), describeXattr(name, eb, inB)); err != nil {
			return err
		}
	}
	return nil
}

func describeXattr(name, value string, present bool) string {
	if !present {
		return name + " " + absent
	}
	return name + "=" + value
}

// xattrs reads all extended attributes of an inode. The f*xattr calls refuse
// O_PATH descriptors, and the l*xattr calls would stop at procfs's link.
func (e *entry) xattrs() (map[string]string, error) {
	path := e.procPath()
	list, err := grow(func(buf []byte) (int, error) { return unix.Listxattr(path, buf) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	all := map[string]string{}
	for name := range strings.SplitSeq(list, "\x00") {
		if name == "" {
			continue // what follows the last terminator
		}
		value, err := grow(func(buf []byte) (int, error) { return unix.Getxattr(path, name, buf) })
		if err != nil {
			return nil, fmt.Errorf("getxattr %s: %w", name, err)
		}
		all[name] = value
	}
	return all, nil
}

// excerpts quotes two different strings, of long ones only the part around the
// first difference.
func excerpts(a, b string) (string, string) {
	same := 0
	for same < min(len(a), len(b)) && a[same] == b[same] {
		same++
	}
	from := max(0, same-excerptLead)
	return excerpt(a, from), excerpt(b, from)
}

const (
	excerptLead = 16
	excerptMax  = 64
)

func excerpt(s string, from int) string {
	if len(s) <= excerptMax {
		return strconv.Quote(s)
	}
	part := strconv.Quote(s[from:min(len(s), from+excerptMax)])
	return fmt.Sprintf("%s (from offset %d of %d)", part, from, len(s))
}
