package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// errLost marks a promise that was broken.
var errLost = errors.New("not everything acknowledged is there")

// prove looks for everything that was acknowledged before the crash.
func (s *story) prove(ctx context.Context) error {
	s.step("Prove that every acknowledged write is there")
	var err error
	if s.reports, err = s.loads.verify(ctx, s.new); err != nil {
		return err
	}
	acked, err := s.loads.pgbench.Acked(20 * time.Second)
	if err != nil {
		return err
	}
	bench, err := s.new.postgres.VerifyPgbench(ctx, acked, s.loads.pgbench.Clients())
	if err != nil {
		return err
	}
	s.reports = append(s.reports, bench)
	for _, r := range s.reports {
		if err := r.Err(); err != nil {
			s.bad("%v", err)
			continue
		}
		s.good("%s: %d acknowledged, %d found", r.What, r.Acked, r.Found)
	}
	return nil
}

// check runs one of the applications' own checkers. A fault that it finds is
// kept for the summary: the others shall speak, too.
func (s *story) check(what string, err error) {
	if err != nil {
		s.bad("%s: %v", what, err)
		s.faults = append(s.faults, fmt.Errorf("%s: %w", what, err))
		return
	}
	s.good("%s", what)
}

// checkFiles has the applications check their files.
func (s *story) checkFiles(ctx context.Context) error {
	s.step("Check the files with the applications' own tools")
	for _, repo := range s.new.repos {
		s.check("git fsck --full --strict in "+filepath.Base(repo.Dir()), repo.Fsck(ctx))
	}
	s.check("pg_amcheck --all --heapallindexed", s.new.postgres.Amcheck(ctx))
	if err := errors.Join(s.new.postgres.Stop("fast"), s.new.redis.Stop()); err != nil {
		return err
	}
	s.check("pg_checksums --check, every page", s.new.postgres.Checksums(ctx))
	s.check("redis-check-aof", s.new.redis.CheckFile(ctx))
	if err := s.cluster.StopNode(standby); err != nil {
		return err
	}
	s.good("replfs on %s drained, unmounted and ended with exit code 0", standby)
	return nil
}

// summary prints the result, and is an error when something was lost.
func (s *story) summary() error {
	s.step("Result")
	s.printf("\n          %-24s %12s %12s %12s\n", "", "acknowledged", "found", "missing")
	lost := false
	for _, r := range s.reports {
		s.printf("          %-24s %12d %12d %12d\n", r.What, r.Acked, r.Found, r.Missing())
		lost = lost || r.Err() != nil
	}
	s.printf("\n          Standby promoted %.1f s after the kill, all services back after %.1f s.\n\n",
		s.promote.Seconds(), s.back.Seconds())
	if lost {
		return errLost
	}
	if len(s.faults) > 0 {
		return errors.Join(s.faults...)
	}
	s.printf("          %s\n", s.paint(green, "Nothing that was acknowledged is missing."))
	return nil
}
