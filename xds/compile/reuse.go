package compile

import (
	"bytes"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/gateway"
)

// A host whose routes are a list keeps of each entry what it was compiled to: when
// another entry changes, only that one is compiled. What routes share stands at
// their host, so the bytes of a route hold only while its host shares the same.

// made is what one entry of a host was compiled to.
type made struct {
	entry  *gateway.Entry
	part   *part // nil when it needs nothing
	traits []trait
	// from and to are where its routes stand in the bytes of the host.
	from, to int32
}

// trait is what a host looks at in a route to tell what its routes share.
type trait struct {
	// entries are those that may stand at the host.
	entries  *hostEntries
	uses     uint64 // see unit
	forwards bool
	retry    *routev3.RetryPolicy // nil for none
	retryKey string               // its bytes
	cost     int
}

// hostEntries are the entries of a route for the filters whose entries may stand at the
// host, in the order of observer.names; nil for none. They are immutable.
type hostEntries struct{ list []*anypb.Any }

func (a *hostEntries) equal(b *hostEntries) bool {
	return a == b || slices.EqualFunc(a.list, b.list, sameAny)
}

// share is what the routes of a host share.
type share struct {
	entries  map[string]*anypb.Any
	retry    *routev3.RetryPolicy // nil for none
	retryKey string
}

// observer makes traits; what is the same in many routes is kept once.
type observer struct {
	// names are the filters whose entries may stand at the host, off those that are off by
	// default.
	names, off []string
	entries    []*hostEntries
	retries    []trait
	now        hostEntries
}

func newObserver(project string) *observer {
	n := chain().in(project)
	return &observer{names: n.atHost, off: n.off}
}

func (o *observer) trait(r *routev3.Route) trait {
	entries := r.GetTypedPerFilterConfig()
	t := trait{cost: trees.cost(r), forwards: r.GetRoute() != nil}
	o.now.list = o.now.list[:0]
	for _, name := range o.names {
		o.now.list = append(o.now.list, entries[name])
	}
	t.entries = o.entry(&o.now)
	for i, name := range o.off {
		if entries[name] != nil {
			t.uses |= 1 << i
		}
	}
	if p := r.GetRoute().GetRetryPolicy(); p != nil {
		t.retry, t.retryKey = o.policy(p)
	}
	return t
}

func (o *observer) entry(e *hostEntries) *hostEntries {
	if i := slices.IndexFunc(o.entries, e.equal); i >= 0 {
		return o.entries[i]
	}
	kept := &hostEntries{slices.Clone(e.list)}
	for i, one := range kept.list {
		kept.list[i] = o.known(i, one)
	}
	o.entries = append(o.entries, kept)
	return kept
}

// known is an entry for the filter at a position, the same in all that have it.
func (o *observer) known(i int, e *anypb.Any) *anypb.Any {
	for _, k := range o.entries {
		if sameAny(k.list[i], e) {
			return k.list[i]
		}
	}
	return e
}

func (o *observer) policy(p *routev3.RetryPolicy) (*routev3.RetryPolicy, string) {
	if i := slices.IndexFunc(o.retries, func(t trait) bool { return t.retry == p }); i >= 0 {
		return p, o.retries[i].retryKey
	}
	key := string(mustMarshal(p))
	if i := slices.IndexFunc(o.retries, func(t trait) bool { return t.retryKey == key }); i >= 0 {
		return o.retries[i].retry, o.retries[i].retryKey
	}
	o.retries = append(o.retries, trait{retry: p, retryKey: key})
	return p, key
}

func sameAny(a, b *anypb.Any) bool {
	return a == b || a != nil && b != nil && a.TypeUrl == b.TypeUrl && bytes.Equal(a.Value, b.Value)
}

// sharedBy is what routes share: the entries of enabled filters that all have in
// common, which saves most of the bytes of a host with one policy, and a retry policy.
// Entries that differ stay where they are, each complete, for Envoy merges none of
// these filters across levels.
func sharedBy(project string, routes []trait) (out share) {
	for i, name := range chain().in(project).atHost {
		all := routes
		if chain().filter(project, name).Forwards {
			all = slices.DeleteFunc(slices.Clone(routes), func(t trait) bool { return !t.forwards })
		}
		if len(all) == 0 || all[0].entries.list[i] == nil {
			continue
		}
		first := all[0].entries.list[i]
		if !slices.ContainsFunc(all, func(t trait) bool { return !sameAny(t.entries.list[i], first) }) {
			if out.entries == nil {
				out.entries = map[string]*anypb.Any{}
			}
			out.entries[name] = first
		}
	}
	out.retry, out.retryKey = sharedRetries(routes)
	return out
}

func (s share) equal(o share) bool {
	if len(s.entries) != len(o.entries) || (s.retry == nil) != (o.retry == nil) || s.retryKey != o.retryKey {
		return false
	}
	for name, e := range s.entries {
		if !sameAny(e, o.entries[name]) {
			return false
		}
	}
	return true
}

// take leaves in a route what its host does not say.
func (s share) take(r *routev3.Route) {
	rest := map[string]*anypb.Any{}
	for name, entry := range r.TypedPerFilterConfig {
		if s.entries[name] == nil {
			rest[name] = entry
		}
	}
	r.TypedPerFilterConfig = rest
	a := r.GetRoute()
	switch {
	case a == nil || s.retry == nil:
	case a.RetryPolicy == nil:
		a.RetryPolicy = noRetries()
	case a.RetryPolicy == s.retry || string(mustMarshal(a.RetryPolicy)) == s.retryKey:
		a.RetryPolicy = nil
	}
}

// keepMade says whether a host may be compiled in part the next time, and forgets
// what that needs if not.
func (c *hostCompiler) keepMade() {
	cost := 0
	for _, m := range c.u.made {
		for _, t := range m.traits {
			cost += t.cost
		}
	}
	if c.holds != nil || len(c.u.refused) > 0 || len(c.u.problems) > 0 || c.u.vhost.GetMatcher() != nil || cost > trees.from {
		c.u.made = nil
	}
}

// recompile is compileHost and seal of a host that differs from what a unit was made
// of in some of its entries. It returns nil when that is not all that differs, or
// another layout may come of it.
func recompile(s *gateway.Snapshot, h *gateway.Host, old *unit) *unit {
	if old == nil || old.err != nil || len(old.made) == 0 || old.host == h ||
		old.host.Listener != h.Listener || old.host.Gateway.GetName() != h.Gateway.GetName() {
		return nil
	}
	project, _ := projectAndID(h.Gateway.GetName())
	c := newHostCompiler(project, s, h)
	before := make(map[*gateway.Entry]*made, len(old.made))
	for i := range old.made {
		before[old.made[i].entry] = &old.made[i]
	}
	o := newObserver(project)
	o.know(old.made)
	routes := make([][]*routev3.Route, len(h.Entries)) // nil: as before
	c.u.made, c.u.owners = make([]made, 0, len(h.Entries)), make([]string, 0, len(h.Entries))
	for i, e := range h.Entries {
		m := before[e]
		if m == nil {
			var err error
			if m, routes[i], err = c.make(o, e); err != nil {
				return nil
			}
		} else if !c.sameConsumers(old, m) {
			return nil
		}
		if m.part != nil {
			c.keep(m.part)
		}
		c.u.add(*m)
		c.u.owners = append(c.u.owners, e.Route.GetName())
	}
	slices.Sort(c.u.owners)
	c.u.owners = slices.Compact(c.u.owners)
	c.u.observe(project)
	if c.keepMade(); c.u.made == nil || !c.u.share.equal(old.share) {
		return nil
	}
	c.u.share = old.share
	if !c.u.reassemble(project, h, old, routes) {
		return nil
	}
	return c.u
}

// add notes what an entry was compiled to. What is as in the entry before, and it often
// is, is kept once.
func (u *unit) add(m made) {
	if n := len(u.made); n > 0 {
		last := u.made[n-1]
		if slices.Equal(m.traits, last.traits) {
			m.traits = last.traits
		}
		if m.part.plain() && last.part.plain() && slices.Equal(m.part.targets, last.part.targets) {
			m.part = last.part
		}
	}
	u.made = append(u.made, m)
}

// plain reports whether an entry needs nothing but targets.
func (p *part) plain() bool {
	return p != nil && len(p.providers)+len(p.refused)+len(p.consumers)+len(p.refs) == 0 && p.requirement.Name == ""
}

// know lets the observer begin with what is kept.
func (o *observer) know(all []made) {
	for _, m := range all {
		for _, t := range m.traits {
			if !slices.Contains(o.entries, t.entries) {
				o.entries = append(o.entries, t.entries)
			}
			if t.retry != nil && !slices.ContainsFunc(o.retries, func(k trait) bool { return k.retry == t.retry }) {
				o.retries = append(o.retries, trait{retry: t.retry, retryKey: t.retryKey})
			}
		}
	}
}

// make compiles an entry.
func (c *hostCompiler) make(o *observer, e *gateway.Entry) (*made, []*routev3.Route, error) {
	routes, p, err := c.entry(e)
	if err != nil {
		return nil, nil, err
	}
	m := &made{entry: e, part: p}
	for _, r := range routes {
		m.traits = append(m.traits, o.trait(r))
	}
	return m, routes, nil
}

// sameConsumers looks up the consumers of an entry and reports whether they are those
// that it was made with.
func (c *hostCompiler) sameConsumers(old *unit, m *made) bool {
	return m.part == nil || !slices.ContainsFunc(m.part.consumers, func(name string) bool { return c.consumer(name) != old.consumers[name] })
}

// observe works out what the routes share.
func (u *unit) observe(project string) {
	n := 0
	for _, m := range u.made {
		n += len(m.traits)
	}
	all := make([]trait, 0, n)
	for _, m := range u.made {
		all = append(all, m.traits...)
	}
	u.share = sharedBy(project, all)
	for _, t := range all {
		u.uses |= t.uses
	}
}

// reassemble makes the bytes of the host of those of its routes, of which some are
// new. It returns false when these are not what they should be.
func (u *unit) reassemble(project string, h *gateway.Host, old *unit, routes [][]*routev3.Route) bool {
	vhost := newVirtualHost(h, u.share, project)
	for _, all := range routes {
		for _, r := range all {
			u.share.take(r)
			if chain().check(project, vhost.TypedPerFilterConfig, r.TypedPerFilterConfig) != nil {
				return false
			}
		}
	}
	byEntry := make(map[*gateway.Entry][]byte, len(old.made))
	for _, m := range old.made {
		byEntry[m.entry] = old.raw[m.from:m.to]
	}
	u.host, u.name = h, vhost.GetName()
	u.err = u.marshal(vhost, func(out []byte, i int) ([]byte, error) {
		if routes[i] == nil {
			return append(out, byEntry[u.made[i].entry]...), nil
		}
		return appendRoutes(out, routes[i])
	})
	if u.err != nil {
		return false
	}
	u.finish()
	return true
}

// hostRoutes is the field of VirtualHost that routes go to.
const hostRoutes = 3

// marshal makes the bytes of a host of those of its entries, and of vhost, in which
// there are only routes that are of none. They are what marshalling the whole would
// make.
func (u *unit) marshal(vhost *routev3.VirtualHost, entry func(out []byte, i int) ([]byte, error)) error {
	head := &routev3.VirtualHost{Name: vhost.Name, Domains: vhost.Domains}
	out, err := proto.MarshalOptions{Deterministic: true}.Marshal(head)
	for i := range u.made {
		if err != nil {
			return err
		}
		u.made[i].from = int32(len(out))
		out, err = entry(out, i)
		u.made[i].to = int32(len(out))
	}
	if err != nil {
		return err
	}
	tail := &routev3.VirtualHost{
		Routes: vhost.Routes, TypedPerFilterConfig: vhost.TypedPerFilterConfig, RetryPolicy: vhost.RetryPolicy,
		IncludeIsTimeoutRetryHeader: vhost.IncludeIsTimeoutRetryHeader,
	}
	out, err = proto.MarshalOptions{Deterministic: true}.MarshalAppend(out, tail)
	u.raw = slices.Clone(out)
	return err
}

func appendRoutes(out []byte, routes []*routev3.Route) ([]byte, error) {
	for _, r := range routes {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
		if err != nil {
			return nil, err
		}
		out = protowire.AppendTag(out, hostRoutes, protowire.BytesType)
		out = protowire.AppendBytes(out, b)
	}
	return out, nil
}
