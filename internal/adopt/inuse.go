package adopt

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// maxUsers bounds the reasons of a refusal.
const maxUsers = 10

// inUse refuses when a process has something in dir open or mapped, stands or
// runs in it, or listens on a socket there.
func inUse(dir string) error {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return fmt.Errorf("list the processes: %w", err)
	}
	var reasons []string
	for _, proc := range procs {
		if how := use(proc, dir); how != "" {
			reasons = append(reasons, fmt.Sprintf("process %s %s: end it (for GitLab: gitlab-ctl stop; systemctl stop gitlab-runsvdir)", name(proc), how))
		}
	}
	sockets, err := boundSockets(dir)
	if err != nil {
		return err
	}
	// A process that holds a file as well has been named.
	if len(reasons) == 0 {
		for _, s := range sockets {
			reasons = append(reasons, fmt.Sprintf("a process listens on %s: end it (ss -xlp shows which)", s))
		}
	}
	if len(reasons) == 0 {
		return nil
	}
	if n := len(reasons); n > maxUsers {
		reasons = append(reasons[:maxUsers], fmt.Sprintf("and %d more", n-maxUsers))
	}
	return &RefusedError{Reasons: reasons}
}

func name(proc string) string {
	comm, _ := os.ReadFile(proc + "/comm") // it may have ended
	return fmt.Sprintf("%s (%s)", filepath.Base(proc), strings.TrimSpace(string(comm)))
}

// use says how the process uses dir, "" for not at all. A process that ends
// meanwhile uses nothing.
func use(proc, dir string) string {
	for _, l := range []struct{ link, how string }{
		{"cwd", "has its working directory at"}, {"root", "has its root directory at"}, {"exe", "runs"},
	} {
		if to, err := os.Readlink(proc + "/" + l.link); err == nil && within(to, dir) {
			return l.how + " " + to
		}
	}
	fds, _ := filepath.Glob(proc + "/fd/*")
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && within(to, dir) {
			return "has " + to + " open"
		}
	}
	if mapped := mappedFile(proc, dir); mapped != "" {
		return "has " + mapped + " mapped"
	}
	return ""
}

// mappedFile finds a mapping of a file in dir, which may outlive its
// descriptor.
func mappedFile(proc, dir string) string {
	maps, err := os.ReadFile(proc + "/maps")
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(maps) {
		// address perms offset dev inode path
		_, path, found := strings.Cut(string(line), " /")
		if path = "/" + strings.TrimRight(path, "\n"); found && within(path, dir) {
			return path
		}
	}
	return ""
}

// boundSockets lists the sockets in dir that a living process listens on.
func boundSockets(dir string) (out []string, err error) {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil, fmt.Errorf("list the unix sockets: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// Num RefCount Protocol Flags Type St Inode Path
		if _, path, found := strings.Cut(lines.Text(), " /"); found && within("/"+path, dir) {
			out = append(out, "/"+path)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list the unix sockets: %w", err)
	}
	return out, nil
}
