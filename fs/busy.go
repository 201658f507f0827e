package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// BusyError says that a mount could not be taken away since somebody uses it.
type BusyError struct {
	Mount string
	// Users are some of the processes, as far as /proc tells.
	Users []string
}

func (e *BusyError) Error() string {
	who := "somebody"
	if len(e.Users) > 0 {
		who = strings.Join(e.Users, ", ")
	}
	return fmt.Sprintf("%s is in use by %s: it is left there, dead, so that nobody writes to the directory beneath it; "+
		"end them and run umount %s, or start replfs again (--lazy-unmount detaches it)", e.Mount, who, e.Mount)
}

const maxUsers = 8

// users names processes that have something below point open, or are in it.
// It reads links in /proc only, which asks no file system.
func users(point string) []string {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var out []string
	for _, proc := range procs {
		links, _ := filepath.Glob(proc + "/fd/*") // it may have ended
		for _, link := range append(links, proc+"/cwd", proc+"/root") {
			to, err := os.Readlink(link)
			if err != nil || to != point && !strings.HasPrefix(to, strings.TrimSuffix(point, "/")+"/") {
				continue
			}
			name, _ := os.ReadFile(proc + "/comm")
			out = append(out, fmt.Sprintf("%s (%s)", filepath.Base(proc), strings.TrimSpace(string(name))))
			break
		}
		if len(out) == maxUsers {
			return append(out, "and more")
		}
	}
	return out
}

// IsBusy tells whether err says that a mount was in use.
func IsBusy(err error) bool {
	var busy *BusyError
	return errors.As(err, &busy)
}
