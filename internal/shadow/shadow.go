// Package shadow tries a configuration on an Envoy of its own before the fleet gets
// it: what that Envoy refuses, or hangs or dies of, is found and named, and the rest
// goes on.
//
// The shadow is the same binary with the same bootstrap as the fleet, kept warm, and
// is sent only what changes, by the same delivery. It must never serve or reach
// anything: listeners do not bind, endpoints lead to the loopback of a network of its
// own, private keys are replaced by throw-away ones of the same kind, health checks
// are left out (transform.go). It is the process of an attacker who found a way to
// break Envoy by configuration, so it is shut in as far as the host allows
// (sandbox_linux.go), and State says how far that is.
//
// A verdict says "this Envoy takes it", not "it works".
package shadow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// DefaultLimit is how long the shadow may take for one response.
const DefaultLimit = 5 * time.Second

const (
	// startLimit bounds the start of the process, on a loaded machine too.
	startLimit = 30 * time.Second
	// resourceLimit adds to the limit for each resource.
	resourceLimit = 500 * time.Microsecond
	// maxFailures is how often the shadow may end with nothing to blame in one Try.
	maxFailures = 3
)

// ErrUnavailable says that the shadow cannot run, so that nothing can be said of
// a configuration.
var ErrUnavailable = errors.New("the shadow Envoy cannot run")

// Options configure a Shadow.
type Options struct {
	// Envoy is the path of the binary, the same build as the fleet's. Required.
	Envoy  string
	Logger *slog.Logger
	// Limit is how long one response may stay unanswered before the shadow counts as
	// hung, and half a millisecond more for each resource that there is when the
	// process starts: it gets all of them at once. Default DefaultLimit.
	Limit time.Duration
	// Change, if not nil, changes the bootstrap, for a fleet whose bootstrap was
	// changed: run-time settings, extensions.
	Change func(*bootstrapv3.Bootstrap)
}

// Verdict is a resource that the fleet must not get.
type Verdict struct {
	Ref     xds.Ref
	Version string
	// Hung says that Envoy hung or died; else it refused it.
	Hung bool
	// Detail is what Envoy said, or what happened.
	Detail string
}

// State is how the shadow is.
type State struct {
	// Running reports whether the process runs, as PID, and Sandbox how it is shut in.
	Running bool
	PID     int
	Envoy   string
	Sandbox string
	// Tries counts calls of Try, and Starts of the process.
	Tries, Starts int
	// Last is how long the last Try took.
	Last time.Duration
	// Err is why it cannot run; empty when it can.
	Err string
}

// Shadow is the shadow of one view.
type Shadow struct {
	opt Options
	log *slog.Logger

	try sync.Mutex // one Try at a time
	p   *process
	rev int64
	// last is what was tried last, and sent what the shadow was sent for it.
	last, sent *xds.Generation
	fakes      *fakes
	// box is the strongest sandbox that did not fail.
	box int

	mu         sync.Mutex
	state      State
	refusals   []Verdict
	unanswered []xds.Ref
}

// New makes a Shadow; the first Try starts the process. Close ends it.
func New(o Options) *Shadow {
	o.Limit = cmp.Or(o.Limit, DefaultLimit)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Shadow{opt: o, log: o.Logger.With("part", "shadow"), fakes: newFakes()}
}

// State returns how the shadow is now.
func (s *Shadow) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Close ends the process.
func (s *Shadow) Close() {
	s.try.Lock()
	defer s.try.Unlock()
	if s.p != nil {
		s.p.close()
		s.p = nil
	}
}

// suspect is a resource that may have hung the shadow.
type suspect struct {
	ref     xds.Ref
	version string
}

// trial is one Try.
type trial struct {
	*Shadow
	sent *xds.Generation
	// masked are what the shadow is not sent: known to be bad, or suspected.
	masked   map[xds.Ref]*ledger.Quarantine
	known    map[xds.Ref]*ledger.Quarantine
	good     *xds.Generation // what the shadow took before
	groups   [][]suspect     // to be tried, each together
	trying   []suspect
	blamed   map[suspect]bool // once, alone
	verdicts []Verdict
	failures int
}

// Try makes the shadow take a generation and returns what of it the fleet must not
// get. known is what is known to be bad already, which the shadow is not sent. The
// error is of ctx, or ErrUnavailable.
func (s *Shadow) Try(ctx context.Context, g *xds.Generation, known map[xds.Ref]*ledger.Quarantine) ([]Verdict, error) {
	s.try.Lock()
	defer s.try.Unlock()
	begin := time.Now()
	s.mu.Lock()
	s.state.Tries++
	s.refusals = nil
	s.mu.Unlock()
	t := &trial{Shadow: s, good: s.sent, known: map[xds.Ref]*ledger.Quarantine{}, blamed: map[suspect]bool{}}
	t.sent = s.fake(g)
	for ref, q := range known {
		hidden := *q
		hidden.Good = s.fakes.resource(q.Good)
		t.known[ref] = &hidden
	}
	t.masked = maps.Clone(t.known)
	err := t.run(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Last = time.Since(begin)
	if err != nil {
		if errors.Is(err, ErrUnavailable) {
			s.state.Err = err.Error()
		}
		return nil, err
	}
	s.state.Err = ""
	for _, v := range s.refusals {
		if r := t.sent.Get(v.Ref.Type, v.Ref.Name); r != nil && r.Version == v.Version && !slices.Contains(t.verdicts, v) {
			t.verdicts = append(t.verdicts, v)
		}
	}
	return t.verdicts, nil
}

// fake is a generation as the shadow gets it, made from the one before where only
// a part differs.
func (s *Shadow) fake(g *xds.Generation) *xds.Generation {
	s.rev++
	out := s.sent.Clone()
	out.Revision = s.rev
	for _, ref := range g.Since(s.last) {
		if r := g.Get(ref.Type, ref.Name); r != nil {
			out.Set(s.fakes.resource(r))
		} else {
			out.Delete(ref.Type, ref.Name)
		}
	}
	s.last, s.sent = g, out
	return out
}

// run tries everything at once and, when the shadow hangs or dies, all but the
// suspects, which then are tried in halves.
func (t *trial) run(ctx context.Context) error {
	if err := t.start(ctx); err != nil {
		return err
	}
	for {
		why, err := t.settle(ctx)
		switch {
		case err != nil:
			return err
		case why == "" && len(t.groups) == 0:
			return nil
		case why == "":
			t.trying, t.groups = t.groups[0], t.groups[1:]
			for _, x := range t.trying {
				if delete(t.masked, x.ref); t.known[x.ref] != nil {
					t.masked[x.ref] = t.known[x.ref]
				}
			}
			t.spare()
			continue
		}
		suspects := t.trying
		if suspects == nil {
			suspects = t.suspects()
		}
		t.trying = nil
		if err := t.blame(suspects, why); err != nil {
			return err
		}
		if err := t.start(ctx); err != nil {
			return err
		}
	}
}

// suspects are the resources whose response was not answered.
func (t *trial) suspects() []suspect {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []suspect
	for _, ref := range t.unanswered {
		if r := t.sent.Get(ref.Type, ref.Name); r != nil && !t.isMasked(ref, r.Version) {
			out = append(out, suspect{ref, r.Version})
		}
	}
	return out
}

func (t *trial) isMasked(ref xds.Ref, version string) bool {
	q := t.masked[ref]
	return q != nil && q.Refused[version] != ""
}

// blame masks the suspects. One alone is the culprit, of several both halves are
// to be tried.
func (t *trial) blame(suspects []suspect, why string) error {
	if len(suspects) == 0 {
		if t.failures++; t.failures >= maxFailures {
			return fmt.Errorf("%w: %s, %d times, and no resource is to blame", ErrUnavailable, why, t.failures)
		}
		return nil
	}
	for _, x := range suspects {
		t.mask(x, why)
	}
	if x := suspects[0]; len(suspects) == 1 && !t.blamed[x] {
		// A machine that stood still, or somebody who ended the process, is not a verdict.
		t.log.Info("the shadow Envoy hung or ended at a resource: trying that once more", "resource", x.ref.String(), "what", why)
		t.blamed[x] = true
		t.groups = append([][]suspect{suspects}, t.groups...)
		return nil
	} else if len(suspects) == 1 {
		t.log.Warn("a resource hangs or ends the shadow Envoy: the fleet does not get it", "resource", x.ref.String(), "what", why)
		t.verdicts = append(t.verdicts, Verdict{Ref: x.ref, Version: x.version, Hung: true, Detail: "the shadow Envoy did not survive it: " + why})
		return nil
	}
	t.log.Info("the shadow Envoy hung or ended: searching for the resource", "suspects", len(suspects), "what", why)
	half := (len(suspects) + 1) / 2
	t.groups = append([][]suspect{suspects[:half], suspects[half:]}, t.groups...)
	return nil
}

// start has a process that is to get what is tried, without what is masked.
func (t *trial) start(ctx context.Context) error {
	var failed []string
	for t.p == nil || !t.p.alive() {
		if t.p != nil {
			t.p.close()
			t.p = nil
		}
		p, err := t.launch(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			// It may be the sandbox: a binary that its user cannot read, say.
			boxes := len(sandboxes())
			if t.box++; t.box == boxes {
				t.box = 0
			}
			if failed = append(failed, err.Error()); len(failed) == boxes {
				return fmt.Errorf("%w: %s", ErrUnavailable, strings.Join(slices.Compact(failed), "; "))
			}
			continue
		}
		t.p = p
	}
	t.maskRefused()
	t.spare()
	t.p.server.Update(viewName, t.sent)
	return nil
}

// spare tells the delivery what is masked. What was, and is not, is sent again, also
// when it was refused.
func (t *trial) spare() {
	var lifted []xds.Ref
	for ref := range t.p.masked {
		if t.masked[ref] == nil {
			lifted = append(lifted, ref)
		}
	}
	t.p.masked = maps.Clone(t.masked)
	t.p.server.Quarantine(viewName, t.masked)
	t.p.server.Lift(viewName, lifted...)
}

// maskRefused spares a process that was started again what the one before refused.
func (t *trial) maskRefused() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, v := range t.refusals {
		if !t.isMasked(v.Ref, v.Version) {
			t.mask(suspect{v.Ref, v.Version}, v.Detail)
		}
	}
}

// mask keeps a version from the shadow. What it took before stays in its place.
func (t *trial) mask(x suspect, why string) {
	q := &ledger.Quarantine{Refused: map[string]string{x.version: why}}
	if known := t.known[x.ref]; known != nil {
		q.Good = known.Good
		maps.Copy(q.Refused, known.Refused)
	} else if good := t.good.Get(x.ref.Type, x.ref.Name); good != nil && good.Version != x.version {
		q.Good = good
	}
	t.masked[x.ref] = q
}

// settle waits until the shadow has answered all. why says what happened when it
// does not; then the process is gone, and unanswered says what it did not answer.
func (t *trial) settle(ctx context.Context) (why string, err error) {
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(t.p.gone, cancel)
	defer stop()
	rep, err := t.p.server.Wait(wait, t.sent.Revision, nil)
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case t.p.gone.Err() != nil || rep.Total == 0:
		why = "it ended: " + t.p.end()
	case err != nil:
		return "", err
	case slices.ContainsFunc(rep.Problems, func(p ledger.Problem) bool { return p.State == ledger.Silent }) || !t.p.ready(ctx, t.p.limit):
		why = fmt.Sprintf("it did not answer within %s", t.p.limit)
	default:
		for _, p := range t.p.server.Proxies() {
			t.set(func(s *State) { s.Envoy = p.Version })
		}
		return "", nil
	}
	t.p.close()
	return why, nil
}

func (s *Shadow) set(change func(*State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.state)
}

// viewName is the one view of the shadow's delivery.
const viewName = "shadow"

// limit is how long a response may stay unanswered.
func (s *Shadow) limit() time.Duration {
	limit := s.opt.Limit
	for _, t := range s.sent.Types() {
		limit += time.Duration(s.sent.Len(t)) * resourceLimit
	}
	return limit
}

// deliver makes the delivery of one process.
func (s *Shadow) deliver(limit time.Duration) *delivery.Server {
	return delivery.New(delivery.Options{
		Logger: s.log, SilentAfter: limit, Grace: -1,
		Authenticate: func(context.Context) (delivery.Identity, error) {
			return delivery.Identity{Proxy: viewName, SPIFFE: viewName, View: viewName}, nil
		},
		OnRefused: func(r delivery.Refusal) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.refusals = append(s.refusals, Verdict{
				Ref: xds.Ref{Type: r.Resource.Type, Name: r.Resource.Name}, Version: r.Resource.Version, Detail: r.Detail,
			})
		},
		OnLeave: func(_ delivery.Identity, unanswered []xds.Ref) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.unanswered = unanswered
		},
	})
}
