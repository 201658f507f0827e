package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/replfs/replfs/test/lab"
)

// keepalived runs Keepalived with the scripts of packaging/keepalived on a node.
func (s *serviceLab) keepalived(node string, priority int) *lab.Process {
	s.t.Helper()
	program, err := exec.LookPath("/usr/sbin/keepalived")
	must(s.t, err)
	scripts, err := filepath.Abs("../../packaging/keepalived")
	must(s.t, err)
	at := func(name string) string { return filepath.Join(s.dir, node+"."+name) }
	for _, script := range []string{"replfs-notify", "replfs-check"} {
		text := fmt.Sprintf("#!/bin/sh\nexport REPLFS=%s REPLFS_FLAGS='--config %s --node %s' REPLFS_WEIGHT=%s\n%s/%s \"$@\" >>%s 2>&1\n",
			lab.Binary(s.t), s.Config(), node, at("weight"), scripts, script, at("script.log"))
		must(s.t, os.WriteFile(at(script), []byte(text), 0o755))
	}
	example, err := os.ReadFile(filepath.Join(scripts, "keepalived.conf.example"))
	must(s.t, err)
	conf := string(example)
	for old, new := range map[string]string{
		"    enable_script_security\n": "", // directories for tests are below /tmp
		"/usr/lib/replfs/replfs-":      filepath.Join(s.dir, node+".replfs-"),
		"/run/replfs/keepalived.":      filepath.Join(s.dir, node) + ".",
		"priority 100":                 fmt.Sprintf("priority %d", priority),
		"10.1.1.10/24":                 virtual + "/24",
	} {
		if !strings.Contains(conf, old) {
			s.t.Fatalf("the example has no %q", old)
		}
		conf = strings.ReplaceAll(conf, old, new)
	}
	must(s.t, os.WriteFile(at("conf"), []byte(conf), 0o644))
	p, err := lab.StartProcess(lab.Command{
		Name: "keepalived on " + node, Path: program, Namespace: s.Network().Namespace(node),
		Args: []string{"--dont-fork", "--log-console", "--log-detail", "--vrrp", "--use-file", at("conf"),
			"--pid", at("keepalived_pid"), "--vrrp_pid", at("vrrp_pid"), "--checkers_pid", at("checkers_pid"), "--bfd_pid", at("bfd_pid")},
	}, at("keepalived.log"))
	must(s.t, err)
	s.t.Cleanup(func() {
		if s.t.Failed() {
			out, _ := os.ReadFile(at("script.log"))
			s.t.Logf("keepalived on %s:\n%s\nits scripts:\n%s", node, p.Tail(40), out)
		}
		s.end(p)
	})
	return p
}

// end stops Keepalived in order, as far as it has not ended.
func (s *serviceLab) end(p *lab.Process) {
	if p.Running() {
		must(s.t, p.Signal(syscall.SIGTERM))
	}
	if _, err := p.Wait(hang); err != nil {
		s.t.Error(err)
	}
}

// TestKeepalived: VRRP moves the address, replfs the data. A node with older data
// is refused and gives the address back.
func TestKeepalived(t *testing.T) {
	s := newServiceLab(t, "", func(extra map[string]any) { delete(extra, "vip"); delete(extra, "health") })
	start(t, s.ctx, s.Cluster)
	// It is Keepalived's state that decides, not what the nodes were.
	s.keepalived(two, 100)
	s.reaches(two, one)
	k1 := s.keepalived(one, 90)
	must(t, s.WaitRole(s.ctx, two, "primary"))
	must(t, s.WaitInSync(s.ctx, two, one))
	stop := s.load()
	s.acknowledged(two)

	// The daemon dies, Keepalived lives.
	must(t, s.KillNode(two))
	s.reaches(one, two)
	s.acknowledged(one)
	must(t, s.StartNode(s.ctx, two))
	must(t, s.WaitInSync(s.ctx, one, two))

	// The other machine's daemon is away, and misses something.
	must(t, s.KillNode(two))
	s.write1(one)
	stop()
	res, err := s.Command(s.ctx, one, "demote", "--from-notify")
	must(t, err)
	if res.Code != 3 || !strings.Contains(res.Stderr, "no standby is in sync") {
		t.Errorf("demote --from-notify: %d %s", res.Code, res.Output())
	}
	// Its Keepalived ends: then it does not write any more.
	s.end(k1)
	must(t, s.WaitRole(s.ctx, one, "standby"))
	must(t, s.StartNode(s.ctx, two))
	eventually(t, s.ctx, hang, "gl-2 is refused", func() error {
		b, err := os.ReadFile(filepath.Join(s.dir, "gl-2.script.log"))
		if err == nil && !strings.Contains(string(b), "has newer data") {
			err = errors.New("not yet")
		}
		return err
	})
	eventually(t, s.ctx, hang, "gl-2 gives the address back", func() error {
		if s.holds(two) {
			return errors.New("it has it")
		}
		return nil
	})
	if st, err := status(s.ctx, s.Cluster, two); err != nil || st.Role != "standby" {
		t.Errorf("gl-2: %+v, %v", st, err)
	}
	// The address goes to who has the data, and is promoted again.
	s.keepalived(one, 90)
	s.reaches(one, two)
	must(t, s.WaitInSync(s.ctx, one, two))
	s.verify(s.Mount(one))
	equalStores(t, s.ctx, s.Cluster, one, two)
	// In sync again, it may take over again.
	eventually(t, s.ctx, hang, "the refusal of gl-2 is over", func() error {
		b, err := os.ReadFile(filepath.Join(s.dir, "gl-2.weight"))
		if err == nil && strings.TrimSpace(string(b)) != "0" {
			err = fmt.Errorf("its weight is %s", b)
		}
		return err
	})
}

// write1 waits until a node has acknowledged a write of its own.
func (s *serviceLab) write1(node string) {
	s.t.Helper()
	returns(s.t, "a write", fsyncOf(s.t, s.Cluster, node, "alone"), hang)
}
