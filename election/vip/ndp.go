package vip

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"
)

// listenNDP speaks neighbour discovery from the link-local address of an
// interface.
func listenNDP(ifi *net.Interface) (*ndp.Conn, error) {
	c, _, err := ndp.Listen(ifi, ndp.LinkLocal)
	if err != nil {
		return nil, fmt.Errorf("speak neighbour discovery on %s, which needs a link-local address: %w", ifi.Name, err)
	}
	return c, nil
}

// announceNDP tells everybody on the link where addr is (RFC 4861, 7.2.6).
func announceNDP(c *ndp.Conn, mac net.HardwareAddr, addr netip.Addr) error {
	return c.WriteTo(&ndp.NeighborAdvertisement{
		Override: true, TargetAddress: addr,
		Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: mac}},
	}, nil, netip.MustParseAddr("ff02::1"))
}

// probeNDP asks whether anybody else has addr, and returns the hardware address
// of who answers, nil for nobody. It takes the place of the kernel's duplicate
// address detection, for which the address would have to be there, unusable, for
// a second.
func probeNDP(ctx context.Context, ifi *net.Interface, addr netip.Addr, own func(net.HardwareAddr) bool) (net.HardwareAddr, error) {
	c, err := listenNDP(ifi)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeNeighborAdvertisement)
	if err := c.SetICMPFilter(&filter); err != nil {
		return nil, fmt.Errorf("filter neighbour discovery: %w", err)
	}
	group, err := ndp.SolicitedNodeMulticast(addr)
	if err != nil {
		return nil, err
	}
	ask := &ndp.NeighborSolicitation{
		TargetAddress: addr,
		Options:       []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: ifi.HardwareAddr}},
	}
	return probing(ctx, c.SetReadDeadline,
		func() error { return c.WriteTo(ask, nil, group) },
		func() (net.HardwareAddr, error) {
			m, _, from, err := c.ReadFrom()
			if err != nil {
				return nil, err
			}
			na, ok := m.(*ndp.NeighborAdvertisement)
			if !ok || na.TargetAddress != addr {
				return nil, nil
			}
			for _, o := range na.Options {
				if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == ndp.Target {
					if own(l.Addr) {
						return nil, nil
					}
					return l.Addr, nil
				}
			}
			// Whoever it is did not say its hardware address; it is not us, who
			// do not have the address.
			return net.HardwareAddr("(" + from.String() + ")"), nil
		})
}
