package gateway

import (
	"maps"
	"slices"
	"strings"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Explanation is what the policies in force at an entry say of one request: rows, each with
// where it was written, and how they answer it. Policies speak in the order of the model,
// which is the order of their filters, so that the first answer is the one that a client
// gets.
type Explanation struct {
	// Snapshot has what policies refer to.
	Snapshot *Snapshot
	// Entry serves the request.
	Entry *Entry
	// Request is the request as it is after the edge accepted it.
	Request *Request
	// Now is the time at which credentials are judged.
	Now time.Time

	// Rows are what is done to the request.
	Rows []*pb.ExplainPolicy
	// Answer is what a filter answers; nil when the request passes all of them.
	Answer *pb.ExplainOutcome
	// MayBe is what filters before the answer may answer instead.
	MayBe []*pb.ExplainOutcome
	// MayBeLate is what may come of a policy when the request was sent to a backend.
	MayBeLate []*pb.ExplainOutcome
	// Caller is who calls, as far as an authentication method has found out.
	Caller Caller

	without []string
}

// Caller is an identity that was proved.
type Caller struct{ Issuer, Subject string }

// Known reports whether anything is known of the caller.
func (c Caller) Known() bool { return c != Caller{} }

// Explain asks the policies what they do to a request that an entry serves.
func (s *Snapshot) Explain(e *Entry, r *Request, now time.Time) *Explanation {
	x := &Explanation{Snapshot: s, Entry: e, Request: r, Now: now}
	for _, p := range s.model.policies {
		p.explain(x)
	}
	x.rest()
	return x
}

// Row says what a policy does, or a field of one. field is the path within the policies,
// such as "timeout.idle"; a zero source is a default.
func (x *Explanation) Row(field, summary string, from Source) *pb.ExplainPolicy {
	row := PolicyRow(field, summary, from)
	x.Rows = append(x.Rows, row)
	return row
}

// Amend changes what a row says that another policy has made; nothing when there is none.
func (x *Explanation) Amend(field, summary string) {
	for _, r := range x.Rows {
		if r.GetPolicy() == field {
			r.Summary = summary
		}
	}
}

// PolicyRow is one row of an explanation.
func PolicyRow(field, summary string, from Source) *pb.ExplainPolicy {
	row := &pb.ExplainPolicy{Policy: field, Summary: summary, From: "default"}
	if from.Object != nil {
		row.From = from.Object.GetName() + ": " + from.Path + "." + field
		row.Origin = from.Object.GetMetadata().GetOrigin()
	}
	return row
}

// Answers notes that a filter ends the way of the request, unless one before it has.
func (x *Explanation) Answers(o *pb.ExplainOutcome) {
	if x.Answer == nil {
		x.Answer = o
	}
}

// May notes what a filter may answer, unless one before it ends the way.
func (x *Explanation) May(o *pb.ExplainOutcome) {
	if x.Answer == nil {
		x.MayBe = append(x.MayBe, o)
	}
}

// Without notes a field that means nothing for this request, so that no row is missing.
func (x *Explanation) Without(field string) { x.without = append(x.without, field) }

// Forwards reports whether the request goes on to a backend when no policy answers it.
func (x *Explanation) Forwards() bool {
	return x.Entry.Problem == "" && x.Entry.Rule.GetForward() != nil
}

// rest prints what is in force and no row tells yet, by its fields: a policy that has no
// words, or a field that its words leave out, is never left out.
func (x *Explanation) rest() {
	effective := x.Entry.Policies
	for p := range effective.InForce {
		name := string(p.PolicyName())
		merged, levels := effective.Messages(p)
		if merged == nil {
			if x.told(name) {
				continue
			}
			for _, l := range levels {
				x.Row(name, fieldsText(l.Value), l.Source)
			}
			continue
		}
		for _, path := range slices.Sorted(maps.Keys(effective.Fields())) {
			below, ours := strings.CutPrefix(path, name+".")
			if !ours || x.told(path) || slices.ContainsFunc(x.without, func(w string) bool { return path == w || strings.HasPrefix(path, w+".") }) {
				continue
			}
			x.Row(path, fieldText(merged.ProtoReflect(), strings.Split(below, ".")), effective.From(path))
		}
	}
}

// told reports whether a row is about a field, or about what it is a part of, or about a part
// of a policy.
func (x *Explanation) told(path string) bool {
	for _, r := range x.Rows {
		if name := r.GetPolicy(); name == path || strings.HasPrefix(path, name+".") || strings.HasPrefix(name, path+".") {
			return true
		}
	}
	return false
}
