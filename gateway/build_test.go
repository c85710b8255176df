package gateway

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// draw makes random objects of a small world, so that they meet: one or two
// projects, few names, references that often dangle.
type draw struct{ *rapid.T }

func (d draw) of(label string, options ...string) string {
	return rapid.SampledFrom(options).Draw(d.T, label)
}

func (d draw) some(label string, options ...string) []string {
	list := rapid.SliceOfNDistinct(rapid.SampledFrom(options), 0, 2, rapid.ID[string]).Draw(d.T, label)
	return list
}

func (d draw) chance(label string) bool { return rapid.IntRange(0, 3).Draw(d.T, label) == 0 }

var someHosts = []string{"*", "a.x", "b.x", "*.x", "c.a.x", "*.a.x", "y"}

func (d draw) policies() *pb.Policies {
	if !d.chance("policies") {
		return nil
	}
	p := &pb.Policies{}
	if d.chance("jwt") {
		p.Authentication = &pb.AuthenticationPolicy{Jwt: &pb.JwtAuthentication{
			Issuer: d.of("issuer", "i", "j"), Audiences: []string{"a"},
			Keys:      &pb.JwtAuthentication_JwksSecret{JwksSecret: d.of("secret", "s", "t")},
			Consumers: d.some("consumers", "c", "consumers/d"),
		}}
	}
	if d.chance("retry") {
		p.Retry = &pb.RetryPolicy{Other: &pb.RetryRule{Attempts: proto.Uint32(uint32(rapid.IntRange(0, 3).Draw(d.T, "attempts")))}}
	}
	if d.chance("cors") {
		p.Cors = &pb.CorsPolicy{AllowOrigins: []string{d.of("origin", "https://a.x", "https://b.x")}, Disabled: d.chance("disabled")}
	}
	if d.chance("header") {
		p.Headers = &pb.HeadersPolicy{Request: &pb.HeaderChange{Remove: []string{d.of("remove", "x-a", "x-b")}}}
	}
	return p
}

func (d draw) object(name string) Object {
	switch kindOf(name) {
	case KindGateways:
		g := &pb.Gateway{Name: name, Policies: d.policies()}
		for i := range rapid.IntRange(1, 2).Draw(d.T, "listeners") {
			g.Listeners = append(g.Listeners, &pb.Listener{Name: fmt.Sprint("l", i), Port: uint32(80 + i), Hostnames: d.some("hostnames", someHosts...)})
		}
		return g
	case KindRoutes:
		return d.route(name)
	case KindBackends:
		b := &pb.Backend{Name: name}
		if d.chance("subset") {
			b.Subsets = []*pb.Subset{{Name: "v1"}}
		}
		return b
	case KindFunctions:
		return &pb.Function{Name: name, Source: d.of("source", "a", "b")}
	case KindConsumers:
		return &pb.Consumer{Name: name, Jwt: &pb.JwtIdentity{Issuer: d.of("issuer", "i", "j"), Subject: d.of("subject", "s", "t")}}
	}
	return &pb.Secret{Name: name, Value: &pb.Secret_Jwks{Jwks: d.of("jwks", "1", "2")}}
}

func (d draw) route(name string) Object {
	r := &pb.Route{
		Name: name, Hostnames: d.some("hostnames", someHosts...), Gateways: d.some("gateways", "g", "gateways/h", "projects/p/gateways/g"),
		RuleOrder: pb.RuleOrder(rapid.IntRange(0, 2).Draw(d.T, "order")), Policies: d.policies(),
	}
	for range rapid.IntRange(1, 3).Draw(d.T, "rules") {
		rule := &pb.RouteRule{Policies: d.policies()}
		for range rapid.IntRange(0, 2).Draw(d.T, "matches") {
			rule.Matches = append(rule.Matches, d.match())
		}
		f := &pb.Forward{}
		for range rapid.IntRange(1, 2).Draw(d.T, "backends") {
			f.Backends = append(f.Backends, &pb.WeightedBackend{
				Backend: d.of("backend", "b", "c", "functions/f"), Weight: uint32(rapid.IntRange(0, 2).Draw(d.T, "weight")),
				Subset: d.of("subset", "", "", "v1"),
			})
		}
		rule.Action = &pb.RouteRule_Forward{Forward: f}
		r.Rules = append(r.Rules, rule)
	}
	return r
}

func (d draw) match() *pb.RouteMatch {
	m := &pb.RouteMatch{Methods: d.some("methods", "GET", "POST")}
	text := d.of("path", "/", "/a", "/a/b", "/ab")
	switch rapid.IntRange(0, 4).Draw(d.T, "kind of path") {
	case 0:
		m.Path = &pb.PathMatch{Match: &pb.PathMatch_Exact{Exact: text}}
	case 1:
		m.Path = &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: text}}
	case 2:
		m.Path = &pb.PathMatch{Match: &pb.PathMatch_Regex{Regex: text}}
	case 3:
		m.Path = &pb.PathMatch{Match: &pb.PathMatch_TextPrefix{TextPrefix: text}}
	}
	if d.chance("header match") {
		m.Headers = []*pb.HeaderMatch{{Name: "x-a", Value: &pb.StringMatch{Match: &pb.StringMatch_Exact{Exact: "1"}}}}
	}
	return m
}

var someNames = []string{
	"projects/p/gateways/g", "projects/p/gateways/h", "projects/q/gateways/g",
	"projects/p/routes/r", "projects/p/routes/s", "projects/p/routes/t", "projects/q/routes/r",
	"projects/p/backends/b", "projects/p/backends/c", "projects/p/functions/f",
	"projects/p/consumers/c", "projects/p/consumers/d", "projects/p/secrets/s", "projects/p/secrets/t",
}

// dump says everything that a Snapshot holds.
func dump(s *Snapshot) string {
	var b strings.Builder
	for o := range s.All() {
		fmt.Fprintf(&b, "%s refs %v problems %v\n", o.GetName(), s.Referrers(o.GetName()), texts(s.Check(o.GetName())))
	}
	for _, n := range someNames {
		fmt.Fprintf(&b, "%s by %v\n", n, s.Referrers(n))
	}
	for _, g := range s.Gateways() {
		for _, l := range g.GetListeners() {
			fmt.Fprintf(&b, "%s %s\n", g.GetName(), l.GetName())
			for _, h := range s.Hosts(g.GetName(), l.GetName()) {
				b.WriteString(dumpHost(h))
			}
		}
	}
	return b.String()
}

func dumpHost(h *Host) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  host %s of %v %v\n", h.Hostname, h.Gateway, h.Listener)
	for _, e := range h.Entries {
		fmt.Fprintf(&b, "    %v | %s %d %d | %v | %q |", e.Route, e.RuleName, e.RuleIndex, e.MatchIndex, e.Match, e.Problem)
		for _, t := range e.Backends {
			fmt.Fprintf(&b, " %v%v %s*%d", t.Backend, t.Function, t.Subset, t.Weight)
		}
		p := e.Policies
		for _, v := range p.values {
			fmt.Fprintf(&b, "| %s %v", v.policy.PolicyName(), v.value)
		}
		for _, k := range slices.Sorted(maps.Keys(p.fields)) {
			fmt.Fprintf(&b, " %s=%v", k, p.fields[k])
		}
		b.WriteString("\n")
	}
	return b.String()
}

// TestBuildStepByStep applies random changes one after the other and compares
// with a Snapshot built at once, in another order. Older Snapshots must stay as
// they were, and Hosts that came out equal must be the same pointer.
func TestBuildStepByStep(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := draw{rt}
		world := map[string]Object{}
		var s *Snapshot
		var old []*Snapshot
		var texts []string
		for i := range rapid.IntRange(1, 12).Draw(rt, "steps") {
			var c Changes
			for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom(someNames), 1, 4, rapid.ID[string]).Draw(rt, "names") {
				switch {
				case d.chance("delete"):
					c.Deletes = append(c.Deletes, name)
					delete(world, name)
				case d.chance("again") && world[name] != nil:
					c.Updates = append(c.Updates, proto.CloneOf(world[name]))
				default:
					o := d.object(name)
					c.Updates = append(c.Updates, o)
					world[name] = o
				}
			}
			next := model.Build(s, int64(i+1), c)
			samePointers(rt, s, next)
			old, texts, s = append(old, next), append(texts, dump(next)), next
		}
		objects := slices.Collect(maps.Values(world))
		whole := model.Build(nil, s.Revision(), Changes{Updates: objects})
		if a, b := dump(s), dump(whole); a != b {
			rt.Fatalf("step by step:\n%s\nat once:\n%s", a, b)
		}
		if s.Len() != len(world) {
			rt.Fatalf("%d objects, want %d", s.Len(), len(world))
		}
		for i, o := range old {
			if dump(o) != texts[i] {
				rt.Fatalf("Snapshot %d changed", i+1)
			}
		}
	})
}

// samePointers wants equal Hosts of two Snapshots to be one, unless their gateway
// changed, and checks the order.
func samePointers(rt *rapid.T, prev, next *Snapshot) {
	for _, g := range next.Gateways() {
		for _, l := range g.GetListeners() {
			before := map[string]*Host{}
			for _, h := range prev.Hosts(g.GetName(), l.GetName()) {
				before[h.Hostname] = h
			}
			last := ""
			for _, h := range next.Hosts(g.GetName(), l.GetName()) {
				if h.Hostname <= last {
					rt.Fatalf("hosts out of order: %s after %s", h.Hostname, last)
				}
				last = h.Hostname
				if !slices.IsSortedFunc(h.written, compareEntries) || len(h.written) == 0 {
					rt.Fatalf("entries of %s are out of order or none", h.Hostname)
				}
				if b := before[h.Hostname]; b != nil && b != h && prev.Get(g.GetName()) == next.Get(g.GetName()) && sameInputs(b, h, prev, next) {
					rt.Fatalf("host %s has another pointer though nothing changed\n%s\n%s", h.Hostname, dumpHost(b), dumpHost(h))
				}
			}
		}
	}
}

// sameInputs reports whether nothing that two Hosts were made from differs: their
// routes, and all that routes and the gateway refer to.
func sameInputs(a, b *Host, prev, next *Snapshot) bool {
	if dumpHost(a) != dumpHost(b) {
		return false
	}
	objects := []Object{a.Gateway}
	for _, e := range a.Entries {
		objects = append(objects, e.Route)
	}
	for _, o := range objects {
		if prev.Get(o.GetName()) != next.Get(o.GetName()) {
			return false
		}
		for _, r := range model.references(o) {
			if prev.Get(r.name) != next.Get(r.name) {
				return false
			}
		}
	}
	return true
}

const world = `
gateway g {'listeners': [{'name': 'http', 'port': 80}, {'name': 'some', 'port': 81, 'hostnames': ['a.x', '*.b.x']}]}
backend b {'static': {'endpoints': [{'address': '10.0.0.1', 'port': 80}]}}
secret s {'jwks': '{}'}
route one {'hostnames': ['a.x'], 'rules': [{'forward': {'backends': [{'backend': 'b'}]}}]}
route two {'hostnames': ['c.b.x', '*.x'], 'rules': [{'forward': {'backends': [{'backend': 'b'}]}}]}
route any {'rules': [{'name': 'any', 'directResponse': {'status': 200}}]}
`

func hostNames(hosts []*Host) string {
	var out []string
	for _, h := range hosts {
		var entries []string
		for _, e := range h.Entries {
			entries = append(entries, strings.TrimPrefix(e.Route.GetName(), "projects/p/routes/"))
		}
		out = append(out, h.Hostname+"="+strings.Join(entries, "+"))
	}
	return strings.Join(out, " ")
}

func TestHosts(t *testing.T) {
	s := model.Build(nil, 1, Changes{Updates: objects(t, world)})
	for listener, want := range map[string]string{
		"http": "*=any *.x=two a.x=one c.b.x=two",
		"some": "*.b.x=any+two a.x=any+one+two c.b.x=two",
		"none": "",
	} {
		if got := hostNames(s.Hosts("projects/p/gateways/g", listener)); got != want {
			t.Errorf("%s: got %s, want %s", listener, got, want)
		}
	}
	for host, want := range map[string]string{
		"a.x": "a.x", "z.x": "*.x", "z.y.x": "*.x", "x": "*", "c.b.x": "c.b.x", "d.b.x": "*.x", "": "*", ".x": "*", "*.x": "*.x",
	} {
		if h := s.Host("projects/p/gateways/g", "http", host); h.Hostname != want {
			t.Errorf("%q is served by %s, want %s", host, h.Hostname, want)
		}
	}
	if h := s.Host("projects/p/gateways/g", "some", "b.x"); h != nil {
		t.Errorf("b.x is served by %s, want none", h.Hostname)
	}
}

func TestIntersect(t *testing.T) {
	for _, row := range [][3]string{
		{"", "", "*"}, {"*", "a b", "a b"}, {"a", "*", "a"}, {"a", "b", ""}, {"*.x", "a.x b.y", "a.x"}, {"a.x", "*.x", "a.x"},
		{"*.a.x", "*.x", "*.a.x"}, {"*.x", "*.a.x *.x", "*.a.x *.x"}, {"x", "*.x", ""}, {"ax", "*.x", ""}, {"c.b.a.x", "*.x", "c.b.a.x"},
		{"*.x", "*.y", ""}, {"* a.x", "a.x", "a.x"},
	} {
		if got := strings.Join(intersect(strings.Fields(row[0]), strings.Fields(row[1])), " "); got != row[2] {
			t.Errorf("route %q listener %q: got %q, want %q", row[0], row[1], got, row[2])
		}
	}
}

// TestUnchangedHosts changes one object at a time and looks which Hosts are new.
func TestUnchangedHosts(t *testing.T) {
	base := model.Build(nil, 1, Changes{Updates: objects(t, world)})
	for _, row := range []struct{ change, want string }{
		{"route one {'hostnames': ['a.x'], 'rules': [{'directResponse': {'status': 200}}]}", "http/a.x some/a.x"},
		{"route new {'hostnames': ['n.x'], 'rules': [{'directResponse': {'status': 200}}]}", "http/n.x"},
		{"backend b {'static': {'endpoints': [{'address': '10.0.0.2', 'port': 80}]}}", "http/*.x http/a.x http/c.b.x some/*.b.x some/a.x some/c.b.x"},
		{"backend other {'static': {'endpoints': [{'address': '10.0.0.2', 'port': 80}]}}", ""},
		{"secret s {'jwks': '[]'}", ""},
		{"route one {'hostnames': ['a.x'], 'rules': [{'forward': {'backends': [{'backend': 'b'}]}}]}", ""},
	} {
		s := model.Build(base, 2, Changes{Updates: objects(t, row.change)})
		var fresh []string
		for _, l := range []string{"http", "some"} {
			before := base.Hosts("projects/p/gateways/g", l)
			for _, h := range s.Hosts("projects/p/gateways/g", l) {
				if !slices.Contains(before, h) {
					fresh = append(fresh, l+"/"+h.Hostname)
				}
			}
		}
		if got := strings.Join(fresh, " "); got != row.want {
			t.Errorf("%s\nnew: %s\nwant %s", row.change, got, row.want)
		}
	}
}

// TestSecretOfPolicies: keys that a rule or a gateway checks tokens with touch the
// hosts that it serves, certificates do not.
func TestSecretOfPolicies(t *testing.T) {
	const auth = `'authentication': {'jwt': {'issuer': 'i', 'audiences': ['a'], 'jwksSecret': 's'}}`
	base := model.Build(nil, 1, Changes{Updates: objects(t, `
secret s {'jwks': '1'}
secret c {'certificate': {'chain': '1'}}
gateway g {'listeners': [{'name': 'http', 'port': 80, 'protocol': 'LISTENER_PROTOCOL_HTTPS', 'tls': {'certificates': ['c']}}]}
gateway h {'listeners': [{'name': 'http', 'port': 80}], 'policies': {`+auth+`}}
route a {'gateways': ['g'], 'hostnames': ['a'], 'rules': [{'directResponse': {'status': 200}, 'policies': {`+auth+`}}]}
route b {'hostnames': ['b'], 'rules': [{'directResponse': {'status': 200}}]}
`)})
	if p := base.Problems(); len(p) > 0 {
		t.Fatal(texts(p))
	}
	changed := func(s *Snapshot) string {
		var out []string
		for _, g := range s.Gateways() {
			for i, h := range s.Hosts(g.GetName(), "http") {
				if h != base.Hosts(g.GetName(), "http")[i] {
					out = append(out, strings.TrimPrefix(g.GetName(), "projects/p/gateways/")+"/"+h.Hostname)
				}
			}
		}
		return strings.Join(out, " ")
	}
	if got := changed(model.Build(base, 2, Changes{Updates: objects(t, "secret s {'jwks': '2'}")})); got != "g/a h/b" {
		t.Errorf("keys: %s", got)
	}
	if got := changed(model.Build(base, 2, Changes{Updates: objects(t, "secret c {'certificate': {'chain': '2'}}")})); got != "" {
		t.Errorf("certificate: %s", got)
	}
}

func TestList(t *testing.T) {
	s := model.Build(nil, 7, Changes{Updates: objects(t, world+`
route x {"name": "projects/p-q/routes/x", "rules": []}
route x {"name": "projects/pq/routes/x", "rules": []}
route x {"name": "projects/a/routes/x", "rules": []}
route x {"name": "projects/p/backends/x", "rules": []}
`)})
	names := func(list []Object) string {
		return strings.Join(namesOf(list, Object.GetName), " ")
	}
	if got := names(s.List(KindRoutes, "p")); got != "projects/p/routes/any projects/p/routes/one projects/p/routes/two" {
		t.Error(got)
	}
	if got := names(s.List(KindRoutes, "p-q")); got != "projects/p-q/routes/x" {
		t.Error(got)
	}
	if got := len(s.List(KindRoutes, "")); got != 6 {
		t.Error(got)
	}
	if got := names(slices.Collect(s.All())); !strings.HasPrefix(got, "projects/p/secrets/s projects/p/backends/b projects/p/gateways/g projects/a/routes/x") {
		t.Error(got)
	}
	if s.Len() != 9 || s.Revision() != 7 || s.Get("projects/p/routes/none") != nil {
		t.Error(s.Len(), s.Revision())
	}
	var none *Snapshot
	if none.Len() != 0 || none.Get("x") != nil || none.Hosts("g", "l") != nil || none.Check() != nil || none.Host("g", "l", "h") != nil ||
		none.Referrers("x") != nil || none.List(KindRoutes, "") != nil || none.Revision() != 0 || len(slices.Collect(none.All())) != 0 {
		t.Error("a nil Snapshot is not empty")
	}
}

func BenchmarkBuildOneRoute(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000, 100_000} {
		for _, layout := range []string{"own host", "one host"} {
			if layout == "one host" && n > 10_000 {
				continue
			}
			b.Run(fmt.Sprintf("%s/%d", layout, n), func(b *testing.B) {
				s := model.Build(nil, 1, Changes{Updates: manyRoutes(n, layout == "one host")})
				versions := [2]Object{}
				for i := range versions {
					r := proto.CloneOf(s.Get("projects/p/routes/r5")).(*pb.Route)
					r.Rules[0].Policies = &pb.Policies{Headers: &pb.HeadersPolicy{Request: &pb.HeaderChange{Remove: []string{fmt.Sprint("x-", i)}}}}
					versions[i] = r
				}
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					s = model.Build(s, int64(i), Changes{Updates: versions[i%2 : i%2+1]})
					i++
				}
			})
		}
	}
}

func BenchmarkBuildAll(b *testing.B) {
	all := manyRoutes(10_000, false)
	for b.Loop() {
		model.Build(nil, 1, Changes{Updates: all})
	}
}

func manyRoutes(n int, oneHost bool) []Object {
	out := []Object{
		&pb.Gateway{Name: "projects/p/gateways/g", Listeners: []*pb.Listener{{Name: "http", Port: 80}}},
		&pb.Backend{Name: "projects/p/backends/b"},
	}
	for i := range n {
		r := &pb.Route{Name: fmt.Sprintf("projects/p/routes/r%d", i), Rules: []*pb.RouteRule{{
			Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: fmt.Sprintf("/%d", i)}}}},
			Action:  &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "b"}}}},
		}}}
		if !oneHost {
			r.Hostnames = []string{fmt.Sprintf("h%d.example.com", i)}
		}
		out = append(out, r)
	}
	return out
}
