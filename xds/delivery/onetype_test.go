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

// TestOneType: a client that subscribes to one type alone, by names, is served by the
// rules of the incremental protocol
// (https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds):
// it gets what it subscribes to, changes of that alone, what is created later, and is
// told of removals.
func TestOneType(t *testing.T) {
	for typ := range oneTypes {
		t.Run(typ.Short(), func(t *testing.T) {
			t.Run("one after the other", func(t *testing.T) {
				s := newSingle(t, typ, "a", "b", "c")
				s.ask(typ, "a")
				s.answers("a")
				s.ask(typ, "b")
				s.answers("b")
				s.nothingElse()
			})
			t.Run("these alone", func(t *testing.T) {
				s := newSingle(t, typ, "a", "b", "c", "d")
				s.ask(typ, "b", "d")
				s.answers("b d")
				s.nothingElse()
			})
			t.Run("updated", func(t *testing.T) {
				s := newSingle(t, typ, "a", "b", "c")
				s.ask(typ, "a", "b", "c")
				before := s.answers("a b c")
				s.change(func() { s.put("a", 2) })
				after := s.answers("a")
				if before.GetResources()[0].GetVersion() == after.GetResources()[0].GetVersion() || before.GetNonce() == after.GetNonce() {
					t.Error("the update has the version or the nonce of what was before")
				}
				s.nothingElse()
			})
			t.Run("not there, then created", func(t *testing.T) {
				s := newSingle(t, typ, "a")
				s.ask(typ, "a", "b")
				s.answers("-b")
				s.answers("a")
				s.change(func() { s.put("b", 1) })
				s.answers("b")
				s.nothingElse()
			})
			t.Run("removed, and created again", func(t *testing.T) {
				s := newSingle(t, typ, "a", "b", "c")
				s.ask(typ, "a", "b", "c")
				s.answers("a b c")
				s.change(func() { s.gen.Delete(typ, "a") })
				s.answers("-a")
				s.change(func() { s.put("a", 2) })
				s.answers("a")
				s.nothingElse()
			})
			t.Run("unsubscribed", func(t *testing.T) {
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
			})
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

// TestTwoTypes: a client of two types gets each of them, in one stream.
func TestTwoTypes(t *testing.T) {
	for _, types := range [][2]xds.Type{{xds.Cluster, xds.Listener}, {xds.Route, xds.Endpoint}} {
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
