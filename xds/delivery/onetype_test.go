package delivery_test

import (
	"fmt"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// oneTypes are the types that a client may take alone, with a resource of a name in a
// version.
var oneTypes = map[xds.Type]func(name string, v int) proto.Message{
	xds.Cluster: func(name string, v int) proto.Message {
		return &clusterv3.Cluster{Name: name, AltStatName: fmt.Sprint(v)}
	},
	xds.Listener: func(name string, v int) proto.Message {
		return &listenerv3.Listener{Name: name, StatPrefix: fmt.Sprint(v)}
	},
	xds.Route: func(name string, v int) proto.Message {
		return &routev3.RouteConfiguration{Name: name, InternalOnlyHeaders: []string{fmt.Sprint("v", v)}}
	},
	xds.Endpoint: func(name string, v int) proto.Message {
		return &endpointv3.ClusterLoadAssignment{ClusterName: name, Policy: &endpointv3.ClusterLoadAssignment_Policy{WeightedPriorityHealth: v%2 == 0}}
	},
	xds.Secret: func(name string, v int) proto.Message {
		return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{
			Secret: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: fmt.Sprint(v)}},
		}}}
	},
	xds.Scope: func(name string, v int) proto.Message {
		return &routev3.ScopedRouteConfiguration{Name: name, RouteConfigurationName: fmt.Sprint("r", v)}
	},
}

// single is a delta client of one type.
type single struct {
	*client
	p   *plane
	typ xds.Type
	gen generation
}

func newSingle(t *testing.T, typ xds.Type, names ...string) *single {
	t.Helper()
	p := newPlane(t, delivery.Options{Grace: 10 * time.Millisecond})
	s := &single{p: p, typ: typ, gen: newGeneration(t, 1)}
	for _, other := range []xds.Type{xds.Cluster, xds.Listener, xds.Route} {
		if other != typ {
			s.gen.add(other, "other", oneTypes[other]("other", 1))
		}
	}
	for _, name := range names {
		s.put(name, 1)
	}
	s.serve()
	s.client = p.open("edge", "tool")
	return s
}

func (s *single) put(name string, v int) { s.gen.add(s.typ, name, oneTypes[s.typ](name, v)) }

func (s *single) serve() { s.p.server.Update("default/edge", s.gen.Generation) }

// change makes and serves the next generation.
func (s *single) change(f func()) {
	s.gen = s.gen.next()
	f()
	s.serve()
}

// answers expects a response for names of the type ("-" before removed ones), with
// the revision for people to read.
func (s *single) answers(names string) *discoveryv3.DeltaDiscoveryResponse {
	s.t.Helper()
	r := s.expect(s.typ.Short() + " " + names)
	if got, want := r.GetSystemVersionInfo(), fmt.Sprint(s.gen.Revision); got != want {
		s.t.Errorf("system_version_info %q, want the revision %s", got, want)
	}
	return r
}

// nothingElse is a question to the server whose answer would come behind whatever it
// had to say before.
func (s *single) nothingElse() {
	s.t.Helper()
	s.ask(xds.ExtensionConfig, "nobody")
	s.expect("TypedExtensionConfig -nobody")
}

// scenario is what a client does, and what it must get.
type scenario struct {
	name string
	run  func(t *testing.T, typ xds.Type)
}

// oneTypeScenarios are what the incremental protocol promises to a client that subscribes
// to one type alone, by names
// (https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds):
// it gets what it subscribes to, changes of that alone, what is created later, and is
// told of removals.
var oneTypeScenarios = []scenario{
	{"one after the other", subscribesOneByOne},
	{"these alone", subscribesToSome},
	{"updated", getsUpdates},
	{"not there, then created", getsWhatIsCreated},
	{"removed, and created again", isToldOfRemovals},
	{"unsubscribed", unsubscribes},
}

func subscribesOneByOne(t *testing.T, typ xds.Type) {
	t.Helper()
	s := newSingle(t, typ, "a", "b", "c")
	s.ask(typ, "a")
	s.answers("a")
	s.ask(typ, "b")
	s.answers("b")
	s.nothingElse()
}

func subscribesToSome(t *testing.T, typ xds.Type) {
	t.Helper()
	s := newSingle(t, typ, "a", "b", "c", "d")
	s.ask(typ, "b", "d")
	s.answers("b d")
	s.nothingElse()
}

func getsUpdates(t *testing.T, typ xds.Type) {
	t.Helper()
	s := newSingle(t, typ, "a", "b", "c")
	s.ask(typ, "a", "b", "c")
	before := s.answers("a b c")
	s.change(func() { s.put("a", 2) })
	after := s.answers("a")
	if before.GetResources()[0].GetVersion() == after.GetResources()[0].GetVersion() || before.GetNonce() == after.GetNonce() {
		t.Error("the update has the version or the nonce of what was before")
	}
	s.nothingElse()
}

func getsWhatIsCreated(t *testing.T, typ xds.Type) {
	t.Helper()
	s := newSingle(t, typ, "a")
	s.ask(typ, "a", "b")
	s.answers("-b")
	s.answers("a")
	s.change(func() { s.put("b", 1) })
	s.answers("b")
	s.nothingElse()
}

func isToldOfRemovals(t *testing.T, typ xds.Type) {
	t.Helper()
	s := newSingle(t, typ, "a", "b", "c")
	s.ask(typ, "a", "b", "c")
	s.answers("a b c")
	s.change(func() { s.gen.Delete(typ, "a") })
	s.answers("-a")
	s.change(func() { s.put("a", 2) })
	s.answers("a")
	s.nothingElse()
}

func unsubscribes(t *testing.T, typ xds.Type) {
	t.Helper()
	s := newSingle(t, typ, "a", "b", "c")
	s.ask(typ, "a", "b", "c")
	s.answers("a b c")
	for _, name := range []string{"a", "b"} {
		s.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(typ), ResourceNamesUnsubscribe: []string{name}})
		s.nothingElse() // the server has taken it in
		s.change(func() { s.put(name, 2) })
		s.nothingElse()
	}
	s.change(func() { s.put("c", 2) })
	s.answers("c")
}

// TestOneType: each scenario with each type, and all resources of the types that have a
// wildcard.
func TestOneType(t *testing.T) {
	for typ := range oneTypes {
		t.Run(typ.Short(), func(t *testing.T) {
			for _, sc := range oneTypeScenarios {
				t.Run(sc.name, func(t *testing.T) { sc.run(t, typ) })
			}
			if ledger.Wildcard(typ) {
				t.Run("all", func(t *testing.T) {
					s := newSingle(t, typ, "a", "b")
					s.ask(typ)
					s.answers("a b")
					s.change(func() { s.gen.Delete(typ, "b") })
					s.answers("-b")
					s.nothingElse()
				})
			}
		})
	}
}

// takesTwoTypes: a client of two types gets each of them, in one stream.
func takesTwoTypes(t *testing.T, types [2]xds.Type) {
	t.Helper()
	s := newSingle(t, types[0], "a")
	s.change(func() { s.gen.add(types[1], "a", oneTypes[types[1]]("a", 1)) })
	for _, typ := range types {
		s.ask(typ, "a")
		s.typ = typ
		s.answers("a")
	}
	for _, typ := range types {
		s.typ = typ
		s.change(func() { s.put("a", 2) })
		s.answers("a")
	}
	s.nothingElse()
}

// TestPublicHarness counts the scenarios of a public harness for control planes that hold
// (https://github.com/ii/xds-test-harness, its incremental variant over ADS): 26. The
// other variants do not apply: there is no service for one type alone, and versions of the
// state of the world are hashes, where the harness wants the text that it set.
func TestPublicHarness(t *testing.T) {
	var all []scenario
	for _, typ := range []xds.Type{xds.Cluster, xds.Listener, xds.Route, xds.Endpoint} {
		for _, sc := range oneTypeScenarios {
			// It subscribes to some of the resources with these two types alone.
			if sc.name != "these alone" || typ == xds.Listener || typ == xds.Route {
				all = append(all, scenario{typ.Short() + ", " + sc.name, func(t *testing.T, _ xds.Type) { sc.run(t, typ) }})
			}
		}
	}
	for _, types := range [][2]xds.Type{
		{xds.Cluster, xds.Listener}, {xds.Listener, xds.Cluster}, {xds.Route, xds.Endpoint}, {xds.Endpoint, xds.Route},
	} {
		all = append(all, scenario{types[0].Short() + " and " + types[1].Short(), func(t *testing.T, _ xds.Type) { takesTwoTypes(t, types) }})
	}
	if len(all) != 26 {
		t.Errorf("%d scenarios, the harness has 26", len(all))
	}
	held := 0
	for _, sc := range all {
		if t.Run(sc.name, func(t *testing.T) { sc.run(t, "") }) {
			held++
		}
	}
	t.Logf("%d of %d scenarios hold", held, len(all))
}

// TestRoutesAlone: routes that refer to clusters do not wait for a client that takes
// no clusters to ask for them.
func TestRoutesAlone(t *testing.T) {
	s := newSingle(t, xds.Route)
	s.change(func() {
		s.gen.add(xds.Cluster, "c", oneTypes[xds.Cluster]("c", 1))
		s.gen.add(xds.Route, "a", oneTypes[xds.Route]("a", 1), "cluster/c")
	})
	s.ask(xds.Route, "a")
	s.answers("a")
	s.change(func() { s.gen.Delete(xds.Route, "a") })
	s.answers("-a")
}
