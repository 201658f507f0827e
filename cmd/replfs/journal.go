package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/replfs/replfs/internal/node"
	"github.com/replfs/replfs/replicate/journal"
	"github.com/replfs/replfs/replicate/oplog"
	"github.com/replfs/replfs/replicate/record"
)

func newJournalCommand(g *globalFlags) *cobra.Command {
	cmd := &cobra.Command{Use: "journal", Short: "Look at the log of changes"}
	cmd.AddCommand(newJournalDumpCommand(g))
	return cmd
}

// dump prints records.
type dump struct {
	out, errOut io.Writer
	from, to    uint64
	json, data  bool
	damaged     int
}

func newJournalDumpCommand(g *globalFlags) *cobra.Command {
	d := &dump{}
	cmd := &cobra.Command{
		Use:   "dump [PATH]...",
		Short: "Print the records of the log",
		Long: `Print the records of journal segments, directories of them, and log rings; without a PATH
those of this node, whether it runs or not. A record that is in both is printed once for each.
What is damaged is said on standard error with file and offset, the dump goes on
at the next file, and the exit code is 1.`,
		RunE: func(cmd *cobra.Command, paths []string) error {
			if d.from > d.to {
				return usageError(fmt.Errorf("--from %d lies behind --to %d", d.from, d.to))
			}
			files, err := dumpFiles(g, paths)
			if err != nil {
				return err
			}
			out := bufio.NewWriter(cmd.OutOrStdout())
			d.out, d.errOut = out, cmd.ErrOrStderr()
			if err := errors.Join(d.files(files), out.Flush()); err != nil {
				return err
			}
			if d.damaged > 0 {
				return fmt.Errorf("%d of %d files are damaged or cannot be read", d.damaged, len(files))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&d.json, "json", false, "print one JSON object a line")
	cmd.Flags().BoolVar(&d.data, "data", false, "print the data of writes too")
	cmd.Flags().Uint64Var(&d.from, "from", 0, "first LSN to print")
	cmd.Flags().Uint64Var(&d.to, "to", 1<<64-1, "last LSN to print")
	return cmd
}

// dumpFiles finds the files to be dumped; those that are gone meanwhile are
// left out later.
func dumpFiles(g *globalFlags, paths []string) ([]string, error) {
	if len(paths) == 0 {
		_, view, err := g.load()
		if err != nil {
			return nil, err
		}
		files, err := journal.Segments(node.JournalDir(view))
		return append(files, node.RingPath(view)), err
	}
	var files []string
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if !st.IsDir() {
			files = append(files, p)
			continue
		}
		segs, err := journal.Segments(p)
		if err != nil {
			return nil, err
		}
		files = append(files, segs...)
	}
	return files, nil
}

// files dumps one file after the other. Only what cannot be written out ends it.
func (d *dump) files(files []string) error {
	for _, path := range files {
		err := d.file(path)
		var w *writeError
		switch {
		case err == nil:
		case errors.As(err, &w):
			return w.err
		case errors.Is(err, fs.ErrNotExist) && len(files) > 1:
			// A daemon gives segments back all the time; a ring is made at its start.
		default:
			d.damaged++
			var damage *journal.DamageError
			if !errors.As(err, &damage) && !errors.As(err, new(*fs.PathError)) {
				err = fmt.Errorf("%s: %w", path, err)
			}
			if _, err := fmt.Fprintf(d.errOut, "replfs: %v\n", err); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeError is a failure of the output.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }

func (d *dump) file(path string) error {
	f, err := os.Open(path) //nolint:gosec // the user names the file
	if err != nil {
		return err
	}
	begin := make([]byte, 8)
	_, err = io.ReadFull(f, begin)
	if cerr := f.Close(); cerr != nil {
		return cerr
	}
	show := func(off int64, encoded []byte) error { return d.record(path, off, encoded) }
	switch {
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case journal.IsSegment(begin):
		return journal.Scan(path, show)
	case oplog.IsLog(begin):
		return oplog.Scan(path, show)
	}
	return errors.New("neither a journal segment nor a log ring")
}

func (d *dump) record(path string, off int64, encoded []byte) error {
	h, err := record.PeekHeader(encoded)
	if err != nil || h.LSN < d.from || h.LSN > d.to {
		return err
	}
	var r record.Record
	if _, err := record.Decode(encoded, &r); err != nil {
		return fmt.Errorf("byte %d: %w", off, err)
	}
	if d.json {
		err = writeRecordJSON(d.out, &r, path, off, d.data)
	} else {
		err = d.text(&r)
	}
	if err != nil {
		return &writeError{err}
	}
	return nil
}

func (d *dump) text(r *record.Record) error {
	line := time.Unix(0, r.Time).UTC().Format("2006-01-02T15:04:05.000000000Z") + " " + r.String()
	for _, x := range r.Xattrs {
		line += fmt.Sprintf(" %s=%q", x.Name, x.Value)
	}
	for _, n := range r.Names {
		line += fmt.Sprintf(" name %q", n)
	}
	if d.data && r.Has(record.FieldData) {
		line += fmt.Sprintf(" %q", r.Data)
	}
	_, err := fmt.Fprintln(d.out, line)
	return err
}
