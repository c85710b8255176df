package gateway

import (
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// owned are the headers that only policies may set, in the order of the model.
func (m *Model) owned(p *pb.Policies) []string {
	var out []string
	m.each(p, func(p boundPolicy, value proto.Message) { out = append(out, p.owns(value)...) })
	return out
}

// husk is what is left of policies when nothing but the headers counts that only they may
// set; nil for none.
func (m *Model) husk(all []*pb.Policies) *pb.Policies {
	var out *pb.Policies
	for _, policy := range m.policies {
		var names []string
		for _, p := range all {
			if r := p.ProtoReflect(); r.IsValid() && r.Has(policy.field) {
				names = append(names, policy.owns(r.Get(policy.field).Message().Interface())...)
			}
		}
		if len(names) == 0 {
			continue
		}
		if out == nil {
			out = &pb.Policies{}
		}
		slices.Sort(names)
		out.ProtoReflect().Set(policy.field, protoreflect.ValueOfMessage(policy.owning(slices.Compact(names)).ProtoReflect()))
	}
	return out
}

// OwnedHeaders are the headers that only the policies of an object may set: whatever a client
// sends under such a name reaches no backend of the project.
func (s *Snapshot) OwnedHeaders(name string) []string {
	var out []string
	eachPolicies(s.Get(name), func(_ string, _ Places, p *pb.Policies) { out = append(out, s.model.owned(p)...) })
	return out
}
