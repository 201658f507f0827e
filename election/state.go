// Package election decides who may write. In this version the mode is
// manual: an operator promotes and demotes, and a node refuses what it can
// see is unsafe. The decisions are pure; what they rest on is kept in State.
package election

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/renameio/v2"
)

// Role is what a node is to its cluster.
type Role string

const (
	// Primary may write.
	Primary Role = "primary"
	// Standby follows.
	Standby Role = "standby"
)

// Epoch is a term of a primary, and the LSN of its first record.
type Epoch struct {
	Epoch   uint64 `json:"epoch"`
	Primary string `json:"primary"`
	Begin   uint64 `json:"begin"`
}

// State is what a node knows of its cluster and must not forget.
type State struct {
	Cluster string `json:"cluster"`
	// ClusterID tells one life of a cluster from another of the same name;
	// empty while the node has joined none.
	ClusterID string `json:"cluster_id"`
	Node      string `json:"node"`
	Role      Role   `json:"role"`
	// Epoch is the highest known.
	Epoch   uint64  `json:"epoch"`
	History []Epoch `json:"history"`
	// InSync are the standbys that a primary waits for.
	InSync []string `json:"in_sync"`
	// Floor is above every LSN that this node can have given out.
	Floor uint64 `json:"floor"`
	// Clean is set while the node is stopped, after all was made durable;
	// CleanLSN is the end of its log then.
	Clean    bool   `json:"clean"`
	CleanLSN uint64 `json:"clean_lsn"`
}

// Joined reports whether the node belongs to a life of the cluster.
func (s *State) Joined() bool { return s.ClusterID != "" }

// Store keeps a State in a file, durably: an update that returned survives a
// crash of the machine.
type Store struct {
	path string
	mu   sync.Mutex
	st   State
}

// OpenStore reads the state in dir, or begins with an empty one. A damaged
// file is an error: guessing who may write is worse than stopping.
func OpenStore(dir, cluster, node string) (*Store, error) {
	s := &Store{path: filepath.Join(dir, "node.json")}
	b, err := os.ReadFile(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.st = State{Cluster: cluster, Node: node}
		return s, nil
	case err != nil:
		return nil, fmt.Errorf("read the node's state: %w", err)
	}
	if err := json.Unmarshal(b, &s.st); err != nil {
		return nil, fmt.Errorf("node state %s is damaged (%w): to rejoin as an empty standby, move the directory %s away", s.path, err, dir)
	}
	if s.st.Cluster != cluster || s.st.Node != node {
		return nil, fmt.Errorf("node state %s is that of node %s of cluster %s, not of %s of %s: correct `state` in the config, or --node",
			s.path, s.st.Node, s.st.Cluster, node, cluster)
	}
	return s, nil
}

// Get returns the state.
func (s *Store) Get() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.st.clone()
}

// Update changes the state and makes the change durable. On an error Get gives
// the state as it was, but which of the two a restart finds is not known.
func (s *Store) Update(f func(*State)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.st.clone()
	f(&next)
	b, err := json.MarshalIndent(&next, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the node's state: %w", err)
	}
	// renameio syncs the file before the rename, not the directory after.
	if err := renameio.WriteFile(s.path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the node's state %s: %w", s.path, err)
	}
	if err := syncDir(filepath.Dir(s.path)); err != nil {
		return fmt.Errorf("write the node's state %s: %w", s.path, err)
	}
	s.st = next
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

func (s *State) clone() State {
	c := *s
	c.History = append([]Epoch(nil), s.History...)
	c.InSync = append([]string(nil), s.InSync...)
	return c
}
