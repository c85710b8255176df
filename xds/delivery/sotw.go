package delivery

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// keepFor bounds how long a response of clusters is kept for routes to come first.
const keepFor = 2 * time.Second

// sotw is the state-of-the-world variant, as gRPC clients speak it: each request
// has all names that the client is interested in, and each response all resources
// of the type that it is to have. For clusters and listeners what a response lacks
// is gone (https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol);
// that something else is gone cannot be said, and the client finds out since
// nothing refers to it any more.
//
// The version of a response is a hash of the names and versions in it. A client
// that comes back tells it, so one that has what it should is sent nothing.
type sotw struct {
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer

	// Guarded by the view's mu.
	types map[xds.Type]*sotwType
	kept  *ledger.Response
	since time.Time // of kept
}

// sotwType is what a client has said of one type, and the last that it was sent.
type sotwType struct {
	asked bool
	// legacy: everything is asked for by a first request without names.
	legacy bool
	names  map[string]struct{}
	nonce  string
}

func newSotw(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) *sotw {
	w := &sotw{stream: s, types: map[xds.Type]*sotwType{}}
	for _, t := range ledger.Types() {
		w.types[t] = &sotwType{names: map[string]struct{}{}}
	}
	return w
}

func (w *sotw) recv() (request, error) { return w.stream.Recv() }

func (w *sotw) read(q request, _ *ledger.Proxy, table *ledger.Table) (ledger.Request, bool) {
	req := q.(*discoveryv3.DiscoveryRequest)
	out := ledger.Request{
		Type: xds.Type(req.GetTypeUrl()), Nonce: req.GetResponseNonce(),
		Refused: req.GetErrorDetail() != nil, Detail: req.GetErrorDetail().GetMessage(),
	}
	t := w.types[out.Type]
	if t == nil {
		out.Subscribe = req.GetResourceNames()
		return out, true // the ledger refuses it
	}
	if t.asked && req.GetResponseNonce() != t.nonce {
		// It crossed a response. The answer to that will have all names again.
		return out, false
	}
	first := !t.asked
	t.asked = true
	if first {
		t.legacy = len(req.GetResourceNames()) == 0 && ledger.Wildcard(out.Type)
		out.Initial = initialVersions(table, out.Type, req)
	}
	t.interest(req.GetResourceNames(), &out)
	if out.Refused {
		for name := range t.names {
			if names(out.Detail, name) {
				out.Culprits = append(out.Culprits, name)
			}
		}
		slices.Sort(out.Culprits)
	}
	return out, true
}

// interest makes the difference to the names before.
func (t *sotwType) interest(all []string, out *ledger.Request) {
	next := make(map[string]struct{}, len(all))
	for _, name := range all {
		next[name] = struct{}{}
		if _, had := t.names[name]; !had {
			out.Subscribe = append(out.Subscribe, name)
		}
	}
	for name := range t.names {
		if _, has := next[name]; !has {
			out.Unsubscribe = append(out.Unsubscribe, name)
		}
	}
	if t.legacy && len(next) > 0 {
		t.legacy = false
		out.Unsubscribe = append(out.Unsubscribe, "*")
	}
	t.names = next
	slices.Sort(out.Subscribe)
	out.Subscribe = slices.Compact(out.Subscribe)
	slices.Sort(out.Unsubscribe)
}

// unknownVersion stands for the version of a resource that the client may hold
// from an earlier stream, when it is not the wanted one. No hash looks like it.
const unknownVersion = "?"

// initialVersions are those that a client holds from an earlier stream, whose last
// version it tells.
func initialVersions(table *ledger.Table, t xds.Type, req *discoveryv3.DiscoveryRequest) map[string]string {
	if req.GetVersionInfo() == "" {
		return nil
	}
	all := req.GetResourceNames()
	everything := slices.Contains(all, "*") || (len(all) == 0 && ledger.Wildcard(t))
	wanted := table.Wanted(t, all, everything)
	initial := map[string]string{}
	if stateVersion(wanted) == req.GetVersionInfo() {
		for _, r := range wanted {
			initial[r.Name] = r.Version
		}
		return initial
	}
	for _, name := range all {
		if name != "*" {
			initial[name] = unknownVersion
		}
	}
	return initial
}

// names tells whether the words of a refusal name a resource, as gRPC's do in all
// languages: the others of the response were taken then.
func names(detail, resource string) bool {
	return strings.Contains(detail, strconv.Quote(resource)) || strings.Contains(detail, "'"+resource+"'") ||
		strings.Contains(detail, ": "+resource+": ")
}

// stateVersion is the version of a response. It sorts the resources.
func stateVersion(all []*xds.Resource) string {
	slices.SortFunc(all, func(a, b *xds.Resource) int { return strings.Compare(a.Name, b.Name) })
	h := sha256.New()
	for _, r := range all {
		h.Write([]byte(r.Name + "\x00" + r.Version + "\x00"))
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

func (w *sotw) write(r *ledger.Response, p *ledger.Proxy, now time.Time) func() error {
	all, unknown := p.FullState(r)
	if unknown && r.Type == xds.Cluster && w.kept == nil && !routed(p) {
		// The client has come back with a cluster that is gone, and that its routes may
		// still lead to: let it have the new routes before it loses the cluster.
		w.kept, w.since = r, now
		return nil
	}
	return w.send(r, all)
}

// routed tells whether the client has all listeners and routes.
func routed(p *ledger.Proxy) bool { return p.Settled(xds.Listener) && p.Settled(xds.Route) }

func (w *sotw) held(p *ledger.Proxy, now time.Time) (func() error, time.Time) {
	if w.kept == nil {
		return nil, time.Time{}
	}
	if due := w.since.Add(keepFor); now.Before(due) && !routed(p) {
		return nil, due
	}
	r := w.kept
	w.kept = nil
	all, _ := p.FullState(r)
	return w.send(r, all), time.Time{}
}

func (w *sotw) send(r *ledger.Response, all []*xds.Resource) func() error {
	out := &discoveryv3.DiscoveryResponse{
		TypeUrl: string(r.Type), Nonce: r.Nonce, VersionInfo: stateVersion(all),
		Resources: make([]*anypb.Any, len(all)),
	}
	for i, res := range all {
		out.Resources[i] = res.Body
	}
	w.types[r.Type].nonce = r.Nonce
	return func() error { return w.stream.Send(out) }
}
