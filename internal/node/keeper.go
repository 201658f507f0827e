package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/replfs/replfs/election/vip"
	"github.com/replfs/replfs/internal/config"
)

// keeper renews the virtual addresses while they are wanted, and takes those that
// are missing as soon as that is possible.
type keeper struct {
	s *service

	// turn is held while addresses are changed.
	turn sync.Mutex

	mu     sync.Mutex
	ctx    context.Context // of the wish; nil when they are not wanted
	cancel context.CancelFunc
	// adopting: the role is not decided yet, what is held is renewed, no more.
	adopting bool
	problem  string
	loop     *job
}

func (k *keeper) init(s *service) {
	k.s = s
	if s.vip == nil {
		return
	}
	for _, held := range s.vip.Held() {
		if held {
			k.adopting = true
		}
	}
	if k.adopting {
		k.ctx, k.cancel = context.WithCancel(context.Background())
	}
	k.start()
}

func (k *keeper) start() {
	if k.s.vip == nil {
		return
	}
	every := min(time.Second, k.s.view.VIP.Lifetime.Std()/4)
	k.loop = startJob(context.Background(), func(ctx context.Context) error {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				_ = k.keep() // shown and logged there
			}
		}
	})
}

func (k *keeper) stop() { k.loop.stop(nil) }

// settle: the node is primary, what is missing may be acquired.
func (k *keeper) settle() {
	k.mu.Lock()
	k.adopting = false
	k.mu.Unlock()
}

func (k *keeper) wanted() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ctx != nil && k.ctx.Err() == nil
}

// want has the addresses taken from now on, unless ctx has ended.
func (k *keeper) want(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.s.vip != nil && (k.ctx == nil || k.ctx.Err() != nil) && ctx.Err() == nil {
		k.ctx, k.cancel = context.WithCancel(context.Background())
	}
}

// cancelWant makes what is under way end soon; drop does the rest.
func (k *keeper) cancelWant() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cancel != nil {
		k.cancel()
	}
}

// drop removes the addresses.
func (k *keeper) drop() error {
	k.cancelWant()
	k.turn.Lock()
	defer k.turn.Unlock()
	k.mu.Lock()
	k.ctx, k.cancel, k.problem, k.adopting = nil, nil, "", false
	k.mu.Unlock()
	if k.s.vip == nil {
		return nil
	}
	return k.s.vip.Release()
}

// bridgeTime is how long addresses live that nobody renews while a successor starts.
const bridgeTime = 30 * time.Second

func (k *keeper) bridge() error {
	if k.s.vip == nil {
		return nil
	}
	return k.s.vip.Renew(max(bridgeTime, k.s.view.VIP.Lifetime.Std()))
}

// keep renews what is held and acquires what is missing.
func (k *keeper) keep() error {
	k.turn.Lock()
	defer k.turn.Unlock()
	k.mu.Lock()
	ctx, adopting := k.ctx, k.adopting
	k.mu.Unlock()
	if ctx == nil || ctx.Err() != nil {
		return nil
	}
	err := k.s.vip.Renew(k.s.view.VIP.Lifetime.Std())
	var lost *vip.LostError
	if errors.As(err, &lost) {
		k.s.log.Warn("lost a virtual address", zap.Error(err))
		if adopting || lost.Expired && k.s.outrun(ctx) {
			k.report(err)
			return err
		}
		err = nil
	}
	if err == nil && !adopting && !k.s.vip.Complete() {
		err = k.s.vip.Acquire(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	k.report(err)
	return err
}

// report keeps what is wrong for the status, and logs what is new.
func (k *keeper) report(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	k.mu.Lock()
	known := k.problem
	k.problem = text
	k.mu.Unlock()
	if text != known && err != nil {
		k.s.log.Error("a virtual address is not held", zap.Error(err))
	}
}

func (k *keeper) trouble() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.problem
}

// vipStep takes the addresses. A former primary that cannot answer for itself
// loses them within their lifetime, so that is how long it waits; with when: early
// nothing waits for them.
func (s *service) vipStep() step {
	return step{name: "add and announce the VIP", optional: true, run: func(ctx context.Context) (string, error) {
		s.keeper.settle()
		s.keeper.want(ctx)
		limit := s.view.VIP.Lifetime.Std() + 3*time.Second
		if s.view.VIP.When == config.VIPEarly {
			limit = 0
		}
		for begun := time.Now(); ; {
			err := s.keeper.keep()
			if err == nil && s.vip.Complete() {
				return fmt.Sprintf("%s on %s", strings.Join(s.view.VIP.All(), ", "), s.view.VIP.Interface), nil
			}
			var foreign *vip.ForeignError
			if time.Since(begun) > limit || errors.As(err, &foreign) {
				return "", fmt.Errorf("it is tried again and again from now on: %w", err)
			}
			select {
			case <-ctx.Done():
				return "", context.Cause(ctx)
			case <-time.After(250 * time.Millisecond):
			}
		}
	}}
}
