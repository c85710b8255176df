package compile

import (
	"fmt"
	"strings"

	"github.com/penstock-gateway/penstock/authn/jwt"
	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/ratelimit"
)

// The internal clusters.
const (
	limiterCluster = ratelimit.Cluster
	otlpCluster    = "penstock/otlp"
)

// The filters of every chain that are no policy's. Their names are keys in routes that
// proxies hold: see policy.Filter.
const (
	filterTrace      = "penstock.v1.trace"
	filterTraceFlags = "penstock.v1.trace-flags"
	filterEdge       = "penstock.v1.edge"
	filterOnDemand   = "penstock.v1.on-demand"
	filterFallback   = "penstock.v1.fallback"
	filterDropPort   = "penstock.v1.drop-port"
	filterEdgeCheck  = "penstock.v1.edge-check"
	filterRBAC       = "penstock.v1.rbac"
	filterGuard      = "penstock.v1.guard"
	filterRouter     = "envoy.filters.http.router"
)

// claimsFilter and jwtFilter are the names of a project's filters that come by
// ECDS, and of these resources.
func claimsFilter(project string) string { return jwt.Claims.NameIn(project) }
func jwtFilter(project string) string    { return jwt.Verify.NameIn(project) }

const (
	// scopeHeader carries the scope key from the early header mutation to the
	// choice of the scope. Clients cannot set it, backends do not see it.
	scopeHeader = "x-penstock-scope"
	// noRouteName is the name of the last route of every host.
	noRouteName = "penstock/no-route"
	// anyHost is the host name of a listener's catch-all.
	anyHost = "*"
)

// listenerName is the name of a listener.
func listenerName(gatewayName, listener string) string {
	project, id := projectAndID(gatewayName)
	return project + "/" + id + "/" + listener
}

func projectAndID(name string) (project, id string) {
	project, _, id, err := gateway.KindOf(name)
	if err != nil {
		return "", name
	}
	return project, id
}

// clusterName is the name of the cluster of a target.
func clusterName(t gateway.Target) string {
	name := t.Name()
	if t.Function == nil && t.Subset != "" {
		name += "|" + t.Subset
	}
	if t.Function == nil && t.Port != 0 {
		name += fmt.Sprintf("|:%d", t.Port) // a subset has no colon in its name
	}
	return name
}

// statPrefix keeps the dots of statistics for what they separate.
func statPrefix(name string) string { return strings.NewReplacer("/", ".", ":", "_").Replace(name) }
