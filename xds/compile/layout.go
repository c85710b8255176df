package compile

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
)

// How a listener is laid out (docs/decisions/0039). Each exact host is a scope with a
// RouteConfiguration of its own, so that a change of a host costs the proxies what this
// host costs, however many there are. All wildcards and the catch-all are in one
// RouteConfiguration, that of the scope "*". A request looks for the scope of its host.
// If there is none, the filter fallback looks whether the host is known, in one of the
// shards, and sends the request on: what is known to its own scope, what is not to the
// scope "*". Nothing in the listener depends on its hosts, so none of them drains it.

// The parts of a listener that a host may be in, as HostLayout names them.
const (
	// LayoutScopes: the host has a RouteConfiguration of its own.
	LayoutScopes = "scopes"
	// LayoutWildcards: the host is a wildcard, or the catch-all.
	LayoutWildcards = "wildcards"
)

// HostLayout returns which part of a listener a host is in, by the gateway's full name:
// LayoutWildcards, LayoutScopes or, when proxies load its routes at its first request,
// "scopes, on demand".
func HostLayout(s *gateway.Snapshot, settings Settings, gatewayName, listener, hostname string) string {
	if isSpecial(hostname) {
		return LayoutWildcards
	}
	hosts := s.Hosts(gatewayName, listener)
	st := &listenerState{share: eagerShare(len(hosts), settings.EagerHosts)}
	known := slices.ContainsFunc(hosts, func(h *gateway.Host) bool { return h.Hostname == hostname })
	if known && st.onDemand(hostname) {
		return LayoutScopes + ", on demand"
	}
	return LayoutScopes
}

// isSpecial tells the hosts that more than one name matches: wildcards and the catch-all.
func isSpecial(hostname string) bool {
	return hostname == anyHost || hostname == "" || strings.HasPrefix(hostname, "*.")
}

// scopeOf is the last part of the name of the scope that a host belongs to.
func scopeOf(hostname string) string {
	if isSpecial(hostname) {
		return anyHost
	}
	return hostname
}

// DefaultEagerHosts is how many hosts of a listener are eager unless Settings say
// otherwise: an eager host with ten plain routes takes about 35 kB in an Envoy, and what
// it once took it does not give back (docs/decisions/0005).
const DefaultEagerHosts = 500

// eagerShare is which part of n hosts is eager, in 1/2^32: all up to limit, none
// from twice the limit on, and less and less between. So there is no number of
// hosts at which all change at once: a host that comes or goes changes about two
// others at most, wherever the number moves to and fro.
func eagerShare(n, limit int) uint64 {
	if limit == 0 {
		limit = DefaultEagerHosts
	}
	switch limit = max(limit, 0); {
	case n <= limit:
		return 1 << 32
	case n >= 2*limit:
		return 0
	default:
		return uint64(2*limit-n) << 32 / uint64(limit)
	}
}

// eagerByName reports whether a scope is in the eager share. It depends on nothing but
// its name, so that the same hosts stay eager.
func eagerByName(scope string, share uint64) bool {
	sum := sha256.Sum256([]byte(scope))
	return uint64(binary.BigEndian.Uint32(sum[:])) < share
}

// onDemand reports whether proxies load the routes of a scope at its first request. A
// request for a host whose routes are not there passes all filters of the chain, for none
// is off by default, so none that these routes have an entry for is missed.
func (st *listenerState) onDemand(scope string) bool {
	return !isSpecial(scope) && !eagerByName(scope, st.share)
}
