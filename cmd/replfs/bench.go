package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/replfs/replfs/bench"
)

func newBenchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure replfs on this machine",
	}
	cmd.AddCommand(newBenchFSCommand(), newBenchReplicationCommand(), newBenchLoopbackCommand(), newBenchPipelineCommand())
	return cmd
}

// printer is a report of a benchmark.
type printer interface{ Print(w io.Writer) error }

// runBench runs a benchmark with a line of progress, and prints what it reports.
func runBench(cmd *cobra.Command, asJSON bool, run func(ctx context.Context, binary string, step func(done, total int, what string)) (printer, error)) error {
	if os.Geteuid() != 0 {
		return usageError(fmt.Errorf("bench %s mounts file systems: run it as root", cmd.Name()))
	}
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	show := newProgress(cmd.ErrOrStderr())
	report, err := run(cmd.Context(), binary, show.step)
	show.stop()
	var usage *bench.UsageError
	if errors.As(err, &usage) {
		return usageError(err)
	}
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), report)
	}
	return report.Print(cmd.OutOrStdout())
}

func newBenchFSCommand() *cobra.Command {
	opt := bench.Options{}
	var asJSON, list bool
	cmd := &cobra.Command{
		Use:   "fs",
		Short: "Compare the mount with the bare store and with other FUSE file systems",
		Long: `Measures what applications do (untar, delete, find, database writes, git, pgbench)
on the bare file system, on other FUSE file systems and on replfs, round by
round in turns, and prints medians, ratios and FUSE requests.

It starts daemons of its own in a directory of its own, touches no other
replfs, and removes everything in the end. It needs root, some GiB of space, and
with the defaults about twenty minutes. A tmpfs shows what the software costs; give
a directory on a disk with --dir to see what that means in practice.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if list {
				return listBench(cmd.OutOrStdout())
			}
			return runBench(cmd, asJSON, func(ctx context.Context, binary string, step func(done, total int, what string)) (printer, error) {
				opt.Binary, opt.Progress = binary, step
				return bench.Run(ctx, opt)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&opt.Dir, "dir", "/dev/shm", "the `directory` to work in, on the file system to measure")
	f.IntVar(&opt.Rounds, "rounds", 5, "how often to measure each workload on each target")
	f.Float64Var(&opt.Scale, "scale", 1, "how large the workloads are")
	f.StringSliceVar(&opt.Workloads, "workloads", nil, "only these workloads, `names` or globs (default all)")
	f.StringSliceVar(&opt.Targets, "targets", nil, "only these targets, `names` or globs (default all)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.BoolVar(&list, "list", false, "show the workloads and targets, measure nothing")
	return cmd
}

// newBenchLoopbackCommand is what bench fs starts as a process of its own.
func newBenchLoopbackCommand() *cobra.Command {
	var passthrough bool
	cmd := &cobra.Command{
		Use:    "loopback STORE MOUNT",
		Short:  "Serve go-fuse's loopback file system, to compare with",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return bench.ServeLoopback(cmd.Context(), args[0], args[1], passthrough)
		},
	}
	cmd.Flags().BoolVar(&passthrough, "passthrough", true, "leave file content to the kernel")
	return cmd
}

func listBench(w io.Writer) error {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"target", ""})
	for _, x := range bench.Targets() {
		t.AppendRow(table.Row{x.Name, x.About})
	}
	l := table.NewWriter()
	l.SetStyle(table.StyleLight)
	l.AppendHeader(table.Row{"workload", ""})
	for _, x := range bench.Workloads() {
		l.AppendRow(table.Row{x.Name, x.About})
	}
	_, err := fmt.Fprintf(w, "%s\n%s\n", t.Render(), l.Render())
	return err
}

// benchProgress shows how far a run is: a bar on a terminal, else a line a
// workload.
type benchProgress struct {
	w        io.Writer
	bar      progress.Writer
	tracker  *progress.Tracker
	rendered chan struct{}
	last     time.Time
}

func newProgress(w io.Writer) *benchProgress {
	p := &benchProgress{w: w}
	if f, ok := w.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return p
	}
	p.bar = progress.NewWriter()
	p.bar.SetOutputWriter(w)
	p.bar.SetStyle(progress.StyleBlocks)
	p.bar.SetMessageLength(44)
	p.bar.SetUpdateFrequency(200 * time.Millisecond)
	p.bar.Style().Visibility.ETA = true
	p.tracker = &progress.Tracker{AutoStopDisabled: true}
	p.bar.AppendTracker(p.tracker)
	p.rendered = make(chan struct{})
	go func() {
		p.bar.Render()
		close(p.rendered)
	}()
	return p
}

func (p *benchProgress) step(done, total int, what string) {
	if p.bar == nil {
		if time.Since(p.last) > 10*time.Second {
			p.last = time.Now()
			fmt.Fprintf(p.w, "%d of %d: %s\n", done, total, what) //nolint:errcheck // progress only
		}
		return
	}
	p.tracker.UpdateTotal(int64(total))
	p.tracker.UpdateMessage(what)
	p.tracker.SetValue(int64(done))
}

func (p *benchProgress) stop() {
	if p.bar == nil {
		return
	}
	p.tracker.MarkAsDone()
	p.bar.Stop()
	<-p.rendered
}
