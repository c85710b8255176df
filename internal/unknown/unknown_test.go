package unknown

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func TestFields(t *testing.T) {
	const later = 20000
	field := protowire.AppendVarint(protowire.AppendTag(nil, later, protowire.VarintType), 1)
	with := func(m proto.Message) { m.ProtoReflect().SetUnknown(append(slices.Clone(field), field...)) }
	route := func() *pb.Route {
		return &pb.Route{
			Name: "projects/default/routes/r", Metadata: &pb.Metadata{Labels: map[string]string{"a": "b"}},
			Policies: &pb.Policies{Authentication: &pb.AuthenticationPolicy{Jwt: &pb.JwtAuthentication{Issuer: "i"}}},
			Rules:    []*pb.RouteRule{{Name: "x"}, {Name: "y", Policies: &pb.Policies{}}},
		}
	}
	for _, c := range []struct {
		name   string
		change func(r *pb.Resource)
		want   []string
	}{
		{"nothing", func(*pb.Resource) {}, nil},
		{"a kind", func(r *pb.Resource) { r.Kind = nil; with(r) }, []string{"#20000"}},
		{"a field", func(r *pb.Resource) { with(r.GetRoute()) }, []string{"route.#20000"}},
		{"a policy of a rule", func(r *pb.Resource) { with(r.GetRoute().GetRules()[1].GetPolicies()) }, []string{"route.rules[1].policies.#20000"}},
		{"a way to authenticate", func(r *pb.Resource) { with(r.GetRoute().GetPolicies().GetAuthentication()) }, []string{"route.policies.authentication.#20000"}},
		{"an enum", func(r *pb.Resource) {
			r.Kind = &pb.Resource_Function{Function: &pb.Function{Isolation: &pb.Isolation{Level: 99}}}
		}, []string{"function.isolation.level=99"}},
	} {
		r := &pb.Resource{Kind: &pb.Resource_Route{Route: route()}}
		c.change(r)
		b, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		read := &pb.Resource{}
		if err := proto.Unmarshal(b, read); err != nil {
			t.Fatal(err)
		}
		if got := Fields(read); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
