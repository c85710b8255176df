package gateway

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Merge says how what several levels (gateway, route, rule) say of one policy is joined.
type Merge int

const (
	// Nearer: the nearer level wins, field by field.
	Nearer Merge = iota
	// Sum: what every level says is in force, outermost first.
	Sum
	// Union is Sum for policies that protect: no level drops what another asks for. What
	// two levels ask for alike is kept once, from the outer one.
	Union
	// Nearest: the nearest level that says something is in force as a whole, for policies
	// whose fields mean something together only.
	Nearest
)

// Places are the levels that a policy may stand on.
type Places uint8

// The levels.
const (
	OnGateway Places = 1 << iota
	OnRoute
	OnRule
)

// places names them, and says what an object calls its policies.
var places = map[Places]string{OnGateway: "a gateway", OnRoute: "a route", OnRule: "a rule"}

// Policy is one policy as the model knows it: a field of pb.Policies of type P. Each stands
// in a folder of its own (gateway/policy/<name>, authn/<method>), beside what makes it
// Envoy's, and gateway/policies lists them all. A function that is nil has nothing to do.
type Policy[P proto.Message] struct {
	// Name is the field of pb.Policies.
	Name protoreflect.Name
	// Merge joins the levels.
	Merge Merge
	// Places are the levels that it may stand on; 0 for all.
	Places Places
	// Same reports whether two levels of a Union ask for the same thing in other words;
	// nil: only equal messages do.
	Same func(a, b Sourced[P]) bool
	// Normalize brings it, in place, into the form that is stored: see Normalize.
	Normalize func(P)
	// Check finds what the rules of the protos cannot say, and Warn what is valid and may
	// not be meant.
	Check, Warn func(*Check, P)
	// WarnEntry finds what may not be meant where the policy is in force, with what is
	// behind it.
	WarnEntry func(*Entry, Value[P]) []Problem
	// References are the other objects that it names. Where one of them is missing the
	// policy cannot be enforced, and the entry is answered with 503.
	References func(P) []Reference
	// Owns are the headers of requests that only the policy may set. On no route of the
	// project they come from a client, and that stays so when the object that carries the
	// policy can no longer be read; Owning makes the policy of which then is known that it
	// owns these headers. They come together.
	Owns   func(P) []string
	Owning func(headers []string) P
	// Preflights reports whether what is in force answers the preflights of requests (Fetch,
	// section 3.2.2), which then reach the rule of the request that they ask about: see
	// Entry.Preflight.
	Preflights func(Value[P]) bool
	// Explain says what is in force of it, nothing included, and what it does to a request.
	// What no row of it is about is printed by its fields; nil: all of it.
	Explain func(*Explanation, Value[P])
}

// Reference is one mention of another object in a policy.
type Reference struct {
	// Field that mentions it, within the policy.
	Field string
	// Text as written: a full or a short name.
	Text string
	// Kind that may stand there.
	Kind string
	// Holds is what a Secret must hold: certificate, jwks or data. "" for other kinds.
	Holds string
	// Fits says why an object of the kind cannot do what it is named for, though it makes
	// the policy only stricter; "" when it can. It may be nil.
	Fits func(Object) string
}

// Value is what is in force of one policy at an entry. Its zero value: no level says
// anything.
type Value[P proto.Message] struct {
	// Merged is what Nearer and Nearest make of the levels; nil for none, and for other rules.
	Merged P
	// Levels are those that say something, outermost first; of Nearest the nearest alone.
	Levels []Sourced[P]
}

// Of returns what is in force of the policy.
func (p *Policy[P]) Of(e *Effective) Value[P] {
	for _, v := range e.values {
		if v.policy == AnyPolicy(p) {
			return *v.value.(*Value[P])
		}
	}
	var none Value[P]
	return none
}

// InForce is what levels of this one policy come to, outermost first.
func (p *Policy[P]) InForce(levels ...Sourced[P]) *Effective {
	e := &Effective{}
	e.put(p, p.join(e, levels))
	return e
}

// AnyPolicy is a *Policy[P] of some P.
type AnyPolicy interface {
	// PolicyName is the field of pb.Policies.
	PolicyName() protoreflect.Name

	base() *policyBase
	empty() proto.Message
	merge(e *Effective, f protoreflect.FieldDescriptor, levels []level)
	normalize(m proto.Message)
	check(c *Check, m proto.Message)
	warn(c *Check, m proto.Message)
	warnEntry(e *Entry) []Problem
	references(m proto.Message) []Reference
	explain(x *Explanation)
	preflights(e *Effective) bool
	owns(m proto.Message) []string
	owning(headers []string) proto.Message
	messages(e *Effective) (merged proto.Message, levels []Sourced[proto.Message])
}

// MergeOf is how the levels of a policy are joined.
func MergeOf(p AnyPolicy) Merge { return p.base().merge }

// policyBase is what needs no P.
type policyBase struct {
	merge  Merge
	places Places
	// ownsWell: Owns and Owning come together.
	ownsWell bool
}

// PolicyName is the field of pb.Policies.
func (p *Policy[P]) PolicyName() protoreflect.Name { return p.Name }

func (p *Policy[P]) base() *policyBase {
	return &policyBase{p.Merge, p.Places, (p.Owns == nil) == (p.Owning == nil)}
}

func (p *Policy[P]) empty() proto.Message {
	var m P
	return m.ProtoReflect().New().Interface()
}

func (p *Policy[P]) normalize(m proto.Message) {
	if p.Normalize != nil {
		p.Normalize(m.(P))
	}
}

func (p *Policy[P]) check(c *Check, m proto.Message) {
	if p.Check != nil {
		p.Check(c, m.(P))
	}
}

func (p *Policy[P]) warn(c *Check, m proto.Message) {
	if p.Warn != nil {
		p.Warn(c, m.(P))
	}
}

func (p *Policy[P]) warnEntry(e *Entry) []Problem {
	if p.WarnEntry == nil {
		return nil
	}
	return p.WarnEntry(e, p.Of(e.Policies))
}

func (p *Policy[P]) references(m proto.Message) []Reference {
	if p.References == nil {
		return nil
	}
	return p.References(m.(P))
}

func (p *Policy[P]) owns(m proto.Message) []string {
	if p.Owns == nil {
		return nil
	}
	return p.Owns(m.(P))
}

func (p *Policy[P]) owning(headers []string) proto.Message { return p.Owning(headers) }

func (p *Policy[P]) preflights(e *Effective) bool {
	return p.Preflights != nil && p.Preflights(p.Of(e))
}

func (p *Policy[P]) explain(x *Explanation) {
	if p.Explain != nil {
		p.Explain(x, p.Of(x.Entry.Policies))
	}
}

func (p *Policy[P]) messages(e *Effective) (merged proto.Message, levels []Sourced[proto.Message]) {
	v := p.Of(e)
	if v.Merged.ProtoReflect().IsValid() {
		merged = v.Merged
	}
	for _, l := range v.Levels {
		levels = append(levels, Sourced[proto.Message]{l.Source, l.Value})
	}
	return merged, levels
}

// merge puts into e what the levels say of the policy, which is the field f of each.
func (p *Policy[P]) merge(e *Effective, f protoreflect.FieldDescriptor, levels []level) {
	var said []Sourced[P]
	for _, l := range levels {
		if m := l.policies.ProtoReflect(); m.Has(f) && !isEmpty(m.Get(f).Message().Interface()) {
			said = append(said, Sourced[P]{l.source, m.Get(f).Message().Interface().(P)})
		}
	}
	if len(said) > 0 {
		e.put(p, p.join(e, said))
	}
}

func (p *Policy[P]) join(e *Effective, levels []Sourced[P]) *Value[P] {
	v := &Value[P]{}
	if p.Merge == Nearest {
		levels = levels[len(levels)-1:]
	}
	if p.Merge == Nearer || p.Merge == Nearest {
		all := p.empty().ProtoReflect()
		for _, l := range levels {
			e.mergeFields(all, l.Value.ProtoReflect(), string(p.Name), l.Source)
		}
		v.Levels = levels
		if !isEmpty(all.Interface()) {
			v.Merged = all.Interface().(P)
		}
		return v
	}
	for _, l := range levels {
		if p.Merge == Sum || !p.has(v.Levels, l) {
			v.Levels = append(v.Levels, l)
		}
	}
	return v
}

func (p *Policy[P]) has(levels []Sourced[P], one Sourced[P]) bool {
	for _, l := range levels {
		if proto.Equal(l.Value, one.Value) || p.Same != nil && p.Same(l, one) {
			return true
		}
	}
	return false
}

// Effective is the merged policies of one rule: gateway, then route, then rule. What is in
// force of a policy is read by Policy.Of.
type Effective struct {
	values []inForce
	fields map[string]Source
}

// inForce is a policy with its Value, as a pointer.
type inForce struct {
	policy AnyPolicy
	value  any
}

func (e *Effective) put(p AnyPolicy, value any) { e.values = append(e.values, inForce{p, value}) }

// From returns where the merged value of a field such as "timeout.request" or
// "retry.idempotent.attempts" was written; a zero Source means default.
func (e *Effective) From(field string) Source { return e.fields[field] }

// Fields are the fields of Nearer policies that some level sets.
func (e *Effective) Fields() map[string]Source { return e.fields }

// InForce yields the policies of which some level says something, in the order of the
// model.
func (e *Effective) InForce(yield func(AnyPolicy) bool) {
	for _, v := range e.values {
		if !yield(v.policy) {
			return
		}
	}
}

// Messages is what is in force of a policy, for those who do not know its type: merged, when
// the nearer level wins (nil otherwise), and the levels, outermost first.
func (e *Effective) Messages(p AnyPolicy) (merged proto.Message, levels []Sourced[proto.Message]) {
	return p.messages(e)
}

// Protected reports whether a policy that protects (Union) is in force.
func (e *Effective) Protected() bool {
	for p := range e.InForce {
		if p.base().merge == Union {
			return true
		}
	}
	return false
}

// level is one place where policies stand.
type level struct {
	source   Source
	policies *pb.Policies
}

// mergeFields copies the fields that are set in src over dst. Messages of our own
// are merged field by field; durations and lists are taken whole.
func (e *Effective) mergeFields(dst, src protoreflect.Message, path string, source Source) {
	src.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := path + "." + string(f.Name())
		if f.Message() != nil && !f.IsList() && !f.IsMap() && strings.HasPrefix(string(f.Message().FullName()), "penstock.") {
			if isEmpty(v.Message().Interface()) {
				return true
			}
			e.mergeFields(dst.Mutable(f).Message(), v.Message(), at, source)
			return true
		}
		dst.Set(f, v)
		if e.fields == nil {
			e.fields = map[string]Source{}
		}
		e.fields[at] = source
		return true
	})
}

func isEmpty(m proto.Message) bool {
	empty := true
	m.ProtoReflect().Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool {
		empty = false
		return false
	})
	return empty
}
