package main

import (
	"context"
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/replfs/replfs/bench"
	"github.com/replfs/replfs/bench/pipeline"
)

func newBenchReplicationCommand() *cobra.Command {
	opt := bench.ReplicationOptions{}
	var asJSON, list bool
	var behind string
	cmd := &cobra.Command{
		Use:   "replication",
		Short: "Measure replication between two nodes on this machine",
		Long: `Measures how far a standby is behind, how fast records and large files come to
it, what fsync costs, and how it catches up, and prints medians, ratios to what
they are compared with, measured in the same round, and what was wanted.

It starts daemons of its own in a directory of its own, touches no other
replfs, and removes everything in the end. It needs root. A tmpfs shows what the
software costs; fsync means something on a disk only: give a directory there with
--dir.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if list {
				t := table.NewWriter()
				t.SetStyle(table.StyleLight)
				t.AppendHeader(table.Row{"workload", ""})
				for _, w := range bench.ReplicationWorkloads() {
					t.AppendRow(table.Row{w[0], w[1]})
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), t.Render())
				return err
			}
			bytes, err := humanize.ParseBytes(behind)
			if err != nil || bytes == 0 || bytes > 1<<40 {
				return usageError(fmt.Errorf("--behind %q is not a size such as 256MiB", behind))
			}
			opt.Behind = int64(bytes)
			return runBench(cmd, asJSON, func(ctx context.Context, binary string, step func(done, total int, what string)) (printer, error) {
				opt.Binary, opt.Progress = binary, step
				return bench.RunReplication(ctx, opt)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&opt.Dir, "dir", "/dev/shm", "the `directory` to work in, on the file system to measure")
	f.StringVar(&opt.PeerDir, "peer-dir", "", "the `directory` for the standby, on a file system of its own (default that of --dir)")
	f.IntVar(&opt.Rounds, "rounds", 3, "how often to measure each workload")
	f.Float64Var(&opt.Scale, "scale", 1, "how large the workloads are")
	f.StringSliceVar(&opt.Workloads, "workloads", nil, "only these workloads, `names` or globs (default all)")
	f.StringVar(&behind, "behind", "256MiB", "how `much` the standby is behind before it catches up")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.BoolVar(&list, "list", false, "show the workloads, measure nothing")
	return cmd
}

// newBenchPipelineCommand is what bench replication starts as a process of its
// own.
func newBenchPipelineCommand() *cobra.Command {
	var opt pipeline.Options
	cmd := &cobra.Command{
		Use:    "pipeline",
		Short:  "Send records from a log to a store within this process, and print how long it took",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			res, err := pipeline.Run(cmd.Context(), opt)
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), res)
		},
	}
	f := cmd.Flags()
	f.StringVar(&opt.Dir, "dir", "/dev/shm", "the `directory` to work in")
	f.IntVar(&opt.Records, "records", 100_000, "how many records")
	f.IntVar(&opt.Size, "size", 1024, "how many bytes each writes")
	f.IntVar(&opt.Files, "files", 100, "to how many files")
	f.BoolVar(&opt.TCP, "tcp", false, "over the loopback interface")
	f.BoolVar(&opt.Compress, "compress", false, "with zstd")
	return cmd
}
