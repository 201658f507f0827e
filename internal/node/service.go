package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/replfs/replfs/election"
	"github.com/replfs/replfs/election/health"
	"github.com/replfs/replfs/election/hook"
	"github.com/replfs/replfs/election/notice"
	"github.com/replfs/replfs/election/vip"
	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/internal/control"
)

// service is what a primary does besides writing: hooks that start and stop the
// application, checks of its health, the virtual addresses, and notices.
type service struct {
	log  *zap.Logger
	view *config.NodeView
	// epoch is the highest known; outrun tells that another node is primary in
	// a later one.
	epoch  func() uint64
	outrun func(context.Context) bool

	hooks   *hook.Runner
	monitor *health.Monitor
	vip     *vip.Manager // nil without virtual addresses
	notices *notice.Sender
	keeper  keeper

	// order is held while hooks run and while what they have done is written down.
	order sync.Mutex
	path  string

	mu    sync.Mutex
	phase string // as control.Service.State
	why   string // what is wrong
	noted hooksState
	job   *job
	// hooking ends hooks in a hurry; faults is the one on_fault run.
	hooking context.Context
	hurried context.CancelCauseFunc
	faults  *job
	// background stops what a dead predecessor has started.
	background *job
}

// job is a part of the service's work that may be cut short.
type job struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
	err    error // valid when done is closed
}

func (j *job) stop(why error) {
	if j != nil {
		j.cancel(why)
		<-j.done
	}
}

func startJob(parent context.Context, f func(context.Context) error) *job {
	ctx, cancel := context.WithCancelCause(parent)
	j := &job{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(j.done)
		j.err = f(ctx)
		cancel(nil)
	}()
	return j
}

// hooksState is how far the hooks have come; it survives the daemon.
type hooksState string

const (
	hooksDown  hooksState = "down"  // nothing has run since on_demote
	hooksBegun hooksState = "begun" // on_promote may have run in part
	hooksDone  hooksState = "done"  // on_promote has run
)

var (
	errRoleChange = errors.New("cut short: the node changes its role or stops")
	errSuperseded = errors.New("cut short: another node is primary in a later epoch")
)

// newService makes the service of a node. resumed: a predecessor has handed over,
// whose addresses stay; otherwise what a dead one has left is removed.
func newService(view *config.NodeView, resumed bool, log *zap.Logger) (*service, error) {
	s := &service{
		log: log, view: view, hooks: hook.NewRunner(log), phase: control.ServiceDown,
		path: filepath.Join(view.State, "service.json"), noted: hooksDown,
	}
	s.hooking, s.hurried = context.WithCancelCause(context.Background())
	s.monitor = health.New(checksOf(view.Config), log, s.healthChanged)
	var note struct{ Hooks hooksState }
	b, err := os.ReadFile(s.path)
	if err == nil {
		err = json.Unmarshal(b, &note)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		// As if they had run: on_demote does no harm where nothing runs.
		log.Warn("it is not known whether the hooks have run", zap.String("file", s.path), zap.Error(err))
		s.noted = hooksBegun
	default:
		s.noted = note.Hooks
	}
	// The addresses of before have to go even if none is configured any more.
	m := vip.New(vipOf(view, log))
	if resumed {
		err = m.Adopt()
	} else {
		err = m.Recover()
	}
	if err != nil {
		log.Warn("cannot clear up the virtual addresses of before", zap.Error(err))
	}
	if view.VIP != nil {
		s.vip = m
	}
	s.notices = notice.NewSender(s.targets(), log)
	s.keeper.init(s)
	return s, nil
}

func vipOf(view *config.NodeView, log *zap.Logger) vip.Config {
	out := vip.Config{StateFile: filepath.Join(view.State, "vip.json"), Logger: log}
	v := view.VIP
	if v == nil {
		return out
	}
	out.Lifetime, out.Force = v.Lifetime.Std(), v.OnDuplicate == config.DuplicateForce
	for _, text := range v.All() {
		out.Addresses = append(out.Addresses, vip.Address{
			Prefix: netip.MustParsePrefix(text), Interface: v.Interface, Label: v.Label, Scope: config.Scopes[v.Scope],
		})
	}
	return out
}

func checksOf(c *config.Config) []health.Check {
	var out []health.Check
	for _, h := range c.Health {
		out = append(out, health.Check{
			Exec: h.Exec, HTTP: h.HTTP, TCP: h.TCP, Interval: h.Interval.Std(), Timeout: h.Timeout.Std(), Rise: h.Rise, Fall: h.Fall,
		})
	}
	return out
}

func hooksOf(in []config.Hook) []hook.Hook {
	out := make([]hook.Hook, 0, len(in))
	for _, h := range in {
		out = append(out, hook.Hook{Command: h.Exec, Timeout: h.Timeout.Std()})
	}
	return out
}

func (s *service) targets() []notice.Target {
	n := s.view.Config.Notify
	var out []notice.Target
	for _, h := range hooksOf(n.Exec) {
		out = append(out, &notice.Command{Hook: h, Runner: hook.NewRunner(s.log), Mount: s.view.Mount})
	}
	for _, w := range n.Webhook {
		out = append(out, &notice.Webhook{URL: w.URL, Timeout: w.Timeout.Std(), SecretFile: w.SecretFile})
	}
	if m := n.SMTP; m.IsSet() {
		out = append(out, &notice.Mail{
			Server: m.Server, From: m.From, To: m.To, Username: m.Username, PasswordFile: m.PasswordFile, StartTLS: m.StartTLS, CA: m.CA,
		})
	}
	return out
}

// occasion is what hooks and notices are told of a change.
type occasion struct {
	role         election.Role
	peer, reason string
}

func (s *service) event(kind string, o occasion) hook.Event {
	return hook.Event{
		Hook: kind, Cluster: s.view.Cluster, Node: s.view.Name, Role: string(o.role), Epoch: s.epoch(),
		Peer: o.peer, Reason: o.reason, Mount: s.view.Mount,
	}
}

// tell queues a notice; err is what did not work.
func (s *service) tell(what string, o occasion, err error) {
	e := notice.Event{
		ID: uuid.NewString(), Time: time.Now(), Event: what, Cluster: s.view.Cluster, Node: s.view.Name,
		Role: string(o.role), Epoch: s.epoch(), Peer: o.peer, Reason: o.reason,
	}
	if err != nil {
		e.Error = err.Error()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notices.Send(e)
}

// note writes down how far the hooks have come. order is held.
func (s *service) note(h hooksState) error {
	b, err := json.Marshal(struct {
		Hooks hooksState `json:"hooks"`
	}{h})
	if err == nil {
		err = renameio.WriteFile(s.path, append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", s.path, err)
	}
	s.mu.Lock()
	s.noted = h
	s.mu.Unlock()
	return nil
}

func (s *service) state() hooksState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.noted
}

func (s *service) setPhase(phase string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.why = phase, ""
	if err != nil {
		s.why = err.Error()
	}
}

// bringUp starts the service of a primary in the background, as the last steps of
// t, which it ends. With resumed, hooks that have run are not run again.
func (s *service) bringUp(t *transition, o occasion, resumed bool) *job {
	s.setPhase(control.ServiceStarting, nil)
	s.keeper.settle()
	j := startJob(context.Background(), func(ctx context.Context) error {
		err := t.end(t.run(ctx, s.upSteps(o, resumed)...))
		if ctx.Err() != nil {
			return err // who cut it short says what is now
		}
		if err != nil {
			s.setPhase(control.ServiceFailed, err)
		} else {
			s.setPhase(control.ServiceReady, nil)
		}
		s.tell("promoted", o, err)
		if st, _ := s.monitor.Results(); err == nil && st == health.Unhealthy {
			s.healthChanged(st, "it failed while the VIP was added")
		}
		return err
	})
	s.mu.Lock()
	s.job = j
	s.mu.Unlock()
	return j
}

func (s *service) upSteps(o occasion, resumed bool) []step {
	var steps []step
	c := s.view.Config
	early := s.vip != nil && s.view.VIP.When == config.VIPEarly
	if early && !s.keeper.wanted() {
		steps = append(steps, s.vipStep())
	}
	if len(c.Hooks.OnPromote)+len(c.Hooks.OnDemote) > 0 && (!resumed || s.state() != hooksDone) {
		steps = append(steps, step{name: "on_promote hooks", run: func(ctx context.Context) (string, error) { return s.runPromote(ctx, o) }})
	}
	if len(c.Health) > 0 {
		steps = append(steps, step{name: "wait for health", run: s.awaitHealth})
	}
	if s.vip != nil && !early {
		steps = append(steps, s.vipStep())
	}
	return steps
}

func (s *service) runPromote(ctx context.Context, o occasion) (string, error) {
	s.order.Lock()
	defer s.order.Unlock()
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	if err := s.note(hooksBegun); err != nil {
		return "", err
	}
	res, err := s.hooks.Run(ctx, hooksOf(s.view.Config.Hooks.OnPromote), s.event(hook.OnPromote, o), true)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d run", len(res)), s.note(hooksDone)
}

func (s *service) awaitHealth(ctx context.Context) (string, error) {
	s.monitor.Start()
	limit := s.view.Config.Election.ReadyTimeout.Std()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("waited for %v", limit))
	defer cancel()
	return "", s.monitor.Wait(ctx)
}

// healthChanged is called by the monitor.
func (s *service) healthChanged(st health.State, why string) {
	s.mu.Lock()
	phase, hooksRan := s.phase, s.noted != hooksBegun
	s.mu.Unlock()
	o := occasion{role: election.Primary, reason: why}
	switch {
	case st == health.Unhealthy && phase == control.ServiceReady:
		err := errors.New("the service is not healthy: " + why)
		s.setPhase(control.ServiceUnhealthy, err)
		s.log.Error("the service is not healthy", zap.String("reason", why))
		s.tell("fault", o, err)
		s.runFault(o)
	case st == health.Healthy && phase == control.ServiceUnhealthy:
		s.setPhase(control.ServiceReady, nil)
		s.log.Info("the service is healthy again")
		s.tell("recovered", occasion{role: election.Primary}, nil)
	case st == health.Healthy && phase == control.ServiceFailed && hooksRan:
		// Later than the promotion waited.
		s.setPhase(control.ServiceReady, nil)
		s.log.Info("the service is healthy at last")
		s.tell("recovered", occasion{role: election.Primary}, nil)
		s.keeper.want(context.Background())
	}
}

// runFault runs the on_fault hooks in the background, unless they run already.
func (s *service) runFault(o occasion) {
	list := hooksOf(s.view.Config.Hooks.OnFault)
	if len(list) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults != nil {
		select {
		case <-s.faults.done:
		default:
			s.log.Warn("the on_fault hooks are running still: they are not run again")
			return
		}
	}
	ev := s.event(hook.OnFault, o)
	s.faults = startJob(s.hooking, func(ctx context.Context) error {
		_, err := s.hooks.Run(ctx, list, ev, false)
		return err // logged there
	})
}

// halt ends what is being brought up, the checks and the on_fault hooks.
func (s *service) halt() {
	s.mu.Lock()
	up, faults := s.job, s.faults
	s.job, s.faults = nil, nil
	s.mu.Unlock()
	up.stop(errRoleChange)
	s.monitor.Stop()
	faults.stop(errRoleChange)
}

// leave is halt for a node that ceases to be primary: no address is added any more.
func (s *service) leave() {
	s.mu.Lock()
	up := s.job
	s.mu.Unlock()
	if up != nil {
		up.cancel(errRoleChange)
	}
	s.keeper.cancelWant()
	s.halt()
	s.setPhase(control.ServiceDown, nil)
}

// hurry ends hooks that run now.
func (s *service) hurry(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hurried(why)
	s.hooking, s.hurried = context.WithCancelCause(context.Background())
}

// downSteps take the service away from a node that ceases to be primary. They
// begin with the addresses: clients see no half of a service.
func (s *service) downSteps(o occasion) []step {
	var steps []step
	if s.vip != nil {
		steps = append(steps, step{name: "remove the VIP", optional: true, run: do(func() error {
			s.leave()
			return s.keeper.drop()
		})})
	}
	c := s.view.Config
	if len(c.Hooks.OnPromote)+len(c.Hooks.OnDemote) > 0 || s.state() != hooksDown {
		steps = append(steps, step{name: "on_demote hooks", optional: true, run: func(context.Context) (string, error) { return s.runDemote(o) }})
	}
	if len(steps) == 0 {
		s.leave()
	}
	return steps
}

func (s *service) runDemote(o occasion) (string, error) {
	s.leave()
	s.order.Lock()
	defer s.order.Unlock()
	if s.state() == hooksDown {
		return "nothing to stop", nil
	}
	s.mu.Lock()
	ctx := s.hooking
	s.mu.Unlock()
	res, err := s.hooks.Run(ctx, hooksOf(s.view.Config.Hooks.OnDemote), s.event(hook.OnDemote, o), false)
	if err != nil {
		// Noted as not done: the next start as a standby tries again.
		return "", err
	}
	return fmt.Sprintf("%d run", len(res)), s.note(hooksDown)
}

// demoteLimit bounds the steps of downSteps.
func (s *service) demoteLimit() time.Duration {
	d := 5 * time.Second
	for _, h := range s.view.Config.Hooks.OnDemote {
		d += h.Timeout.Std() + hook.Grace
	}
	return d
}

// close ends everything: the addresses go, notices get a moment.
func (s *service) close() error {
	s.mu.Lock()
	background := s.background
	s.mu.Unlock()
	background.stop(errRoleChange)
	s.leave()
	err := s.keeper.drop()
	s.keeper.stop()
	ctx, cancel := context.WithTimeout(context.Background(), noticeLimit)
	defer cancel()
	return errors.Join(err, s.notices.Close(ctx))
}

// noticeLimit is how long a stop waits for notices.
const noticeLimit = 3 * time.Second

// suspend makes ready for a successor, who takes the addresses over.
func (s *service) suspend() error {
	if !s.order.TryLock() {
		return errors.New("hooks are running: try again when `replfs status` says that they have ended")
	}
	s.halt()
	s.keeper.stop()
	if err := s.keeper.bridge(); err != nil {
		s.log.Warn("cannot renew the virtual addresses for the successor", zap.Error(err))
	}
	ctx, cancel := context.WithTimeout(context.Background(), noticeLimit)
	defer cancel()
	if err := s.notices.Close(ctx); err != nil {
		s.log.Warn("notices are lost", zap.Error(err))
	}
	return nil
}

// resume goes on after suspend when there was no successor.
func (s *service) resume() {
	s.order.Unlock()
	s.mu.Lock()
	s.notices = notice.NewSender(s.targets(), s.log)
	s.mu.Unlock()
	s.keeper.start()
}

// failed tells whether the service is not ready and nobody is at it.
func (s *service) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase == control.ServiceFailed
}

// earlySteps come before the mount opens.
func (s *service) earlySteps() []step {
	if s.vip == nil || s.view.VIP.When != config.VIPEarly {
		return nil
	}
	return []step{s.vipStep()}
}

// inBackground does what may take long and that no change of roles cuts short but
// a node that is superseded or stops.
func (s *service) inBackground(f func(context.Context) error) {
	s.mu.Lock()
	ctx := s.hooking
	s.mu.Unlock()
	j := startJob(ctx, f)
	s.mu.Lock()
	s.background = j
	s.mu.Unlock()
}

// configured tells whether there is more to do than to write.
func (s *service) configured() bool {
	c := s.view.Config
	return s.vip != nil || len(c.Health)+len(c.Hooks.OnPromote)+len(c.Hooks.OnDemote) > 0
}

// status fills in what is configured.
func (s *service) status(out *control.Status) {
	if !s.configured() {
		return
	}
	s.mu.Lock()
	sv := &control.Service{State: s.phase, Error: s.why}
	s.mu.Unlock()
	out.Service = sv
	add := func(what, do string) { out.Problems = append(out.Problems, control.Problem{What: what, Do: do}) }
	if s.vip != nil {
		held := s.vip.Held()
		for i, a := range s.view.VIP.All() {
			sv.VIP = append(sv.VIP, control.VIP{Address: a, Interface: s.view.VIP.Interface, Held: held[i]})
		}
		if trouble := s.keeper.trouble(); trouble != "" {
			add(trouble, "it is tried again all the time; see the log")
		}
	}
	_, checks := s.monitor.Results()
	for _, r := range checks {
		h := control.HealthCheck{Name: r.Name, State: r.State.String()}
		if r.Err != nil {
			h.Error = r.Err.Error()
		}
		sv.Health = append(sv.Health, h)
	}
	switch sv.State {
	case control.ServiceFailed:
		add("the service is not ready: "+sv.Error, "mend what is wrong, then run `replfs promote` here once more: hooks, checks and the VIP are tried again")
	case control.ServiceUnhealthy:
		add(sv.Error, "mend the service; or run `replfs promote` on a standby that is in sync")
	}
}
