package explain

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// action says how the request goes on: to backends, or how it ends without one.
func (x *explainer) action(e *gateway.Entry) {
	if e.Problem != "" {
		x.out.Outcome = "503 Service Unavailable: the rule cannot be served as written: " + e.Problem
		return
	}
	switch a := e.Rule.GetAction().(type) {
	case *pb.RouteRule_Redirect:
		status := int(cmp.Or(a.Redirect.GetStatus(), gateway.DefaultRedirectStatus))
		x.out.Outcome = fmt.Sprintf("%d %s", status, x.location(e.Match.GetPath(), a.Redirect))
	case *pb.RouteRule_DirectResponse:
		status := int(a.DirectResponse.GetStatus())
		x.out.Outcome = strings.TrimSpace(fmt.Sprintf("%d %s", status, http.StatusText(status)))
		if body := a.DirectResponse.GetBody(); body != "" {
			x.out.Outcome += fmt.Sprintf(": %q", body)
		}
	case *pb.RouteRule_Forward:
		x.backends(e)
	}
}

// location is the target of a redirect. A client names the port in the Host when
// the scheme has another.
func (x *explainer) location(match *pb.PathMatch, d *pb.Redirect) string {
	protocol := pb.ListenerProtocol_LISTENER_PROTOCOL_HTTP
	if x.scheme == "https" {
		protocol = pb.ListenerProtocol_LISTENER_PROTOCOL_HTTPS
	}
	to := gateway.RedirectTo(d, &pb.Listener{Port: x.port, Protocol: protocol}, x.request.Host)
	host, port := cmp.Or(to.Host, x.request.Host), to.Port
	if port == 0 && to.Host == "" && x.port != gateway.SchemePort(x.scheme) {
		port = x.port
	}
	if port != 0 {
		host = fmt.Sprintf("%s:%d", host, port)
	}
	path := cmp.Or(d.GetPath(), x.request.Path)
	if to := d.GetPrefixRewrite(); to != "" {
		path = gateway.RewritePrefix(match, path, to)
	}
	if x.request.Query != "" && !strings.Contains(path, "?") {
		path += "?" + x.request.Query
	}
	return cmp.Or(d.GetScheme(), x.scheme) + "://" + host + path
}

// backends lists the targets with their shares, and tells when none can answer.
func (x *explainer) backends(e *gateway.Entry) {
	var sum float64
	for _, t := range e.Backends {
		sum += float64(t.Weight)
	}
	var down []string
	up := false
	for _, t := range e.Backends {
		b := &pb.ExplainBackend{Name: t.Name(), Subset: t.Subset, Port: t.Port, Percent: 100 * float64(t.Weight) / sum}
		if t.Function == nil {
			b.Endpoints = endpoints(t)
			up = up || t.Weight > 0
		} else if x.instances == nil {
			up = true
		} else {
			b.Instances = x.instances(t.Name())
			if ready(b.Instances) {
				up = up || t.Weight > 0
			} else {
				down = append(down, t.Name())
			}
		}
		x.out.Backends = append(x.out.Backends, b)
	}
	if !up {
		x.out.Outcome = "503 Service Unavailable: no instance is ready of " + strings.Join(down, ", ")
	}
}

func ready(instances []*pb.Instance) bool {
	for _, i := range instances {
		if i.GetState() == pb.InstanceState_INSTANCE_STATE_READY {
			return true
		}
	}
	return false
}

// endpoints are the addresses of a backend, of a subset if one is named.
func endpoints(t gateway.Target) []string {
	if d := t.Backend.GetDns(); d != nil {
		return []string{fmt.Sprintf("%s:%d (all addresses of the name)", d.GetHostname(), d.GetPort())}
	}
	var out []string
	for _, e := range t.StaticEndpoints() {
		out = append(out, net.JoinHostPort(e.GetAddress(), fmt.Sprint(e.GetPort())))
	}
	return out
}
