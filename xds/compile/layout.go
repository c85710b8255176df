package compile

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
)

// The layouts of a listener.
const (
	// LayoutScopes: one RouteConfiguration per host, chosen by scoped routes. A
	// change costs the proxies what its host costs, however many there are. Hosts
	// under a wildcard are in the RouteConfiguration of that wildcard.
	LayoutScopes = "scopes"
	// LayoutTable: one RouteConfiguration with all hosts. A scope is found by an
	// exact key only, so this is the layout of listeners that serve any host.
	LayoutTable = "table"
)

// maxWildcards bounds the wildcards of the scopes layout: the listener holds one
// condition for each, and Envoy's CEL allows 32 levels in all (with 28 it refused
// the listener, seen with 1.40).
const maxWildcards = 24

// Layout returns how the hosts of a listener, by the gateway's full name, are
// laid out in xDS: LayoutScopes or LayoutTable. It depends on nothing but their
// names. A change of it is a change of the listener, which drains.
func Layout(s *gateway.Snapshot, gatewayName, listener string) string {
	return layoutOf(s.Hosts(gatewayName, listener)).kind
}

// HostLayout is Layout with what is special to one host of the listener: "scopes, on
// demand" for one whose routes proxies load at its first request.
func HostLayout(s *gateway.Snapshot, settings Settings, gatewayName, listener, hostname string) string {
	hosts := s.Hosts(gatewayName, listener)
	lay := layoutOf(hosts)
	if lay.kind != LayoutScopes {
		return lay.kind
	}
	st := &listenerState{share: eagerShare(len(hosts), settings.EagerHosts)}
	scope := lay.scopeOf(hostname)
	if eagerByName(scope, st.share) {
		return lay.kind
	}
	var units []*unit
	for _, h := range hosts {
		if lay.scopeOf(h.Hostname) == scope {
			units = append(units, compileHost(s, h, nil, nil))
		}
	}
	if len(units) == 0 || !st.onDemand(scope, units) {
		return lay.kind
	}
	return lay.kind + ", on demand"
}

// layout is how the hosts of a listener are laid out.
type layout struct {
	kind string
	// wildcards are those that are not under another one, sorted. Scopes only.
	wildcards []string
}

func layoutOf(hosts []*gateway.Host) layout {
	var special []string
	for _, h := range hosts {
		if isSpecial(h.Hostname) {
			special = append(special, h.Hostname)
		}
	}
	return layoutWith(len(hosts), special)
}

// isSpecial tells the hosts that the layout depends on: wildcards and the catch-all.
func isSpecial(hostname string) bool {
	return hostname == anyHost || hostname == "" || strings.HasPrefix(hostname, "*.")
}

// layoutWith is the layout of a number of hosts, some of them special.
func layoutWith(hosts int, special []string) layout {
	if hosts == 0 {
		// Nothing is served: one table that answers 404.
		return layout{kind: LayoutTable}
	}
	var wild []string
	for _, name := range special {
		if name == anyHost || name == "" {
			return layout{kind: LayoutTable}
		}
		wild = append(wild, name)
	}
	slices.SortFunc(wild, func(a, b string) int { return len(a) - len(b) })
	l := layout{kind: LayoutScopes}
	for _, w := range wild {
		if l.scopeOf(w) == w {
			l.wildcards = append(l.wildcards, w)
		}
	}
	slices.Sort(l.wildcards)
	if len(l.wildcards) > maxWildcards {
		return layout{kind: LayoutTable}
	}
	return l
}

func (l layout) equal(o layout) bool {
	return l.kind == o.kind && slices.Equal(l.wildcards, o.wildcards)
}

// scopeOf is the scope that a host belongs to: the outermost wildcard above it,
// or itself.
func (l layout) scopeOf(hostname string) string {
	for _, w := range l.wildcards {
		if hostname != w && strings.HasSuffix(hostname, w[1:]) {
			return w
		}
	}
	return hostname
}

// scopeValue is the format string that puts the scope key of a request together
// (the early header mutation knows CEL, but not its string functions). Scopes of
// all listeners come in one subscription, so the key begins with the listener. A
// port may follow, which the listener cuts off. What only looks like a host under a
// wildcard finds no host in its RouteConfiguration.
func (l layout) scopeValue(listener string) string {
	var b strings.Builder
	b.WriteString("request.host.matches('[A-Z]') ? '" + mixedCase + "' : ")
	for _, w := range l.wildcards {
		b.WriteString("request.host.endsWith('" + w[1:] + "') || request.host.contains('" + w[1:] + ":') ? '" + w + "' : ")
	}
	b.WriteString("request.host")
	return listener + "/%CEL(" + b.String() + ")%"
}

// hostCaseSource is the name of the script in the host-case filter.
const hostCaseSource = "host-case"

// hostCaseScript gives a host with capital letters its scope: neither scopes nor
// CEL can ignore case. It runs for such hosts only, and the request then takes the
// route that it would have taken in the first place.
func (l layout) hostCaseScript(listener string) string {
	var suffixes strings.Builder
	for _, w := range l.wildcards {
		suffixes.WriteString(`"` + w[1:] + `", `)
	}
	return `function envoy_on_request(handle)
  local headers = handle:headers()
  local host = string.lower(headers:get(":authority"))
  local name = host:gsub(":%d+$", "")
  local scope = name
  for _, suffix in ipairs({` + suffixes.String() + `}) do
    if #name > #suffix and name:sub(-#suffix) == suffix then scope = "*" .. suffix end
  end
  headers:replace(":authority", host)
  headers:replace("` + scopeHeader + `", "` + listener + `/" .. scope)
  handle:clearRouteCache()
end
`
}

// dropPortSource is the name of the second script in the host-case filter, and
// dropPortScript takes the port from the Location of a redirect. Only routes whose
// redirect has the default port of its scheme switch it on.
const (
	dropPortSource = "drop-port"
	dropPortScript = `function envoy_on_response(handle)
  local headers = handle:headers()
  local location = headers:get("location")
  if location then headers:replace("location", (location:gsub("^(https?://[^/]*):%d+", "%1", 1))) end
end
`
)

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

// onDemand reports whether proxies load the routes of a scope at its first request.
// That is safe only where all filters that its routes have an entry for are enabled
// in the chain: which filters a request passes is decided before its routes come,
// and what a filter does, after (docs/decisions/0005).
func (st *listenerState) onDemand(scope string, units []*unit) bool {
	return !eagerByName(scope, st.share) && !slices.ContainsFunc(units, func(u *unit) bool { return u.eager })
}
