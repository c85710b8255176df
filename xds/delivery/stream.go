package delivery

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

type deltaStream = discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer

// stream is one connected proxy: the goroutine of the call sends, another one
// receives.
type stream struct {
	s      *Server
	v      *view
	id     Identity
	ds     deltaStream
	ctx    context.Context
	cancel context.CancelCauseFunc
	wake   chan struct{} // capacity 1
	proxy  *ledger.Proxy // guarded by v.mu

	// Guarded by v.mu.
	node, version string
	remembered    string // version of Envoy that the memory is from
	detached      bool
}

// attach registers a stream, in place of an earlier one of the same proxy.
func (s *Server) attach(ds deltaStream, v *view, id Identity) (*stream, error) {
	st := &stream{s: s, v: v, id: id, ds: ds, wake: make(chan struct{}, 1)}
	st.ctx, st.cancel = context.WithCancelCause(ds.Context())
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		st.cancel(errClosed)
		return nil, errClosed
	}
	old := s.streams[id.SPIFFE]
	s.streams[id.SPIFFE] = st
	s.mu.Unlock()
	if old != nil {
		s.opt.Logger.Warn("a second stream of the same proxy replaces the first", "proxy", id.Proxy, "identity", id.SPIFFE)
		old.cancel(errReplaced)
		old.leave()
	}
	v.mu.Lock()
	m := v.memory[id.SPIFFE]
	delete(v.memory, id.SPIFFE)
	st.remembered = m.version
	st.proxy = v.table.Attach(ledger.Options{SilentAfter: s.opt.SilentAfter, Grace: max(0, s.opt.Grace), Memory: m.refused}, time.Now())
	v.streams[st] = struct{}{}
	v.mu.Unlock()
	s.stats.streams.Add(1)
	s.opt.Logger.Info("proxy connected", "proxy", id.Proxy, "identity", id.SPIFFE, "view", id.View)
	s.notify()
	return st, nil
}

// detach undoes attach.
func (s *Server) detach(st *stream) {
	st.cancel(nil)
	s.mu.Lock()
	if s.streams[st.id.SPIFFE] == st {
		delete(s.streams, st.id.SPIFFE)
	}
	s.mu.Unlock()
	st.leave()
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
	if m := st.proxy.Detach(); len(m) > 0 && len(v.memory) < maxMemory {
		v.memory[st.id.SPIFFE] = memory{refused: m, version: st.version}
	}
}

// poke makes the sender look again. It never blocks.
func (st *stream) poke() {
	select {
	case st.wake <- struct{}{}:
	default:
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
		r, wake := st.next()
		if r != nil {
			if err := st.ds.Send(r); err != nil {
				return err
			}
			continue
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

// next takes the next response from the ledger.
func (st *stream) next() (*discoveryv3.DeltaDiscoveryResponse, time.Time) {
	st.v.mu.Lock()
	if st.detached {
		st.v.mu.Unlock()
		return nil, time.Time{}
	}
	r := st.proxy.Next(time.Now())
	wake := st.proxy.Wake()
	st.v.mu.Unlock()
	if r == nil {
		return nil, wake
	}
	out := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: string(r.Type), Nonce: r.Nonce, RemovedResources: r.Removed,
	}
	if len(r.Resources) > 0 {
		// One allocation for all: there may be ten thousand.
		all := make([]discoveryv3.Resource, len(r.Resources))
		out.Resources = make([]*discoveryv3.Resource, len(r.Resources))
		for i, res := range r.Resources {
			all[i].Name, all[i].Version, all[i].Resource = res.Name, res.Version, res.Body
			out.Resources[i] = &all[i]
		}
	}
	st.debug("xds response", "type", r.Type.Short(), "nonce", r.Nonce, "resources", len(r.Resources), "removed", len(r.Removed))
	st.s.stats.sent(r)
	st.s.notify()
	return out, wake
}

// receive takes in requests until the stream ends.
func (st *stream) receive() error {
	for first := true; ; first = false {
		req, err := st.ds.Recv()
		if errors.Is(err, io.EOF) {
			return nil // the proxy closed its side
		}
		if err != nil {
			return err
		}
		if err := st.handle(req, first); err != nil {
			return err
		}
	}
}

// handle takes in one request.
func (st *stream) handle(req *discoveryv3.DeltaDiscoveryRequest, first bool) error {
	r := ledger.Request{
		Type: xds.Type(req.GetTypeUrl()), Nonce: req.GetResponseNonce(),
		Refused: req.GetErrorDetail() != nil, Detail: req.GetErrorDetail().GetMessage(),
		Subscribe: req.GetResourceNamesSubscribe(), Unsubscribe: req.GetResourceNamesUnsubscribe(),
		Initial: req.GetInitialResourceVersions(),
	}
	st.debug("xds request", "type", r.Type.Short(), "nonce", r.Nonce, "refused", r.Refused,
		"subscribe", len(r.Subscribe), "unsubscribe", len(r.Unsubscribe), "initial", len(r.Initial))
	st.v.mu.Lock()
	if st.detached {
		st.v.mu.Unlock()
		return errReplaced
	}
	if first {
		st.node, st.version = req.GetNode().GetId(), envoyVersion(req.GetNode())
		if st.version != st.remembered {
			st.proxy.ForgetRefusals()
		}
	}
	out, err := st.proxy.Handle(r, time.Now())
	st.v.mu.Unlock()
	st.poke()
	st.s.notify()
	st.s.stats.answered(r.Type, out)
	st.log(r, out)
	switch {
	case errors.Is(err, ledger.ErrType):
		return st.unknownType(req)
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
func (st *stream) unknownType(req *discoveryv3.DeltaDiscoveryRequest) error {
	st.s.opt.Logger.Warn("proxy asks for a resource type that is not served",
		"proxy", st.id.Proxy, "type", req.GetTypeUrl(), "names", req.GetResourceNamesSubscribe())
	return nil
}

// log reports refusals and names that are not for this proxy.
func (st *stream) log(r ledger.Request, out ledger.Outcome) {
	if out.Alone && len(out.Refused) == 1 {
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
