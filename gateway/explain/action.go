package explain

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// through follows the request through the filters in front of a rule to what it does.
func (x *explainer) through(h *gateway.Host, e *gateway.Entry, said *gateway.Explanation) *pb.ExplainOutcome {
	out := said.Answer
	if out == nil {
		out = x.action(h, e, said.MayBeLate)
	}
	out.MayBe = append(said.MayBe, out.GetMayBe()...)
	out.Certain = out.GetCertain() && len(said.MayBe) == 0
	return out
}

// action says how the request goes on: to backends, or how it ends without one.
func (x *explainer) action(h *gateway.Host, e *gateway.Entry, late []*pb.ExplainOutcome) *pb.ExplainOutcome {
	if e.Problem != "" {
		return answered(byConfig, gateway.RouteBroken, "the rule cannot be served as written: %s", e.Problem)
	}
	switch a := e.Rule.GetAction().(type) {
	case *pb.RouteRule_Redirect:
		status := cmp.Or(a.Redirect.GetStatus(), gateway.DefaultRedirectStatus)
		to := x.location(h, e.Match.GetPath(), a.Redirect)
		out := certain(byRedirect, status, "%d %s", status, to)
		out.Location = to
		return out
	case *pb.RouteRule_DirectResponse:
		if e.Preflight {
			return answered(pb.ExplainDecider_EXPLAIN_DECIDER_POLICY, gateway.Forbidden, "%s", a.DirectResponse.GetBody())
		}
		status := a.DirectResponse.GetStatus()
		out := certain(byDirect, status, "%s", statusLine(status))
		if body := a.DirectResponse.GetBody(); body != "" {
			out.Text += fmt.Sprintf(": %q", body)
		}
		return out
	case *pb.RouteRule_Forward:
		return x.backends(e, late)
	}
	return answered(byConfig, gateway.RouteBroken, "rule %s has no action", e.RuleName)
}

// location is the target of a redirect. A client names the port in the Host when the
// scheme has another, and that port stays unless the redirect changes it.
func (x *explainer) location(h *gateway.Host, match *pb.PathMatch, d *pb.Redirect) string {
	to := gateway.RedirectTo(d, h.Listener, h.Hostname)
	host, port := cmp.Or(to.Host, x.request.Host), to.Port
	switch {
	case to.DropPort:
		port = 0
	case port == 0 && to.Host == "":
		port = x.hostPort
	}
	if port != 0 {
		host = fmt.Sprintf("%s:%d", host, port)
	}
	path := cmp.Or(d.GetPath(), x.request.Path)
	if to := d.GetPrefixRewrite(); to != "" {
		path = gateway.RewritePrefix(match, path, to)
	}
	if x.hasQuery && !strings.Contains(path, "?") {
		path += "?" + x.request.Query
	}
	return cmp.Or(d.GetScheme(), x.forwardedScheme(h.Listener)) + "://" + host + path
}

// forwardedScheme is the scheme of the request: that of the connection, unless a trusted
// proxy in front of the gateway says another.
func (x *explainer) forwardedScheme(l *pb.Listener) string {
	if said := x.request.Headers["x-forwarded-proto"]; l.GetTrustedHops() > 0 && len(said) == 1 && (said[0] == "http" || said[0] == "https") {
		return said[0]
	}
	return x.scheme
}

// backends lists the targets with their shares, and says how they answer: that of the
// greatest share first.
func (x *explainer) backends(e *gateway.Entry, late []*pb.ExplainOutcome) *pb.ExplainOutcome {
	var sum float64
	targets := slices.DeleteFunc(slices.Clone(e.Backends), func(t gateway.Target) bool { return x.nothing(t.Name(), "") != nil })
	for _, t := range targets {
		sum += float64(t.Weight)
	}
	var first *pb.ExplainOutcome
	var others []*pb.ExplainOutcome
	greatest := uint32(0)
	for _, t := range targets {
		b := &pb.ExplainBackend{Name: t.Name(), Subset: t.Subset, Port: t.Port, Percent: 100 * float64(t.Weight) / sum}
		x.out.Backends = append(x.out.Backends, b)
		var o *pb.ExplainOutcome
		if t.Function != nil {
			o = x.function(t, b)
		} else {
			o = endpoints(t, b)
		}
		if t.Weight == 0 {
			continue
		}
		if b.GetPercent() < 100 {
			o.Text += fmt.Sprintf("; %.4g %% of the requests go there", b.GetPercent())
		}
		if t.Weight > greatest {
			first, greatest = o, t.Weight
		}
		others = append(others, o)
	}
	var may []*pb.ExplainOutcome
	for _, o := range others {
		if o != first {
			o.Certain, may = false, append(may, o)
		}
	}
	first.Certain = first.GetCertain() && len(may) == 0
	first.MayBe = slices.Concat(first.GetMayBe(), may, x.failures(), late)
	return first
}

// failures are what the client gets when backends do not answer as they should, which
// nobody knows before.
func (x *explainer) failures() []*pb.ExplainOutcome {
	var backends, functions []string
	for _, o := range x.out.GetBackends() {
		switch {
		case o.GetPercent() == 0:
		case strings.Contains(o.GetName(), "/functions/"):
			functions = append(functions, o.GetName())
		case len(o.GetEndpoints()) > 0:
			backends = append(backends, o.GetName())
		}
	}
	var out []*pb.ExplainOutcome
	if len(backends) > 0 {
		names := strings.Join(backends, " or ")
		out = append(out,
			may(byBackend, gateway.BackendReset, "no endpoint of %s takes the connection, or it ends too early; proxies see that, the control plane does not", names),
			may(byBackend, gateway.NoEndpoint, "proxies know no address of %s that takes connections", names),
			may(byBackend, gateway.BackendProtocol, "%s answers with what is not HTTP", names))
	}
	if len(functions) > 0 {
		out = append(out, possible(byFunction, 503, "503 Service Unavailable: %s has no room or cannot start; the header x-penstock-error says why", strings.Join(functions, " or ")))
	}
	return out
}

// endpoints adds the addresses of a backend, of a subset if one is named, and says how it
// answers.
func endpoints(t gateway.Target, b *pb.ExplainBackend) *pb.ExplainOutcome {
	if d := t.Backend.GetDns(); d != nil {
		b.Endpoints = []string{fmt.Sprintf("%s:%d (all addresses of the name)", d.GetHostname(), d.GetPort())}
	}
	for _, e := range t.StaticEndpoints() {
		b.Endpoints = append(b.Endpoints, net.JoinHostPort(e.GetAddress(), fmt.Sprint(e.GetPort())))
	}
	if len(b.GetEndpoints()) == 0 {
		return answered(byBackend, gateway.NoEndpoint, "%s has no endpoint%s", t.Name(), ofPart(t))
	}
	return possible(byBackend, 200, "200 by %s, or the status that it answers with", t.Name())
}

// ofPart names the part of a backend that a target is.
func ofPart(t gateway.Target) string {
	switch {
	case t.Subset != "":
		return fmt.Sprintf(" in subset %q", t.Subset)
	case t.Port != 0:
		return fmt.Sprintf(" on port %d", t.Port)
	}
	return ""
}

// function adds the instances of a function and says how it answers.
func (x *explainer) function(t gateway.Target, b *pb.ExplainBackend) *pb.ExplainOutcome {
	name := t.Name()
	if x.known.Function == nil {
		return possible(byFunction, 200, "200 by %s, or the status that it answers with; whether it runs is not known here", name)
	}
	f := x.known.Function(name)
	b.Instances = f.Instances
	ready := 0
	for _, i := range f.Instances {
		if i.GetState() == pb.InstanceState_INSTANCE_STATE_READY {
			ready++
		}
	}
	switch {
	case f.Lost != "":
		return lost(name, f)
	case f.Nowhere != "":
		return may(byFunction, gateway.NoEndpoint, "nothing takes requests of %s: %s", name, f.Nowhere)
	case f.StandIn != "":
		return possible(byFunction, 200, "200 by %s, or the status that it answers with: it serves until %s is ready", f.StandIn, name)
	case ready > 0:
		return possible(byFunction, 200, "200 by %s, or the status that it answers with", name)
	case f.Trouble != "":
		o := possible(byFunction, 503, "503 Service Unavailable by the activator of %s: %s", name, f.Trouble)
		o.MayBe = []*pb.ExplainOutcome{possible(byFunction, 200, "200 by %s, or the status that it answers with, if the next start succeeds", name)}
		return o
	}
	return possible(byFunction, 200, "200 by the activator of %s: the first request starts an instance, which answers", name)
}

// lost says how a function answers of whose runners nothing is heard: as its endpoints do.
func lost(name string, f Function) *pb.ExplainOutcome {
	served := possible(byFunction, 200, "200 by %s, or the status that it answers with: its instances answer, but their state is %s", name, f.Lost)
	none := may(byFunction, gateway.BackendReset, "nothing of %s takes connections: %s", name, f.Lost)
	switch f.Answers {
	case Served:
		return served
	case Hangs:
		return may(byFunction, gateway.BackendTimeout, "%s takes connections and answers nothing: %s", name, f.Lost)
	case NotKnown:
		served.Text = fmt.Sprintf("200 by %s when its instances still run, which cannot be seen from here", name)
		none.MayBe = []*pb.ExplainOutcome{served}
	}
	return none
}
