package config

import (
	"regexp"
	"strings"
	"testing"
)

// TestExampleService: what the example says of vip, health, hooks and notify is
// valid when the comment signs are removed.
func TestExampleService(t *testing.T) {
	text, err := Example(ExampleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(text), "#vip:")
	open := regexp.MustCompile(`(?m)^#(\S|  )`).ReplaceAllString(string(text[at:]), "$1")
	c := mustParse(t, string(text[:at])+open)
	if errs := c.Unsupported(); len(errs) > 0 {
		t.Error(errs)
	}
	if c.VIP == nil || len(c.Health) != 2 || len(c.Hooks.OnPromote) != 1 || len(c.Hooks.OnDemote) != 1 || len(c.Hooks.OnFault) != 1 ||
		len(c.Notify.Webhook) != 1 || len(c.Notify.Exec) != 1 || !c.Notify.SMTP.IsSet() {
		t.Errorf("got %+v %+v %+v %+v", c.VIP, c.Health, c.Hooks, c.Notify)
	}
	if v, want := *c.VIP, (VIP{"10.1.1.10/24", nil, "eth0", "vip", "global", VIPReady, DuplicateWait, Duration(10e9)}); v.Address != want.Address ||
		v.Lifetime != want.Lifetime || v.When != want.When || v.OnDuplicate != want.OnDuplicate {
		t.Errorf("got %+v", v)
	}
}
