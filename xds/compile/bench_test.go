package compile_test

import (
	"fmt"
	"testing"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// large is a gateway with n hosts of one route each.
func large(n int) []gateway.Object {
	out := []gateway.Object{
		&pb.Gateway{Name: "projects/default/gateways/edge", Listeners: []*pb.Listener{{Name: "http", Port: 8080}}},
		&pb.Backend{Name: "projects/default/backends/up", Target: &pb.Backend_Static{Static: &pb.StaticTarget{Endpoints: []*pb.Endpoint{{Address: "10.0.0.1", Port: 80}}}}},
	}
	for i := range n {
		out = append(out, host(i, "/"))
	}
	return out
}

func host(i int, path string) *pb.Route {
	return &pb.Route{
		Name: fmt.Sprintf("projects/default/routes/r%d", i), Hostnames: []string{fmt.Sprintf("h%d.test", i)},
		Rules: []*pb.RouteRule{{
			Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: path}}}},
			Action:  &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "up", Weight: 1}}}},
		}},
	}
}

// BenchmarkChange is the compilation after a change of one route of many.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := policies.Model().Build(nil, 1, gateway.Changes{Updates: large(n)})
			c := compile.New(compile.Settings{})
			in := compile.Input{Snapshot: s, View: compile.View{Project: "default", Gateway: "-"}}
			c.Compile(in)
			i := 0
			for b.Loop() {
				i++
				b.StopTimer()
				s = policies.Model().Build(s, int64(i), gateway.Changes{Updates: []gateway.Object{host(n/2, fmt.Sprintf("/p%d", i))}})
				in.Snapshot = s
				b.StartTimer()
				c.Compile(in)
			}
		})
	}
}

// BenchmarkChangeOfTen is the same for hosts of ten routes.
func BenchmarkChangeOfTen(b *testing.B) {
	route := func(i int, path string) gateway.Object {
		r := host(i, path)
		r.Hostnames = []string{fmt.Sprintf("h%d.test", i/10)}
		return r
	}
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			all := large(0)
			for i := range n {
				all = append(all, route(i, fmt.Sprintf("/p%d", i)))
			}
			s := policies.Model().Build(nil, 1, gateway.Changes{Updates: all})
			c := compile.New(compile.Settings{})
			in := compile.Input{Snapshot: s, View: compile.View{Project: "default", Gateway: "-"}}
			c.Compile(in)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				s = policies.Model().Build(s, int64(i), gateway.Changes{Updates: []gateway.Object{route(n/2, fmt.Sprintf("/q%d", i))}})
				in.Snapshot = s
				b.StartTimer()
				c.Compile(in)
			}
		})
	}
}

// BenchmarkFresh is a compilation without a cache.
func BenchmarkFresh(b *testing.B) {
	s := policies.Model().Build(nil, 1, gateway.Changes{Updates: large(10_000)})
	for b.Loop() {
		compile.New(compile.Settings{}).Compile(compile.Input{Snapshot: s, View: compile.View{Project: "default", Gateway: "-"}})
	}
}
