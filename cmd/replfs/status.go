package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/replfs/replfs/internal/control"
)

func newStatusCommand(g *globalFlags) *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show roles, positions, lag and what is wrong",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, view, err := g.load()
			if err != nil {
				return err
			}
			client := control.NewClient(view.Control)
			for {
				st, err := client.Status(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					err = printJSON(cmd.OutOrStdout(), st)
				} else {
					err = printStatus(cmd.OutOrStdout(), st)
				}
				if err != nil || !watch {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(time.Second):
				}
			}
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&watch, "watch", false, "print again every second")
	return cmd
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func printStatus(w io.Writer, st *control.Status) error {
	access := "read-only"
	if st.Writable {
		access = "read-write"
	}
	inSync := ""
	if st.Role == "standby" {
		inSync = ", " + syncWord(st.InSync)
	}
	if _, err := fmt.Fprintf(w, "%s  %s%s  epoch %d  cluster %s  durability %s  %s %s\n",
		st.Node, st.Role, inSync, st.Epoch, st.Cluster, st.Durability, st.Mount, access); err != nil {
		return err
	}
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.SetStyle(table.StyleLight)
	t.Style().Options.DrawBorder = false
	t.Style().Options.SeparateColumns = false
	t.AppendHeader(table.Row{"node", "role", "state", "in sync", "appended", "sent", "received", "applied", "durable", "lag"})
	l := st.LSN
	t.AppendRow(table.Row{st.Node + " *", st.Role, "", yesNo(st.InSync), l.Appended, l.Sent, l.Received, l.Applied, l.Durable, lagText(st.Lag)})
	for _, p := range st.Peers {
		row := table.Row{p.Name, p.Role, p.State, yesNo(p.InSync), p.LSN.Appended, p.LSN.Sent, p.LSN.Received, p.LSN.Applied, p.LSN.Durable, lagText(p.Lag)}
		if st.Role != "primary" {
			row = table.Row{p.Name, p.Role, p.State, "", "", "", "", "", "", ""}
		}
		t.AppendRow(row)
	}
	t.Render()
	for _, s := range copies(st) {
		if _, err := fmt.Fprintf(w, "copying to %s: %d files, %s in %s\n", s.Node, s.Files, humanize.IBytes(s.Bytes),
			time.Since(s.Started).Round(time.Second)); err != nil {
			return err
		}
	}
	for _, p := range st.Peers {
		if p.CatchUp != nil {
			if _, err := fmt.Fprintf(w, "%s is catching up: %s\n", p.Name, catchUpText(p.CatchUp)); err != nil {
				return err
			}
		}
	}
	if j := st.Journal; j != nil && j.Active {
		if _, err := fmt.Fprintf(w, "journal: records %d to %d, %s of %s\n", j.First, j.Last, humanize.IBytes(uint64(j.Bytes)), humanize.IBytes(uint64(j.MaxBytes))); err != nil {
			return err
		}
	}
	if err := printResumed(w, st); err != nil {
		return err
	}
	for _, p := range st.Problems {
		if _, err := fmt.Fprintf(w, "! %s\n", p.What); err != nil {
			return err
		}
		if p.Do != "" {
			if _, err := fmt.Fprintf(w, "  -> %s\n", p.Do); err != nil {
				return err
			}
		}
	}
	return nil
}

func catchUpText(c *control.CatchUp) string {
	left := "not coming closer"
	if c.SecondsLeft != nil {
		left = "about " + (time.Duration(*c.SecondsLeft) * time.Second).String() + " left"
	}
	rate := max(0, c.Rate)
	return fmt.Sprintf("%s to go, %s/s closer, %s", humanize.IBytes(c.Bytes), humanize.IBytes(uint64(rate)), left)
}

// copies are the complete copies under way.
func copies(st *control.Status) []*control.Sync {
	var out []*control.Sync
	for _, p := range st.Peers {
		if p.Sync != nil {
			out = append(out, p.Sync)
		}
	}
	if len(out) == 0 && st.Sync != nil {
		out = append(out, st.Sync)
	}
	return out
}

// printResumed says how the node and its standbys went on when they started.
func printResumed(w io.Writer, st *control.Status) error {
	lines := []string{}
	if st.Resumed != "" {
		lines = append(lines, fmt.Sprintf("%s resumed: %s", st.Node, st.Resumed))
	}
	for _, p := range st.Peers {
		if p.Resumed != "" {
			lines = append(lines, fmt.Sprintf("%s resumed: %s", p.Name, p.Resumed))
		}
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

func syncWord(in bool) string {
	if in {
		return "in sync"
	}
	return "NOT in sync"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func lagText(l control.Lag) string {
	if l.Records == 0 {
		return "0"
	}
	return fmt.Sprintf("%d records, %s, %.2f s", l.Records, humanize.IBytes(l.Bytes), l.Seconds)
}
