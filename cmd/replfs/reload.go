package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/replfs/replfs/internal/control"
)

func newReloadCommand(g *globalFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Replace the running daemon by the installed version, under the applications",
		Long: `Has the program and the config that are installed now take the place of the
running daemon. The mount stays, with every open file, lock and working
directory: applications wait for a moment and see no error. The process keeps its
pid, the node its role.

What would not work is refused before anything stops: a program that does not
start with this config, or one that would serve another mount. It needs Linux 6.9.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, view, err := g.load()
			if err != nil {
				return err
			}
			took, st, err := control.NewClient(view.Control).Reload(cmd.Context())
			var unsafe *control.UnsafeError
			if errors.As(err, &unsafe) {
				return refusedError(err)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s runs version %s now, as %s in epoch %d (%.3f s)\n",
				view.Name, st.Version, st.Role, st.Epoch, took.Seconds())
			return err
		},
	}
}
