package exclude

import "testing"

func TestExcluded(t *testing.T) {
	s, err := New([]string{"lost+found/", "cache/**/tmp", "*.bak"})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"":                  false,
		"lost+found":        true,
		"lost+found/x/y":    true,
		"a/lost+found":      false,
		"lost+found2":       false,
		"cache/tmp":         true,
		"cache/a/b/tmp/c":   true,
		"cache/a/b/tmp2":    false,
		"x.bak":             true,
		"x.bak/below":       true,
		"dir/x.bak":         false,
		"cache\xff/tmp":     false,
		"cache/\xff/tmp/ok": true,
	} {
		if got := s.Excluded(path); got != want {
			t.Errorf("Excluded(%q) = %v", path, got)
		}
	}
	if !s.Below("cache") {
		t.Error("a pattern with a slash can match below a directory")
	}
	if s, _ := New([]string{"lost+found/"}); s.Below("x") || s.Excluded("x/lost+found") {
		t.Error("a pattern of one component matches at the top only")
	}
	if _, err := New([]string{"[a"}); err == nil {
		t.Error("a broken glob was taken")
	}
}
