package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/replfs/replfs/internal/config"
)

// globalFlags are the flags that every command has.
type globalFlags struct {
	configPath string
	node       string
}

// newRootCommand builds the whole command tree. A command lives in a file of its
// own, which has newXCommand, and is listed here.
func newRootCommand() *cobra.Command {
	g := &globalFlags{}
	root := &cobra.Command{
		Use:   "replfs",
		Short: "A directory on two machines, identical and in order",
		Long: `replfs mounts a directory and sends every change of it, in order, to a standby,
which can take over.

Exit codes: 0 done, 1 failed, 2 wrong usage or config, 3 refused as unsafe.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.PersistentFlags().StringVar(&g.configPath, "config", config.DefaultPath, "the config `file`")
	root.PersistentFlags().StringVar(&g.node, "node", "", "this node's `name` in the config (default: the host name)")
	root.AddCommand(
		newAdoptCommand(g),
		newBenchCommand(),
		newDemoteCommand(g),
		newInitCommand(g),
		newJournalCommand(g),
		newMountCommand(g),
		newPKICommand(g),
		newPromoteCommand(g),
		newReloadCommand(g),
		newStatusCommand(g),
		newVersionCommand(g),
		newWaitCommand(g),
	)
	return root
}

// load reads the config and finds this node in it. Its errors end with exitUsage;
// settings that this version does not act on are such errors.
func (g *globalFlags) load() (*config.Config, *config.NodeView, error) {
	cfg, err := g.loadConfig()
	if err != nil {
		return nil, nil, err
	}
	if errs := cfg.Unsupported(); len(errs) > 0 {
		return nil, nil, usageError(errors.Join(errs...))
	}
	view, err := g.findNode(cfg)
	if err != nil {
		return nil, nil, usageError(err)
	}
	return cfg, view, nil
}

// loadConfig is load for commands that concern no node in particular.
func (g *globalFlags) loadConfig() (*config.Config, error) {
	cfg, err := config.Load(g.configPath)
	return cfg, usageError(err)
}

func (g *globalFlags) findNode(cfg *config.Config) (*config.NodeView, error) {
	if g.node != "" {
		return cfg.Node(g.node)
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("finding this machine's host name, give the node's name with --node: %w", err)
	}
	// Nodes have short names; a host may know itself by its full one.
	host = strings.ToLower(host)
	short, _, _ := strings.Cut(host, ".")
	view, err := cfg.Node(short)
	if err != nil {
		return nil, fmt.Errorf("%w: this machine's host name is %s, give the node's name with --node", err, host)
	}
	return view, nil
}

// run executes replfs with args and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(args...)

	// What fails before a command's own code runs is cobra refusing the command line.
	started := false
	markStart(root, &started)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !started {
		err = usageError(fmt.Errorf("%w\nsee `%s --help`", err, cmd.CommandPath()))
	}
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintf(stderr, "replfs: %s\n", line) //nolint:errcheck // nowhere left to complain
		}
	}
	return exitCode(err)
}

// markStart makes every command of the tree say when its own code begins.
func markStart(cmd *cobra.Command, started *bool) {
	if cmd.HasParent() && cmd.HasSubCommands() && !cmd.Runnable() {
		// Cobra would show help, and succeed, for a subcommand that does not exist.
		cmd.Args = cobra.NoArgs
		cmd.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	}
	if inner := cmd.RunE; inner != nil {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			*started = true
			return inner(c, args)
		}
	}
	for _, sub := range cmd.Commands() {
		markStart(sub, started)
	}
}
