package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/replfs/replfs/election"
	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/replicate/apply"
)

// Distrust says that the store may have been changed by others than this node,
// whose daemon must not run: when it was primary, its standbys get a complete
// copy, and when it was a standby, it gets one itself. A node that has never
// been started has nothing to distrust.
func Distrust(v *config.NodeView, reason string, log *zap.Logger) (err error) {
	if _, err := os.Stat(filepath.Join(v.State, "node.json")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	n := &Node{view: v, log: log}
	if err := n.takeLock(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.lock.Close()) }()
	state, err := election.OpenStore(v.State, v.Cluster, v.Name)
	if err != nil {
		return err
	}
	if err := state.Update(func(s *election.State) { s.Clean = false }); err != nil {
		return err
	}
	if err := os.Remove(RingPath(v)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the log: %w", err)
	}
	a, err := apply.Open(apply.Config{Store: v.Store, StateFile: filepath.Join(v.State, "applied.state"), BootID: bootID(), Log: log})
	if err != nil {
		return err
	}
	return errors.Join(a.MarkSuspect(reason), a.Close())
}
