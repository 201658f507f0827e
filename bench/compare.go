package bench

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"golang.org/x/sys/unix"
)

func datasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }

// Target is a directory to measure, such as a mount.
type Target struct {
	Name string
	Dir  string
}

// Result is how long a workload took on a target: the median of the rounds.
type Result struct {
	Workload, Target string
	Ops              int
	Median           time.Duration
}

// Compare runs every workload on every target, in turns, rounds times. The
// directories are fresh each time.
func Compare(targets []Target, loads []Workload, rounds int, log io.Writer) ([]Result, error) {
	var out []Result
	for _, w := range loads {
		took := make([][]time.Duration, len(targets))
		for r := range rounds {
			for i, t := range targets {
				d, err := once(t, w, r)
				if err != nil {
					return nil, fmt.Errorf("%s on %s: %w", w.Name, t.Name, err)
				}
				took[i] = append(took[i], d)
			}
		}
		for i, t := range targets {
			slices.Sort(took[i])
			out = append(out, Result{w.Name, t.Name, w.Ops, took[i][rounds/2]})
		}
		fmt.Fprintf(log, "measured: %s\n", w.Name) //nolint:errcheck // progress only
	}
	return out, nil
}

func once(t Target, w Workload, round int) (took time.Duration, err error) {
	dir := filepath.Join(t.Dir, fmt.Sprintf("bench-%d", round))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	defer func() {
		if rerr := os.RemoveAll(dir); err == nil {
			err = rerr
		}
	}()
	if err := w.Prepare(dir); err != nil {
		return 0, err
	}
	begun := time.Now()
	err = w.Run(dir)
	return time.Since(begun), err
}

// Print shows the results as a table: microseconds an operation, and how many
// times the first target's.
func Print(w io.Writer, results []Result) {
	tw := table.NewWriter()
	tw.SetOutputMirror(w)
	head, row := table.Row{"workload"}, table.Row{}
	var base time.Duration
	flush := func() {
		if len(row) > 0 {
			tw.AppendRow(row)
		}
	}
	for _, r := range results {
		if len(row) == 0 || row[0] != r.Workload {
			flush()
			row, base = table.Row{r.Workload}, r.Median
		}
		if len(head) <= len(row) {
			head = append(head, r.Target)
		}
		row = append(row, fmt.Sprintf("%.1f us (%.2f x)", float64(r.Median.Nanoseconds())/1000/float64(r.Ops), float64(r.Median)/float64(base)))
	}
	flush()
	tw.AppendHeader(head)
	tw.RenderMarkdown()
}
