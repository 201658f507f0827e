package vip

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// protocol marks an address as ours for the kernel (IFA_PROTO, Linux 5.18). The
// netlink library does not know the attribute, so messages are built here.
const protocol = 0x52

const (
	ifaProto      = 11 // IFA_PROTO, which golang.org/x/sys does not have
	cacheInfoSize = 16 // of struct ifa_cacheinfo
)

// present is an address as the kernel has it.
type present struct {
	prefix netip.Prefix
	index  int // of the interface
	flags  uint32
	proto  uint8 // 0: none, or a kernel that knows no marks
	// valid is the remaining lifetime; math.MaxUint32 means for ever.
	valid uint32
}

func (p present) forever() bool { return p.valid == math.MaxUint32 }

// listAddresses returns all addresses of the network namespace.
func listAddresses() ([]present, error) {
	// A dump that a change interrupted may lack something: it is made again.
	for range 10 {
		req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
		if errors.Is(err, nl.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list the addresses: %w", err)
		}
		out := make([]present, 0, len(msgs))
		for _, m := range msgs {
			p, ok, err := parseAddress(m)
			if err != nil {
				return nil, err
			}
			if ok {
				out = append(out, p)
			}
		}
		return out, nil
	}
	return nil, errors.New("list the addresses: they change all the time")
}

// parseAddress reads an RTM_NEWADDR message; ok is false for other families.
func parseAddress(m []byte) (p present, ok bool, err error) {
	if len(m) < unix.SizeofIfAddrmsg {
		return p, false, errors.New("the kernel's message about an address is too short")
	}
	msg := nl.DeserializeIfAddrmsg(m)
	if msg.Family != unix.AF_INET && msg.Family != unix.AF_INET6 {
		return p, false, nil
	}
	attrs, err := nl.ParseRouteAttr(m[msg.Len():])
	if err != nil {
		return p, false, fmt.Errorf("the kernel's message about an address: %w", err)
	}
	p = present{index: int(msg.Index), flags: uint32(msg.Flags), valid: math.MaxUint32}
	var addr, local netip.Addr
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFA_ADDRESS:
			addr, _ = netip.AddrFromSlice(a.Value)
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(a.Value)
		case unix.IFA_FLAGS:
			if len(a.Value) >= 4 {
				p.flags = nl.NativeEndian().Uint32(a.Value)
			}
		case ifaProto:
			if len(a.Value) >= 1 {
				p.proto = a.Value[0]
			}
		case unix.IFA_CACHEINFO:
			if len(a.Value) >= cacheInfoSize {
				p.valid = nl.DeserializeIfaCacheInfo(a.Value).Valid
			}
		}
	}
	// With a peer, the local address is the machine's own.
	if local.IsValid() {
		addr = local
	}
	if !addr.IsValid() {
		return p, false, nil
	}
	p.prefix = netip.PrefixFrom(addr, int(msg.Prefixlen))
	return p, true, nil
}

// setAddress adds an address, or gives one that is there a new lifetime.
func setAddress(a Address, index int, flags uint32, lifetime time.Duration) error {
	req := addressRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, a, index)
	addr := a.Prefix.Addr()
	if addr.Is4() {
		if b, ok := broadcast(a.Prefix); ok {
			req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, b.AsSlice()))
		}
		if a.Label != "" {
			req.AddData(nl.NewRtAttr(unix.IFA_LABEL, nl.ZeroTerminated(a.label())))
		}
	}
	seconds := uint32(math.Ceil(lifetime.Seconds()))
	preferred := seconds
	if addr.Is6() {
		// Deprecated: it answers, but the machine's own connections do not choose
		// it as their source, and so do not break when it goes.
		preferred = 0
	}
	cache := nl.IfaCacheInfo{IfaCacheinfo: unix.IfaCacheinfo{Valid: seconds, Prefered: preferred}} //nolint:misspell // the kernel's name
	req.AddData(nl.NewRtAttr(unix.IFA_CACHEINFO, cache.Serialize()))
	if flags != 0 {
		req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(flags)))
	}
	// Kernels that do not know the mark ignore it.
	req.AddData(nl.NewRtAttr(ifaProto, []byte{protocol}))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set the address %s of %s: %w", a.Prefix, a.Interface, err)
	}
	return nil
}

// deleteAddress removes an address; one that is not there is no error.
func deleteAddress(a Address, index int) error {
	req := addressRequest(unix.RTM_DELADDR, 0, a, index)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the address %s of %s: %w", a.Prefix, a.Interface, err)
	}
	return nil
}

func addressRequest(kind, flags int, a Address, index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	family := unix.AF_INET
	if a.Prefix.Addr().Is6() {
		family = unix.AF_INET6
	}
	msg := nl.NewIfAddrmsg(family)
	msg.Prefixlen, msg.Index = uint8(a.Prefix.Bits()), uint32(index)
	if kind == unix.RTM_NEWADDR && family == unix.AF_INET {
		msg.Scope = uint8(a.Scope)
	}
	req.AddData(msg)
	raw := a.Prefix.Addr().AsSlice()
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, raw))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, raw))
	return req
}

// broadcast is the last address of an IPv4 network that has room for one.
func broadcast(p netip.Prefix) (netip.Addr, bool) {
	if p.Bits() > 30 {
		return netip.Addr{}, false
	}
	b := p.Addr().As4()
	for i := range b {
		if left := p.Bits() - 8*i; left <= 0 {
			b[i] = 0xff
		} else if left < 8 {
			b[i] |= 0xff >> left
		}
	}
	return netip.AddrFrom4(b), true
}
