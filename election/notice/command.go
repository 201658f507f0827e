package notice

import (
	"context"

	"github.com/replfs/replfs/election/hook"
)

// Command tells by running a command, as hooks are run; commands wait for each
// other but not for hooks.
type Command struct {
	Hook   hook.Hook
	Runner *hook.Runner
	Mount  string
}

// Name is the command's.
func (c *Command) Name() string { return "exec " + c.Hook.Command }

// Send runs the command once, with what happened as REPLFS_HOOK.
func (c *Command) Send(ctx context.Context, e Event) error {
	_, err := c.Runner.Run(ctx, []hook.Hook{c.Hook}, hook.Event{
		Hook: e.Event, Cluster: e.Cluster, Node: e.Node, Role: e.Role, Epoch: e.Epoch, Peer: e.Peer, Reason: e.Reason, Mount: c.Mount,
	}, true)
	return err
}
