package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// nodeInterface is the name of a node's only interface besides lo.
const nodeInterface = "eth0"

// nowhere is a hardware address that nobody on a lab's network has.
var nowhere = net.HardwareAddr{0x02, 0x00, 0x00, 0x00, 0xde, 0xad}

// networks counts the networks of this process; each gets a subnet of its own,
// so that a message names one network only.
var networks atomic.Uint32

// Namespace is the network namespace of one node. It has no name in /run/netns:
// it ends with the last process and file descriptor that uses it, so a test
// that dies leaves neither namespace nor veth behind.
type Namespace struct {
	name   string
	addr   net.IP
	mac    net.HardwareAddr
	handle netns.NsHandle
	port   string // the switch's end of the node's cable
}

// Name is the node the namespace belongs to.
func (n *Namespace) Name() string { return n.name }

// Addr is the node's IPv4 address.
func (n *Namespace) Addr() string { return n.addr.String() }

// Do runs fn on a thread that is inside the namespace. Sockets made by fn stay
// in it; goroutines started by fn do not.
func (n *Namespace) Do(fn func() error) error { return onFreshThread(n, fn) }

// Dial connects to an address as a process inside the namespace would.
func (n *Namespace) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := n.Do(func() error {
		var err error
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("from %s: %w", n.name, err)
	}
	return conn, nil
}

// Network is a set of network namespaces, joined by a bridge that has a
// namespace of its own. The host's network shows nothing of it.
type Network struct {
	hub   netns.NsHandle
	nodes map[string]*Namespace
}

// NewNetwork makes one namespace for each name, with the addresses 10.77.N.1,
// 10.77.N.2 and so on, all of which can reach each other.
func NewNetwork(names ...string) (_ *Network, err error) {
	if len(names) == 0 || len(names) > 250 {
		return nil, fmt.Errorf("a network has 1 to 250 nodes, not %d", len(names))
	}
	subnet := byte((networks.Add(1)-1)%254 + 1)
	nw := &Network{hub: netns.None(), nodes: make(map[string]*Namespace)}
	defer func() {
		if err != nil {
			err = errors.Join(err, nw.Close())
		}
	}()
	if nw.hub, err = newNamespace(); err != nil {
		return nil, err
	}
	hub, err := netlink.NewHandleAt(nw.hub)
	if err != nil {
		return nil, fmt.Errorf("open netlink in the switch: %w", err)
	}
	defer hub.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "hub"}}
	if err := hub.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("add a bridge (is the kernel's bridge module there?): %w", err)
	}
	if err := hub.LinkSetUp(bridge); err != nil {
		return nil, fmt.Errorf("set the bridge up: %w", err)
	}
	for i, name := range names {
		if nw.nodes[name] != nil {
			return nil, fmt.Errorf("two nodes are named %s", name)
		}
		ns := &Namespace{
			name:   name,
			addr:   net.IPv4(10, 77, subnet, byte(i+1)).To4(),
			handle: netns.None(),
			port:   fmt.Sprintf("port%d", i+1),
		}
		nw.nodes[name] = ns
		if ns.handle, err = newNamespace(); err != nil {
			return nil, err
		}
		if err := ns.connect(hub, bridge); err != nil {
			return nil, fmt.Errorf("connect %s: %w", name, err)
		}
	}
	return nw, nil
}

// newNamespace makes a network namespace without entering it.
func newNamespace() (netns.NsHandle, error) {
	handle := netns.None()
	done := make(chan error, 1)
	go func() {
		// Not unlocked: the thread stays in the new namespace, so it must go.
		runtime.LockOSThread()
		var err error
		handle, err = netns.New()
		done <- err
	}()
	if err := <-done; err != nil {
		return netns.None(), fmt.Errorf("make a network namespace (root needed): %w", err)
	}
	return handle, nil
}

// connect lays the cable between the namespace and the bridge.
func (n *Namespace) connect(hub *netlink.Handle, bridge netlink.Link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.port
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: nodeInterface, PeerNamespace: netlink.NsFd(n.handle)}
	if err := hub.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	port, err := hub.LinkByName(n.port)
	if err != nil {
		return fmt.Errorf("find %s: %w", n.port, err)
	}
	if err := hub.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("plug %s into the bridge: %w", n.port, err)
	}
	if err := hub.LinkSetUp(port); err != nil {
		return fmt.Errorf("set %s up: %w", n.port, err)
	}
	return n.withNetlink(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		if err := h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
		eth, err := h.LinkByName(nodeInterface)
		if err != nil {
			return fmt.Errorf("find %s: %w", nodeInterface, err)
		}
		n.mac = eth.Attrs().HardwareAddr
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: n.addr, Mask: net.CIDRMask(24, 32)}}
		if err := h.AddrAdd(eth, addr); err != nil {
			return fmt.Errorf("add address %s: %w", addr.IPNet, err)
		}
		if err := h.LinkSetUp(eth); err != nil {
			return fmt.Errorf("set %s up: %w", nodeInterface, err)
		}
		return nil
	})
}

// withNetlink runs fn with a netlink handle inside the namespace.
func (n *Namespace) withNetlink(fn func(*netlink.Handle) error) error {
	h, err := netlink.NewHandleAt(n.handle)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", n.name, err)
	}
	defer h.Close()
	return fn(h)
}

// Namespace returns a node's namespace, or nil when there is no such node.
func (nw *Network) Namespace(name string) *Namespace { return nw.nodes[name] }

// Cut makes two nodes unreachable for each other, without a word to either:
// packets vanish, connections stay open. Other nodes are not affected.
func (nw *Network) Cut(a, b string) error {
	return errors.Join(nw.CutOneWay(a, b), nw.CutOneWay(b, a))
}

// CutOneWay makes everything vanish that from sends to to.
func (nw *Network) CutOneWay(from, to string) error {
	// A permanent neighbour entry with an address nobody has: the packets leave
	// the node and nobody takes them, as behind a broken switch.
	return nw.setNeighbour(from, to, nowhere, netlink.NUD_PERMANENT)
}

// Heal undoes Cut and CutOneWay between two nodes.
func (nw *Network) Heal(a, b string) error {
	x, y := nw.nodes[a], nw.nodes[b]
	if x == nil || y == nil {
		return fmt.Errorf("no node %s or %s in this network", a, b)
	}
	return errors.Join(
		nw.setNeighbour(a, b, y.mac, netlink.NUD_REACHABLE),
		nw.setNeighbour(b, a, x.mac, netlink.NUD_REACHABLE),
	)
}

// setNeighbour tells one node at which hardware address another one is.
func (nw *Network) setNeighbour(from, to string, mac net.HardwareAddr, state int) error {
	src, dst := nw.nodes[from], nw.nodes[to]
	if src == nil || dst == nil || src == dst {
		return fmt.Errorf("no link from %s to %s in this network", from, to)
	}
	return src.withNetlink(func(h *netlink.Handle) error {
		eth, err := h.LinkByName(nodeInterface)
		if err != nil {
			return fmt.Errorf("find %s of %s: %w", nodeInterface, from, err)
		}
		neigh := &netlink.Neigh{
			LinkIndex: eth.Attrs().Index, Family: netlink.FAMILY_V4,
			State: state, IP: dst.addr, HardwareAddr: mac,
		}
		if err := h.NeighSet(neigh); err != nil {
			return fmt.Errorf("set the neighbour %s of %s: %w", to, from, err)
		}
		return nil
	})
}

// Unplug pulls a node's network cable: its interface loses the carrier.
func (nw *Network) Unplug(name string) error { return nw.setPort(name, false) }

// Plug undoes Unplug.
func (nw *Network) Plug(name string) error { return nw.setPort(name, true) }

// setPort sets the switch's end of a node's cable up or down.
func (nw *Network) setPort(name string, up bool) error {
	n := nw.nodes[name]
	if n == nil {
		return fmt.Errorf("no node %s in this network", name)
	}
	h, err := netlink.NewHandleAt(nw.hub)
	if err != nil {
		return fmt.Errorf("open netlink in the switch: %w", err)
	}
	defer h.Close()
	port, err := h.LinkByName(n.port)
	if err != nil {
		return fmt.Errorf("find the port of %s: %w", name, err)
	}
	set := h.LinkSetDown
	if up {
		set = h.LinkSetUp
	}
	if err := set(port); err != nil {
		return fmt.Errorf("set the port of %s: %w", name, err)
	}
	return nil
}

// Reachable opens a TCP connection from one node to a listener that it starts
// on another, sends a byte there and back, and says why that failed.
func (nw *Network) Reachable(ctx context.Context, from, to string) error {
	src, dst := nw.nodes[from], nw.nodes[to]
	if src == nil || dst == nil {
		return fmt.Errorf("no node %s or %s in this network", from, to)
	}
	var ln net.Listener
	if err := dst.Do(func() (err error) {
		ln, err = (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(dst.Addr(), "0"))
		return err
	}); err != nil {
		return fmt.Errorf("listen on %s: %w", to, err)
	}
	defer func() { _ = ln.Close() }()
	go echoOnce(ln)
	conn, err := src.Dial(ctx, "tcp", ln.Addr().String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return fmt.Errorf("set a deadline: %w", err)
		}
	}
	return pingPong(conn)
}

// echoOnce answers the first byte of the first connection.
func echoOnce(ln net.Listener) {
	conn, err := ln.Accept()
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	b := make([]byte, 1)
	// An error here shows as a missing answer on the other side.
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(b); err == nil {
		_, _ = conn.Write(b)
	}
}

// pingPong sends a byte and waits for it to come back.
func pingPong(conn net.Conn) error {
	if _, err := conn.Write([]byte{42}); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	b := make([]byte, 1)
	if _, err := conn.Read(b); err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	return nil
}

// Close gives the namespaces up. The kernel removes each one with its
// interfaces once no process is left in it.
func (nw *Network) Close() error {
	var errs []error
	for _, n := range nw.nodes {
		if n.handle.IsOpen() {
			errs = append(errs, n.handle.Close())
		}
	}
	if nw.hub.IsOpen() {
		errs = append(errs, nw.hub.Close())
	}
	return errors.Join(errs...)
}
