package control

import (
	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// What no proxy has is not a problem of any proxy, and no request gets an answer by it. The
// proxy of such a ProxyProblem is proxyNone.
const (
	proxyNone = "listener"
	// stateNotAttached: no listener serves the route.
	stateNotAttached = "not-attached"
	// stateNoProxy: no proxy of the gateway is connected.
	stateNoProxy = "no-proxy"
)

// unattached are the routes that no listener serves, of those that are named, or of all
// when names is nil.
func unattached(s *gateway.Snapshot, names []string) []*pb.ProxyProblem {
	var out []*pb.ProxyProblem
	for _, p := range s.UnattachedRoutes(names) {
		out = append(out, &pb.ProxyProblem{Proxy: proxyNone, State: stateNotAttached, Object: p.Object, Detail: p.Message})
	}
	return out
}

// unproxied are the gateways that no connected proxy serves.
func unproxied(s *gateway.Snapshot, proxies []ledger.ProxyStatus) []*pb.ProxyProblem {
	of := map[string]bool{}
	for _, p := range proxies {
		if project, id, _, err := pki.ParseProxyID(p.Identity); err == nil {
			of[project+"/"+id] = true
		}
	}
	var out []*pb.ProxyProblem
	for _, o := range s.Listed(gateway.KindGateways, "") {
		project, _, id, err := gateway.KindOf(o.GetName())
		if err == nil && !of[project+"/-"] && !of[project+"/"+id] {
			out = append(out, &pb.ProxyProblem{Proxy: proxyNone, State: stateNoProxy, Object: o.GetName(), Detail: "no proxy of it is connected"})
		}
	}
	return out
}
