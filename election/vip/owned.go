package vip

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"github.com/google/renameio/v2"
)

// owned is an address that this node has added, or was about to.
type owned struct {
	Interface string       `json:"interface"`
	Address   netip.Prefix `json:"address"`
	// Marked says that the kernel showed our mark on it.
	Marked bool `json:"marked"`
}

type ownedFile struct {
	Addresses []owned `json:"addresses"`
}

// readOwned reads what a process left. No file means nothing.
func readOwned(path string) ([]owned, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of virtual addresses: %w", err)
	}
	list, err := parseOwned(b)
	if err != nil {
		return nil, fmt.Errorf("list of virtual addresses %s: %w", path, err)
	}
	return list, nil
}

func parseOwned(b []byte) ([]owned, error) {
	var f ownedFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, err
	}
	for _, o := range f.Addresses {
		if !o.Address.IsValid() || o.Interface == "" {
			return nil, errors.New("it has an entry without an address or an interface")
		}
	}
	return f.Addresses, nil
}

// writeOwned replaces the list. It need not survive a crash of the machine: the
// addresses do not either.
func writeOwned(path string, list []owned) error {
	b, err := json.MarshalIndent(ownedFile{Addresses: list}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the list of virtual addresses: %w", err)
	}
	if err := renameio.WriteFile(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the list of virtual addresses %s: %w", path, err)
	}
	return nil
}
