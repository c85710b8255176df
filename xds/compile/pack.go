package compile

import (
	"cmp"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// packer wraps messages and collects what is wrong with them.
type packer = policy.Packer

// seal checks what compileHost made of a host and keeps its bytes instead: the
// messages take several times as much memory.
func (u *unit) seal(h *gateway.Host) {
	project, _ := projectAndID(h.Gateway.GetName())
	vhost := u.vhost
	u.host, u.name, u.vhost = h, vhost.GetName(), nil
	if u.err = validateShell(vhost); u.err == nil {
		u.err = checkRoutes(project, &routev3.RouteConfiguration{VirtualHosts: []*routev3.VirtualHost{vhost}})
	}
	switch {
	case u.err != nil:
	case u.made != nil:
		u.err = u.seam(vhost)
	default:
		u.raw, u.err = proto.MarshalOptions{Deterministic: true}.Marshal(vhost)
	}
	u.finish()
}

// seam is marshal with the routes of vhost, which are those of the entries and one more.
func (u *unit) seam(vhost *routev3.VirtualHost) error {
	routes := vhost.Routes
	rest := &routev3.VirtualHost{
		Name: vhost.Name, Domains: vhost.Domains, Routes: routes[len(routes)-1:],
		TypedPerFilterConfig: vhost.TypedPerFilterConfig, RetryPolicy: vhost.RetryPolicy,
		IncludeIsTimeoutRetryHeader: vhost.IncludeIsTimeoutRetryHeader,
	}
	return u.marshal(rest, func(out []byte, i int) ([]byte, error) {
		n := len(u.made[i].traits)
		out, err := appendRoutes(out, routes[:n])
		routes = routes[n:]
		return out, err
	})
}

// finish leaves of what the unit needs each once.
func (u *unit) finish() {
	u.unique()
	slices.SortFunc(u.refs, func(a, b xds.Ref) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name))
	})
	u.refs = slices.Clone(slices.Compact(u.refs))
	if len(u.consumers) == 0 {
		u.consumers = nil
	}
}

// validateShell checks a host without its routes: each was checked when it was made,
// and checking is a good part of what a change costs.
func validateShell(vhost *routev3.VirtualHost) error {
	routes := vhost.Routes
	defer func() { vhost.Routes = routes }()
	vhost.Routes = nil
	return vhost.ValidateAll()
}

// virtualHosts is the field of RouteConfiguration that units go to.
const virtualHosts = 2

// assemble makes the bytes of a RouteConfiguration with the units, whose bytes end
// at ends, before the hosts that are in it. They are what marshalling would make.
func assemble(rc *routev3.RouteConfiguration, units []*unit) (body []byte, ends []int, err error) {
	marshal := proto.MarshalOptions{Deterministic: true}
	head, err := marshal.Marshal(&routev3.RouteConfiguration{Name: rc.GetName()})
	if err != nil {
		return nil, nil, err
	}
	name := rc.Name
	rc.Name = "" // it is in the head
	tail, err := marshal.Marshal(rc)
	rc.Name = name
	if err != nil {
		return nil, nil, err
	}
	size := len(head) + len(tail)
	for _, u := range units {
		size += protowire.SizeTag(virtualHosts) + protowire.SizeBytes(len(u.raw))
	}
	body = append(make([]byte, 0, size), head...)
	for _, u := range units {
		body = protowire.AppendTag(body, virtualHosts, protowire.BytesType)
		body = protowire.AppendBytes(body, u.raw)
		ends = append(ends, len(body))
	}
	return append(body, tail...), ends, nil
}
