// Package vip holds the virtual addresses of a primary. An address is added with
// a lifetime that the kernel counts down, so that a daemon which hangs or dies
// loses it without anybody's help; it is announced to the link; and it is removed
// only if this node added it.
package vip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Address is a virtual address and where it belongs.
type Address struct {
	Prefix    netip.Prefix
	Interface string
	// Label names an IPv4 address for old tools: Interface:Label.
	Label string
	// Scope of an IPv4 address, as in rtnetlink(7): 0 global, 253 link, 254 host.
	// That of an IPv6 address follows from itself.
	Scope int
}

func (a Address) label() string { return a.Interface + ":" + a.Label }

// Config is what a Manager needs.
type Config struct {
	Addresses []Address
	// Lifetime is how long the kernel keeps an address that nobody renews; it
	// counts in seconds, and is a second late at most.
	Lifetime time.Duration
	// Force adds an address even though another machine answers to it.
	Force bool
	// StateFile lists the addresses that are ours while they may be there.
	StateFile string
	Logger    *zap.Logger
}

// ForeignError is an address that this machine has, but not from us.
type ForeignError struct {
	Address   netip.Prefix
	Interface string
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("the virtual address %s is on %s already, and replfs did not add it: remove it from the network's configuration (ip address del %s dev %s)",
		e.Address.Addr(), e.Interface, e.Address, e.Interface)
}

// DuplicateError is an address that another machine answers to.
type DuplicateError struct {
	Address netip.Prefix
	// MAC is the other machine's hardware address.
	MAC net.HardwareAddr
}

func (e *DuplicateError) Error() string {
	return fmt.Sprintf("another machine (%s) answers to the virtual address %s: if that is a former primary, replfs or the machine has to be stopped there; otherwise choose another address",
		hardware(e.MAC), e.Address.Addr())
}

func hardware(mac net.HardwareAddr) string {
	if len(mac) > 0 && mac[0] == '(' { // see probeNDP
		return string(mac)
	}
	return mac.String()
}

// LostError is an address that was held and is gone.
type LostError struct {
	Address netip.Prefix
	// Expired says that nobody renewed it in time: this process was stopped or
	// starved, and another node may be primary meanwhile. Otherwise somebody
	// removed it.
	Expired bool
}

func (e *LostError) Error() string {
	if e.Expired {
		return fmt.Sprintf("the virtual address %s expired: replfs stood still for too long", e.Address.Addr())
	}
	return fmt.Sprintf("the virtual address %s was removed by somebody else", e.Address.Addr())
}

// Manager holds virtual addresses. Its methods may be called concurrently.
type Manager struct {
	cfg Config
	log *zap.Logger

	mu    sync.Mutex
	held  map[netip.Prefix]*holding
	owned []owned
	said  *announcement
}

type holding struct {
	index int
	flags uint32
	// until is when the kernel may have removed it, on boot's clock.
	until time.Duration
}

// New makes a Manager that holds nothing. What a process of before has left is
// still there until Recover or Adopt.
func New(cfg Config) *Manager {
	m := &Manager{cfg: cfg, log: cfg.Logger, held: map[netip.Prefix]*holding{}}
	var err error
	if m.owned, err = readOwned(cfg.StateFile); err != nil {
		// The kernel removes what nobody renews.
		m.log.Warn("the virtual addresses of before are not known", zap.Error(err))
	}
	return m
}

// Recover removes what a process of before has left. An address that is there
// but that we did not add, stays.
func (m *Manager) Recover() error { return m.Release() }

// Adopt holds what a process of before, whose place this one took, has held, and
// removes what is not wanted any more.
func (m *Manager) Adopt() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	there, err := listAddresses()
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range slices.Clone(m.owned) {
		p, ok := m.ours(there, o.Address, o.Interface)
		i := slices.IndexFunc(m.cfg.Addresses, func(a Address) bool { return a.Prefix == o.Address && a.Interface == o.Interface })
		if ok && i >= 0 {
			m.held[o.Address] = &holding{index: p.index, flags: p.flags & setFlags, until: bootTime() + time.Duration(p.valid)*time.Second}
			continue
		}
		errs = append(errs, m.remove(there, o))
	}
	return errors.Join(errs...)
}

// setFlags are the flags that we set.
const setFlags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE

// Acquire adds the addresses that are not held yet, each with its lifetime, and
// announces them. It adds what it can; its errors may be *ForeignError and
// *DuplicateError.
func (m *Manager) Acquire(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	var missing []Address
	for _, a := range m.cfg.Addresses {
		if m.held[a.Prefix] == nil {
			missing = append(missing, a)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	there, err := listAddresses()
	if err != nil {
		return err
	}
	free, err := m.free(ctx, there, missing)
	errs = append(errs, err)
	var added []Address
	for _, a := range free {
		if err := m.add(a, there); err != nil {
			errs = append(errs, err)
			continue
		}
		added = append(added, a)
	}
	if len(added) > 0 {
		m.said.stop()
		m.said = announce(m.holding(), m.log)
	}
	return errors.Join(errs...)
}

// holding lists the addresses that are held.
func (m *Manager) holding() []Address {
	var out []Address
	for _, a := range m.cfg.Addresses {
		if m.held[a.Prefix] != nil {
			out = append(out, a)
		}
	}
	return out
}

// free returns those of the addresses that nobody else has, asking for all at the
// same time.
func (m *Manager) free(ctx context.Context, there []present, missing []Address) ([]Address, error) {
	errs := make([]error, len(missing))
	own := ownHardware()
	var wg sync.WaitGroup
	for i, a := range missing {
		if _, ours := m.ours(there, a.Prefix, a.Interface); ours {
			continue // left of a moment ago
		}
		if j := slices.IndexFunc(there, func(p present) bool { return p.prefix.Addr() == a.Prefix.Addr() }); j >= 0 {
			errs[i] = &ForeignError{there[j].prefix, interfaceName(there[j].index)}
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs[i] = m.probe(ctx, a, own)
		}()
	}
	wg.Wait()
	var out []Address
	for i, a := range missing {
		if errs[i] == nil {
			out = append(out, a)
		}
	}
	return out, errors.Join(errs...)
}

// probe asks the link for an address.
func (m *Manager) probe(ctx context.Context, a Address, own func(net.HardwareAddr) bool) error {
	ifi, err := net.InterfaceByName(a.Interface)
	if err != nil {
		return fmt.Errorf("virtual address %s: interface %s: %w (set vip.interface)", a.Prefix, a.Interface, err)
	}
	if ifi.Flags&net.FlagUp == 0 {
		return fmt.Errorf("virtual address %s: interface %s is down: ip link set %s up", a.Prefix, a.Interface, a.Interface)
	}
	if ifi.Flags&net.FlagLoopback != 0 || len(ifi.HardwareAddr) != 6 {
		return nil // nobody else is there, or cannot be asked
	}
	ask := probeARP
	if a.Prefix.Addr().Is6() {
		ask = probeNDP
	}
	mac, err := ask(ctx, ifi, a.Prefix.Addr(), own)
	log := m.log.With(zap.Stringer("address", a.Prefix), zap.String("interface", a.Interface))
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		// As without a link-local address: no reason to leave the service unreachable.
		log.Warn("cannot ask whether another machine has the virtual address", zap.Error(err))
	case mac != nil && m.cfg.Force:
		log.Warn("another machine answers to the virtual address; it is taken by force", zap.String("mac", hardware(mac)))
	case mac != nil:
		return &DuplicateError{a.Prefix, mac}
	}
	return nil
}

// add notes an address as ours, and adds it.
func (m *Manager) add(a Address, there []present) error {
	ifi, err := net.InterfaceByName(a.Interface)
	if err != nil {
		return fmt.Errorf("virtual address %s: interface %s: %w", a.Prefix, a.Interface, err)
	}
	var flags uint32
	if a.Prefix.Addr().Is6() {
		flags = unix.IFA_F_NODAD // probe did it
		// The route to a network that the machine is in already must not depend
		// on this address and its lifetime.
		if slices.ContainsFunc(there, func(p present) bool {
			return p.index == ifi.Index && p.prefix.Addr() != a.Prefix.Addr() && p.prefix.Masked() == a.Prefix.Masked()
		}) {
			flags |= unix.IFA_F_NOPREFIXROUTE
		}
	}
	// Noted before it is there: whatever happens now, it will be found.
	if err := m.note(owned{Interface: a.Interface, Address: a.Prefix, Marked: true}); err != nil {
		return err
	}
	begun := bootTime()
	if err := setAddress(a, ifi.Index, flags, m.cfg.Lifetime); err != nil {
		return err
	}
	m.held[a.Prefix] = &holding{index: ifi.Index, flags: flags, until: begun + m.cfg.Lifetime}
	now, err := listAddresses()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(now, func(p present) bool {
		return p.prefix == a.Prefix && p.index == ifi.Index && p.proto == protocol
	}) {
		// Linux before 5.18. The finite lifetime has to do as the mark.
		if err := m.note(owned{Interface: a.Interface, Address: a.Prefix}); err != nil {
			return err
		}
	}
	m.log.Info("added a virtual address", zap.Stringer("address", a.Prefix), zap.String("interface", a.Interface), zap.Duration("lifetime", m.cfg.Lifetime))
	return nil
}

// note writes down that an address is ours.
func (m *Manager) note(o owned) error {
	list := slices.DeleteFunc(slices.Clone(m.owned), func(x owned) bool { return x.Address == o.Address && x.Interface == o.Interface })
	list = append(list, o)
	if err := writeOwned(m.cfg.StateFile, list); err != nil {
		return err
	}
	m.owned = list
	return nil
}

// ours finds an address that this node has added.
func (m *Manager) ours(there []present, prefix netip.Prefix, iface string) (present, bool) {
	i := slices.IndexFunc(m.owned, func(o owned) bool { return o.Address == prefix && o.Interface == iface })
	if i < 0 {
		return present{}, false
	}
	marked := m.owned[i].Marked
	for _, p := range there {
		if p.prefix != prefix || interfaceName(p.index) != iface {
			continue
		}
		if marked && p.proto == protocol || !marked && p.proto == 0 && !p.forever() {
			return p, true
		}
	}
	return present{}, false
}

// Renew gives the addresses that are held a new lifetime. One that is gone is a
// *LostError, and not held any more: whether it may be acquired again is for the
// caller to find out.
func (m *Manager) Renew(lifetime time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.held) == 0 {
		return nil
	}
	there, err := listAddresses()
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range m.cfg.Addresses {
		if h := m.held[a.Prefix]; h != nil {
			errs = append(errs, m.renew(a, h, there, lifetime))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) renew(a Address, h *holding, there []present, lifetime time.Duration) error {
	before := bootTime()
	p, ok := m.ours(there, a.Prefix, a.Interface)
	if before >= h.until || !ok || p.index != h.index {
		return m.lose(a, there, before >= h.until)
	}
	if err := setAddress(a, h.index, h.flags, lifetime); err != nil {
		return err
	}
	if bootTime() >= h.until {
		// This process stood still in between, and the kernel, which cannot be
		// told to renew only, may have added it anew.
		if there, err := listAddresses(); err == nil {
			return m.lose(a, there, true)
		}
		return m.lose(a, nil, true)
	}
	h.until = before + lifetime
	return nil
}

func (m *Manager) lose(a Address, there []present, expired bool) error {
	delete(m.held, a.Prefix)
	m.said.stop()
	m.said = nil
	return errors.Join(&LostError{a.Prefix, expired}, m.remove(there, owned{Interface: a.Interface, Address: a.Prefix}))
}

// Release removes the addresses that are ours; after it nothing is announced.
func (m *Manager) Release() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.said.stop()
	m.said = nil
	if len(m.owned) == 0 {
		return nil
	}
	there, err := listAddresses()
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range slices.Clone(m.owned) {
		delete(m.held, o.Address)
		errs = append(errs, m.remove(there, o))
	}
	return errors.Join(errs...)
}

// remove deletes an address if it is ours, and strikes it off the list.
func (m *Manager) remove(there []present, o owned) error {
	if p, ok := m.ours(there, o.Address, o.Interface); ok {
		if err := deleteAddress(Address{Prefix: o.Address, Interface: o.Interface}, p.index); err != nil {
			return err
		}
		m.log.Info("removed a virtual address", zap.Stringer("address", o.Address), zap.String("interface", o.Interface))
	}
	list := slices.DeleteFunc(slices.Clone(m.owned), func(x owned) bool { return x.Address == o.Address && x.Interface == o.Interface })
	if err := writeOwned(m.cfg.StateFile, list); err != nil {
		return err
	}
	m.owned = list
	return nil
}

// Announce tells the link again where the addresses are that are held, as after
// a cable was plugged in.
func (m *Manager) Announce() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if held := m.holding(); len(held) > 0 {
		m.said.stop()
		m.said = announce(held, m.log)
	}
}

// Held tells which of the addresses are held, in the configured order.
func (m *Manager) Held() []bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]bool, len(m.cfg.Addresses))
	for i, a := range m.cfg.Addresses {
		out[i] = m.held[a.Prefix] != nil
	}
	return out
}

// Complete tells whether all addresses are held.
func (m *Manager) Complete() bool { return !slices.Contains(m.Held(), false) }

// ownHardware tells whether a hardware address is this machine's.
func ownHardware() func(net.HardwareAddr) bool {
	all, _ := net.Interfaces() // without them every answer counts
	return func(mac net.HardwareAddr) bool {
		return slices.ContainsFunc(all, func(i net.Interface) bool {
			return len(mac) > 0 && slices.Equal(i.HardwareAddr, mac)
		})
	}
}

func interfaceName(index int) string {
	ifi, err := net.InterfaceByIndex(index)
	if err != nil {
		return fmt.Sprintf("interface %d", index)
	}
	return ifi.Name
}

// bootTime is the time since boot, suspend included: a machine that slept must
// not take an address for its own that others have taken for lost.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("vip: CLOCK_BOOTTIME: " + err.Error()) // every Linux has it
	}
	return time.Duration(ts.Nano())
}
