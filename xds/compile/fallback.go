package compile

import (
	"fmt"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/policy"
)

const (
	// shards is how many parts the list of a listener's exact hosts has. It is a part of
	// the listener, so a change of it drains.
	shards = 64
	// shardPrefix begins the names of their scopes, after that of the listener. No Host
	// has such a character.
	shardPrefix = "#/"
	// knownRoute and unknownRoute are the routes of a shard. Nothing is answered by them.
	knownRoute, unknownRoute = "penstock/known", "penstock/unknown"
)

// shardOf is the shard that a host is in. The script computes the same.
func shardOf(hostname string) int {
	x := 0
	for _, c := range []byte(hostname) {
		x = (x*31 + int(c)) % 65521
	}
	return x % shards
}

// fallbackScript sends a request on whose host has no scope of its own, or whose Host has
// capital letters, which scopes do not ignore. A shard says by the name of a route whether
// the host is known. Only a host that is not known, so said by a shard that is there, goes
// to the wildcards: a host whose scope or routes are late must never be answered by them.
//
// Of the calls of a script only the first to metadata() makes Envoy choose the route after
// clearRouteCache() (seen with 1.40; testFallbackPicks sees it again).
func fallbackScript(listener string) string {
	return fmt.Sprintf(`function envoy_on_request(handle)
  local headers = handle:headers()
  local host = headers:get(":authority")
  local name = host:lower()
  if name ~= host then headers:replace(":authority", name) end
  local x = 0
  for i = 1, #name do
    local c = name:byte(i)
    if c == 58 then break end
    x = (x * 31 + c) %% 65521
  end
  headers:replace("%[1]s", "%[2]s/%[3]s" .. (x %% %[4]d))
  handle:clearRouteCache()
  handle:metadata()
  if handle:streamInfo():routeName() == "%[5]s" then name = "%[6]s" end
  headers:replace("%[1]s", "%[2]s/" .. name)
  handle:clearRouteCache()
end
`, scopeHeader, listener, shardPrefix, shards, unknownRoute, anyHost)
}

func fallback(listener string) *luav3.Lua {
	return &luav3.Lua{StatPrefix: "fallback", DefaultSourceCode: inline(fallbackScript(listener))}
}

// switchedOff is the entry of a RouteConfiguration that takes a filter out of the requests
// that find it at once. What sends a request elsewhere later would be a way past that
// filter, so it is for filters only that none of the routes has an entry for, and only in
// RouteConfigurations that no request leaves.
var switchedOff = func() *anypb.Any {
	p := &packer{}
	out := p.Pack(&routev3.FilterConfig{Disabled: true})
	if err := p.Err(); err != nil {
		panic(err)
	}
	return out
}()

// unused are the entries of the RouteConfiguration of an exact host: it needs no fallback,
// and no filter that its routes do not use. Filters that are off until a route asks are in
// the chain for all requests, since a request that finds no scope passes those filters only
// that are on then.
func unused(project string, uses uint64) map[string]*anypb.Any {
	out := map[string]*anypb.Any{filterFallback: switchedOff}
	for i, name := range chain().in(project).off {
		if uses&(1<<i) == 0 {
			out[name] = switchedOff
		}
	}
	return out
}

// shardNames are the exact hosts of a listener by shard, sorted.
type shardNames struct {
	names   [shards][]string
	changed map[int]bool
}

// put puts a host in, or takes it out.
func (s *shardNames) put(hostname string, known bool) {
	n := shardOf(hostname)
	all := s.names[n]
	i, found := slices.BinarySearch(all, hostname)
	switch {
	case known && !found:
		s.names[n] = slices.Insert(all, i, hostname)
	case !known && found:
		s.names[n] = slices.Delete(all, i, i+1)
	default:
		return
	}
	if s.changed == nil {
		s.changed = map[int]bool{}
	}
	s.changed[n] = true
}

// shards emits the shards that changed, or all. A shard follows the scopes of the hosts
// that it names: as long as it does not name a host, the wildcards answer as before.
func (st *listenerState) shards(v *view, all bool) error {
	s := &st.hosts.known
	for n := range shards {
		if !all && !s.changed[n] {
			continue
		}
		r, err := st.shard(n, s.names[n])
		if err != nil {
			return err
		}
		v.out.set(r)
		if err := emitScope(v, r.Name, r.Name, st.gateway.GetName(), false); err != nil {
			return err
		}
	}
	s.changed = nil
	return nil
}

func (st *listenerState) shardName(n int) string {
	return fmt.Sprintf("%s/%s%d", st.name, shardPrefix, n)
}

func (st *listenerState) shard(n int, hosts []string) (*xds.Resource, error) {
	rc := routeConfiguration(st.shardName(n))
	host := func(name, route string, domains []string) {
		rc.VirtualHosts = append(rc.VirtualHosts, &routev3.VirtualHost{Name: shardPrefix + name, Domains: domains, Routes: []*routev3.Route{{
			// The filters that protect have no entry here: they refuse.
			Name: route, Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}, Action: directResponse(503, ""),
		}}})
	}
	var after []xds.Ref
	if len(hosts) > 0 {
		host("known", knownRoute, hosts)
		after = make([]xds.Ref, len(hosts))
		for i, name := range hosts {
			after[i] = xds.Ref{Type: xds.Scope, Name: st.name + "/" + name}
		}
	}
	host("unknown", unknownRoute, []string{anyHost})
	if err := rc.ValidateAll(); err != nil {
		return nil, fmt.Errorf("route configuration %s: %w", rc.Name, err)
	}
	r, err := xds.NewResource(xds.Route, rc.Name, rc, nil, []string{st.gateway.GetName()})
	if err == nil {
		r.After = after
	}
	return r, err
}

// removeShards takes all shards away, with the listener.
func (st *listenerState) removeShards(out *editor) {
	for n := range shards {
		out.remove(xds.Scope, st.shardName(n))
		out.remove(xds.Route, st.shardName(n))
	}
}

// dropPort takes the port from the Location of a redirect. Only routes whose redirect has
// the default port of its scheme switch it on.
func dropPort(*policy.Packer) policy.Message {
	return &luav3.Lua{StatPrefix: "drop_port", SourceCodes: map[string]*corev3.DataSource{dropPortSource: inline(dropPortScript)}}
}

// dropPortSource is the name of the script in the filter.
const (
	dropPortSource = "drop-port"
	dropPortScript = `function envoy_on_response(handle)
  local headers = handle:headers()
  local location = headers:get("location")
  if location then headers:replace("location", (location:gsub("^(https?://[^/]*):%d+", "%1", 1))) end
end
`
)
