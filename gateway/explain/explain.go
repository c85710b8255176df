// Package explain says what a client gets for a request, and why, from the model alone:
// which listener takes it, which host and rule serve it, what each policy does and where
// it is attached, where the request may go, and why no other rule serves it. No request is
// sent. What it foresees is compared with the answers of a real Envoy, over generated
// configurations and requests, in xds/compile.
package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// maxMisses bounds ExplainResponse.not_matched; a last row says how many more
// there are.
const maxMisses = 1000

// Known is what a control plane knows beside the configuration.
type Known struct {
	// Function says how requests reach a function, or a version of one, by its full name.
	// nil: that is not known.
	Function func(name string) Function
	// Now is the time at which tokens are judged; zero: the present.
	Now time.Time
	// Refused is what proxies refuse. Served is the configuration with what they serve in
	// its place; nil: there is nothing of that kind.
	Refused []Refusal
	Served  *gateway.Snapshot
}

// Function is how requests reach a function.
type Function struct {
	// Instances are those that a runner has, ready or not.
	Instances []*pb.Instance
	// Activator: what comes while no instance is free is held until one is.
	Activator bool
	// Trouble is why callers get 503 with the reason; "" for none.
	Trouble string
	// StandIn is the version that serves in the place of this one; "" for none.
	StandIn string
	// Nowhere is why nothing takes requests; "" when something does.
	Nowhere string
	// Lost says since when nothing is heard of the runners that have its endpoints; ""
	// when one is heard of. Answers is what the endpoints do, looked at now.
	Lost    string
	Answers Answers
}

// Answers is what the endpoints of a runner do that nothing is heard of.
type Answers int

// What endpoints do, the worst first.
const (
	// Refused: nothing takes connections.
	Refused Answers = iota
	// NotKnown: they cannot be looked at from here.
	NotKnown
	// Hangs: they take connections and answer nothing.
	Hangs
	// Served: they answer.
	Served
)

// Explain follows one request through a snapshot. Without known it says nothing of
// functions but their names. A request that cannot be understood is explained by the
// outcome. ExplainListener.layout is for the caller to fill: the model does not know how
// hosts are laid out in xDS.
func Explain(s *gateway.Snapshot, req *pb.ExplainRequest, known *Known) *pb.ExplainResponse {
	if known != nil && len(known.Refused) > 0 {
		return explainRefused(s, req, known)
	}
	return explain(s, req, known)
}

// explain is Explain by what one snapshot says.
func explain(s *gateway.Snapshot, req *pb.ExplainRequest, known *Known) *pb.ExplainResponse {
	x := &explainer{snapshot: s, out: &pb.ExplainResponse{Revision: s.Revision()}}
	if known != nil {
		x.known = *known
	}
	if x.known.Now.IsZero() {
		x.known.Now = time.Now()
	}
	x.project = cmp.Or(req.GetProject(), "default")
	if err := x.parse(req); err != nil {
		x.out.Outcome = certain(notSent, 0, "not sent: %v", err)
		return x.out
	}
	x.out.Outcome = x.run()
	x.forGRPC(x.out.GetOutcome())
	return x.out
}

type explainer struct {
	snapshot *gateway.Snapshot
	known    Known
	project  string
	scheme   string
	// port is that of the connection, hostPort that of the Host; 0: it names none.
	port, hostPort uint32
	// serverName is the host that the client names in the TLS handshake: that of the URL;
	// "" when it is an address.
	serverName string
	request    gateway.Request
	hasQuery   bool
	// badHost is why every listener refuses the host; nil when they do not.
	badHost *gateway.EdgeError
	// noAuthority: Envoy refuses it by itself, before it looks at the path.
	noAuthority bool
	rawPath     string
	// size is that of all headers, hostSize that of the Host as it was sent, in bytes.
	size, hostSize int
	out            *pb.ExplainResponse
	// edgeRows say what the edge changes of the request.
	edgeRows []string
	// more counts misses beyond maxMisses.
	more int
}

func (x *explainer) run() *pb.ExplainOutcome {
	g, l, h := x.listener()
	if l == nil {
		return x.noListener()
	}
	x.out.Listener = &pb.ExplainListener{
		Gateway: g.GetName(), Listener: l.GetName(),
		Address: fmt.Sprintf("%s:%d", bracket(gateway.ListenerAddress(l)), l.GetPort()),
	}
	if names := gateway.ServerNames(l); len(names) > 0 && !gateway.NamesServer(names, x.serverName) {
		return x.noHandshake(names)
	}
	if refusal := x.edge(gateway.EdgeOf(l)); refusal != nil {
		return refusal
	}
	profile := gateway.EdgeOf(l)
	if _, ok := profile.Reading(x.request.Path); !ok {
		return x.ambiguous()
	}
	if h == nil {
		return answered(byMatch, gateway.NoRoute, "no host: no route serves %q here; there are %s", x.request.Host, hostList(x.snapshot.Hosts(g.GetName(), l.GetName())))
	}
	x.out.Host = h.Hostname
	e := h.Find(&x.request)
	x.misses(h, e)
	x.lessSpecific(h)
	if x.more > 0 {
		x.out.NotMatched = append(x.out.NotMatched, &pb.ExplainMiss{Reason: fmt.Sprintf("and %d more rules", x.more)})
	}
	if profile.Ambiguous(h, &x.request, e) {
		return x.ambiguous()
	}
	if e != nil {
		x.out.Rule = &pb.ExplainRule{
			Route: e.Route.GetName(), Rule: e.RuleName, Origin: e.Route.GetMetadata().GetOrigin(),
			Match: gateway.DescribeMatch(e.Match),
		}
	}
	if out := x.refusedRule(h, e); out != nil {
		return out
	}
	if e == nil {
		return x.noRule(h)
	}
	for _, row := range x.edgeRows {
		x.out.Policies = append(x.out.Policies, gateway.PolicyRow("edge", row, gateway.Source{}))
	}
	said := x.snapshot.Explain(e, &x.request, x.known.Now)
	x.out.Policies = append(x.out.Policies, said.Rows...)
	return x.through(h, e, said)
}

func (x *explainer) ambiguous() *pb.ExplainOutcome {
	return answered(byEdge, gateway.AmbiguousPath, "%q could be read in two ways that lead to different rules, with what the listener keeps in paths and without", x.request.Path)
}

// noRule is the answer when no rule of a host matches: for the method alone, or at all.
func (x *explainer) noRule(h *gateway.Host) *pb.ExplainOutcome {
	var methods []string
	for _, e := range h.Entries {
		for _, m := range e.Match.GetMethods() {
			other := x.request
			other.Method = m
			if e.Matches(&other) && !slices.Contains(methods, m) {
				methods = append(methods, m)
			}
		}
	}
	if len(methods) > 0 {
		slices.Sort(methods)
		return answered(byMethod, gateway.NoRoute, "no route: host %q serves this path for %s, not for %s", h.Hostname, strings.Join(methods, " and "), x.request.Method)
	}
	return answered(byMatch, gateway.NoRoute, "no route: no rule of host %q matches", h.Hostname)
}

// listener chooses the listener of the URL's scheme and port. Of several, in
// several gateways, the one with the most specific host for the request is taken,
// then the first by name.
func (x *explainer) listener() (*pb.Gateway, *pb.Listener, *gateway.Host) {
	var g *pb.Gateway
	var l *pb.Listener
	var h *gateway.Host
	for _, o := range x.snapshot.List(gateway.KindGateways, x.project) {
		gw := o.(*pb.Gateway)
		for _, li := range gw.GetListeners() {
			if scheme(li) != x.scheme || li.GetPort() != x.port || x.nothing(gw.GetName(), li.GetName()) != nil {
				continue
			}
			host := x.snapshot.Host(gw.GetName(), li.GetName(), x.request.Host)
			if l == nil || specificity(host) > specificity(h) {
				g, l, h = gw, li, host
			}
		}
	}
	return g, l, h
}

// noListener is the outcome of a request to a port at which nothing listens.
func (x *explainer) noListener() *pb.ExplainOutcome {
	var others []string
	for _, o := range x.snapshot.List(gateway.KindGateways, x.project) {
		for _, li := range o.(*pb.Gateway).GetListeners() {
			if r := x.nothing(o.GetName(), li.GetName()); r != nil {
				if scheme(li) == x.scheme && li.GetPort() == x.port {
					return certain(byListener, 0, "no listener: nothing listens for %s on port %d: %s", x.scheme, x.port, r.words())
				}
				continue
			}
			others = append(others, fmt.Sprintf("%s://…:%d (%s of %s)", scheme(li), li.GetPort(), li.GetName(), o.GetName()))
		}
	}
	there := "project " + x.project + " has no gateway"
	if len(others) > 0 {
		there = "there are " + strings.Join(others, ", ")
	}
	return certain(byListener, 0, "no listener: nothing listens for %s on port %d; %s", x.scheme, x.port, there)
}

// noHandshake is the outcome of a connection that is made for none of the listener's hosts.
func (x *explainer) noHandshake(names []string) *pb.ExplainOutcome {
	made := fmt.Sprintf("names %q", x.serverName)
	if x.serverName == "" {
		made = "names no host, because the URL has an address"
	}
	return certain(byListener, 0, "no TLS handshake: the client %s, and the listener is for %s alone; it closes the connection", made, strings.Join(names, ", "))
}

// specificity orders hosts that serve one request: exact, longest wildcard, "*".
func specificity(h *gateway.Host) int {
	switch {
	case h == nil:
		return -1
	case h.Hostname == "*":
		return 0
	case strings.HasPrefix(h.Hostname, "*"):
		return len(h.Hostname)
	}
	return 1 << 20
}

func scheme(l *pb.Listener) string {
	if l.GetProtocol() == pb.ListenerProtocol_LISTENER_PROTOCOL_HTTPS {
		return "https"
	}
	return "http"
}

func bracket(address string) string {
	if strings.Contains(address, ":") {
		return "[" + address + "]"
	}
	return address
}

func hostList(hosts []*gateway.Host) string {
	if len(hosts) == 0 {
		return "none"
	}
	var names []string
	for i, h := range hosts {
		if i == 20 {
			names = append(names, fmt.Sprintf("and %d more", len(hosts)-i))
			break
		}
		names = append(names, h.Hostname)
	}
	return strings.Join(names, ", ")
}
