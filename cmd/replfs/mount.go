package main

import (
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"github.com/replfs/replfs/internal/node"
	"github.com/replfs/replfs/internal/version"
)

func newMountCommand(g *globalFlags) *cobra.Command {
	var logFormat, logLevel string
	var successor bool
	var opts node.Options
	cmd := &cobra.Command{
		Use:   "mount",
		Short: "Run a data node: mount, replicate, follow or lead",
		Long: `Runs a data node in the foreground: mounts the directory over its store and
sends every change to the standbys, or follows a primary read-only.

SIGTERM ends it in order: no more changes, everything drained to the standbys in
sync, unmounted, exit 0. A mount that is in use stays there, dead, with exit code 1:
programs get errors, and nobody writes to the directory beneath it. The next start
mounts anew. It is a systemd service of Type=notify.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, view, err := g.load()
			if err != nil {
				return err
			}
			if successor {
				s, err := node.NewSuccessor(view)
				if err != nil {
					return err
				}
				return printJSON(cmd.OutOrStdout(), s)
			}
			log, err := newLogger(logFormat, logLevel)
			if err != nil {
				return usageError(err)
			}
			defer log.Sync() //nolint:errcheck // stderr may not support it
			log = log.With(zap.String("node", view.Name))
			log.Info("starting", zap.String("version", version.Get().Version), zap.String("cluster", view.Cluster),
				zap.String("mount", view.Mount), zap.String("store", view.Store))
			if err := node.Run(cmd.Context(), view, opts, log); err != nil {
				return err
			}
			log.Info("stopped")
			return nil
		},
	}
	cmd.Flags().StringVar(&logFormat, "log-format", "auto", "json, console, or auto: console on a terminal")
	cmd.Flags().StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().BoolVar(&opts.LazyUnmount, "lazy-unmount", false, "at the end, detach the mount even if it is in use")
	cmd.Flags().BoolVar(&opts.NonEmpty, "nonempty", false, "mount over a directory that is not empty, hiding what it has")
	cmd.Flags().BoolVar(&successor, node.SuccessorFlag, false, "print what would be served, and end: for `replfs reload`")
	_ = cmd.Flags().MarkHidden(node.SuccessorFlag) // it exists
	return cmd
}

func newLogger(format, level string) (*zap.Logger, error) {
	lvl, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, err
	}
	cfg := zap.NewProductionConfig()
	cfg.Sampling = nil
	cfg.DisableStacktrace, cfg.DisableCaller = true, true
	cfg.Level = zap.NewAtomicLevelAt(lvl)
	cfg.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	cfg.EncoderConfig.EncodeDuration = zapcore.StringDurationEncoder
	if format == "console" || format == "auto" && term.IsTerminal(2) {
		cfg.Encoding = "console"
		cfg.EncoderConfig.EncodeLevel = zapcore.CapitalLevelEncoder
	}
	return cfg.Build()
}
