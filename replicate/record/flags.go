package record

import "fmt"

var flagNames = [...]string{"data-only", "exchange", "last", "redo", "contents", "more", "live"}

// Names lists the flags that are set; one that this version does not know is
// a hexadecimal number.
func (f Flags) Names() []string {
	var out []string
	for i, name := range flagNames {
		if f&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	if rest := f >> len(flagNames) << len(flagNames); rest != 0 {
		out = append(out, fmt.Sprintf("%#x", uint16(rest)))
	}
	return out
}
