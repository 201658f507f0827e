package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// terminal prints the story: numbered steps, and under each what happened when.
type terminal struct {
	out    io.Writer
	colour bool
	start  time.Time
	steps  int
}

// newTerminal prints to a file, in colour when it is a terminal and the user
// has not asked for none (no-color.org).
func newTerminal(f *os.File) *terminal {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &terminal{out: f, colour: err == nil && os.Getenv("NO_COLOR") == "", start: time.Now()}
}

// The SGR codes of the colours used.
const (
	bold  = "1"
	dim   = "2"
	red   = "1;31"
	green = "32"
)

// paint colours a text, on a terminal.
func (t *terminal) paint(code, text string) string {
	if !t.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// printf prints without a time. A terminal that is gone is no reason to stop:
// the exit status tells the truth all the same.
func (t *terminal) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(t.out, format, args...)
}

// elapsed is the time since the start, as a column.
func (t *terminal) elapsed() string {
	return t.paint(dim, fmt.Sprintf("%6.1fs", time.Since(t.start).Seconds()))
}

// step begins the next numbered step.
func (t *terminal) step(format string, args ...any) {
	t.steps++
	t.printf("\n%s  %s\n", t.elapsed(), t.paint(bold, fmt.Sprintf("%d. "+format, append([]any{t.steps}, args...)...)))
}

// say tells what happened in a step.
func (t *terminal) say(format string, args ...any) {
	t.printf("%s     %s\n", t.elapsed(), fmt.Sprintf(format, args...))
}

// good tells of a check that passed.
func (t *terminal) good(format string, args ...any) {
	t.say("%s %s", t.paint(green, "ok"), fmt.Sprintf(format, args...))
}

// bad tells of a check that failed.
func (t *terminal) bad(format string, args ...any) {
	t.say("%s %s", t.paint(red, "FAILED"), fmt.Sprintf(format, args...))
}

// block prints the output of a command, indented.
func (t *terminal) block(text string) {
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		t.printf("          %s %s\n", t.paint(dim, "|"), line)
	}
}
