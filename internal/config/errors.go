package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// Error is one thing wrong with a config file.
type Error struct {
	File string
	Line int // 0 where no line is to blame
	Msg  string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("config %s: %s", e.File, e.Msg)
	}
	return fmt.Sprintf("config %s:%d: %s", e.File, e.Line, e.Msg)
}

// source remembers where in the file each setting stands, by its path as in
// "nodes[1].address", and collects what is wrong with it.
type source struct {
	file  string
	lines map[string]int
	errs  []*Error
}

// errorf blames the first of paths that stands in the file.
func (s *source) errorf(paths []string, format string, args ...any) *Error {
	e := &Error{File: s.file, Msg: fmt.Sprintf(format, args...)}
	for _, p := range paths {
		if line, ok := s.lines[p]; ok {
			e.Line = line
			break
		}
	}
	return e
}

func (s *source) report(e *Error) { s.errs = append(s.errs, e) }

// has tells whether the file sets path.
func (s *source) has(path string) bool {
	_, ok := s.lines[path]
	return ok
}

// err returns what was reported, in the file's order.
func (s *source) err() error {
	slices.SortStableFunc(s.errs, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	seen := map[Error]bool{}
	var all []error
	for _, e := range s.errs {
		// A top-level setting is checked once for each node that uses it.
		if !seen[*e] {
			seen[*e] = true
			all = append(all, e)
		}
	}
	return errors.Join(all...)
}
