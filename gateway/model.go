package gateway

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Model is what an object may say: the kinds, and the policies of a list. This package
// knows no policy by name; gateway/policies has the Model with all of them. It is immutable.
type Model struct{ policies []boundPolicy }

// boundPolicy is a policy with its field of pb.Policies.
type boundPolicy struct {
	AnyPolicy
	field protoreflect.FieldDescriptor
}

// NewModel makes a Model of policies, in the order in which they are checked and explained.
// It panics when one is not a field of pb.Policies, has another type than that, or is there
// twice: a program with such a list cannot work.
func NewModel(policies ...AnyPolicy) *Model {
	m := &Model{}
	fields := (&pb.Policies{}).ProtoReflect().Descriptor().Fields()
	for _, p := range policies {
		f := fields.ByName(p.PolicyName())
		switch {
		case f == nil || f.Message() == nil || f.IsList():
			panic(fmt.Sprintf("policy %q is not a message field of %s", p.PolicyName(), fields.Get(0).Parent().FullName()))
		case f.Message() != p.empty().ProtoReflect().Descriptor():
			panic(fmt.Sprintf("policy %q is a %s, but the field is a %s", p.PolicyName(), p.empty().ProtoReflect().Descriptor().FullName(), f.Message().FullName()))
		case !p.base().ownsWell:
			panic(fmt.Sprintf("policy %q has one of Owns and Owning without the other, so its headers would not survive damage", p.PolicyName()))
		case slices.ContainsFunc(m.policies, func(o boundPolicy) bool { return o.field == f }):
			panic(fmt.Sprintf("policy %q is in the list twice", p.PolicyName()))
		}
		m.policies = append(m.policies, boundPolicy{p, f})
	}
	return m
}

// Missing are the fields of pb.Policies that no policy of the Model stands for, in order.
// What they hold would be stored and never done.
func (m *Model) Missing() []protoreflect.Name {
	var out []protoreflect.Name
	fields := (&pb.Policies{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); !slices.ContainsFunc(m.policies, func(p boundPolicy) bool { return p.field == f }) {
			out = append(out, f.Name())
		}
	}
	return out
}

// Policies are the policies of the Model, in order.
func (m *Model) Policies() []AnyPolicy {
	out := make([]AnyPolicy, len(m.policies))
	for i, p := range m.policies {
		out[i] = p.AnyPolicy
	}
	return out
}

// each calls visit for every policy that is set.
func (m *Model) each(p *pb.Policies, visit func(p boundPolicy, value proto.Message)) {
	if p == nil {
		return
	}
	r := p.ProtoReflect()
	for _, policy := range m.policies {
		if r.Has(policy.field) {
			visit(policy, r.Get(policy.field).Message().Interface())
		}
	}
}

// merge joins levels, outermost first.
func (m *Model) merge(levels ...level) *Effective {
	e := &Effective{}
	for _, p := range m.policies {
		p.merge(e, p.field, levels)
	}
	return e
}

func (m *Model) normalizePolicies(p *pb.Policies) {
	m.each(p, func(p boundPolicy, value proto.Message) { p.normalize(value) })
}

// policyReferences are those of policies that stand at path.
func (m *Model) policyReferences(project, path string, p *pb.Policies) []reference {
	var out []reference
	m.each(p, func(p boundPolicy, value proto.Message) {
		for _, r := range p.references(value) {
			ref := refTo(path+"."+string(p.PolicyName())+"."+r.Field, project, r.Text, r.Kind)
			ref.holds, ref.fits = r.Holds, r.Fits
			out = append(out, ref)
		}
	})
	return out
}

// policies checks those that stand at path.
func (c *checker) policies(path string, at Places, p *pb.Policies) {
	c.model.each(p, func(policy boundPolicy, value proto.Message) {
		field := path + "." + string(policy.PolicyName())
		if allowed := policy.base().places; allowed != 0 && allowed&at == 0 {
			c.add(field, "cannot stand on %s; move it to %s", places[at], allowed.names())
			return
		}
		policy.check(&Check{c, field, p}, value)
	})
}

// names lists places for a sentence.
func (p Places) names() string {
	out := ""
	for _, one := range []Places{OnGateway, OnRoute, OnRule} {
		if p&one == 0 {
			continue
		}
		if out != "" {
			out += " or "
		}
		out += places[one]
	}
	return out
}

// eachPolicies calls visit for all policies of an object, with where they stand.
func eachPolicies(o Object, visit func(path string, at Places, p *pb.Policies)) {
	kindOfObject(o).policies(o, visit)
}

func (c *checker) policyWarnings(o Object) {
	eachPolicies(o, func(path string, _ Places, p *pb.Policies) {
		c.model.each(p, func(policy boundPolicy, value proto.Message) {
			policy.warn(&Check{c, path + "." + string(policy.PolicyName()), p}, value)
		})
	})
}
