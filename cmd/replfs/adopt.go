package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/replfs/replfs/internal/adopt"
	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/internal/node"
)

func newAdoptCommand(g *globalFlags) *cobra.Command {
	var undo, dryRun bool
	cmd := &cobra.Command{
		Use:   "adopt",
		Short: "Turn an existing data directory into store and mount point, or back",
		Long: `Makes the directory at the config's mount the store, and an empty directory the
mount point in its place. No data is moved or copied: it is one rename, which
takes no time whatever the size, and survives a crash half-way.

It is refused (exit 3) while anything uses the directory, and when a rename
cannot do it: store and mount must be on one file system.

--undo brings the data back to where it was; replfs must be stopped, and so must
whatever uses the mount. Since the data may be changed after that without replfs,
a node adopted again does not believe what it knew: the standbys of a primary get a
complete copy, a standby gets one itself.`,
		Example: `  gitlab-ctl stop && systemctl stop gitlab-runsvdir
  replfs adopt
  systemctl start replfs`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, view, err := g.load()
			if err != nil {
				return err
			}
			done, err := runAdopt(view, undo, dryRun)
			var refused *adopt.RefusedError
			if errors.As(err, &refused) {
				return refusedError(err)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), done)
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&undo, "undo", false, "bring the data back to where it was")
	f.BoolVar(&dryRun, "dry-run", false, "only say what would be done, or why it is refused")
	return cmd
}

// runAdopt does it and says what was done.
func runAdopt(view *config.NodeView, undo, dryRun bool) (string, error) {
	d := adopt.Dirs{Mount: view.Mount, Store: view.Store}
	switch {
	case dryRun && undo:
		return fmt.Sprintf("would rename %s to %s", d.Store, d.Mount), adopt.CheckUndo(d)
	case dryRun:
		return fmt.Sprintf("would rename %s to %s, and make an empty %[1]s", d.Mount, d.Store), adopt.Check(d)
	case undo:
		return fmt.Sprintf("%s holds the data again, %s is gone", d.Mount, d.Store), undoAdopt(view, d)
	}
	if err := adopt.Adopt(d); err != nil {
		return "", err
	}
	if err := node.Distrust(view, "the store was adopted anew", zap.NewNop()); err != nil {
		return "", fmt.Errorf("%s is adopted, but what the node knew of an earlier store cannot be voided: %w; "+
			"run `replfs adopt --undo`, then move %s away", d.Mount, err, view.State)
	}
	return fmt.Sprintf("%s is the store now, %s the mount point\nNext: start replfs (systemctl start replfs)", d.Store, d.Mount), nil
}

// undoAdopt distrusts first: a crash between the two costs a copy, the other
// way round it would cost the standby's likeness.
func undoAdopt(view *config.NodeView, d adopt.Dirs) error {
	if err := adopt.CheckUndo(d); err != nil {
		return err
	}
	if err := node.Distrust(view, "the store was used without replfs (replfs adopt --undo)", zap.NewNop()); err != nil {
		return fmt.Errorf("before the data is brought back: %w", err)
	}
	return adopt.Undo(d)
}
