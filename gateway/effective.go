package gateway

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// level is one place where policies stand.
type level struct {
	source   Source
	policies *pb.Policies
}

// merge joins levels, outermost first. Of timeout and retry the nearer level wins
// field by field; header changes, authentication and limits add up. An equal
// authentication of two levels is kept once, from the outer one.
func merge(levels ...level) *Effective {
	e := &Effective{fields: map[string]Source{}}
	timeout, retry := &pb.TimeoutPolicy{}, &pb.RetryPolicy{}
	for _, l := range levels {
		if t := l.policies.GetTimeout(); t != nil {
			e.mergeFields(timeout.ProtoReflect(), t.ProtoReflect(), "timeout", l.source)
		}
		if r := l.policies.GetRetry(); r != nil {
			e.mergeFields(retry.ProtoReflect(), r.ProtoReflect(), "retry", l.source)
		}
		if h := l.policies.GetHeaders(); h != nil {
			e.Headers = append(e.Headers, Sourced[*pb.HeadersPolicy]{l.source, h})
		}
		if j := l.policies.GetAuthentication().GetJwt(); j != nil && !e.asksFor(j, l.source) {
			e.Authentication = append(e.Authentication, Sourced[*pb.JwtAuthentication]{l.source, j})
		}
		for _, r := range l.policies.GetRateLimit().GetLimits() {
			e.RateLimits = append(e.RateLimits, Sourced[*pb.RateLimit]{l.source, r})
		}
	}
	if !isEmpty(timeout) {
		e.Timeout = timeout
	}
	if !isEmpty(retry) {
		e.Retry = retry
	}
	return e
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

// asksFor tells whether an equal authentication is in force already.
func (e *Effective) asksFor(j *pb.JwtAuthentication, source Source) bool {
	return slices.ContainsFunc(e.Authentication, func(s Sourced[*pb.JwtAuthentication]) bool {
		return proto.Equal(s.Value, j) || proto.Equal(resolved(s.Value, s.Source), resolved(j, source))
	})
}

// resolved is an authentication with full names, for comparing.
func resolved(j *pb.JwtAuthentication, source Source) *pb.JwtAuthentication {
	project := ""
	if source.Object != nil {
		project = projectOf(source.Object.GetName())
	}
	c := proto.CloneOf(j)
	if k, ok := c.GetKeys().(*pb.JwtAuthentication_JwksSecret); ok {
		k.JwksSecret = Resolve(project, KindSecrets, k.JwksSecret)
	}
	for i, n := range c.GetConsumers() {
		c.Consumers[i] = Resolve(project, KindConsumers, n)
	}
	slices.Sort(c.Consumers)
	slices.Sort(c.Audiences)
	return c
}
