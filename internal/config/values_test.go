package config

import (
	"testing"
	"time"
)

func TestByteSize(t *testing.T) {
	for in, want := range map[string]ByteSize{
		"0": 0, "1": 1, "1048576": 1 << 20, "64MiB": 64 << 20, "1.5GiB": 3 << 29, "0.5KiB": 512,
		"10 GB": 10e9, "2TB": 2e12, "3TiB": 3 << 40, "7kB": 7000, "7KB": 7000, "5B": 5,
		"9223372036854775807": 1<<63 - 1,
	} {
		var b ByteSize
		if err := b.UnmarshalText([]byte(in)); err != nil || b != want {
			t.Errorf("%q: got %d, %v, want %d", in, b, err, want)
		}
	}
	for _, in := range []string{
		"", "MiB", "-1", "-1KiB", "1e3", "0x10", "1_000", "+5", "NaN", "inf", "1M", "1 2", "1mib", "1.2.3MiB",
		"9223372036854775808", "8388608TiB", "9000000000.5GiB",
	} {
		b := ByteSize(42)
		if err := b.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q: got %d, want an error", in, b)
		} else if b != 42 {
			t.Errorf("%q: refused but set to %d", in, b)
		}
	}
	for b, want := range map[ByteSize]string{0: "0B", 1: "1B", 1024: "1KiB", 1 << 30: "1GiB", 10e9: "10GB", 1<<30 + 1: "1073741825B", 3 << 29: "1536MiB"} {
		text, err := b.MarshalText()
		if err != nil || string(text) != want {
			t.Errorf("%d: got %q, %v, want %q", int64(b), text, err, want)
		}
		var back ByteSize
		if err := back.UnmarshalText(text); err != nil || back != b {
			t.Errorf("%q reads back as %d, %v", text, back, err)
		}
	}
}

func TestDuration(t *testing.T) {
	var d Duration
	if err := d.UnmarshalText([]byte("1m30s")); err != nil || d.Std() != 90*time.Second {
		t.Errorf("got %v, %v", d, err)
	}
	if text, err := d.MarshalText(); err != nil || string(text) != "1m30s" {
		t.Errorf("got %q, %v", text, err)
	}
	for _, in := range []string{"", "3", "-1s", "1 day"} {
		if err := d.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	names := []string{"durability", "exclude", "ring"}
	for in, want := range map[string]string{
		"durabilty": ` (did you mean "durability"?)`, "excludes": ` (did you mean "exclude"?)`,
		"rnig": ` (did you mean "ring"?)`, "zzzz": "", "x": "",
	} {
		if got := didYouMean(in, names); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
