package delivery

import (
	"crypto/sha256"
	"encoding/base64"
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

// keepFor bounds how long a response is kept for another to come first.
const keepFor = 2 * time.Second

// applyFor is how long a client that has acknowledged clusters may take until its
// balancer has them: grpc-go acknowledges first, and fails calls to a cluster that it
// only knows of ("unknown cluster selected for RPC").
const applyFor = 150 * time.Millisecond

// sotw is the state-of-the-world variant, as gRPC clients speak it: each request
// has all names that the client is interested in, and each response all resources
// of the type that it is to have. For clusters and listeners what a response lacks
// is gone (https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol);
// that something else is gone cannot be said, and the client finds out since
// nothing refers to it any more.
//
// The version of a response says, by hashes, what was in it. A client that comes
// back tells it, so one that has what it should is sent nothing.
type sotw struct {
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer

	// Guarded by the view's mu.
	types map[xds.Type]*sotwType
	kept  *kept
	warm  func(held, next *xds.Resource) (*anypb.Any, error)
	// early is a first request for clusters that is not taken in yet.
	early *early
}

// early is from a client that comes back with a cluster that is gone, and that its
// routes may still lead to: it is to have the new routes before it loses that, and
// these wait for no cluster that it has not asked for.
type early struct {
	req   *discoveryv3.DiscoveryRequest
	table *ledger.Table
	since time.Time
}

// kept is a response of routes that is not sent yet.
type kept struct {
	*ledger.Response
	since time.Time
	// warm is the nonce of what was sent in its place for now; answered says that it
	// was taken, or refused.
	warm     string
	answered bool
	// ready is when the client had acknowledged all that the response needs.
	ready time.Time
}

// sotwType is what a client has said of one type, and the last that it was sent.
type sotwType struct {
	asked bool
	// legacy: everything is asked for by a first request without names.
	legacy bool
	names  map[string]struct{}
	nonce  string
}

func newSotw(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer, warm func(held, next *xds.Resource) (*anypb.Any, error)) *sotw {
	w := &sotw{stream: s, types: map[xds.Type]*sotwType{}, warm: warm}
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
	if k := w.kept; k != nil && k.warm == req.GetResponseNonce() {
		k.answered = true
	}
	first := !t.asked
	if first && out.Type == xds.Cluster && outdated(table, req) {
		since := time.Now()
		if w.early != nil {
			since = w.early.since
		}
		w.early = &early{req, table, since}
		return out, false
	}
	return w.take(t, req, table, out), true
}

// take takes in what a request asks for.
func (w *sotw) take(t *sotwType, req *discoveryv3.DiscoveryRequest, table *ledger.Table, out ledger.Request) ledger.Request {
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
	return out
}

// outdated reports whether the client holds something by a name that is gone.
func outdated(table *ledger.Table, req *discoveryv3.DiscoveryRequest) bool {
	if req.GetVersionInfo() == "" {
		return false
	}
	parts, ok := readVersion(req.GetVersionInfo())
	return slices.ContainsFunc(req.GetResourceNames(), func(name string) bool {
		_, has := parts[hashOf(name)]
		return (has || !ok) && name != "*" && len(table.Wanted(xds.Type(req.GetTypeUrl()), []string{name}, false)) == 0
	})
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

// unknownVersion stands for the version of a resource that the client holds from
// an earlier stream, when it is not the wanted one. No hash looks like it.
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
	parts, ok := readVersion(req.GetVersionInfo())
	same := !ok && stateVersion(wanted) == req.GetVersionInfo()
	initial := map[string]string{}
	for _, name := range all {
		if _, has := parts[hashOf(name)]; name != "*" && (has || !ok) {
			initial[name] = unknownVersion
		}
	}
	for _, r := range wanted {
		if version, has := parts[hashOf(r.Name)]; same || has && version == hashOf(r.Version) {
			initial[r.Name] = r.Version
		}
	}
	return initial
}

// names reports whether the words of a refusal name a resource, as gRPC's do in all
// languages: the others of the response were taken then.
func names(detail, resource string) bool {
	return strings.Contains(detail, strconv.Quote(resource)) || strings.Contains(detail, "'"+resource+"'") ||
		strings.Contains(detail, ": "+resource+": ")
}

const (
	// maxParts is up to how many resources a version says which they are.
	maxParts = 64
	// partsPrefix begins such a version.
	partsPrefix = "r1."
)

// hash is the first bytes of a hash: enough to tell the versions of one resource
// from each other.
type hash [6]byte

func hashOf(s string) (h hash) {
	sum := sha256.Sum256([]byte(s))
	copy(h[:], sum[:])
	return h
}

// stateVersion is the version of a response: hashes of each name and version, so
// that a client that has asked for less or more since is known to have those; of
// many resources one hash. It sorts the resources.
func stateVersion(all []*xds.Resource) string {
	slices.SortFunc(all, func(a, b *xds.Resource) int { return strings.Compare(a.Name, b.Name) })
	if len(all) > maxParts {
		h := sha256.New()
		for _, r := range all {
			h.Write([]byte(r.Name + "\x00" + r.Version + "\x00"))
		}
		return hex.EncodeToString(h.Sum(nil)[:12])
	}
	var b []byte
	for _, r := range all {
		name, version := hashOf(r.Name), hashOf(r.Version)
		b = append(append(b, name[:]...), version[:]...)
	}
	return partsPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// readVersion takes apart what stateVersion made of a few resources: versions by
// name, both hashed. It returns false for anything else.
func readVersion(s string) (map[hash]hash, bool) {
	text, ok := strings.CutPrefix(s, partsPrefix)
	b, err := base64.RawURLEncoding.DecodeString(text)
	if !ok || err != nil || len(b)%12 != 0 || len(b)/12 > maxParts {
		return nil, false
	}
	out := make(map[hash]hash, len(b)/12)
	for ; len(b) > 0; b = b[12:] {
		out[hash(b[:6])] = hash(b[6:12])
	}
	return out, true
}

func (w *sotw) write(r *ledger.Response, p *ledger.Proxy, now time.Time) func() error {
	all := p.FullState(r)
	if r.Type == xds.Route && w.warm != nil {
		if warmed := w.warmed(r, p, all); warmed != nil {
			w.kept = &kept{Response: r, since: now, warm: r.Nonce + "-warm"}
			return w.send(r.Type, r.Nonce+"-warm", "warm", warmed)
		}
	}
	return w.sendAll(r, all)
}

// routed reports whether the client has all listeners and routes.
func routed(p *ledger.Proxy) bool { return p.Settled(xds.Listener) && p.Settled(xds.Route) }

// warmed is what to send before routes that lead to clusters which the client does
// not have: with grpc-go a call that takes such a route before the channel has made
// the cluster fails ("unknown cluster selected for RPC", seen with 1.85). So the
// routes that it has are sent once more, naming the new clusters in a route that no
// call takes. It is nil when there is no need.
func (w *sotw) warmed(r *ledger.Response, p *ledger.Proxy, all []*xds.Resource) []*anypb.Any {
	instead := map[*xds.Resource]*anypb.Any{}
	for _, next := range r.Resources {
		held := p.Held(xds.Ref{Type: next.Type, Name: next.Name})
		if held == nil || !slices.ContainsFunc(next.Refs, p.Lacks) {
			continue
		}
		if body, err := w.warm(held, next); err == nil {
			instead[next] = body
		}
	}
	if len(instead) == 0 {
		return nil
	}
	stateVersion(all) // sorts
	out := make([]*anypb.Any, 0, len(all))
	for _, res := range all {
		if body := instead[res]; body != nil {
			out = append(out, body)
		} else {
			out = append(out, res.Body)
		}
	}
	return out
}

// warm reports whether the client has all clusters that routes lead to, with their
// endpoints.
func warm(r *ledger.Response, p *ledger.Proxy) bool {
	for _, next := range r.Resources {
		for _, ref := range next.Refs {
			if p.Lacks(ref) || p.Lacks(xds.Ref{Type: xds.Endpoint, Name: ref.Name}) {
				return false
			}
		}
	}
	return true
}

func (w *sotw) held(p *ledger.Proxy, now time.Time) (func() error, time.Time) {
	var wake time.Time
	if e := w.early; e != nil {
		if due := e.since.Add(keepFor); now.Before(due) && !routed(p) {
			wake = due
		} else {
			w.early = nil
			r := w.take(w.types[xds.Cluster], e.req, e.table, ledger.Request{Type: xds.Cluster})
			_, _ = p.Handle(r, now) // too many names are too many in the next request, too
		}
	}
	if k := w.kept; k != nil {
		if due := k.since.Add(keepFor); now.Before(due) && !(k.answered && warm(k.Response, p)) {
			return nil, earliest(wake, due)
		}
		if k.ready.IsZero() {
			k.ready = now
		}
		if due := k.ready.Add(applyFor); now.Before(due) && k.warm != "" {
			return nil, earliest(wake, due)
		}
		w.kept = nil
		return w.sendAll(k.Response, p.FullState(k.Response)), time.Time{}
	}
	return nil, wake
}

func (w *sotw) sendAll(r *ledger.Response, all []*xds.Resource) func() error {
	version := stateVersion(all)
	bodies := make([]*anypb.Any, len(all))
	for i, res := range all {
		bodies[i] = res.Body
	}
	return w.send(r.Type, r.Nonce, version, bodies)
}

func (w *sotw) send(t xds.Type, nonce, version string, bodies []*anypb.Any) func() error {
	w.types[t].nonce = nonce
	return func() error {
		return w.stream.Send(&discoveryv3.DiscoveryResponse{TypeUrl: string(t), Nonce: nonce, VersionInfo: version, Resources: bodies})
	}
}
