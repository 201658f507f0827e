package control

import "testing"

func TestParsePosition(t *testing.T) {
	for _, p := range []Position{{1, 1}, {3, 1200}, {1<<64 - 1, 1<<64 - 1}} {
		if got, err := ParsePosition(p.String()); err != nil || got != p {
			t.Errorf("%s: %v, %v", p, got, err)
		}
	}
	for _, s := range []string{"", "/", "1", "1/", "/1", "0/5", "5/0", "1/2/3", "-1/2", "1/x", " 1/2", "1/18446744073709551616"} {
		if got, err := ParsePosition(s); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
}
