package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/replfs/replfs/test/lab"
)

// aptLimit bounds one run of apt-get.
const aptLimit = 10 * time.Minute

// missingPackages names the Debian packages of the programs that are not there.
func missingPackages() []string {
	var missing []string
	bin, err := lab.FindPostgres()
	for _, program := range []string{"initdb", "pgbench", "pg_amcheck", "pg_checksums"} {
		if err == nil {
			_, err = os.Stat(filepath.Join(bin, program))
		}
	}
	if err != nil {
		missing = append(missing, "postgresql")
	}
	for _, p := range []struct{ program, pkg string }{
		{"redis-server", "redis-server"}, {"redis-check-aof", "redis-tools"}, {"git", "git"},
	} {
		if _, err := exec.LookPath(p.program); err != nil {
			missing = append(missing, p.pkg)
		}
	}
	return missing
}

// installPackages installs what is missing, without letting the packages start
// a service or make a database of their own.
func installPackages(ctx context.Context, t *terminal) (err error) {
	missing := missingPackages()
	if len(missing) == 0 {
		t.good("PostgreSQL, Redis and git are installed")
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("these programs are missing, and there is no apt-get to install them: %s",
			strings.Join(missing, ", "))
	}
	undo, err := holdServices()
	defer func() { err = errors.Join(err, undo()) }()
	if err != nil {
		return err
	}
	t.say("apt-get install %s", strings.Join(missing, " "))
	install := append([]string{"install", "-y", "--no-install-recommends"}, missing...)
	if err := aptGet(install...); err != nil {
		// The package lists may be missing or old.
		if err := aptGet("update"); err != nil {
			return err
		}
		if err := aptGet(install...); err != nil {
			return fmt.Errorf("%w\nInstall them by hand, then try again: apt-get install %s", err, strings.Join(missing, " "))
		}
	}
	if still := missingPackages(); len(still) > 0 {
		return fmt.Errorf("still missing after apt-get install: %s", strings.Join(still, ", "))
	}
	if err := disableServices(missing); err != nil {
		return err
	}
	t.good("installed %s; their services stay off", strings.Join(missing, ", "))
	return context.Cause(ctx)
}

// aptGet runs apt-get to its end, even when the demo is interrupted: a dpkg
// that is killed leaves the machine half configured.
func aptGet(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), aptLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=60"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	if out, err := cmd.CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, strings.Join(lines[max(0, len(lines)-10):], "\n"))
	}
	return nil
}

// holdServices keeps packages from starting services and from making a database
// cluster while they are installed. What the administrator has set stays.
func holdServices() (undo func() error, err error) {
	var made []string
	undo = func() error {
		var errs []error
		for _, path := range made {
			errs = append(errs, os.Remove(path))
		}
		return errors.Join(errs...)
	}
	for _, f := range []struct {
		path, text string
		mode       os.FileMode
	}{
		{"/usr/sbin/policy-rc.d", "#!/bin/sh\n# Made by the replfs demo, for the time of one apt-get.\nexit 101\n", 0o755},
		{"/etc/postgresql-common/createcluster.d/replfs-demo.conf", "create_main_cluster = false\n", 0o644},
	} {
		if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
			return undo, fmt.Errorf("hold services back: %w", err)
		}
		file, err := os.OpenFile(f.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, f.mode)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return undo, fmt.Errorf("hold services back: %w", err)
		}
		made = append(made, f.path)
		_, err = file.WriteString(f.text)
		// The umask must not take the right to run it away.
		if err := errors.Join(err, file.Chmod(f.mode), file.Close()); err != nil {
			return undo, fmt.Errorf("hold services back: %w", err)
		}
	}
	return undo, nil
}

// disableServices keeps what was just installed from starting at the next boot.
func disableServices(installed []string) error {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil // no systemd, nothing starts by itself
	}
	for _, service := range []string{"postgresql", "redis-server"} {
		if !slices.Contains(installed, service) {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		out, err := exec.CommandContext(ctx, "systemctl", "disable", "--quiet", service+".service").CombinedOutput()
		cancel()
		if err != nil {
			return fmt.Errorf("disable the service %s: %w\n%s", service, err, out)
		}
	}
	return nil
}
