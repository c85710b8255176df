package delivery

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/internal/signal"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// dialect is a variant of the protocol on one stream.
type dialect interface {
	// recv waits for the next request.
	recv() (request, error)
	// read makes a request what the ledger takes. It returns false for one that
	// means nothing. The caller holds the view's mu, also for write and held.
	read(q request, p *ledger.Proxy, t *ledger.Table) (ledger.Request, bool)
	// write makes what sends a response, without the mu. It is nil when the response
	// is kept for held.
	write(r *ledger.Response, p *ledger.Proxy, now time.Time) func() error
	// held is a response that was kept and can be sent now, and when to look again
	// at the latest.
	held(p *ledger.Proxy, now time.Time) (func() error, time.Time)
}

// request is what is the same in all dialects.
type request interface {
	GetNode() *corev3.Node
	GetTypeUrl() string
}

// stream is one connected proxy: the goroutine of the call sends, another one
// receives.
type stream struct {
	s      *Server
	v      *view
	id     Identity
	key    string // in Server.streams
	wire   dialect
	ctx    context.Context
	cancel context.CancelCauseFunc
	wake   signal.Wake   // makes the sender look again
	proxy  *ledger.Proxy // guarded by v.mu
	// channel says that this is one of several streams of its identity.
	channel bool
	// end is when the stream has lasted long enough; zero for never.
	end time.Time

	// Guarded by v.mu.
	node, version string
	remembered    string // version of Envoy that the memory is from
	synced        bool   // had all once
	granted       time.Time
	detached      bool
	aged          bool // ended because of its age
}

// attach registers a stream. One of an Envoy takes the place of an earlier one of
// the same proxy; clients of the other dialect have several, one for each channel.
func (s *Server) attach(ctx context.Context, wire dialect, v *view, id Identity, sotw bool) (*stream, error) {
	st := &stream{s: s, v: v, id: id, key: id.SPIFFE, wire: wire, wake: signal.NewWake()}
	st.ctx, st.cancel = context.WithCancelCause(ctx)
	if age := s.opt.StreamAge; age > 0 {
		st.end = time.Now().Add(age + rand.N(age/ageSpread+1))
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		st.cancel(errClosed)
		return nil, errClosed
	}
	if sotw {
		if s.channels[id.SPIFFE] >= maxChannels {
			s.mu.Unlock()
			st.cancel(errChannels)
			return nil, errChannels
		}
		s.channels[id.SPIFFE]++
		st.channel = true
		st.key += "#" + strconv.FormatUint(rand.Uint64(), 36)
	}
	old := s.streams[st.key]
	s.streams[st.key] = st
	s.mu.Unlock()
	if old != nil {
		s.opt.Logger.Warn("a second stream of the same proxy replaces the first", "proxy", id.Proxy, "identity", id.SPIFFE)
		old.cancel(errReplaced)
		old.leave()
	}
	v.mu.Lock()
	m := v.memory[st.key]
	delete(v.memory, st.key)
	delete(v.returning, st.key)
	st.remembered = m.version
	st.proxy = v.table.Attach(ledger.Options{SilentAfter: s.opt.SilentAfter, Grace: max(0, s.opt.Grace), Memory: m.refused}, time.Now())
	v.streams[st] = struct{}{}
	v.mu.Unlock()
	s.stats.streams.Add(1)
	s.opt.Logger.Info("proxy connected", "proxy", id.Proxy, "identity", id.SPIFFE, "view", v.name)
	s.notify()
	return st, nil
}

// detach undoes attach.
func (s *Server) detach(st *stream) {
	st.cancel(nil)
	s.mu.Lock()
	if s.streams[st.key] == st {
		delete(s.streams, st.key)
	}
	if st.channel {
		if s.channels[st.id.SPIFFE]--; s.channels[st.id.SPIFFE] == 0 {
			delete(s.channels, st.id.SPIFFE)
		}
	}
	s.mu.Unlock()
	st.leave()
	s.turns.leave(st)
	s.stats.streams.Add(-1)
	s.opt.Logger.Info("proxy disconnected", "proxy", st.id.Proxy, "identity", st.id.SPIFFE)
	s.notify()
}

// leave takes the proxy out of its view. It may be called twice.
func (st *stream) leave() {
	v := st.v
	v.mu.Lock()
	defer v.mu.Unlock()
	if st.detached || st.proxy == nil {
		return
	}
	st.detached = true
	delete(v.streams, st)
	if now := time.Now(); st.aged && !st.channel {
		v.returning[st.key] = returning{ProxyStatus: st.status(now), until: now.Add(st.s.opt.SilentAfter)}
	}
	if st.s.opt.OnLeave != nil {
		st.s.opt.OnLeave(st.id, st.proxy.Unanswered())
	}
	if m := st.proxy.Detach(); !st.channel && len(m) > 0 && len(v.memory) < maxMemory {
		v.memory[st.key] = memory{refused: m, version: st.version}
	}
}

// run serves the stream until it ends.
func (st *stream) run() error {
	if err := st.awaitView(); err != nil {
		return err
	}
	received := make(chan error, 1)
	go func() { received <- st.receive() }()
	for {
		send, wake := st.next()
		if send != nil {
			if err := send(); err != nil {
				return err
			}
			continue
		}
		if wake.Equal(over) {
			return nil
		}
		var due <-chan time.Time
		var timer *time.Timer
		if !wake.IsZero() {
			timer = time.NewTimer(time.Until(wake))
			due = timer.C
		}
		select {
		case <-st.wake:
		case <-due:
		case err := <-received:
			return err
		case <-st.ctx.Done():
			return status.FromContextError(st.ctx.Err()).Err()
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// awaitView waits for the first generation of the view.
func (st *stream) awaitView() error {
	select {
	case <-st.v.ready:
		return nil
	default:
	}
	if st.s.opt.OnView != nil {
		st.s.opt.OnView(st.v.name)
	}
	select {
	case <-st.v.ready:
		return nil
	case <-st.ctx.Done():
		return status.FromContextError(st.ctx.Err()).Err()
	}
}

// over is the wake of a stream that has come to its end.
var over = time.Unix(1, 0)

// next takes the next response from the ledger, as what sends it; else it says
// when to look again even if nothing happens.
func (st *stream) next() (send func() error, wake time.Time) {
	now := time.Now()
	st.v.mu.Lock()
	defer st.v.mu.Unlock()
	if st.detached {
		return nil, time.Time{}
	}
	if !st.end.IsZero() && !now.Before(st.end) {
		// What is still to be sent is for the next stream. An answer that is on its
		// way is waited for, so that nothing has to be sent twice.
		if patience := st.end.Add(st.s.opt.SilentAfter); st.proxy.Owing() && now.Before(patience) {
			return nil, patience
		}
		st.aged = true
		return nil, over
	}
	wait, turn := st.awaitTurn(now)
	if wait {
		return nil, earliest(turn, st.end)
	}
	send, kept := st.wire.held(st.proxy, now)
	if send != nil {
		return send, time.Time{}
	}
	for {
		r := st.proxy.Next(now)
		if r == nil {
			return nil, earliest(st.proxy.Wake(), kept, turn, st.end)
		}
		st.debug("xds response", "type", r.Type.Short(), "nonce", r.Nonce, "resources", len(r.Resources), "removed", len(r.Removed))
		st.s.stats.sent(r)
		st.s.notify()
		if send = st.wire.write(r, st.proxy, now); send != nil {
			return send, time.Time{}
		}
		if send, kept = st.wire.held(st.proxy, now); send != nil {
			return send, time.Time{}
		}
	}
}

// earliest is the first of times, of which zero ones are never.
func earliest(times ...time.Time) (first time.Time) {
	for _, t := range times {
		if first.IsZero() || (!t.IsZero() && t.Before(first)) {
			first = t
		}
	}
	return first
}

// receive takes in requests until the stream ends.
func (st *stream) receive() error {
	for first := true; ; first = false {
		q, err := st.wire.recv()
		if errors.Is(err, io.EOF) {
			return nil // the proxy closed its side
		}
		if err != nil {
			return err
		}
		if err := st.handle(q, first); err != nil {
			return err
		}
	}
}

// handle takes in one request.
func (st *stream) handle(q request, first bool) error {
	if first && st.channel && q.GetNode().GetUserAgentName() == "envoy" {
		return errEnvoy
	}
	st.v.mu.Lock()
	if st.detached {
		st.v.mu.Unlock()
		return errReplaced
	}
	if first {
		st.node, st.version = q.GetNode().GetId(), envoyVersion(q.GetNode())
		if st.version != st.remembered {
			st.proxy.ForgetRefusals()
		}
	}
	r, ok := st.wire.read(q, st.proxy, st.v.table)
	if !ok {
		st.v.mu.Unlock()
		return nil
	}
	out, err := st.proxy.Handle(r, time.Now())
	st.v.mu.Unlock()
	st.debug("xds request", "type", r.Type.Short(), "nonce", r.Nonce, "refused", r.Refused,
		"subscribe", len(r.Subscribe), "unsubscribe", len(r.Unsubscribe), "initial", len(r.Initial))
	st.wake.Set()
	st.s.notify()
	st.s.stats.answered(r.Type, out)
	st.log(r, out)
	st.tell(out)
	switch {
	case errors.Is(err, ledger.ErrType):
		return st.unknownType(r)
	case errors.Is(err, ledger.ErrTooManyNames):
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return err
}

// debug logs the protocol when somebody wants to see it.
func (st *stream) debug(msg string, args ...any) {
	if log := st.s.opt.Logger; log.Enabled(st.ctx, slog.LevelDebug) {
		log.Debug(msg, append([]any{"proxy", st.id.Proxy}, args...)...)
	}
}

// unknownType notes a request for a type that is not served. The stream goes on
// and the proxy gets no answer, as if the resource never came.
func (st *stream) unknownType(r ledger.Request) error {
	st.s.opt.Logger.Warn("proxy asks for a resource type that is not served",
		"proxy", st.id.Proxy, "type", string(r.Type), "names", r.Subscribe)
	return nil
}

// log reports refusals and names that are not for this proxy.
func (st *stream) log(r ledger.Request, out ledger.Outcome) {
	if out.Alone && len(out.Refused) == 1 || len(r.Culprits) > 0 && len(out.Refused) > 0 {
		st.s.opt.Logger.Warn("proxy refused a resource", "proxy", st.id.Proxy,
			"resource", out.Refused[0].String(), "detail", out.Detail)
	} else if len(out.Refused) > 0 {
		st.s.opt.Logger.Info("proxy refused a response of several resources; searching for the bad one",
			"proxy", st.id.Proxy, "type", r.Type.Short(), "resources", len(out.Refused), "detail", out.Detail)
	}
	if st.s.opt.OnForbidden != nil {
		for _, ref := range out.Absent {
			st.s.opt.OnForbidden(st.id, ref)
		}
	}
}

// envoyVersion is the build version of an Envoy: "1.40.0", or what another
// client calls itself.
func envoyVersion(n *corev3.Node) string {
	if b := n.GetUserAgentBuildVersion(); b != nil {
		return semver(b)
	}
	return n.GetUserAgentVersion()
}
