package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/replfs/replfs/internal/control"
	"github.com/replfs/replfs/test/lab"
)

const (
	virtual = "10.99.0.10"
	client  = "client"
)

// serviceLab is a cluster with a virtual address, an application that hooks start
// and stop, and a client that uses it.
type serviceLab struct {
	*lab.Cluster
	t   *testing.T
	ctx context.Context
	// dir has files of the hooks: the order in which they ran, the application's
	// pid on each node.
	dir string

	mu    sync.Mutex
	acked map[string]bool
	by    map[string]int
}

func newServiceLab(t *testing.T, binary string, change func(map[string]any)) *serviceLab {
	t.Helper()
	dir := t.TempDir()
	exe, err := os.Executable()
	must(t, err)
	hook := func(word, rest string) string {
		if word == "promote" {
			word += " $REPLFS_EPOCH"
		}
		return fmt.Sprintf("echo $REPLFS_NODE %s >>%s/order; %s", word, dir, rest)
	}
	pid := dir + "/$REPLFS_NODE.pid"
	extra := map[string]any{
		"vip":    map[string]any{"address": virtual + "/24", "interface": "eth0", "lifetime": "3s"},
		"health": []any{map[string]any{"tcp": "127.0.0.1:8080", "interval": "50ms", "rise": 2, "fall": 2}},
		"hooks": map[string]any{
			"on_promote": []string{
				hook("promote", "true"),
				fmt.Sprintf("test -e %s && kill -0 $(cat %s) 2>/dev/null || { %s=server %s >/dev/null 2>&1 & echo $! >%s; }", pid, pid, roleEnv, exe, pid),
			},
			"on_demote": []string{hook("demote", fmt.Sprintf("test -e %s || exit 0; kill -9 $(cat %s) || :; rm %s", pid, pid, pid))},
			"on_fault":  []string{hook("fault", "true")},
		},
		"election": map[string]any{"mode": "manual", "initial_primary": one, "ready_timeout": "60s"},
	}
	if change != nil {
		change(extra)
	}
	s := &serviceLab{
		Cluster: newCluster(t, lab.Options{Namespaces: true, Clients: []string{client}, Extra: extra, Binary: binary, AckTimeout: 2 * time.Second}),
		t:       t, ctx: bounded(t, 4*time.Minute), dir: dir, acked: map[string]bool{}, by: map[string]int{},
	}
	t.Cleanup(func() {
		for _, n := range []string{one, two} {
			s.killServer(n)
		}
	})
	must(t, s.Network().Namespace(client).Do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.99.0.3/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(eth, addr); err != nil {
			return err
		}
		// What it once learned it believes, unless it is told otherwise.
		return os.WriteFile("/proc/sys/net/ipv4/neigh/eth0/base_reachable_time_ms", []byte("7200000"), 0o600)
	}))
	return s
}

// killServer kills the application on a node, if it runs.
func (s *serviceLab) killServer(node string) {
	var pid int
	b, err := os.ReadFile(filepath.Join(s.dir, node+".pid"))
	if err != nil {
		return
	}
	if _, err := fmt.Sscan(string(b), &pid); err == nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// order is which hooks ran, in order.
func (s *serviceLab) order() string {
	b, _ := os.ReadFile(filepath.Join(s.dir, "order"))
	return strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", ", ")
}

// holds tells whether a node has the virtual address.
func (s *serviceLab) holds(node string) bool {
	s.t.Helper()
	found := false
	must(s.t, s.Network().Namespace(node).Do(func() error {
		list, err := netlink.AddrList(nil, netlink.FAMILY_V4)
		for _, a := range list {
			found = found || a.IP.String() == virtual
		}
		return err
	}))
	return found
}

// write sends one line through the virtual address and returns who took it.
func (s *serviceLab) write(line string) (string, error) {
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Second)
	defer cancel()
	c, err := s.Network().Namespace(client).Dial(ctx, "tcp", virtual+":8080")
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(c, line); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	if err == nil && len(b) == 0 {
		err = errors.New("no answer")
	}
	return string(b), err
}

// load writes until the function that it returns is called.
func (s *serviceLab) load() func() {
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			line := fmt.Sprintf("line-%d", i)
			if who, err := s.write(line); err == nil {
				s.mu.Lock()
				s.acked[line] = true
				s.by[who]++
				s.mu.Unlock()
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return func() { cancel(); <-done }
}

// acknowledged waits until a node has taken writes of the load.
func (s *serviceLab) acknowledged(node string) {
	s.t.Helper()
	eventually(s.t, s.ctx, hang, node+" takes the load", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.by[node] < 5 {
			return fmt.Errorf("acknowledged: %v", s.by)
		}
		return nil
	})
}

// reaches waits until the client's writes are taken by a node, and checks that the
// client knows the node's hardware address and that no other has the address.
func (s *serviceLab) reaches(node, other string) {
	s.t.Helper()
	eventually(s.t, s.ctx, hang, "the client's writes reach "+node, func() error {
		who, err := s.write("probe")
		if err == nil && who != node {
			err = fmt.Errorf("%s takes them", who)
		}
		return err
	})
	if s.holds(other) || !s.holds(node) {
		s.t.Errorf("the address: %s has it: %t, %s has it: %t", node, s.holds(node), other, s.holds(other))
	}
	var want net.HardwareAddr
	must(s.t, s.Network().Namespace(node).Do(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err == nil {
			want = ifi.HardwareAddr
		}
		return err
	}))
	must(s.t, s.Network().Namespace(client).Do(func() error {
		table, err := netlink.NeighList(0, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, n := range table {
			if ip, _ := netip.AddrFromSlice(n.IP); ip.Unmap().String() == virtual && n.HardwareAddr.String() != want.String() {
				return fmt.Errorf("the client's ARP table has %s, %s is at %s", n.HardwareAddr, node, want)
			}
		}
		return nil
	}))
}

// verify expects every acknowledged line in the file of a node.
func (s *serviceLab) verify(root string) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "lines"))
	must(s.t, err)
	found := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		found[strings.TrimSpace(line)] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range s.acked {
		if !found[line] {
			s.t.Errorf("%s was acknowledged and is not in %s", line, root)
		}
	}
	if len(s.acked) == 0 {
		s.t.Error("nothing was acknowledged")
	}
}

// serviceIs waits for the state of a node's service.
func (s *serviceLab) serviceIs(node, want string) *control.Status {
	s.t.Helper()
	var st *control.Status
	eventually(s.t, s.ctx, hang, fmt.Sprintf("the service of %s is %s", node, want), func() (err error) {
		st, err = status(s.ctx, s.Cluster, node)
		if err == nil && (st.Service == nil || st.Service.State != want || st.Transition != nil && st.Transition.Result == control.Running) {
			b, _ := json.Marshal(struct{ S, T any }{st.Service, st.Transition})
			err = fmt.Errorf("it is %s", b)
		}
		return err
	})
	return st
}

func stepNames(t *control.Transition) string {
	var out []string
	for _, s := range t.Steps {
		out = append(out, s.Name)
	}
	return strings.Join(out, ", ")
}

// TestService: a planned switchover and a failover after kill -9. The client ends
// up at the new primary, and nothing that it was acknowledged is lost.
func TestService(t *testing.T) {
	s := newServiceLab(t, "", nil)
	start(t, s.ctx, s.Cluster)
	s.serviceIs(one, control.ServiceReady)
	s.reaches(one, two)
	stop := s.load()
	s.acknowledged(one)

	res, err := s.Promote(s.ctx, two, false)
	must(t, err)
	if res.Code != 0 {
		t.Fatalf("promote: %d %s", res.Code, res.Output())
	}
	last := -1
	for _, step := range []string{"ask the peers", "hand over", "apply what was received", "open read-write", "on_promote hooks", "wait for health", "add and announce the VIP"} {
		at := strings.Index(res.Stdout, " "+step)
		if at <= last {
			t.Errorf("step %q is not where it should be in\n%s", step, res.Stdout)
		}
		last = at
	}
	s.reaches(two, one)
	old := s.serviceIs(one, control.ServiceDown)
	if want := "remove the VIP, on_demote hooks, flush mapped files, let writers wait, drain, step down"; old.Transition.Kind != "handover" || stepNames(old.Transition) != want {
		t.Errorf("the old primary did %s: %s, want %s", old.Transition.Kind, stepNames(old.Transition), want)
	}
	if want := "gl-1 promote 1, gl-1 demote, gl-2 promote 2"; s.order() != want {
		t.Errorf("hooks: %s, want %s", s.order(), want)
	}
	must(t, s.WaitInSync(s.ctx, two, one))
	s.acknowledged(two)

	must(t, s.KillNode(two))
	killed := time.Now()
	promote(t, s.ctx, s.Cluster, one, false)
	s.reaches(one, two)
	t.Logf("the client's writes are taken %.1f s after the kill", time.Since(killed).Seconds())
	if s.holds(two) {
		t.Error("the killed node still has the address")
	}
	must(t, s.StartNode(s.ctx, two))
	must(t, s.WaitInSync(s.ctx, one, two))
	s.serviceIs(two, control.ServiceDown)
	if want := "gl-1 promote 1, gl-1 demote, gl-2 promote 2, gl-1 promote 3, gl-2 demote"; s.order() != want {
		t.Errorf("hooks: %s, want %s", s.order(), want)
	}
	if _, err := os.Stat(filepath.Join(s.dir, two+".pid")); err == nil {
		t.Error("what the killed primary had started runs on")
	}
	stop()
	s.verify(s.Mount(one))
	equalStores(t, s.ctx, s.Cluster, one, two)
	s.verify(s.Mount(two))
	must(t, s.StopNode(one))
	if s.holds(one) {
		t.Error("a stopped node still has the address")
	}
	if want := ", gl-1 demote"; !strings.HasSuffix(s.order(), want) {
		t.Errorf("hooks: %s, want ...%s", s.order(), want)
	}
}

// TestServiceStopped: a primary that is stopped loses the address by the kernel's
// hand; when it goes on it does not take it back, and runs its hooks.
func TestServiceStopped(t *testing.T) {
	s := newServiceLab(t, "", nil)
	start(t, s.ctx, s.Cluster)
	s.serviceIs(one, control.ServiceReady)
	stopDaemon(t, s.Cluster, one)
	promote(t, s.ctx, s.Cluster, two, true)
	s.reaches(two, one)
	signal(t, s.Cluster, one, syscall.SIGCONT)
	must(t, s.WaitRole(s.ctx, one, "standby"))
	s.serviceIs(one, control.ServiceDown)
	must(t, s.WaitInSync(s.ctx, two, one))
	if want := "gl-1 promote 1, gl-2 promote 2, gl-1 demote"; s.order() != want {
		t.Errorf("hooks: %s, want %s", s.order(), want)
	}
	s.reaches(two, one)
}

// TestServiceHealth: a service that fails shows, is told of, runs on_fault, and
// stays where it is; a hook that fails keeps the address away until it works.
func TestServiceHealth(t *testing.T) {
	s := newServiceLab(t, "", func(extra map[string]any) {
		extra["notify"] = map[string]any{"exec": []string{"echo $REPLFS_NODE $REPLFS_HOOK >>$REPLFS_MOUNT/../notices"}}
		hooks := extra["hooks"].(map[string]any)
		hooks["on_promote"] = append([]string{"test ! -e $REPLFS_MOUNT/../broken || { echo it is broken; exit 1; }"}, hooks["on_promote"].([]string)...)
	})
	notices := func(node, want string) {
		t.Helper()
		eventually(t, s.ctx, hang, "a notice "+want, func() error {
			b, err := os.ReadFile(s.Path(node, "notices"))
			if err == nil && !strings.Contains(string(b), want+"\n") {
				err = fmt.Errorf("got %q", b)
			}
			return err
		})
	}
	start(t, s.ctx, s.Cluster)
	s.serviceIs(one, control.ServiceReady)
	notices(one, "gl-1 promoted")
	s.killServer(one)
	st := s.serviceIs(one, control.ServiceUnhealthy)
	if !strings.Contains(problems(st), "the service is not healthy: tcp 127.0.0.1:8080") || st.Role != "primary" || !st.Service.VIP[0].Held {
		t.Errorf("unhealthy: %+v, %s", st.Service, problems(st))
	}
	notices(one, "gl-1 fault")
	eventually(t, s.ctx, hang, "on_fault", func() error {
		if !strings.Contains(s.order(), "gl-1 fault") {
			return errors.New(s.order())
		}
		return nil
	})

	// The other takes over, in vain at first.
	must(t, os.WriteFile(s.Path(two, "broken"), nil, 0o600))
	res, err := s.Promote(s.ctx, two, false)
	must(t, err)
	if res.Code != 1 || !strings.Contains(res.Stderr, "it is broken") {
		t.Fatalf("promote: %d %s", res.Code, res.Output())
	}
	st = s.serviceIs(two, control.ServiceFailed)
	if st.Role != "primary" || !st.Writable || s.holds(two) || s.holds(one) || !strings.Contains(problems(st), "it is broken") {
		t.Errorf("failed: %s, %+v, %s", st.Role, st.Service, problems(st))
	}
	notices(one, "gl-1 demoted")
	notices(two, "gl-2 promoted")
	must(t, os.Remove(s.Path(two, "broken")))
	promote(t, s.ctx, s.Cluster, two, false)
	s.serviceIs(two, control.ServiceReady)
	s.reaches(two, one)

	// A demotion leaves nobody with the address.
	res, err = s.Command(s.ctx, two, "demote")
	must(t, err)
	if res.Code != 0 || s.holds(two) || s.holds(one) || !strings.Contains(res.Stdout, "on_demote hooks") {
		t.Errorf("demote: %d %s", res.Code, res.Output())
	}
	text, err := s.Command(s.ctx, two, "status")
	must(t, err)
	if !strings.Contains(text.Stdout, "service down, VIP 10.99.0.10/24 on eth0 not held") || !strings.Contains(text.Stdout, "demote of ") {
		t.Errorf("status:\n%s", text.Stdout)
	}
}

// TestServiceReload: the successor of a daemon keeps the address and what runs.
func TestServiceReload(t *testing.T) {
	s := newServiceLab(t, "", nil)
	start(t, s.ctx, s.Cluster)
	s.serviceIs(one, control.ServiceReady)
	for range 3 {
		before := s.order()
		gone := false
		watch, cancel := context.WithCancel(s.ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for watch.Err() == nil && !gone {
				gone = !s.holds(one)
				time.Sleep(2 * time.Millisecond)
			}
		}()
		res, err := s.Command(s.ctx, one, "reload")
		must(t, err)
		if res.Code != 0 {
			t.Skip("this kernel cannot: ", res.Output())
		}
		s.serviceIs(one, control.ServiceReady)
		cancel()
		<-done
		if gone {
			t.Error("the address went away")
		}
		if s.order() != before {
			t.Errorf("hooks: %s", s.order())
		}
	}
	s.reaches(one, two)
	promote(t, s.ctx, s.Cluster, two, false)
	s.reaches(two, one)
}

// mortal is a replfs whose daemon is mortalDaemon.
func mortal(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	path := filepath.Join(t.TempDir(), "replfs")
	must(t, os.WriteFile(path, []byte(fmt.Sprintf("#!/bin/sh\nif [ \"$1\" = mount ]; then export %s=daemon; exec %s \"$@\"; fi\nexec %s \"$@\"\n",
		roleEnv, exe, lab.Binary(t))), 0o755))
	return path
}

// TestServiceKilled: the daemon that changes its role dies after each of the steps.
// With the next start and, where it did not come to it, another promotion, there is
// one primary with the address and the application, and nothing is lost.
func TestServiceKilled(t *testing.T) {
	s := newServiceLab(t, mortal(t), nil)
	start(t, s.ctx, s.Cluster)
	s.serviceIs(one, control.ServiceReady)
	stop := s.load()
	primary, standby := one, two
	type death struct{ of, step string }
	var deaths []death
	for _, step := range []string{"ask the peers", "hand over", "apply what was received", "open read-write", "on_promote hooks", "wait for health", "add and announce the VIP"} {
		deaths = append(deaths, death{"new", "promote/" + step})
	}
	for _, step := range []string{"remove the VIP", "on_demote hooks", "flush mapped files", "let writers wait", "drain", "step down"} {
		deaths = append(deaths, death{"old", "handover/" + step})
	}
	for _, d := range deaths {
		victim := standby
		if d.of == "old" {
			victim = primary
		}
		must(t, os.WriteFile(dieFile(s.State(victim)), []byte(d.step), 0o600))
		res, err := s.Promote(s.ctx, standby, false)
		must(t, err)
		t.Logf("%s: %s dies: promote ends with %d: %s", d.step, victim, res.Code, res.Stderr)
		if _, err := s.Process(victim).Wait(hang); err != nil {
			t.Fatalf("%s: %v", d.step, err)
		}
		// What is to be the primary, was the old one not to be asked any more?
		must(t, s.StartNode(s.ctx, victim))
		if d.of == "old" && res.Code != 0 {
			// It was still primary, or is a standby now: another promotion decides.
			eventually(t, s.ctx, hang, "promotion after "+d.step, func() error {
				res, err := s.Promote(s.ctx, standby, false)
				if err == nil && res.Code != 0 {
					err = errors.New(res.Output())
				}
				return err
			})
		} else if d.of == "new" {
			eventually(t, s.ctx, hang, "promotion after "+d.step, func() error {
				res, err := s.Promote(s.ctx, standby, false)
				if err == nil && res.Code != 0 {
					err = errors.New(res.Output())
				}
				return err
			})
		}
		primary, standby = standby, primary
		must(t, s.WaitRole(s.ctx, primary, "primary"))
		must(t, s.WaitRole(s.ctx, standby, "standby"))
		s.serviceIs(primary, control.ServiceReady)
		s.serviceIs(standby, control.ServiceDown)
		s.reaches(primary, standby)
		must(t, s.WaitInSync(s.ctx, primary, standby))
		if _, err := os.Stat(filepath.Join(s.dir, standby+".pid")); err == nil {
			t.Errorf("after %s the application still runs on the standby", d.step)
		}
	}
	stop()
	equalStores(t, s.ctx, s.Cluster, primary, standby)
	s.verify(s.Mount(one))
	s.verify(s.Mount(two))
}

// TestServiceKilledDemote: a daemon that is being demoted dies after each step. It
// is primary again, with its service, or a standby without.
func TestServiceKilledDemote(t *testing.T) {
	s := newServiceLab(t, mortal(t), nil)
	must(t, s.StartNode(s.ctx, one))
	s.serviceIs(one, control.ServiceReady)
	for _, step := range []string{"remove the VIP", "on_demote hooks", "flush mapped files", "turn read-only", "drain", "step down"} {
		must(t, os.WriteFile(dieFile(s.State(one)), []byte("demote/"+step), 0o600))
		if _, err := s.Command(s.ctx, one, "demote"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Process(one).Wait(hang); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		must(t, s.StartNode(s.ctx, one))
		if step == "step down" {
			must(t, s.WaitRole(s.ctx, one, "standby"))
			s.serviceIs(one, control.ServiceDown)
			if _, err := os.Stat(filepath.Join(s.dir, one+".pid")); err == nil || s.holds(one) {
				t.Errorf("the standby has the application (%v) or the address (%t)", err, s.holds(one))
			}
			// What it has is all that there is.
			promote(t, s.ctx, s.Cluster, one, false)
		}
		must(t, s.WaitRole(s.ctx, one, "primary"))
		s.serviceIs(one, control.ServiceReady)
		s.reaches(one, two)
	}
}

// TestServiceEarly: with when: early the address is there before the hooks run; and
// a promotion that is refused does not add it.
func TestServiceEarly(t *testing.T) {
	s := newServiceLab(t, "", func(extra map[string]any) {
		extra["vip"].(map[string]any)["when"] = "early"
		hooks := extra["hooks"].(map[string]any)
		hooks["on_promote"] = append([]string{"PATH=$PATH:/usr/sbin:/sbin; ip -4 address show dev eth0 | grep -q " + virtual}, hooks["on_promote"].([]string)...)
	})
	start(t, s.ctx, s.Cluster)
	s.serviceIs(one, control.ServiceReady)
	s.reaches(one, two)
	res, err := s.Promote(s.ctx, two, false)
	must(t, err)
	if at := strings.Index(res.Stdout, "add and announce the VIP"); res.Code != 0 || at < 0 || at > strings.Index(res.Stdout, "open read-write") {
		t.Fatalf("promote: %d %s", res.Code, res.Output())
	}
	s.serviceIs(two, control.ServiceReady)
	s.reaches(two, one)
	must(t, s.WaitInSync(s.ctx, two, one))
	// A node that has lost all, alone.
	must(t, s.KillNode(one))
	must(t, s.KillNode(two))
	must(t, os.RemoveAll(s.State(two)))
	must(t, os.MkdirAll(s.State(two), 0o700))
	must(t, s.StartNode(s.ctx, two))
	must(t, s.WaitRole(s.ctx, two, "standby"))
	refused(t, s.ctx, s.Cluster, two, "never held data")
	if st, err := status(s.ctx, s.Cluster, two); err != nil || st.Service.VIP[0].Held || st.Transition.Result != control.Failed {
		t.Errorf("a node that was refused: %+v, %v", st, err)
	}
}
