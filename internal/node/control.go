package node

import (
	"context"
	"errors"

	"go.uber.org/zap"

	"github.com/replfs/replfs/election"
	"github.com/replfs/replfs/internal/control"
)

// controlled is the node as the control server sees it. What was begun is
// finished even if the one who asked goes away.
type controlled struct{ n *Node }

func (c controlled) Status() *control.Status { return c.n.status() }

func (c controlled) Promote(ctx context.Context, force bool) (*control.RoleChange, error) {
	return c.n.promote(context.WithoutCancel(ctx), force)
}

func (c controlled) Demote(ctx context.Context) (*control.RoleChange, error) {
	return c.n.demote(context.WithoutCancel(ctx))
}

func (c controlled) Wait(ctx context.Context, req control.WaitRequest) (*control.WaitResult, error) {
	return c.n.wait(ctx, req)
}

func (c controlled) Reload(ctx context.Context) error {
	return c.n.reload(context.WithoutCancel(ctx))
}

type controlServer struct {
	*control.Server
	log *zap.Logger
}

func (s *controlServer) close() {
	if err := s.Close(); err != nil {
		s.log.Warn("cannot close the control socket", zap.Error(err))
	}
}

func (n *Node) serveControl() (*controlServer, error) {
	s, err := control.Serve(n.view.Control, controlled{n}, func(err error) bool {
		var refused *election.RefusedError
		var wait *waitRefusedError
		return errors.As(err, &refused) || errors.As(err, &wait)
	})
	if err != nil {
		return nil, err
	}
	return &controlServer{s, n.log}, nil
}
