package compile_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"pgregory.net/rapid"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/compile"
)

const testKeys = `{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"siQmanHyVjeh2HFBD6uDZ7LliQGrwEXTETiVNl_bsCE","y":"v2T5m84OdARVBGNp7LJF80gbfNZ3xs2KF-JC6SdDMjA"}]}`

// pool are documents of which each name has variants; a state has one of them or
// none.
func pool(t testing.TB) map[string][]gateway.Object {
	jwt := func(extra string) string {
		return `authentication: {jwt: {issuer: "https://issuer.test", audiences: [app], jwks_secret: keys` + extra + `}}`
	}
	var docs []string
	add := func(format string, args ...any) { docs = append(docs, fmt.Sprintf(format, args...)) }
	add(`{kind: Gateway, name: edge, listeners: [{name: http, port: 8080}]}`)
	add(`{kind: Gateway, name: edge, listeners: [{name: http, port: 8080, trusted_hops: 2}, {name: other, port: 8081, hostnames: ["*.x.test"]}]}`)
	add(`{kind: Gateway, name: edge, listeners: [{name: http, port: 8080}], policies: {%s}}`, jwt(`, claim_headers: [{claim: sub, header: x-sub}]`))
	add(`{kind: Gateway, name: second, listeners: [{name: http, port: 8080}, {name: more, port: 9090}]}`)
	add(`{kind: Secret, name: keys, jwks: '%s'}`, testKeys)
	add(`{kind: Secret, name: keys, jwks: '%s'}`, strings.Replace(testKeys, `"a"`, `"b"`, 1))
	for _, sub := range []string{"alice", "bob"} {
		add(`{kind: Consumer, name: alice, jwt: {issuer: "https://issuer.test", subject: %s}}`, sub)
	}
	add(`{kind: Backend, name: up, static: {endpoints: [{address: 10.0.0.1, port: 80}]}}`)
	add(`{kind: Backend, name: up, static: {endpoints: [{address: 10.0.0.1, port: 80, labels: {v: one}}]}, subsets: [{name: one, labels: {v: one}}]}`)
	add(`{kind: Backend, name: up, dns: {hostname: up.test, port: 80}}`)
	add(`{kind: Function, name: f, server: {command: [./f]}, source: f}`)
	for i, host := range []string{"", "hostnames: [a.x.test],", "hostnames: [b.x.test, c.test],", `hostnames: ["*.x.test"],`, `hostnames: ["*.y.x.test", d.y.x.test],`} {
		add(`{kind: Route, name: r%d, %s rules: [{name: one, matches: [{path: {prefix: /a}}], forward: {backends: [{backend: up}]}}]}`, i, host)
		add(`{kind: Route, name: r%d, %s rules: [{name: one, matches: [{path: {prefix: /b}}], forward: {backends: [{backend: functions/f}]}, policies: {rate_limit: {limits: [{name: l, requests: 1, window: 1s}]}}}]}`, i, host)
		add(`{kind: Route, name: r%d, %s rules: [{name: one, forward: {backends: [{backend: up, subset: one}]}}], policies: {%s}}`, i, host, jwt(`, consumers: [alice]`))
	}
	out := map[string][]gateway.Object{}
	for _, d := range docs {
		for _, o := range decode(t, d) {
			out[o.GetName()] = append(out[o.GetName()], o)
		}
	}
	return out
}

// TestIncremental: whatever the way to a state, its generation is the same as
// that of a fresh compiler, and everything that a resource refers to is there.
func TestIncremental(t *testing.T) {
	objects := pool(t)
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range objects {
			if !yield(name) {
				return
			}
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		view := compile.View{Project: "default", Gateway: rapid.SampledFrom([]string{"-", "edge"}).Draw(t, "view")}
		settings := compile.Settings{
			Limiters:   []compile.Endpoint{{Address: "127.0.0.1", Port: 1}},
			EagerHosts: rapid.SampledFrom([]int{-1, 0, 1, 2, 3}).Draw(t, "eager hosts"),
		}
		c := compile.New(settings)
		var s *gateway.Snapshot
		now := map[string]gateway.Object{}
		var last *xds.Generation
		was := contents(nil)
		for step := range rapid.IntRange(1, 8).Draw(t, "steps") {
			var ch gateway.Changes
			for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, len(names), rapid.ID).Draw(t, "names") {
				if i := rapid.IntRange(-1, len(objects[name])-1).Draw(t, name); i >= 0 {
					now[name] = objects[name][i]
					ch.Updates = append(ch.Updates, now[name])
				} else {
					delete(now, name)
					ch.Deletes = append(ch.Deletes, name)
				}
			}
			s = policies.Model().Build(s, int64(step+1), ch)
			var instances []compile.Endpoint
			for i := range rapid.IntRange(0, 2).Draw(t, "instances") {
				instances = append(instances, compile.Endpoint{Address: "127.0.0.1", Port: uint32(9000 + i)})
			}
			in := compile.Input{Snapshot: s, View: view, Instances: func(string) []compile.Endpoint { return instances }}
			if rapid.Bool().Draw(t, "previous") {
				in.Previous = last
			}
			g, problems := c.Compile(in)
			if err := kept(last, was, g); err != nil {
				t.Fatal(err)
			}
			last, was = g, contents(g)

			var all []gateway.Object
			for _, o := range now {
				all = append(all, o)
			}
			rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			in.Snapshot = policies.Model().Build(nil, int64(step+1), gateway.Changes{Updates: all})
			fresh, freshProblems := compile.New(settings).Compile(in)
			if d := difference(g, fresh); d != "" {
				t.Fatal("incremental differs from fresh: ", d)
			}
			if fmt.Sprint(texts(problems)) != fmt.Sprint(texts(freshProblems)) {
				t.Fatalf("problems: %v, fresh %v", texts(problems), texts(freshProblems))
			}
			for _, typ := range g.Types() {
				for r := range g.All(typ) {
					if err := canonical(r); err != nil {
						t.Fatal(err)
					}
					for _, ref := range r.Refs {
						if g.Get(ref.Type, ref.Name) == nil {
							t.Fatalf("%s %s refers to %s, which is not there", typ.Short(), r.Name, ref)
						}
					}
				}
			}
		}
	})
}

// canonical reports whether the bytes of a RouteConfiguration, which are put together
// from parts, are those that the whole is marshalled to, and whether it is valid.
func canonical(r *xds.Resource) error {
	if r.Type != xds.Route {
		return nil
	}
	rc := &routev3.RouteConfiguration{}
	if err := r.Body.UnmarshalTo(rc); err != nil {
		return err
	}
	if whole, err := xds.NewResource(xds.Route, r.Name, rc, nil, nil); err != nil || whole.Version != r.Version {
		return fmt.Errorf("%s has other bytes than its message: %w", r.Name, err)
	}
	return rc.ValidateAll()
}

// contents are the resources of a generation.
func contents(g *xds.Generation) map[xds.Ref]*xds.Resource {
	out := map[xds.Ref]*xds.Resource{}
	for _, t := range g.Types() {
		for r := range g.All(t) {
			out[xds.Ref{Type: t, Name: r.Name}] = r
		}
	}
	return out
}

// kept reports whether the generation before is as it was, and whether all that is
// new since then differs from what was there.
func kept(last *xds.Generation, was map[xds.Ref]*xds.Resource, g *xds.Generation) error {
	if !maps.Equal(contents(last), was) {
		return errors.New("the generation before was changed")
	}
	for _, ref := range g.Since(last) {
		a, b := last.Get(ref.Type, ref.Name), g.Get(ref.Type, ref.Name)
		if a != nil && b != nil && a.Version == b.Version && slices.Equal(a.Refs, b.Refs) && slices.Equal(a.Owners, b.Owners) {
			return fmt.Errorf("%s was made again, the same", ref)
		}
	}
	return nil
}

func texts(problems []gateway.Problem) (out []string) {
	for _, p := range problems {
		out = append(out, p.Object+" "+p.Field+" "+p.Message)
	}
	return out
}

func difference(a, b *xds.Generation) string {
	if a.Revision != b.Revision {
		return fmt.Sprintf("revision %d, %d", a.Revision, b.Revision)
	}
	for _, t := range types {
		if x, y := a.Names(t), b.Names(t); !slices.Equal(x, y) {
			return fmt.Sprintf("%s: %v, %v", t.Short(), x, y)
		}
		for _, name := range a.Names(t) {
			x, y := a.Get(t, name), b.Get(t, name)
			if x.Version != y.Version || x.Lazy != y.Lazy || !slices.Equal(x.Refs, y.Refs) || !slices.Equal(x.After, y.After) || !slices.Equal(x.Owners, y.Owners) {
				return fmt.Sprintf("%s %s: %v %v %v, %v %v %v", t.Short(), name, x.Version, x.Refs, x.Owners, y.Version, y.Refs, y.Owners)
			}
		}
	}
	return ""
}

// TestKept: what does not change is the same pointer.
func TestKept(t *testing.T) {
	s := policies.Model().Build(nil, 1, gateway.Changes{Updates: large(20)})
	c := compile.New(compile.Settings{})
	in := compile.Input{Snapshot: s, View: compile.View{Project: "default", Gateway: "-"}}
	before, _ := c.Compile(in)
	in.Snapshot = policies.Model().Build(s, 2, gateway.Changes{Updates: []gateway.Object{host(3, "/new")}})
	after, _ := c.Compile(in)
	for _, typ := range types {
		for _, name := range after.Names(typ) {
			same := before.Get(typ, name) == after.Get(typ, name)
			if changed := typ == xds.Route && strings.HasSuffix(name, "/h3.test"); same == changed {
				t.Errorf("%s %s: the same %v", typ.Short(), name, same)
			}
		}
	}
	if before.Get(xds.Route, "default/edge/http/h3.test").Version == after.Get(xds.Route, "default/edge/http/h3.test").Version {
		t.Error("the generation before was changed")
	}
}

func TestView(t *testing.T) {
	v, err := compile.ParseView(compile.View{Project: "p", Gateway: "-"}.String())
	if err != nil || v != (compile.View{Project: "p", Gateway: "-"}) {
		t.Error(v, err)
	}
	for _, bad := range []string{"", "p", "/", "p/", "/g", "p/g/x"} {
		if _, err := compile.ParseView(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	s := policies.Model().Build(nil, 1, gateway.Changes{Updates: decode(t, `
{kind: Gateway, name: one, listeners: [{name: http, port: 1}]}
---
{kind: Gateway, name: two, listeners: [{name: http, port: 2}]}
---
{kind: Gateway, name: projects/other/gateways/three, listeners: [{name: http, port: 3}]}
`)})
	for view, want := range map[compile.View][]string{
		{Project: "default", Gateway: "-"}:      {"default/one/http", "default/two/http"},
		{Project: "default", Gateway: "two"}:    {"default/two/http"},
		{Project: "other", Gateway: "-"}:        {"other/three/http"},
		{Project: "default", Gateway: "absent"}: nil,
	} {
		g, _ := compile.New(compile.Settings{}).Compile(compile.Input{Snapshot: s, View: view})
		if got := g.Names(xds.Listener); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", view, got, want)
		}
	}
}

// TestProblems: what cannot be compiled is named with object and field, and the
// rest is there.
func TestProblems(t *testing.T) {
	for name, c := range map[string]struct {
		yaml     string
		problems []string
		listener []string
	}{
		"port taken": {
			`{kind: Gateway, name: a, listeners: [{name: http, port: 80}]}
---
{kind: Gateway, name: b, listeners: [{name: http, port: 80}, {name: more, port: 81}]}`,
			[]string{"projects/default/gateways/b listeners[0].port 0.0.0.0:80 is taken by projects/default/gateways/a listener http already: choose another port, or put the hosts on that listener"},
			[]string{"default/a/http", "default/b/more"},
		},
		"port taken on one of all addresses": {
			`{kind: Gateway, name: a, listeners: [{name: http, address: 127.0.0.1, port: 80}, {name: six, address: "::", port: 80}]}
---
{kind: Gateway, name: b, listeners: [{name: http, port: 80}, {name: more, address: 127.0.0.2, port: 80}]}`,
			[]string{"projects/default/gateways/b listeners[0].port 0.0.0.0:80 is taken by projects/default/gateways/a listener http on 127.0.0.1 already: choose another port, or put the hosts on that listener"},
			[]string{"default/a/http", "default/a/six", "default/b/more"},
		},
		"no certificate": {
			`{kind: Gateway, name: a, listeners: [{name: http, port: 80}, {name: https, port: 443, protocol: HTTPS, tls: {certificates: [gone]}}]}`,
			[]string{
				"projects/default/gateways/a listeners[1].tls.certificates an HTTPS listener without a certificate cannot be opened: name a secret that holds one",
				"projects/default/gateways/a listeners[1].tls.certificates[0] projects/default/secrets/gone is not a secret with a certificate: create it, or name another",
			},
			[]string{"default/a/http"},
		},
		"limit": {
			`{kind: Gateway, name: a, listeners: [{name: http, port: 80}]}
---
{kind: Backend, name: up, static: {endpoints: [{address: 10.0.0.1, port: 80}]}}
---
{kind: Route, name: r, rules: [{name: one, matches: [{path: {prefix: /x}}], forward: {backends: [{backend: up}]}, policies: {rate_limit: {limits: [{name: l, requests: 1, window: 0.0000015s}]}}}, {name: two, matches: [{path: {prefix: /y}}], forward: {backends: [{backend: up}]}}]}`,
			[]string{`projects/default/routes/r rules[0] limit "l": window is 1.5µs, it must be 1ms to 8784h0m0s`},
			[]string{"default/a/http"},
		},
		"envoy's constraints": {
			`{kind: Gateway, name: a, listeners: [{name: http, port: 80}]}
---
{kind: Backend, name: up, static: {endpoints: [{address: 10.0.0.1, port: 80}]}}
---
{kind: Route, name: r, rules: [{name: one, matches: [{path: {prefix: /x}}], forward: {backends: [{backend: up}]}, policies: {headers: {request: {set: [{name: x-a, value: "b\nc"}]}}}}, {name: two, matches: [{path: {prefix: /y}}], forward: {backends: [{backend: up}]}}]}`,
			[]string{"projects/default/routes/r rules[0] "},
			[]string{"default/a/http"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var objects []gateway.Object
			for _, d := range strings.Split(c.yaml, "\n---\n") {
				objects = append(objects, parse(t, d)...)
			}
			s := policies.Model().Build(nil, 1, gateway.Changes{Updates: objects})
			g, problems := compile.New(compile.Settings{}).Compile(compile.Input{Snapshot: s, View: compile.View{Project: "default", Gateway: "-"}})
			if got := texts(problems); !slices.EqualFunc(got, c.problems, strings.HasPrefix) {
				t.Errorf("problems:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.problems, "\n"))
			}
			if got := g.Names(xds.Listener); !slices.Equal(got, c.listener) {
				t.Errorf("listeners %v, want %v", got, c.listener)
			}
			if rc := (&routev3.RouteConfiguration{}); strings.Contains(c.yaml, "kind: Route") {
				if err := g.Get(xds.Route, "default/a/http/*").Body.UnmarshalTo(rc); err != nil {
					t.Fatal(err)
				}
				routes := rc.GetVirtualHosts()[0].GetRoutes()
				if routes[0].GetDirectResponse().GetStatus() != 503 || routes[1].GetRoute() == nil {
					t.Errorf("the rule is not answered with 503, or the other one is not served: %v", routes)
				}
			}
		})
	}
}

func FuzzParseView(f *testing.F) {
	for _, s := range []string{"default/-", "a/b", "", "/", "a/b/c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := compile.ParseView(s); err == nil && v.String() != s {
			t.Errorf("%q was read as %q", s, v)
		}
	})
}

// TestAtOnce: many hosts, which are compiled at once, are the same as one by one.
func TestAtOnce(t *testing.T) {
	const n = 150
	all := large(n)
	in := compile.Input{View: compile.View{Project: "default", Gateway: "-"}}
	one := compile.New(compile.Settings{})
	var last *xds.Generation
	for i := range all {
		in.Snapshot = policies.Model().Build(in.Snapshot, n, gateway.Changes{Updates: all[i : i+1]})
		last, _ = one.Compile(in)
	}
	for range 3 {
		in.Snapshot = policies.Model().Build(nil, n, gateway.Changes{Updates: large(n)})
		g, problems := compile.New(compile.Settings{}).Compile(in)
		if d := difference(last, g); d != "" || len(problems) > 0 {
			t.Fatal(d, problems)
		}
	}
}
