package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/replfs/replfs/internal/control"
)

func newPromoteCommand(g *globalFlags) *cobra.Command {
	var force, fromNotify bool
	cmd := roleCommand(g, &cobra.Command{
		Use:   "promote",
		Short: "Make this node the primary",
		Long: `Makes this node the primary. While the old primary is alive this is a planned
switchover: it gives up the VIP, runs its on_demote hooks, turns read-only, everything
is drained to this node, no write is lost, and neither mount is unmounted. With it gone, this node opens read-write
at what it has; that the old primary is dead is your word. Then the on_promote hooks
run, the health checks are waited for, and the VIP is added. If that fails, this node
is primary nevertheless, without the VIP, and the exit code is 1: mend it and run
the command again, it does what is missing.

What the node knows to be unsafe is refused with exit code 3. --force overrides
that: acknowledged writes may be lost.`,
	}, func(ctx context.Context, c *control.Client) (*control.RoleChange, error) {
		if fromNotify {
			return insist(ctx, func() (*control.RoleChange, error) { return c.Promote(ctx, false) })
		}
		return c.Promote(ctx, force)
	})
	cmd.Flags().BoolVar(&fromNotify, "from-notify", false, "for scripts of Keepalived: try for a while if this node or another one is starting or changes its role")
	cmd.Flags().BoolVar(&force, "force", false, "promote even if this is known to be unsafe: acknowledged writes may be lost")
	cmd.MarkFlagsMutuallyExclusive("force", "from-notify")
	return cmd
}

func newDemoteCommand(g *globalFlags) *cobra.Command {
	var fromNotify bool
	cmd := roleCommand(g, &cobra.Command{
		Use:   "demote",
		Short: "Make this primary read-only",
		Long: `Takes the VIP away, runs the on_demote hooks, and makes this primary read-only, after
draining what it has to the standbys in sync. No node is primary then until one is promoted.`,
	}, func(ctx context.Context, c *control.Client) (*control.RoleChange, error) {
		if fromNotify {
			return insist(ctx, func() (*control.RoleChange, error) { return c.Demote(ctx, true) })
		}
		return c.Demote(ctx, false)
	})
	cmd.Flags().BoolVar(&fromNotify, "from-notify", false, "for scripts of Keepalived: refuse if no standby in sync could take over")
	return cmd
}

// insistLimit is how long a command of a script is tried: another node may be
// demoting itself at the same moment, and at boot the daemon may not be there yet.
const insistLimit = 30 * time.Second

// insist tries again what was refused or failed, for a while, and returns the last
// outcome. Both commands do nothing where there is nothing to do.
func insist(ctx context.Context, do func() (*control.RoleChange, error)) (*control.RoleChange, error) {
	for begun := time.Now(); ; {
		res, err := do()
		if err == nil || time.Since(begun) > insistLimit || !passing(err) {
			return res, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// passing tells errors that may go away by themselves, in the words of the daemon.
func passing(err error) bool {
	for _, text := range []string{"no replfs runs here", "changing its role", "is stopping", "EOF", "connection reset"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// roleCommand runs an operation that changes the node's role.
func roleCommand(g *globalFlags, cmd *cobra.Command, do func(context.Context, *control.Client) (*control.RoleChange, error)) *cobra.Command {
	var asJSON bool
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		_, view, err := g.load()
		if err != nil {
			return err
		}
		res, err := do(cmd.Context(), control.NewClient(view.Control))
		var unsafe *control.UnsafeError
		if errors.As(err, &unsafe) {
			return refusedError(err)
		}
		if err != nil {
			return err
		}
		if asJSON {
			return errors.Join(printJSON(cmd.OutOrStdout(), res), problemOf(view.Name, res))
		}
		printSteps(cmd.OutOrStdout(), res.Steps)
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is %s in epoch %d: %s (%.3f s)\n", view.Name, res.Role, res.Epoch, res.What, res.Seconds); err != nil {
			return err
		}
		return problemOf(view.Name, res)
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// problemOf is an error if the role has changed but not all is well.
func problemOf(node string, res *control.RoleChange) error {
	if res.Problem == "" {
		return nil
	}
	return fmt.Errorf("%s is %s, but not all is well: %s", node, res.Role, res.Problem)
}

// printSteps shows what was done, a line for each step.
func printSteps(w io.Writer, steps []control.Step) {
	for _, s := range steps {
		fmt.Fprintf(w, "%9.3f s  %-7s %s", s.Seconds, s.Result, s.Name) //nolint:errcheck // the terminal is gone
		if s.Detail != "" {
			fmt.Fprintf(w, ": %s", s.Detail) //nolint:errcheck // the terminal is gone
		}
		fmt.Fprintln(w) //nolint:errcheck // the terminal is gone
	}
}
