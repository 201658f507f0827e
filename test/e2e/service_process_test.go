package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	ossignal "os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/internal/node"
)

// serveWrites is an application: it takes a line from each connection, appends it
// to a file of the mount, fsyncs it, and answers with the node's name. The hooks
// start and stop it.
func serveWrites() error {
	ossignal.Ignore(unix.SIGPIPE)
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if err := serveWrite(c); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		c.Close()
	}
}

func serveWrite(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(hang)); err != nil {
		return err
	}
	line, err := io.ReadAll(io.LimitReader(c, 64))
	if err != nil || len(line) == 0 {
		return err // the health check says nothing
	}
	f, err := os.OpenFile(filepath.Join(os.Getenv("REPLFS_MOUNT"), "lines"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(line)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	_, err = fmt.Fprint(c, os.Getenv("REPLFS_NODE"))
	return err
}

// mortalDaemon is `replfs mount` that kills itself after the step of a change of
// roles that the file dieFile names.
func mortalDaemon() error {
	var path, name string
	for i, a := range os.Args {
		switch a {
		case "--config":
			path = os.Args[i+1]
		case "--node":
			name = os.Args[i+1]
		}
	}
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	view, err := cfg.Node(name)
	if err != nil {
		return err
	}
	ctx, cancel := ossignal.NotifyContext(context.Background(), unix.SIGTERM)
	defer cancel()
	zc := zap.NewProductionConfig()
	zc.Sampling, zc.DisableStacktrace = nil, true
	return node.Run(ctx, view, node.Options{AfterStep: func(kind, step string) {
		b, err := os.ReadFile(dieFile(view.State))
		if err != nil || strings.TrimSpace(string(b)) != kind+"/"+step {
			return
		}
		_ = os.Remove(dieFile(view.State))
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}}, zap.Must(zc.Build()).With(zap.String("node", name)))
}

func dieFile(state string) string { return filepath.Join(filepath.Dir(state), "die-after") }
