package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/internal/pki"
)

// installedFiles is where the config that `replfs init` writes looks for them.
var installedFiles = config.TLS{
	CA:   "/etc/replfs/pki/ca.crt",
	Cert: "/etc/replfs/pki/node.crt",
	Key:  "/etc/replfs/pki/node.key",
}

// pkiFlags are the flags of the commands below pki.
type pkiFlags struct {
	*globalFlags
	cluster string
	dir     string
	force   bool
}

func newPKICommand(g *globalFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pki",
		Short: "Make the CA and the certificates of a cluster's nodes",
		Long: `Make the CA and the certificates of a cluster's nodes. Do this on one machine; its
ca.key can make certificates for any node and should stay there, or offline.`,
	}
	cmd.AddCommand(newPKICACommand(g), newPKINodeCommand(g), newPKIAllCommand(g))
	return cmd
}

func (p *pkiFlags) add(cmd *cobra.Command, withCluster bool, force string) {
	cmd.Flags().StringVar(&p.dir, "dir", "pki", "the `directory` of the CA and the certificates")
	cmd.Flags().BoolVar(&p.force, "force", false, force)
	if withCluster {
		cmd.Flags().StringVar(&p.cluster, "cluster", "", "the cluster's `name` (default: that of the config)")
	}
}

// clusterName returns the cluster's name, and the config if that had to be read.
func (p *pkiFlags) clusterName() (string, *config.Config, error) {
	if p.cluster != "" {
		return p.cluster, nil, nil
	}
	cfg, err := p.loadConfig()
	if err != nil {
		return "", nil, usageError(fmt.Errorf("--cluster is not given, and the config cannot be used instead:\n%w", err))
	}
	return cfg.Cluster, cfg, nil
}

func newPKICACommand(g *globalFlags) *cobra.Command {
	p := &pkiFlags{globalFlags: g}
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Make the cluster's CA",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cluster, _, err := p.clusterName()
			if err != nil {
				return err
			}
			if err := pki.CreateCA(p.dir, cluster, p.force); err != nil {
				return refusedIfExists(err)
			}
			certFile, keyFile := pki.CAFiles(p.dir)
			r := &reporter{w: cmd.OutOrStdout()}
			r.printf("made the CA of cluster %s: %s, %s\n", cluster, certFile, keyFile)
			r.printf("Next: replfs pki node NAME... --cluster %s --dir %s\n", cluster, p.dir)
			if p.force {
				r.printf("Certificates that a former CA in %s signed are void: add --force to make them anew.\n", p.dir)
			}
			return r.err
		},
	}
	p.add(cmd, true, "replace the CA; all nodes then need new certificates")
	return cmd
}

func newPKINodeCommand(g *globalFlags) *cobra.Command {
	p := &pkiFlags{globalFlags: g}
	cmd := &cobra.Command{
		Use:   "node NAME...",
		Short: "Make, or with --force renew, nodes' certificates and keys",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			cluster, cfg, err := p.clusterName()
			if err != nil {
				return err
			}
			if cfg != nil {
				for _, name := range names {
					if _, err := cfg.Node(name); err != nil {
						return usageError(err)
					}
				}
			}
			r := &reporter{w: cmd.OutOrStdout()}
			for _, name := range names {
				if err := pki.CreateNode(p.dir, cluster, name, p.force); err != nil {
					return refusedIfExists(err)
				}
				if err := p.report(r, "made", cluster, name); err != nil {
					return err
				}
			}
			p.reportCopies(r, cfg, names)
			return r.err
		},
	}
	p.add(cmd, true, "replace certificates and keys that exist")
	return cmd
}

func newPKIAllCommand(g *globalFlags) *cobra.Command {
	p := &pkiFlags{globalFlags: g}
	cmd := &cobra.Command{
		Use:   "all",
		Short: "Make what the config's cluster lacks: the CA, and each node's certificate and key",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := p.loadConfig()
			if err != nil {
				return err
			}
			r := &reporter{w: cmd.OutOrStdout()}
			verb, err := made(pki.CreateCA(p.dir, cfg.Cluster, false))
			if err != nil {
				return err
			}
			certFile, keyFile := pki.CAFiles(p.dir)
			r.printf("%s the CA of cluster %s: %s, %s\n", verb, cfg.Cluster, certFile, keyFile)
			var names []string
			for _, n := range cfg.Nodes {
				names = append(names, n.Name)
				verb, err := made(pki.CreateNode(p.dir, cfg.Cluster, n.Name, p.force))
				if err != nil {
					return err
				}
				if err := p.report(r, verb, cfg.Cluster, n.Name); err != nil {
					return err
				}
			}
			p.reportCopies(r, cfg, names)
			return r.err
		},
	}
	p.add(cmd, false, "renew the nodes' certificates and keys that exist; the CA stays")
	return cmd
}

// made tells apart files that were made and files that were there already.
func made(err error) (verb string, _ error) {
	if errors.Is(err, pki.ErrExists) {
		return "kept", nil
	}
	return "made", err
}

func refusedIfExists(err error) error {
	if errors.Is(err, pki.ErrExists) {
		return refusedError(err)
	}
	return err
}

// report checks a node's files and says where they are.
func (p *pkiFlags) report(r *reporter, verb, cluster, node string) error {
	files := pki.NodeFiles(p.dir, node)
	notAfter, err := pki.Check(files, cluster, node)
	if err != nil {
		return fmt.Errorf("checking the files of node %s: %w", node, err)
	}
	r.printf("%s the certificate of node %s, valid until %s: %s, %s\n", verb, node, notAfter.UTC().Format("2006-01-02"), files.Cert, files.Key)
	return nil
}

// reportCopies says which file belongs where. Without a config it goes by the one
// that `replfs init` writes.
func (p *pkiFlags) reportCopies(r *reporter, cfg *config.Config, names []string) {
	r.printf("\nCopy to each node, owned by root, the key with mode 0600:\n")
	for _, name := range names {
		to := installedFiles
		if cfg != nil {
			if view, err := cfg.Node(name); err == nil && view.TLS != nil {
				to = *view.TLS
			}
		}
		from := pki.NodeFiles(p.dir, name)
		r.printf("  %s:\n", name)
		width := max(len(from.CA), len(from.Cert), len(from.Key))
		for _, f := range [][2]string{{from.CA, to.CA}, {from.Cert, to.Cert}, {from.Key, to.Key}} {
			r.printf("    %s%s  to  %s\n", f[0], strings.Repeat(" ", width-len(f[0])), f[1])
		}
	}
	_, caKey := pki.CAFiles(p.dir)
	r.printf("Keep %s to yourself: no node needs it.\n", caKey)
}

// reporter prints and remembers the first failure.
type reporter struct {
	w   io.Writer
	err error
}

func (r *reporter) printf(format string, args ...any) {
	if r.err == nil {
		_, r.err = fmt.Fprintf(r.w, format, args...)
	}
}
