package vip

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

const (
	arpRequest = 1
	arpReply   = 2
	arpSize    = 28
)

var ethernetBroadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// arpPacket is an ARP packet for IPv4 over Ethernet (RFC 826).
type arpPacket struct {
	op                  uint16
	senderMAC, tarMAC   net.HardwareAddr
	senderAddr, tarAddr netip.Addr
}

func (p arpPacket) marshal() []byte {
	b := make([]byte, arpSize)
	binary.BigEndian.PutUint16(b, 1) // Ethernet
	binary.BigEndian.PutUint16(b[2:], unix.ETH_P_IP)
	b[4], b[5] = 6, 4
	binary.BigEndian.PutUint16(b[6:], p.op)
	copy(b[8:14], p.senderMAC)
	copy(b[14:18], p.senderAddr.AsSlice())
	copy(b[18:24], p.tarMAC)
	copy(b[24:28], p.tarAddr.AsSlice())
	return b
}

var errNotARP = errors.New("not an ARP packet for IPv4 over Ethernet")

// parseARP reads what follows the Ethernet header; padding may follow.
func parseARP(b []byte) (arpPacket, error) {
	if len(b) < arpSize || binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != unix.ETH_P_IP || b[4] != 6 || b[5] != 4 {
		return arpPacket{}, errNotARP
	}
	return arpPacket{
		op:         binary.BigEndian.Uint16(b[6:]),
		senderMAC:  net.HardwareAddr(append([]byte(nil), b[8:14]...)),
		senderAddr: netip.AddrFrom4([4]byte(b[14:18])),
		tarMAC:     net.HardwareAddr(append([]byte(nil), b[18:24]...)),
		tarAddr:    netip.AddrFrom4([4]byte(b[24:28])),
	}, nil
}

// arpConn speaks ARP on one interface.
type arpConn struct {
	*packet.Conn
	mac net.HardwareAddr
}

func listenARP(ifi *net.Interface) (*arpConn, error) {
	c, err := packet.Listen(ifi, packet.Datagram, unix.ETH_P_ARP, nil)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on %s: %w", ifi.Name, err)
	}
	return &arpConn{c, ifi.HardwareAddr}, nil
}

func (c *arpConn) broadcast(p arpPacket) error {
	_, err := c.WriteTo(p.marshal(), &packet.Addr{HardwareAddr: ethernetBroadcast})
	return err
}

// announce tells everybody on the link where addr is (RFC 5227, 2.3), as a request
// and as a reply: some listen to one of the two only.
func (c *arpConn) announce(addr netip.Addr) error {
	req := arpPacket{op: arpRequest, senderMAC: c.mac, tarMAC: make(net.HardwareAddr, 6), senderAddr: addr, tarAddr: addr}
	rep := arpPacket{op: arpReply, senderMAC: c.mac, tarMAC: ethernetBroadcast, senderAddr: addr, tarAddr: addr}
	return errors.Join(c.broadcast(req), c.broadcast(rep))
}

// probeARP asks whether anybody else has addr (RFC 5227, 2.1), and returns the
// hardware address of who answers, nil for nobody.
func probeARP(ctx context.Context, ifi *net.Interface, addr netip.Addr, own func(net.HardwareAddr) bool) (net.HardwareAddr, error) {
	c, err := listenARP(ifi)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	// The sender's address is left open, so that nobody learns a wrong one.
	probe := arpPacket{op: arpRequest, senderMAC: c.mac, tarMAC: make(net.HardwareAddr, 6), senderAddr: netip.IPv4Unspecified(), tarAddr: addr}
	buf := make([]byte, 128)
	return probing(ctx, c.SetReadDeadline,
		func() error { return c.broadcast(probe) },
		func() (net.HardwareAddr, error) {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				return nil, err
			}
			p, err := parseARP(buf[:n])
			if err != nil || p.senderAddr != addr || own(p.senderMAC) {
				return nil, nil
			}
			return p.senderMAC, nil
		})
}

const (
	probes     = 3
	probeEvery = 100 * time.Millisecond
)

// probing asks a few times and returns the first answer that read takes for one.
func probing(ctx context.Context, deadline func(time.Time) error, ask func() error, read func() (net.HardwareAddr, error)) (net.HardwareAddr, error) {
	for range probes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := ask(); err != nil {
			return nil, fmt.Errorf("ask who has the address: %w", err)
		}
		if err := deadline(time.Now().Add(probeEvery)); err != nil {
			return nil, err
		}
		for {
			mac, err := read()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if mac != nil || err != nil {
				return mac, err
			}
		}
	}
	return nil, nil
}
