package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/internal/control"
	"github.com/replfs/replfs/internal/exclude"
)

// fsyncFlag makes `replfs wait` fsync its argument and end.
const fsyncFlag = "fsync-only"

func newWaitCommand(g *globalFlags) *cobra.Command {
	var timeout time.Duration
	var position string
	var asJSON, fsyncOnly bool
	cmd := &cobra.Command{
		Use:   "wait [PATH]",
		Short: "Wait until what is written now is durable on the standbys",
		Long: `Returns when what was written before, through the mount, is durable here and on
every standby in sync, fsynced by its writer or not, and whatever
replication.durability says. Without PATH, or with a directory, that is everything,
and costs a sync of the stores; with a file it is the file and its name. What
programs store in shared mappings counts with a file, or once they call msync.

With --position, as ` + "`getfattr -n user.replfs.position FILE`" + ` gives it, it waits
on the primary until every fsync up to there is durable on the standbys in sync;
on a standby until its store shows the position.

Exit code 1: a standby that was waited for left the in-sync set, or the time was up;
3: this node is not the primary, or no standby is in sync.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, view, err := g.load()
			if err != nil {
				return err
			}
			if fsyncOnly {
				return fsyncName(args[0], view.Mount)
			}
			w := waiting{g: g, cfg: cfg, view: view, client: control.NewClient(view.Control), timeout: timeout, begun: time.Now()}
			var res *control.WaitResult
			switch {
			case timeout < 0:
				return usageError(fmt.Errorf("--timeout %s is negative", timeout))
			case position != "" && len(args) > 0:
				return usageError(errors.New("give either PATH or --position"))
			case position != "":
				p, perr := control.ParsePosition(position)
				if perr != nil {
					return usageError(perr)
				}
				res, err = w.ask(cmd.Context(), control.WaitRequest{What: control.WaitPosition, Position: p})
			case len(args) > 0:
				res, err = w.path(cmd.Context(), args[0])
			default:
				res, err = w.ask(cmd.Context(), control.WaitRequest{What: control.WaitSync})
			}
			var refused *control.UnsafeError
			if errors.As(err, &refused) {
				return refusedError(err)
			}
			if err != nil {
				return err
			}
			res.Seconds = time.Since(w.begun).Seconds()
			if asJSON {
				return printJSON(cmd.OutOrStdout(), res)
			}
			where := "shown by " + view.Name
			if len(res.Standbys) > 0 {
				where = "durable on " + strings.Join(res.Standbys, ", ")
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "everything up to %s is %s (%.3f s)\n", res.Position, where, res.Seconds)
			return err
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up after this `time`, such as 30s (default: never)")
	cmd.Flags().StringVar(&position, "position", "", "wait for this `EPOCH/LSN`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&fsyncOnly, fsyncFlag, false, "fsync PATH and its name, and end: for `replfs wait` itself")
	_ = cmd.Flags().MarkHidden(fsyncFlag) // it exists
	return cmd
}

// waiting is one run of `replfs wait`.
type waiting struct {
	g       *globalFlags
	cfg     *config.Config
	view    *config.NodeView
	client  *control.Client
	timeout time.Duration
	begun   time.Time
}

// ask has the node wait, for what is left of the time.
func (w *waiting) ask(ctx context.Context, req control.WaitRequest) (*control.WaitResult, error) {
	if w.timeout > 0 {
		req.Timeout = max(w.timeout-time.Since(w.begun), time.Nanosecond)
	}
	return w.client.Wait(ctx, req)
}

// path waits for what PATH says.
func (w *waiting) path(ctx context.Context, path string) (*control.WaitResult, error) {
	// First of all: the mount of a node that does not run hangs or fails.
	ready, err := w.ask(ctx, control.WaitRequest{What: control.WaitReady})
	if err != nil {
		return nil, err
	}
	file, rel, err := inMount(path, w.view.Mount)
	if err != nil {
		return nil, err
	}
	excl, err := exclude.New(w.cfg.Replication.Exclude)
	if err != nil {
		return nil, err
	}
	if excl.Excluded(rel) {
		return nil, fmt.Errorf("%s never leaves this node: replication.exclude names it", path)
	}
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return w.ask(ctx, control.WaitRequest{What: control.WaitSync, Standbys: ready.Standbys})
	}
	if err := w.fsync(ctx, file); err != nil {
		return nil, err
	}
	return w.ask(ctx, control.WaitRequest{What: control.WaitAcked, Standbys: ready.Standbys})
}

// inMount resolves path, which has to lie in the mount, and says where.
func inMount(path, mount string) (file, rel string, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return "", "", fmt.Errorf("find %s: %w", path, err)
	}
	if file, err = filepath.EvalSymlinks(path); err != nil {
		return "", "", err
	}
	if mount, err = filepath.EvalSymlinks(mount); err != nil {
		return "", "", err
	}
	rel, err = filepath.Rel(mount, file)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return "", "", usageError(fmt.Errorf("%s is not in the mount %s", file, mount))
	}
	if rel == "." {
		rel = ""
	}
	return file, rel, nil
}

// fsync makes a file and its name durable through the mount. That may wait for a
// standby for long, in a call that nothing ends, not even the end of its process:
// so it is another one's.
func (w *waiting) fsync(ctx context.Context, file string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if w.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, w.begun.Add(w.timeout))
		defer cancel()
	}
	cmd := exec.Command(self, "wait", "--"+fsyncFlag, "--config", w.g.configPath, "--node", w.view.Name, "--", file)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start an fsync of %s: %w", file, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("fsync: %w: %s", err, bytes.TrimSpace(errOut.Bytes()))
		}
		return nil
	case <-ctx.Done():
		_ = cmd.Process.Kill() // it ends when its call does
		return fmt.Errorf("not within %s: the fsync of %s is not done%s", w.timeout, file, w.howFar())
	}
}

// howFar says how far the standbys are.
func (w *waiting) howFar() string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	st, err := w.client.Status(ctx)
	if err != nil {
		return ""
	}
	var out strings.Builder
	for _, p := range st.Peers {
		fmt.Fprintf(&out, "; of %d records, %s (%s) has received %d, applied %d, all fsyncs up to %d",
			p.LSN.Appended, p.Name, p.State, p.LSN.Received, p.LSN.Applied, p.LSN.Durable)
	}
	return out.String()
}

// fsyncName makes a file durable, and the entries that lead to it from the mount.
func fsyncName(file, mount string) error {
	mount, err := filepath.EvalSymlinks(mount)
	if err != nil {
		return err
	}
	for path := file; ; path = filepath.Dir(path) {
		if err := fsyncPath(path); err != nil {
			return err
		}
		if path == mount || path == "/" {
			return nil
		}
	}
}

func fsyncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
