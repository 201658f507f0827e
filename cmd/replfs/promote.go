package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/replfs/replfs/internal/control"
)

func newPromoteCommand(g *globalFlags) *cobra.Command {
	var force bool
	cmd := roleCommand(g, &cobra.Command{
		Use:   "promote",
		Short: "Make this node the primary",
		Long: `Makes this node the primary. While the old primary is alive this is a planned
switchover: it turns read-only, everything is drained to this node, no write is
lost, and neither mount is unmounted. With it gone, this node opens read-write
at what it has; that the old primary is dead is your word.

What the node knows to be unsafe is refused with exit code 3. --force overrides
that: acknowledged writes may be lost.`,
	}, func(ctx context.Context, c *control.Client) (*control.RoleChange, error) {
		return c.Promote(ctx, force)
	})
	cmd.Flags().BoolVar(&force, "force", false, "promote even if this is known to be unsafe: acknowledged writes may be lost")
	return cmd
}

func newDemoteCommand(g *globalFlags) *cobra.Command {
	return roleCommand(g, &cobra.Command{
		Use:   "demote",
		Short: "Make this primary read-only",
		Long: `Makes this primary read-only, after draining what it has to the standbys in
sync. No node is primary then until one is promoted.`,
	}, func(ctx context.Context, c *control.Client) (*control.RoleChange, error) { return c.Demote(ctx) })
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
			return printJSON(cmd.OutOrStdout(), res)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is %s in epoch %d: %s (%.3f s)\n", view.Name, res.Role, res.Epoch, res.What, res.Seconds)
		return err
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
