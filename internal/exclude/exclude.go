// Package exclude decides which paths stay out of replication.
package exclude

import (
	"fmt"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// Set is a compiled list of patterns. They are globs as in doublestar,
// anchored at the mount: `lost+found/` is the one at the top, `**/tmp/` any.
// Whatever matches is excluded with all below it; a trailing slash is allowed
// and changes nothing. The zero Set excludes nothing.
type Set struct {
	patterns []string
	deep     bool
}

// New compiles patterns.
func New(patterns []string) (*Set, error) {
	s := &Set{}
	for _, p := range patterns {
		p = strings.TrimSuffix(p, "/")
		if p == "" || !doublestar.ValidatePattern(p) {
			return nil, fmt.Errorf("exclude pattern %q is not a valid glob", p)
		}
		s.patterns = append(s.patterns, p)
		s.deep = s.deep || strings.Contains(p, "/")
	}
	return s, nil
}

// Excluded tells whether path, or a directory above it, matches.
func (s *Set) Excluded(path string) bool {
	if len(s.patterns) == 0 || path == "" {
		return false
	}
	for end := 0; end < len(path); {
		if i := strings.IndexByte(path[end:], '/'); i >= 0 {
			end += i
		} else {
			end = len(path)
		}
		if s.match(path[:end]) {
			return true
		}
		end++
		if !s.deep {
			return false // one component was all that could match
		}
	}
	return false
}

func (s *Set) match(path string) bool {
	for _, p := range s.patterns {
		if doublestar.MatchUnvalidated(p, path) {
			return true
		}
	}
	return false
}

// Below tells whether anything below path could be excluded while path is
// not.
func (s *Set) Below(string) bool { return s.deep }
