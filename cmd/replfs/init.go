package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/replfs/replfs/internal/config"
)

func newInitCommand(g *globalFlags) *cobra.Command {
	var (
		opts  config.ExampleOptions
		peers []string
		out   string
		force bool
	)
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write a commented config",
		Long: `Write a commented config, to be edited and copied to every node. The first --peer
is the initial primary: the node that has the data.`,
		Example: `  replfs init --cluster gitlab --mount /var/opt/gitlab --peer gl-1=10.1.1.1:7410 --peer gl-2=10.1.1.2:7410`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, p := range peers {
				name, address, ok := strings.Cut(p, "=")
				if !ok {
					return usageError(fmt.Errorf("--peer %q is not NAME=ADDRESS, such as gl-1=10.1.1.1:7410", p))
				}
				opts.Nodes = append(opts.Nodes, config.ExampleNode{Name: name, Address: address})
			}
			data, err := config.Example(opts)
			if err != nil {
				return usageError(err)
			}
			if out == "-" {
				_, err := cmd.OutOrStdout().Write(data)
				return err
			}
			if out == "" {
				out = g.configPath
			}
			if err := writeConfig(out, data, force); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), `wrote %[1]s
Next:
  1. edit it
  2. replfs pki all --config %[1]s --dir pki
  3. copy it, and the certificates as that command says, to every node
`, out)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.Cluster, "cluster", "gitlab", "the cluster's `name`")
	f.StringVar(&opts.Mount, "mount", "/var/opt/gitlab", "the `directory` that applications use")
	f.StringSliceVar(&peers, "peer", nil, "a node, as `name=address:port`; repeat it for each (default: two placeholders)")
	f.StringVarP(&out, "output", "o", "", "the `file` to write, - for standard output (default: that of --config)")
	f.BoolVar(&force, "force", false, "overwrite the file if it exists")
	return cmd
}

func writeConfig(path string, data []byte, force bool) error {
	if _, err := os.Lstat(path); err == nil && !force {
		return refusedError(fmt.Errorf("%s already exists: write elsewhere with -o, or replace it with --force", path))
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("looking for the config: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // the config is no secret
		return fmt.Errorf("making the config's directory: %w", err)
	}
	if err := renameio.WriteFile(path, data, 0o644); err != nil {
		return fmt.Errorf("writing the config: %w", err)
	}
	return nil
}
