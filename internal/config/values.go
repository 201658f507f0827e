package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// ByteSize is a number of bytes; in the file "64MiB", "10GB" or a plain number.
type ByteSize int64

// Duration is a length of time; in the file "3s" or "1m30s".
type Duration time.Duration

var byteUnits = []struct {
	name string
	size int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"kB", 1e3}, {"B", 1},
}

const byteSizeHelp = `want a number of bytes such as 64MiB, 1GiB or 1048576`

// UnmarshalText reads a size. Units without a B are refused, because "64M" means
// one thing to some programs and another to others.
func (b *ByteSize) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	unit := strings.TrimSpace(s[len(digits):])
	size := int64(1)
	if unit != "" {
		size = 0
		for _, u := range byteUnits {
			if u.name == unit {
				size = u.size
			}
		}
		if size == 0 {
			return fmt.Errorf("%q has the unknown unit %q: %s", s, unit, byteSizeHelp)
		}
	}
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || math.IsNaN(n) || strings.ContainsAny(digits, "eExXpP_+") {
		return fmt.Errorf("%q is not a size: %s", s, byteSizeHelp)
	}
	if n < 0 {
		return fmt.Errorf("%q is less than nothing: %s", s, byteSizeHelp)
	}
	if whole, err := strconv.ParseInt(digits, 10, 64); err == nil {
		if whole > math.MaxInt64/size {
			return fmt.Errorf("%q is too large a size", s)
		}
		*b = ByteSize(whole * size)
		return nil
	}
	if n*float64(size) >= math.MaxInt64 {
		return fmt.Errorf("%q is too large a size", s)
	}
	*b = ByteSize(n * float64(size))
	return nil
}

// MarshalText is the reverse of UnmarshalText.
func (b ByteSize) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// String shows the size exactly, in the unit that leaves the smallest number.
func (b ByteSize) String() string {
	n, unit := int64(b), "B"
	for _, u := range byteUnits {
		if int64(b)%u.size == 0 && int64(b)/u.size < n {
			n, unit = int64(b)/u.size, u.name
		}
	}
	return strconv.FormatInt(n, 10) + unit
}

// UnmarshalText reads a duration, which must have a unit.
func (d *Duration) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	v, err := time.ParseDuration(s)
	if err != nil {
		if _, numErr := strconv.ParseFloat(s, 64); numErr == nil {
			return fmt.Errorf("%q has no unit: want a duration such as %ss", s, s)
		}
		return fmt.Errorf("%q is not a duration: want one such as 500ms, 3s or 1m30s", s)
	}
	if v < 0 {
		return fmt.Errorf("%q is less than nothing: want a duration such as 3s", s)
	}
	*d = Duration(v)
	return nil
}

// MarshalText is the reverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Std is d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// UnmarshalText reads a durability mode.
func (d *Durability) UnmarshalText(text []byte) error {
	return oneOf(d, text, DurabilityAsync, DurabilityReceived, DurabilityFsync, DurabilitySync)
}

// UnmarshalText reads what to do about a lost standby.
func (l *StandbyLoss) UnmarshalText(text []byte) error {
	return oneOf(l, text, LossDegrade, LossBlock)
}

// UnmarshalText reads a compression.
func (c *Compression) UnmarshalText(text []byte) error {
	return oneOf(c, text, CompressionNone, CompressionZstd)
}

// UnmarshalText reads an election mode.
func (m *ElectionMode) UnmarshalText(text []byte) error {
	return oneOf(m, text, ElectionEtcd, ElectionManual)
}

// UnmarshalText reads when to take the virtual address.
func (w *VIPWhen) UnmarshalText(text []byte) error {
	return oneOf(w, text, VIPReady, VIPEarly)
}

// UnmarshalText reads what to do about a duplicate address.
func (d *VIPDuplicate) UnmarshalText(text []byte) error {
	return oneOf(d, text, DuplicateWait, DuplicateForce)
}

func oneOf[T ~string](p *T, text []byte, allowed ...T) error {
	names := make([]string, 0, len(allowed))
	for _, a := range allowed {
		if string(a) == string(text) {
			*p = a
			return nil
		}
		names = append(names, string(a))
	}
	last := len(names) - 1
	msg := fmt.Sprintf("unknown value %q: want %s or %s", text, strings.Join(names[:last], ", "), names[last])
	return errors.New(msg + didYouMean(string(text), names))
}

// didYouMean suggests the candidate nearest to word, if one is near.
func didYouMean(word string, candidates []string) string {
	best, bestDist := "", min(3, len(word)/2+1)
	for _, c := range candidates {
		if d := editDistance(word, c); d < bestDist {
			best, bestDist = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return math.MaxInt
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(diag+cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
