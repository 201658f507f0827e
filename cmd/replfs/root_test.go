package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/internal/pki"
	"github.com/replfs/replfs/internal/version"
)

// replfs runs the program in this process.
func replfs(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = run(context.Background(), args, &out, &errOut)
	return code, out.String(), errOut.String()
}

// must runs what has to succeed and returns what it printed.
func must(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := replfs(t, args...)
	if code != 0 || stderr != "" {
		t.Fatalf("replfs %q: exit code %d, stderr:\n%s", args, code, stderr)
	}
	return stdout
}

// fails runs what has to fail with code and say each of want.
func fails(t *testing.T, code int, want []string, args ...string) {
	t.Helper()
	got, _, stderr := replfs(t, args...)
	if got != code {
		t.Errorf("replfs %q: exit code %d, want %d", args, got, code)
	}
	for _, w := range want {
		if !strings.Contains(stderr, w) {
			t.Errorf("replfs %q said:\n%swant: %s", args, stderr, w)
		}
	}
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "replfs: ") {
			t.Errorf("replfs %q: line %q does not say who speaks", args, line)
		}
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil { //nolint:gosec // the test's own
		t.Fatal(err)
	}
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		{"bogus"}, {"--bogus"}, {"version", "extra"}, {"version", "--bogus"}, {"pki", "bogus"}, {"pki", "--bogus"},
		{"pki", "node"}, {"pki", "ca", "extra"}, {"pki", "all", "extra"}, {"init", "extra"}, {"completion", "bogus"},
		{"completion", "bash", "extra"}, {"--config"}, {"bench", "bogus"}, {"bench", "fs", "extra"}, {"bench", "loopback", "one"},
	} {
		fails(t, exitUsage, []string{"see `replfs", "--help`"}, args...)
	}
	fails(t, exitUsage, []string{`unknown command "bogus" for "replfs pki"`, "see `replfs pki --help`"}, "pki", "bogus")
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"help"}, {"pki"}, {"pki", "--help"}, {"help", "pki", "node"}, {"completion"}, {"bench"}, {"bench", "fs", "--help"}} {
		if out := must(t, args...); !strings.Contains(out, "Usage:\n  replfs") {
			t.Errorf("replfs %q printed %q", args, out)
		}
	}
}

func TestCompletion(t *testing.T) {
	for shell, want := range map[string]string{"bash": "__start_replfs", "zsh": "#compdef replfs", "fish": "complete -c replfs"} {
		if out := must(t, "completion", shell); !strings.Contains(out, want) {
			t.Errorf("completion %s lacks %q", shell, want)
		}
	}
}

func TestVersion(t *testing.T) {
	if out := must(t, "version"); out != version.Get().String()+"\n" {
		t.Errorf("got %q", out)
	}
	var info version.Info
	if err := json.Unmarshal([]byte(must(t, "version", "--json")), &info); err != nil || info != version.Get() {
		t.Errorf("got %+v, %v", info, err)
	}
}

func TestExitCode(t *testing.T) {
	plain := errors.New("x")
	for _, p := range []struct {
		err  error
		want int
	}{
		{nil, 0}, {plain, 1}, {usageError(plain), 2}, {refusedError(plain), 3},
		{fmt.Errorf("more: %w", refusedError(plain)), 3}, {usageError(nil), 0}, {refusedError(nil), 0},
	} {
		if got := exitCode(p.err); got != p.want {
			t.Errorf("%v: got %d, want %d", p.err, got, p.want)
		}
	}
	if !errors.Is(usageError(plain), plain) {
		t.Error("the cause is lost")
	}
}

// TestFailuresOfCommandsAreNotUsageErrors adds a command whose own code fails.
func TestFailuresOfCommandsAreNotUsageErrors(t *testing.T) {
	var started bool
	root := newRootCommand()
	root.AddCommand(&cobra.Command{Use: "fail", RunE: func(*cobra.Command, []string) error { return errors.New("broken") }})
	markStart(root, &started)
	root.SetArgs([]string{"fail"})
	if err := root.Execute(); err == nil || exitCode(err) != exitFailed || !started {
		t.Errorf("got %v, started %v", err, started)
	}
}

func TestLoad(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	short, _, _ := strings.Cut(strings.ToLower(host), ".")
	path := filepath.Join(t.TempDir(), "replfs.yaml")
	must(t, "init", "-o", path, "--peer", short+"=10.0.0.1:1", "--peer", "other-node=10.0.0.2:1")

	for node, want := range map[string]string{"": short, "other-node": "other-node", short: short} {
		g := &globalFlags{configPath: path, node: node}
		cfg, view, err := g.load()
		if err != nil || view.Name != want || view.Config != cfg || cfg.Cluster != "gitlab" {
			t.Errorf("--node %q: got %+v, %v", node, view, err)
		}
	}
	_, _, err = (&globalFlags{configPath: path, node: "nobody"}).load()
	if exitCode(err) != exitUsage || !strings.Contains(err.Error(), `no node is named "nobody": the nodes are `+short+", other-node") {
		t.Errorf("unknown node: %v", err)
	}
	_, _, err = (&globalFlags{configPath: path + "x"}).load()
	if exitCode(err) != exitUsage || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("no config: %v", err)
	}

	data, err := os.ReadFile(path) //nolint:gosec // the test's own
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, strings.ReplaceAll(string(data), short, "not-"+short))
	_, _, err = (&globalFlags{configPath: path}).load()
	if exitCode(err) != exitUsage || !strings.Contains(err.Error(), "this machine's host name is") || !strings.Contains(err.Error(), "--node") {
		t.Errorf("host not in the config: %v", err)
	}
	writeFile(t, path, strings.Replace(string(data), "mode: manual", "mode: etcd", 1)+"metrics: 127.0.0.1:1\n")
	_, _, err = (&globalFlags{configPath: path}).load()
	if exitCode(err) != exitUsage || !strings.Contains(err.Error(), "election.mode etcd is not supported") || !strings.Contains(err.Error(), "metrics is not supported") {
		t.Errorf("unsupported settings: %v", err)
	}
}

func TestInit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "replfs.yaml")
	out := must(t, "init", "--config", path, "--cluster", "wiki", "--mount", "/srv/wiki", "--peer", "a=10.0.0.1:1,b=10.0.0.2:1", "--peer", "c=[fd00::1]:1")
	if !strings.Contains(out, "wrote "+path) || !strings.Contains(out, "replfs pki all --config "+path) {
		t.Errorf("printed %q", out)
	}
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Cluster != "wiki" || cfg.Mount != "/srv/wiki" || len(cfg.Nodes) != 3 || cfg.Nodes[2].Address != "[fd00::1]:1" || cfg.Election.InitialPrimary != "a" {
		t.Errorf("wrote %+v", cfg)
	}
	if view, err := cfg.Node("a"); err != nil || *view.TLS != installedFiles {
		t.Errorf("its certificates are not where pki says: %+v, %v", view, err)
	}

	fails(t, exitRefused, []string{path + " already exists", "--force"}, "init", "-o", path)
	if again, err := config.Load(path); err != nil || again.Cluster != "wiki" {
		t.Errorf("a refused init changed the file: %+v, %v", again, err)
	}
	must(t, "init", "-o", path, "--force")
	if again, err := config.Load(path); err != nil || again.Cluster != "gitlab" || len(again.Nodes) != 2 {
		t.Errorf("--force wrote %+v, %v", again, err)
	}
	if out := must(t, "init", "-o", "-"); !strings.HasPrefix(out, "# The config of a replfs cluster") {
		t.Errorf("-o - printed %q", out)
	}

	other := filepath.Join(t.TempDir(), "x.yaml")
	fails(t, exitUsage, []string{`--peer "a" is not NAME=ADDRESS`}, "init", "-o", other, "--peer", "a")
	fails(t, exitUsage, []string{`"nowhere" is not HOST:PORT`}, "init", "-o", other, "--peer", "a=nowhere")
	fails(t, exitUsage, []string{`mount "x"`, "is not absolute"}, "init", "-o", other, "--mount", "x")
	if _, err := os.Stat(other); err == nil {
		t.Error("a failed init wrote its file")
	}
	fails(t, exitFailed, []string{"looking for the config"}, "init", "-o", filepath.Join(path, "below", "x"))
}

func TestPKICommands(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	none := filepath.Join(t.TempDir(), "none.yaml")
	fails(t, exitUsage, []string{"--cluster is not given", none + " does not exist"}, "pki", "ca", "--dir", dir, "--config", none)
	fails(t, exitFailed, []string{"there is no CA"}, "pki", "node", "gl-1", "--cluster", "gitlab", "--dir", dir)

	if out := must(t, "pki", "ca", "--cluster", "gitlab", "--dir", dir); !strings.Contains(out, "made the CA of cluster gitlab: "+dir+"/ca.crt") {
		t.Errorf("printed %q", out)
	}
	fails(t, exitRefused, []string{"ca.crt already exists"}, "pki", "ca", "--cluster", "gitlab", "--dir", dir)

	out := must(t, "pki", "node", "gl-1", "gl-2", "--cluster", "gitlab", "--dir", dir)
	for _, want := range []string{dir + "/gl-1.key  to  /etc/replfs/pki/node.key", dir + "/gl-2.crt  to  /etc/replfs/pki/node.crt", "Keep " + dir + "/ca.key"} {
		if !strings.Contains(out, want) {
			t.Errorf("printed:\n%swant: %s", out, want)
		}
	}
	for _, node := range []string{"gl-1", "gl-2"} {
		if _, err := pki.Check(pki.NodeFiles(dir, node), "gitlab", node); err != nil {
			t.Error(err)
		}
	}
	fails(t, exitRefused, []string{"gl-1.crt already exists"}, "pki", "node", "gl-1", "--cluster", "gitlab", "--dir", dir)
	must(t, "pki", "node", "gl-1", "--cluster", "gitlab", "--dir", dir, "--force")
	fails(t, exitFailed, []string{`is for cluster "gitlab", not "wiki"`}, "pki", "node", "x", "--cluster", "wiki", "--dir", dir)
	if out := must(t, "pki", "ca", "--cluster", "gitlab", "--dir", dir, "--force"); !strings.Contains(out, "are void") {
		t.Errorf("printed %q", out)
	}
}

func TestPKIAll(t *testing.T) {
	tmp := t.TempDir()
	dir, path := filepath.Join(tmp, "pki"), filepath.Join(tmp, "replfs.yaml")
	writeFile(t, path, `cluster: wiki
mount: /m
tls: {ca: /tls/ca.crt, cert: /tls/node.crt, key: /tls/node.key}
nodes:
  - {name: one, address: "10.0.0.1:1"}
  - {name: two, address: "10.0.0.2:1", tls: {key: /tls/two.key}}
`)
	out := must(t, "pki", "all", "--config", path, "--dir", dir)
	for _, want := range []string{"made the CA of cluster wiki", "made the certificate of node one", dir + "/one.key  to  /tls/node.key", dir + "/two.key  to  /tls/two.key"} {
		if !strings.Contains(out, want) {
			t.Errorf("printed:\n%swant: %s", out, want)
		}
	}
	cert := pki.NodeFiles(dir, "one").Cert
	stat := func() os.FileInfo {
		t.Helper()
		fi, err := os.Stat(cert)
		if err != nil {
			t.Fatal(err)
		}
		return fi
	}
	first := stat()
	if err := os.Remove(pki.NodeFiles(dir, "two").Cert); err != nil {
		t.Fatal(err)
	}
	// A key without its certificate is not a thing to keep.
	fails(t, exitFailed, []string{"checking the files of node two"}, "pki", "all", "--config", path, "--dir", dir)
	if err := os.Remove(pki.NodeFiles(dir, "two").Key); err != nil {
		t.Fatal(err)
	}
	out = must(t, "pki", "all", "--config", path, "--dir", dir)
	for _, want := range []string{"kept the CA", "kept the certificate of node one", "made the certificate of node two"} {
		if !strings.Contains(out, want) {
			t.Errorf("printed:\n%swant: %s", out, want)
		}
	}
	if !os.SameFile(first, stat()) {
		t.Error("a kept certificate was replaced")
	}
	out = must(t, "pki", "all", "--config", path, "--dir", dir, "--force")
	if !strings.Contains(out, "kept the CA") || !strings.Contains(out, "made the certificate of node one") || os.SameFile(first, stat()) {
		t.Errorf("--force printed:\n%s", out)
	}

	must(t, "pki", "node", "two", "--config", path, "--dir", dir, "--force")
	fails(t, exitUsage, []string{`no node is named "three"`}, "pki", "node", "three", "--config", path, "--dir", dir)
	fails(t, exitRefused, []string{"ca.crt already exists"}, "pki", "ca", "--config", path, "--dir", dir)
	fails(t, exitUsage, []string{"does not exist"}, "pki", "all", "--config", path+"x", "--dir", dir)
}
