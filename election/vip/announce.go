package vip

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/mdlayher/ndp"
	"go.uber.org/zap"
)

// announceAt is when the new place of an address is announced, counted from the
// moment it was added: a packet may be lost, and a switch may learn late.
var announceAt = []time.Duration{0, 200 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second}

// announcement tells a link where addresses are.
type announcement struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// announce sends the first announcement before it returns, the rest in the
// background until stop.
func announce(addrs []Address, log *zap.Logger) *announcement {
	ctx, cancel := context.WithCancel(context.Background())
	a := &announcement{cancel: cancel, done: make(chan struct{})}
	begun := time.Now()
	var speakers []speaker
	for _, addr := range addrs {
		s, err := newSpeaker(addr)
		if err == nil {
			err = s.say()
		}
		if err != nil {
			log.Warn("cannot announce a virtual address", zap.Stringer("address", addr.Prefix), zap.String("interface", addr.Interface), zap.Error(err))
		}
		if s.say != nil {
			speakers = append(speakers, s)
		}
	}
	go func() {
		defer close(a.done)
		for _, s := range speakers {
			defer s.close()
		}
		for _, at := range announceAt[1:] {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Until(begun.Add(at))):
			}
			for _, s := range speakers {
				if err := s.say(); err != nil {
					log.Warn("cannot repeat the announcement of a virtual address", zap.Error(err))
				}
			}
		}
	}()
	return a
}

// stop ends the announcements: after it none is sent.
func (a *announcement) stop() {
	if a != nil {
		a.cancel()
		<-a.done
	}
}

// speaker announces one address.
type speaker struct {
	say   func() error
	close func()
}

func newSpeaker(a Address) (speaker, error) {
	ifi, err := net.InterfaceByName(a.Interface)
	if err != nil {
		return speaker{}, err
	}
	addr := a.Prefix.Addr()
	if addr.Is4() {
		c, err := listenARP(ifi)
		if err != nil {
			return speaker{}, err
		}
		return speaker{func() error { return c.announce(addr) }, func() { _ = c.Close() }}, nil
	}
	c, err := listenNDP(ifi)
	if err != nil {
		// From the address itself, then: it is there already.
		if c, err = listenFrom(ifi, addr); err != nil {
			return speaker{}, err
		}
	}
	return speaker{func() error { return announceNDP(c, ifi.HardwareAddr, addr) }, func() { _ = c.Close() }}, nil
}

func listenFrom(ifi *net.Interface, addr netip.Addr) (*ndp.Conn, error) {
	c, _, err := ndp.Listen(ifi, ndp.Addr(addr.String()))
	return c, err
}
