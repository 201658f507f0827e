package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// itoa shortens the paths in the tests.
func itoa(n int) string { return strconv.Itoa(n) }

// countError says how many there were instead.
type countError struct{ got int }

// Error makes it an error.
func (e *countError) Error() string { return fmt.Sprintf("there are %d", e.got) }

// inNamespace counts the processes in an IPC namespace.
func inNamespace(t *testing.T, ns string) int {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/ns/ipc")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, link := range links {
		// A process may have ended since the list was made.
		if got, err := os.Readlink(link); err == nil && got == ns {
			count++
		}
	}
	return count
}

// openEcho connects one node to an echo server on another.
func openEcho(ctx context.Context, nw *Network, from, to string) (net.Conn, error) {
	dst := nw.Namespace(to)
	var ln net.Listener
	if err := dst.Do(func() (err error) {
		ln, err = net.Listen("tcp", net.JoinHostPort(dst.Addr(), "0"))
		return err
	}); err != nil {
		return nil, err
	}
	defer func() { _ = ln.Close() }()
	go func() {
		if conn, err := ln.Accept(); err == nil {
			// Ends when the test closes its end.
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	conn, err := nw.Namespace(from).Dial(ctx, "tcp", ln.Addr().String())
	if err != nil {
		return nil, err
	}
	return conn, pingPong(conn)
}
