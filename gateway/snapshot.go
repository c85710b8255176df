// Package gateway is the model in memory: an immutable Snapshot of validated
// resources with their references resolved, hosts collected, rules ordered and
// policies merged, so that the compiler and explain say the same thing.
package gateway

import (
	"slices"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Object is any configuration resource: a message of one of the Kinds, such as *pb.Route.
// Objects in a Snapshot are immutable.
type Object interface {
	proto.Message
	GetName() string
	GetMetadata() *pb.Metadata
}

// Problem is one thing wrong with one object.
type Problem struct {
	// Reason is what kind of problem it is, for programs.
	Reason Reason
	// Object is the full name.
	Object string
	// Field is a path such as rules[0].forward.backends[1].backend.
	Field string
	// Message says what is wrong and how to mend it.
	Message string
	// Origin is where the object was written; may be nil.
	Origin *pb.Origin
	// target is the name of the object that a reference is to; "": something else.
	target string
}

// Reason is a kind of Problem.
type Reason int

// The reasons.
const (
	// ReasonModel: something is wrong with what is written.
	ReasonModel Reason = iota
	// ReasonQuarantined: a proxy refused what was made from it.
	ReasonQuarantined
	// ReasonDamaged: the object cannot be read from the store.
	ReasonDamaged
)

// AsWarnings is what a write answers about problems that do not keep it from being done.
func AsWarnings(problems []Problem) (out []*pb.Warning) {
	for _, p := range problems {
		out = append(out, &pb.Warning{Object: p.Object, Field: p.Field, Message: p.Message})
	}
	return out
}

// Host is one host name that a listener serves, with everything that may answer
// for it in match order. It is immutable. A Host whose inputs did not change is the same pointer
// in the next Snapshot, so compilers may cache by pointer.
type Host struct {
	Gateway  *pb.Gateway
	Listener *pb.Listener
	// Hostname is exact ("a.example.com"), wildcard ("*.example.com") or "*".
	Hostname string
	// Entries in match order: the first that matches serves the request. They are written,
	// with the preflights of those.
	Entries []*Entry

	// written are the entries of routes, and answering how many of them answer preflights.
	written   []*Entry
	answering int
}

// Entry is one match of one rule of one route.
type Entry struct {
	Route *pb.Route
	Rule  *pb.RouteRule
	// RuleName is Rule.Name or its default "rule-N".
	RuleName string
	// RuleIndex is the position of Rule in Route.Rules.
	RuleIndex int
	// MatchIndex is the position in Rule.Matches; 0 when there are none.
	MatchIndex int
	// Match is never nil; an empty message matches everything.
	Match *pb.RouteMatch
	// Policies is the merged result for the rule.
	Policies *Effective
	// Backends are the resolved targets of a forward, in order of the rule. A
	// target that does not exist is left out; the others share its part.
	Backends []Target
	// Problem is not empty when the entry cannot be served as it was written: no
	// target is left, or a secret or consumer that a policy names is not there.
	// Such an entry must be answered with 503 and never be left out, because then
	// the request would fall to a less specific entry with less protection.
	Problem string
	// First is set for what stands before everything else of its host: a damaged route.
	First bool
	// Preflight: the entry is for the preflights that ask about requests of the entry after
	// it, which is for other methods than OPTIONS. It is the same but for its match; where no
	// policy of that entry answers preflights it refuses them, with a rule of its own.
	Preflight bool

	ahead *ahead // nil when preflights come to the entry itself, or to none
}

// Receivers are the targets that requests go to: those with a weight, or one alone.
func (e *Entry) Receivers() []Target {
	unused := func(t Target) bool { return t.Weight == 0 }
	if !slices.ContainsFunc(e.Backends, unused) || len(e.Backends) == 1 {
		return e.Backends
	}
	return slices.DeleteFunc(slices.Clone(e.Backends), unused)
}

// Target is one resolved weighted backend.
type Target struct {
	// Exactly one of Backend and Function is set. A version of a function that is
	// not the newest is a Function with the name of VersionName.
	Backend  *pb.Backend
	Function *pb.Function
	// Subset of Backend or "".
	Subset string
	// Port of the endpoints of Backend; 0 for any.
	Port   uint32
	Weight uint32

	// share of of is the weight before it is made whole; see weigh.
	share, of uint64
}

// Name is the full name of the backend or function.
func (t Target) Name() string {
	if t.Function != nil {
		return t.Function.GetName()
	}
	return t.Backend.GetName()
}

// Source says where a policy was written.
type Source struct {
	// Object that carries it; nil for a default.
	Object Object
	// Path of the policies in the object: "policies", "rules[2].policies".
	Path string
}

// Resolve is the full name of an object that a text at the source means: see Resolve. A
// source without an object means names in full.
func (s Source) Resolve(kind, text string) string {
	project := ""
	if s.Object != nil {
		project = projectOf(s.Object.GetName())
	}
	return Resolve(project, kind, text)
}

// Sourced is a policy with its source.
type Sourced[T any] struct {
	Source Source
	Value  T
}
