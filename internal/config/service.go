package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"
)

// validateService checks vip, health, hooks and notify.
func (c *Config) validateService() {
	if c.VIP != nil {
		c.validateVIP(c.VIP)
	}
	c.mustBePositive("election.ready_timeout", "election.ready_timeout", c.Election.ReadyTimeout)
	for i := range c.Health {
		c.validateHealth(fmt.Sprintf("health[%d]", i), &c.Health[i])
	}
	for _, l := range c.hookLists() {
		for i, h := range l.hooks {
			if h.Exec == "" {
				c.bad(fmt.Sprintf("%s[%d]", l.key, i), "%s: a hook has no command: add `exec:`", l.key)
			}
			c.mustBePositive(fmt.Sprintf("%s[%d].timeout", l.key, i), l.key+": timeout", h.Timeout)
		}
	}
	c.validateNotify()
}

// minLifetime leaves room for several renewals: the kernel counts in seconds.
const minLifetime = Duration(2 * time.Second)

// Scopes are the values of vip.scope, as in rtnetlink(7).
var Scopes = map[string]int{"": 0, "global": 0, "site": 200, "link": 253, "host": 254}

func (c *Config) validateVIP(v *VIP) {
	if len(v.All()) == 0 {
		c.bad("vip", "vip has no address: add one with its prefix length, such as 10.1.1.10/24")
	}
	seen := map[netip.Addr]bool{}
	check := func(path, key, text string) {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			c.badAt([]string{path, "vip"}, "%s %q is not an address with prefix length, such as 10.1.1.10/24", key, text)
			return
		case p.Addr() == p.Masked().Addr() && p.Bits() < p.Addr().BitLen()-1:
			c.badAt([]string{path, "vip"}, "%s %q is a network, not an address in it", key, text)
		case !p.Addr().IsGlobalUnicast() || p.Addr().Is4In6():
			c.badAt([]string{path, "vip"}, "%s %q cannot be a virtual address: take one that clients can reach", key, text)
		case seen[p.Addr()]:
			c.badAt([]string{path, "vip"}, "%s %s stands twice", key, p.Addr())
		}
		seen[p.Addr()] = true
	}
	if v.Address != "" {
		check("vip.address", "vip.address", v.Address)
	}
	for i, a := range v.Addresses {
		check(fmt.Sprintf("vip.addresses[%d]", i), "vip.addresses", a)
	}
	if _, ok := Scopes[v.Scope]; !ok {
		c.bad("vip.scope", "vip.scope %q is unknown: want global, site, link or host", v.Scope)
	}
	if v.Lifetime < minLifetime {
		c.bad("vip.lifetime", "vip.lifetime %s is too short: it must be at least %s", v.Lifetime, minLifetime)
	}
	for i := range c.Nodes {
		view := c.view(i)
		if label := view.VIP.Interface + ":" + v.Label; v.Label != "" && (len(label) > maxLabel || strings.ContainsAny(v.Label, "/: ")) {
			c.bad("vip.label", "vip.label %q is no good for node %q: %q may have %d characters, and the label none of / : and space", v.Label, view.Name, label, maxLabel)
		}
	}
}

// maxLabel is IFNAMSIZ less the final zero.
const maxLabel = 15

func (c *Config) validateHealth(at string, h *HealthCheck) {
	set := 0
	for _, s := range []string{h.Exec, h.HTTP, h.TCP} {
		if s != "" {
			set++
		}
	}
	if set != 1 {
		c.bad(at, "health: a check needs exactly one of exec, http and tcp, this one has %d", set)
	}
	if h.HTTP != "" {
		if err := checkHTTP(h.HTTP); err != nil {
			c.bad(at+".http", "health: %v", err)
		}
	}
	if h.TCP != "" {
		if _, _, err := splitAddress(h.TCP); err != nil {
			c.bad(at+".tcp", "health: %v", err)
		}
	}
	c.mustBePositive(at+".interval", "health: interval", h.Interval)
	c.mustBePositive(at+".timeout", "health: timeout", h.Timeout)
	if h.Rise < 1 {
		c.bad(at+".rise", "health: rise must be at least 1")
	}
	if h.Fall < 1 {
		c.bad(at+".fall", "health: fall must be at least 1")
	}
}

func (c *Config) mustBePositive(path, what string, d Duration) {
	if d <= 0 {
		c.bad(path, "%s must be more than 0", what)
	}
}

func (c *Config) validateNotify() {
	for i, w := range c.Notify.Webhook {
		if err := checkHTTP(w.URL); err != nil {
			c.bad(fmt.Sprintf("notify.webhook[%d]", i), "notify.webhook: %v", err)
		}
		c.mustBePositive(fmt.Sprintf("notify.webhook[%d].timeout", i), "notify.webhook: timeout", w.Timeout)
	}
	for i, w := range c.Notify.Webhook {
		if w.SecretFile != "" && !filepath.IsAbs(w.SecretFile) {
			c.bad(fmt.Sprintf("notify.webhook[%d].secret_file", i), "notify.webhook: secret_file %q is not absolute: begin it with /", w.SecretFile)
		}
	}
	m := c.Notify.SMTP
	if !m.IsSet() {
		return
	}
	if _, _, err := splitAddress(m.Server); err != nil {
		c.badAt([]string{"notify.smtp.server", "notify.smtp"}, "notify.smtp.server: %v", err)
	}
	if m.From == "" || len(m.To) == 0 {
		c.bad("notify.smtp", "notify.smtp needs from and to: add the addresses")
	}
	if (m.Username == "") != (m.PasswordFile == "") {
		c.bad("notify.smtp", "notify.smtp needs both username and password_file, or neither")
	}
	if m.CA != "" && !filepath.IsAbs(m.CA) {
		c.bad("notify.smtp.ca", "notify.smtp.ca %q is not absolute: begin it with /", m.CA)
	}
	if m.PasswordFile != "" && !filepath.IsAbs(m.PasswordFile) {
		c.bad("notify.smtp.password_file", "notify.smtp.password_file %q is not absolute: begin it with /", m.PasswordFile)
	}
}

// IsSet tells whether mail is to be sent.
func (m SMTP) IsSet() bool {
	return m.Server != "" || m.From != "" || len(m.To) > 0 || m.Username != "" || m.PasswordFile != "" || m.StartTLS || m.CA != ""
}
