// Command demo shows what replfs does, on one machine and in about a minute: two
// nodes in network namespaces of their own, PostgreSQL, Redis and git at work on
// the primary, a kill -9, and the proof that nothing acknowledged was lost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/replfs/replfs/test/lab"
)

// Exit codes; 0 means that every acknowledged write was found.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// demoLimit ends a demo that hangs.
const demoLimit = 5 * time.Minute

// cleanupLimit ends a demo that should end and does not.
const cleanupLimit = 90 * time.Second

// options are the flags.
type options struct {
	bin   string
	dir   string
	load  time.Duration
	scale int
}

func main() {
	os.Exit(run())
}

// run tells the whole story and returns the exit code.
func run() int {
	var opts options
	flag.StringVar(&opts.bin, "bin", "bin/replfs", "path of the replfs binary")
	flag.StringVar(&opts.dir, "dir", "/var/tmp", "where the working directory is made, on a real disk")
	flag.DurationVar(&opts.load, "load", 20*time.Second, "how long the applications work before the crash")
	flag.IntVar(&opts.scale, "scale", 1, "scale factor of pgbench")
	flag.Parse()
	if flag.NArg() > 0 || opts.load < time.Second || opts.load > time.Minute || opts.scale < 1 || opts.scale > 50 {
		_, _ = fmt.Fprintln(os.Stderr, "demo: takes no arguments; -load is 1s to 1m, -scale 1 to 50")
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	interrupted := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, demoLimit, fmt.Errorf("the demo took longer than %s", demoLimit))
	defer cancel()

	// A second signal ends the demo at once, and so does a cleanup that hangs:
	// the lab's janitor then removes what is left.
	context.AfterFunc(ctx, func() {
		stop()
		time.AfterFunc(cleanupLimit, func() { os.Exit(exitFailed) })
	})

	t := newTerminal(os.Stdout)
	err := tell(ctx, t, opts)
	switch {
	case err == nil:
		return 0
	case interrupted.Err() != nil:
		t.printf("\n%s\n", t.paint(red, "Interrupted."))
		if errors.Is(err, errCleanup) {
			t.printf("%v\n", err)
		}
		return exitInterrupted
	default:
		t.printf("\n%s %v\n", t.paint(red, "The demo failed:"), err)
		return exitFailed
	}
}

// checkMachine makes sure that the demo can work here, or says how to mend it.
func checkMachine(ctx context.Context, t *terminal, opts *options) error {
	if os.Geteuid() != 0 {
		return errors.New("it makes mounts and network namespaces, so it needs root: sudo make demo")
	}
	if err := lab.CheckFUSE(); err != nil {
		return fmt.Errorf("%w\nLoad the module (modprobe fuse); in a container, pass the device in "+
			"(docker run --device /dev/fuse --cap-add SYS_ADMIN --cap-add NET_ADMIN ...)", err)
	}
	bin, err := filepath.Abs(opts.bin)
	if err != nil {
		return fmt.Errorf("find the replfs binary: %w", err)
	}
	if _, err := os.Stat(bin); err != nil {
		return fmt.Errorf("no replfs binary: %w\nBuild it first: go build -o bin/replfs ./cmd/replfs", err)
	}
	opts.bin = bin
	t.good("root, /dev/fuse, %s", bin)
	return installPackages(ctx, t)
}
