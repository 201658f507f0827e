package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
)

// validateService checks vip, health, hooks and notify.
func (c *Config) validateService() {
	if v := c.VIP; v != nil {
		if v.Address == "" {
			c.bad("vip", "vip has no address: add one with its prefix length, such as 10.1.1.10/24")
		} else if _, err := netip.ParsePrefix(v.Address); err != nil {
			c.bad("vip.address", "vip.address %q is not an address with prefix length, such as 10.1.1.10/24", v.Address)
		}
	}
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
	m := c.Notify.SMTP
	if !m.isSet() {
		return
	}
	if _, _, err := splitAddress(m.Server); err != nil {
		c.badAt([]string{"notify.smtp.server", "notify.smtp"}, "notify.smtp.server: %v", err)
	}
	if m.From == "" || len(m.To) == 0 {
		c.bad("notify.smtp", "notify.smtp needs from and to: add the addresses")
	}
	if m.PasswordFile != "" && !filepath.IsAbs(m.PasswordFile) {
		c.bad("notify.smtp.password_file", "notify.smtp.password_file %q is not absolute: begin it with /", m.PasswordFile)
	}
}

func (m SMTP) isSet() bool {
	return m.Server != "" || m.From != "" || len(m.To) > 0 || m.Username != "" || m.PasswordFile != "" || m.StartTLS
}
