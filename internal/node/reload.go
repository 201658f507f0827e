package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/election"
	"github.com/replfs/replfs/fs"
	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/internal/pki"
	"github.com/replfs/replfs/internal/version"
	"github.com/replfs/replfs/replicate/wire"
)

// successorEnv tells a process that takes another one's place which descriptor
// it finds the mount's state at.
const successorEnv = "REPLFS_HANDOVER_FD"

// SuccessorFlag makes `replfs mount` print its Successor and end.
const SuccessorFlag = "successor"

// successorLimit bounds the question to a successor.
const successorLimit = 30 * time.Second

// Successor is what a program would serve in this one's place.
type Successor struct {
	Version string `json:"version"`
	// Handover is the format of what it can take over.
	Handover int    `json:"handover"`
	Cluster  string `json:"cluster"`
	Node     string `json:"node"`
	Mount    string `json:"mount"`
	Store    string `json:"store"`
	State    string `json:"state"`
	Control  string `json:"control"`
	Ring     int64  `json:"ring"`
}

// NewSuccessor is what this program would serve with a config, which it checks
// as far as that is possible without doing it.
func NewSuccessor(v *config.NodeView) (*Successor, error) {
	if v.TLS != nil {
		if _, err := pki.Check(pki.Files(*v.TLS), v.Cluster, v.Name); err != nil {
			return nil, err
		}
	}
	return &Successor{
		Version: version.Get().Version, Handover: fs.HandoverFormat, Cluster: v.Cluster, Node: v.Name,
		Mount: v.Mount, Store: v.Store, State: v.State, Control: v.Control,
		Ring: int64(v.Config.Replication.Ring),
	}, nil
}

// check says why s cannot take the place of o.
func (o *Successor) check(s *Successor) error {
	var errs []error
	differs := func(what string, is, was any) {
		if is != was {
			errs = append(errs, fmt.Errorf("%s would be %v and is %v: stop and start replfs for that", what, is, was))
		}
	}
	differs("the format of the handover", s.Handover, o.Handover)
	differs("cluster", s.Cluster, o.Cluster)
	differs("node", s.Node, o.Node)
	differs("mount", s.Mount, o.Mount)
	differs("store", s.Store, o.Store)
	differs("state", s.State, o.State)
	differs("control", s.Control, o.Control)
	differs("replication.ring", s.Ring, o.Ring)
	return errors.Join(errs...)
}

// program is what to run in this process's place: an upgrade puts a new file
// where this one was.
func program() (string, error) {
	if filepath.IsAbs(os.Args[0]) {
		return os.Args[0], nil
	}
	p, err := exec.LookPath(os.Args[0])
	if err != nil {
		return "", fmt.Errorf("find the program that was started as %s: %w", os.Args[0], err)
	}
	return filepath.Abs(p)
}

// reload has the program and the config that are installed now take this
// process's place. The mount stays: applications wait for a moment. It returns
// only if that was not possible, and then everything goes on as before.
func (n *Node) reload(ctx context.Context) error {
	path, err := program()
	if err != nil {
		return err
	}
	next, err := askSuccessor(ctx, path)
	if err != nil {
		return err
	}
	own, err := NewSuccessor(n.view)
	if err != nil {
		return err
	}
	if err := own.check(next); err != nil {
		return fmt.Errorf("%s cannot take over: %w", path, err)
	}
	n.changing.Lock()
	defer n.changing.Unlock()
	n.mu.Lock()
	role, quitting := n.role, n.quitting
	n.mu.Unlock()
	if quitting {
		return errors.New("this node is stopping")
	}
	if err := n.service.suspend(); err != nil {
		return err
	}
	n.log.Info("handing over to a successor", zap.String("program", path), zap.String("version", next.Version))
	if role == wire.Role_ROLE_STANDBY {
		n.standby.Stop()
	}
	err = n.mount.HandOver(func(state []byte, fds []int) error { return replace(path, state, fds) })
	if role == wire.Role_ROLE_STANDBY {
		err = errors.Join(err, n.startStandby())
	}
	n.service.resume()
	if role == wire.Role_ROLE_PRIMARY {
		why := "there was no successor"
		n.service.bringUp(n.begin("start", why), occasion{role: election.Primary, reason: why}, true)
	}
	n.log.Error("cannot hand over; going on", zap.Error(err))
	return fmt.Errorf("hand over to %s: %w", path, err)
}

// askSuccessor asks a program what it would serve with this one's arguments.
func askSuccessor(ctx context.Context, path string) (*Successor, error) {
	ctx, cancel := context.WithTimeout(ctx, successorLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append(slices.Clone(os.Args[1:]), "--"+SuccessorFlag)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s would not start: %w: %s", path, err, bytes.TrimSpace(errOut.Bytes()))
	}
	var s Successor
	if err := json.Unmarshal(out.Bytes(), &s); err != nil {
		return nil, fmt.Errorf("%s does not say what it would serve: %w", path, err)
	}
	return &s, nil
}

// replace runs path in this process's place, which keeps its pid and the
// descriptors fds.
func replace(path string, state []byte, fds []int) error {
	mem, err := unix.MemfdCreate("replfs-handover", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memory for the state: %w", err)
	}
	f := os.NewFile(uintptr(mem), "state")
	defer f.Close()
	if _, err := f.Write(state); err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	env := append(os.Environ(), fmt.Sprintf("%s=%d", successorEnv, mem))
	fds = append(fds, mem)
	for _, fd := range fds {
		if _, err = unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			err = fmt.Errorf("keep descriptor %d: %w", fd, err)
			break
		}
	}
	if err == nil {
		err = os.NewSyscallError("execve", syscall.Exec(path, os.Args, env))
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return err
}

// attach mounts, or takes the mount over from a predecessor.
func (n *Node) attach() error {
	o := fs.MountOptions{Source: "replfs:" + n.view.Cluster, NonEmpty: n.opts.NonEmpty}
	fd := os.Getenv(successorEnv)
	var err error
	if fd == "" {
		n.mount, err = n.fs.Mount(n.view.Mount, o)
		return err
	}
	state, err := readState(fd)
	if err != nil {
		return fmt.Errorf("read what the predecessor left: %w", err)
	}
	if n.mount, err = n.fs.Resume(n.view.Mount, state, o); err != nil {
		return err
	}
	n.resumed = true
	n.log.Info("took over the mount from a predecessor")
	return nil
}

func readState(fd string) ([]byte, error) {
	if err := os.Unsetenv(successorEnv); err != nil {
		return nil, err
	}
	number, err := strconv.Atoi(fd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", successorEnv, err)
	}
	unix.CloseOnExec(number)
	f := os.NewFile(uintptr(number), "state")
	defer f.Close()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(f)
}
