package vip

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/replfs/replfs/test/lab"
)

// hang is when something that should happen is taken not to.
const hang = 60 * time.Second

var (
	four = Address{Prefix: netip.MustParsePrefix("10.99.0.10/24"), Interface: "eth0", Label: "vip"}
	six  = Address{Prefix: netip.MustParsePrefix("fd99::10/64"), Interface: "eth0"}
)

// site is three machines on a switch: two that may hold the addresses, and a
// client that asks nobody twice where an address is.
type site struct {
	t   *testing.T
	nw  *lab.Network
	dir string
}

func newSite(t *testing.T) *site {
	t.Helper()
	lab.NeedRoot(t)
	t.Parallel()
	nw, err := lab.NewNetwork("a", "b", "client")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nw.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &site{t: t, nw: nw, dir: t.TempDir()}
	for i, name := range []string{"a", "b", "client"} {
		s.in(name, func() error {
			eth, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			for _, text := range []string{fmt.Sprintf("10.99.0.%d/24", i+1), fmt.Sprintf("fd99::%d/64", i+1)} {
				addr, err := netlink.ParseAddr(text)
				if err != nil {
					return err
				}
				addr.Flags = unix.IFA_F_NODAD
				if err := netlink.AddrAdd(eth, addr); err != nil {
					return err
				}
			}
			return nil
		})
		s.eventually("the link-local address of "+name, func() error {
			for _, p := range s.addresses(name) {
				if p.prefix.Addr().IsLinkLocalUnicast() && p.flags&unix.IFA_F_TENTATIVE == 0 {
					return nil
				}
			}
			return fmt.Errorf("it has %v", s.addresses(name))
		})
	}
	// What it once learned it believes, unless it is told otherwise.
	s.in("client", func() error {
		for _, family := range []string{"ipv4", "ipv6"} {
			path := "/proc/sys/net/" + family + "/neigh/eth0/base_reachable_time_ms"
			if err := os.WriteFile(path, []byte("7200000"), 0o600); err != nil {
				return err
			}
		}
		return nil
	})
	return s
}

func (s *site) in(name string, f func() error) {
	s.t.Helper()
	if err := s.nw.Namespace(name).Do(f); err != nil {
		s.t.Fatalf("in %s: %v", name, err)
	}
}

func (s *site) eventually(what string, check func() error) {
	s.t.Helper()
	var err error
	for begun := time.Now(); time.Since(begun) < hang; time.Sleep(20 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	s.t.Fatalf("%s: not within %v: %v", what, hang, err)
}

func (s *site) addresses(name string) (out []present) {
	s.t.Helper()
	s.in(name, func() (err error) {
		out, err = listAddresses()
		return err
	})
	return out
}

// find returns an address of a machine.
func (s *site) find(name string, a Address) *present {
	s.t.Helper()
	for _, p := range s.addresses(name) {
		if p.prefix == a.Prefix {
			return &p
		}
	}
	return nil
}

func (s *site) state(name string) string { return filepath.Join(s.dir, name+".json") }

// start runs a holder.
func (s *site) start(name string, h holder) *lab.Process {
	s.t.Helper()
	h.Name = name
	if h.Addresses == nil {
		h.Addresses = []Address{four, six}
	}
	if h.StateFile == "" {
		h.StateFile = s.state(name)
	}
	text, err := json.Marshal(h)
	if err != nil {
		s.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	p, err := lab.StartProcess(lab.Command{
		Name: "holder " + name, Path: exe, Env: []string{holderEnv + "=" + string(text)}, Namespace: s.nw.Namespace(name),
	}, filepath.Join(s.dir, fmt.Sprintf("%s-%d.log", name, time.Now().UnixNano())))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("%s said:\n%s", name, p.Tail(30))
		}
		if err := p.Kill(); err != nil {
			s.t.Error(err)
		}
	})
	return p
}

// says waits for a line of a holder.
func (s *site) says(p *lab.Process, want string) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("a line %q", want), func() error {
		b, err := os.ReadFile(p.Log())
		if err == nil && !strings.Contains(string(b), want) {
			err = fmt.Errorf("it says\n%s", b)
		}
		return err
	})
}

func (s *site) signal(p *lab.Process, sig syscall.Signal) {
	s.t.Helper()
	if err := p.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// answered returns who answers to an address, as the client sees it.
func (s *site) answered(a Address) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
	defer cancel()
	c, err := s.nw.Namespace("client").Dial(ctx, "tcp", net.JoinHostPort(a.Prefix.Addr().String(), "7000"))
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return string(b), err
}

// reaches waits until the client finds a machine at the addresses, and checks
// that it knows the hardware address.
func (s *site) reaches(name string) {
	s.t.Helper()
	for _, a := range []Address{four, six} {
		s.eventually(fmt.Sprintf("%s answers to %s", name, a.Prefix), func() error {
			who, err := s.answered(a)
			if err == nil && who != name {
				err = fmt.Errorf("%q answers", who)
			}
			return err
		})
		var want net.HardwareAddr
		s.in(name, func() error {
			ifi, err := net.InterfaceByName("eth0")
			want = ifi.HardwareAddr
			return err
		})
		s.in("client", func() error {
			eth, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			table, err := netlink.NeighList(eth.Attrs().Index, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, n := range table {
				if ip, _ := netip.AddrFromSlice(n.IP); ip.Unmap() == a.Prefix.Addr() {
					if n.HardwareAddr.String() != want.String() {
						return fmt.Errorf("the client has %s at %s, it is at %s", a.Prefix, n.HardwareAddr, want)
					}
					return nil
				}
			}
			return fmt.Errorf("the client does not know %s", a.Prefix)
		})
	}
}

// TestMove: the addresses go from one machine to the other, and the client, which
// is sure where they are, follows.
func TestMove(t *testing.T) {
	s := newSite(t)
	a := s.start("a", holder{Lifetime: 60 * time.Second})
	s.says(a, "acquired: [true true]")
	s.reaches("a")
	for _, addr := range []Address{four, six} {
		p := s.find("a", addr)
		if p == nil || p.proto != protocol || p.forever() || p.valid > 60 || p.flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("%s: %+v", addr.Prefix, p)
		}
	}
	s.in("a", func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		list, err := netlink.AddrList(eth, netlink.FAMILY_V4)
		for _, l := range list {
			if l.IP.String() == "10.99.0.10" && l.Label != "eth0:vip" {
				t.Errorf("the label is %q", l.Label)
			}
		}
		return err
	})
	s.signal(a, syscall.SIGTERM)
	s.says(a, "released: [false false]")
	if s.find("a", four) != nil || s.find("a", six) != nil {
		t.Error("an address is still there")
	}
	b := s.start("b", holder{Lifetime: 60 * time.Second})
	s.says(b, "acquired: [true true]")
	s.reaches("b")
}

// TestRenewal: what is renewed stays, and the IPv6 route of the machine's own
// network does not get the lifetime.
func TestRenewal(t *testing.T) {
	s := newSite(t)
	a := s.start("a", holder{Lifetime: 3 * time.Second})
	s.says(a, "acquired: [true true]")
	for begun := time.Now(); time.Since(begun) < 5*time.Second; time.Sleep(100 * time.Millisecond) {
		if s.find("a", four) == nil || s.find("a", six) == nil {
			// A loaded machine may keep the holder from renewing: then it says so.
			if b, _ := os.ReadFile(a.Log()); strings.Contains(string(b), "lost") {
				t.Skip("this machine is too busy: the holder stood still")
			}
			t.Fatal("an address went away though it is renewed")
		}
	}
	routes, err := lab.RunOK(t.Context(), lab.Command{
		Name: "ip route", Path: "/bin/sh", Args: []string{"-c", "PATH=$PATH:/usr/sbin:/sbin; ip -6 route show fd99::/64"}, Namespace: s.nw.Namespace("a"),
	})
	if err != nil || !strings.Contains(routes, "dev eth0") || strings.Contains(routes, "expires") {
		t.Errorf("the route of the machine's own network: %q, %v", routes, err)
	}
}

// TestStopped: a process that is stopped loses the addresses, and does not take
// them back by itself when it goes on.
func TestStopped(t *testing.T) {
	s := newSite(t)
	a := s.start("a", holder{Lifetime: 2 * time.Second})
	s.says(a, "acquired: [true true]")
	s.signal(a, syscall.SIGSTOP)
	s.eventually("the addresses of a stopped process are gone", func() error {
		if s.find("a", four) != nil || s.find("a", six) != nil {
			return fmt.Errorf("they are there: %v", s.addresses("a"))
		}
		return nil
	})
	b := s.start("b", holder{Lifetime: 60 * time.Second})
	s.says(b, "acquired: [true true]")
	s.signal(a, syscall.SIGCONT)
	s.says(a, "lost, expired: true")
	s.reaches("b")
	if s.find("a", four) != nil || s.find("a", six) != nil {
		t.Error("the stopped process took an address back")
	}
}

// TestKilled: a process that is killed loses the addresses, by the kernel's hand
// or, at once, by that of the next one. Who takes its place keeps them.
func TestKilled(t *testing.T) {
	s := newSite(t)
	a := s.start("a", holder{Lifetime: 2 * time.Second})
	s.says(a, "acquired: [true true]")
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	s.eventually("the addresses of a killed process are gone", func() error {
		if s.find("a", four) != nil || s.find("a", six) != nil {
			return fmt.Errorf("they are there: %v", s.addresses("a"))
		}
		return nil
	})
	a = s.start("a", holder{Lifetime: 600 * time.Second})
	s.says(a, "acquired: [true true]")
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	if s.find("a", four) == nil || s.find("a", six) == nil {
		t.Fatal("an address went with its process")
	}
	adopted := s.start("a", holder{Lifetime: 600 * time.Second, Adopt: true})
	s.says(adopted, "recovered, holding: [true true]")
	if err := adopted.Kill(); err != nil {
		t.Fatal(err)
	}
	s.says(s.start("a", holder{Recover: true}), "recovered, holding: [false false]")
	if s.find("a", four) != nil || s.find("a", six) != nil {
		t.Error("the next process left an address")
	}
}

// TestForeign: what somebody else has configured is refused and stays.
func TestForeign(t *testing.T) {
	s := newSite(t)
	s.in("a", func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, a := range []Address{four, six} {
			addr, err := netlink.ParseAddr(a.Prefix.String())
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(eth, addr); err != nil {
				return err
			}
		}
		return nil
	})
	// Not even if this node once had it.
	if err := writeOwned(s.state("a"), []owned{{"eth0", four.Prefix, true}, {"eth0", six.Prefix, false}}); err != nil {
		t.Fatal(err)
	}
	a := s.start("a", holder{Lifetime: 2 * time.Second, Force: true})
	s.says(a, "the virtual address 10.99.0.10 is on eth0 already, and replfs did not add it")
	s.says(a, "the virtual address fd99::10 is on eth0 already")
	s.says(a, "acquired: [false false]")
	s.signal(a, syscall.SIGTERM)
	s.says(a, "released: [false false]")
	for _, addr := range []Address{four, six} {
		if p := s.find("a", addr); p == nil || !p.forever() {
			t.Errorf("%s was touched: %+v", addr.Prefix, p)
		}
	}
}

// TestDuplicate: an address that another machine answers to is not taken, unless
// by force; and then the client goes to who took it last.
func TestDuplicate(t *testing.T) {
	s := newSite(t)
	a := s.start("a", holder{Lifetime: 60 * time.Second})
	s.says(a, "acquired: [true true]")
	s.reaches("a")
	b := s.start("b", holder{Lifetime: 60 * time.Second})
	s.says(b, "answers to the virtual address 10.99.0.10")
	s.says(b, "answers to the virtual address fd99::10")
	s.says(b, "acquired: [false false]")
	s.reaches("a")
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	b = s.start("b", holder{Lifetime: 60 * time.Second, Force: true})
	s.says(b, "acquired: [true true]")
	s.reaches("b")
}

// TestRemovedByHand: somebody removes an address that is held.
func TestRemovedByHand(t *testing.T) {
	s := newSite(t)
	a := s.start("a", holder{Lifetime: 60 * time.Second, Addresses: []Address{four}})
	s.says(a, "acquired: [true]")
	p := s.find("a", four)
	s.in("a", func() error { return deleteAddress(four, p.index) })
	s.says(a, "lost, expired: false")
}

// TestAnnouncements: both forms, several times.
func TestAnnouncements(t *testing.T) {
	s := newSite(t)
	var c *arpConn
	s.in("client", func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c, err = listenARP(ifi)
		return err
	})
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(hang)); err != nil {
		t.Fatal(err)
	}
	a := s.start("a", holder{Lifetime: 60 * time.Second, Addresses: []Address{four}})
	s.says(a, "acquired: [true]")
	seen := map[uint16]int{}
	for seen[arpRequest] < len(announceAt) || seen[arpReply] < len(announceAt) {
		buf := make([]byte, 128)
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			t.Fatalf("seen %v: %v", seen, err)
		}
		if p, err := parseARP(buf[:n]); err == nil && p.senderAddr == four.Prefix.Addr() && p.tarAddr == p.senderAddr {
			seen[p.op]++
		}
	}
}
