package gateway

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// explained builds a gateway and a route of a model, and explains a request of the route.
func explained(t *testing.T, m *Model, outer, inner *pb.Policies, forward bool) *Explanation {
	t.Helper()
	rule := &pb.RouteRule{Policies: inner, Action: &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}}}
	if forward {
		rule.Action = &pb.RouteRule_Forward{Forward: &pb.Forward{}}
	}
	s := m.Build(nil, 1, Changes{Updates: []Object{
		&pb.Gateway{Name: "projects/default/gateways/g", Listeners: []*pb.Listener{{Name: "l", Port: 80}}, Policies: outer},
		&pb.Route{Name: "projects/default/routes/r", Rules: []*pb.RouteRule{rule}},
	}})
	return s.Explain(s.Host("projects/default/gateways/g", "l", "a.test").Entries[0], &Request{Method: "GET", Path: "/"}, time.Now())
}

func rowsOf(x *Explanation) string {
	var out []string
	for _, p := range x.Rows {
		out = append(out, p.GetPolicy()+" | "+p.GetSummary()+" | "+p.GetFrom())
	}
	return strings.Join(out, "\n")
}

// TestWithoutWords: a policy without words is printed by its fields, with where it was
// written; of a sum each level.
func TestWithoutWords(t *testing.T) {
	m := NewModel(
		&Policy[*pb.RateLimitPolicy]{Name: "rate_limit", Merge: Sum},
		&Policy[*pb.HeadersPolicy]{Name: "headers", Merge: Sum},
	)
	policies := func(name string) *pb.Policies {
		return &pb.Policies{
			RateLimit: &pb.RateLimitPolicy{Limits: []*pb.RateLimit{{Name: name, Requests: 5, Window: durationpb.New(time.Minute), Key: pb.RateLimitKey_RATE_LIMIT_KEY_SHARED}}},
			Headers:   &pb.HeadersPolicy{Request: &pb.HeaderChange{Remove: []string{"x-" + name}}},
		}
	}
	want := `rate_limit | limits: [{name: "g", requests: 5, window: 1m, key: RATE_LIMIT_KEY_SHARED}] | projects/default/gateways/g: policies.rate_limit
rate_limit | limits: [{name: "r", requests: 5, window: 1m, key: RATE_LIMIT_KEY_SHARED}] | projects/default/routes/r: rules[0].policies.rate_limit
headers | request: {remove: ["x-g"]} | projects/default/gateways/g: policies.headers
headers | request: {remove: ["x-r"]} | projects/default/routes/r: rules[0].policies.headers`
	if got := rowsOf(explained(t, m, policies("g"), policies("r"), false)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestForgottenWords: of a policy whose levels merge, each field that its words leave out is
// printed, but not what it says means nothing for the request.
func TestForgottenWords(t *testing.T) {
	retries := &pb.Policies{Retry: &pb.RetryPolicy{
		Idempotent: &pb.RetryRule{Attempts: proto.Uint32(3), StatusCodes: []uint32{502, 503}},
		Other:      &pb.RetryRule{Attempts: proto.Uint32(1)},
	}}
	for name, c := range map[string]struct {
		words func(*Explanation, Value[*pb.RetryPolicy])
		want  string
	}{
		"none": {nil, "retry.idempotent.attempts=3 retry.idempotent.status_codes=[502, 503] retry.other.attempts=1"},
		"one field": {func(x *Explanation, v Value[*pb.RetryPolicy]) {
			x.Row("retry.idempotent.attempts", "three", x.Entry.Policies.From("retry.idempotent.attempts"))
		}, "retry.idempotent.attempts=three retry.idempotent.status_codes=[502, 503] retry.other.attempts=1"},
		"no meaning for the request": {func(x *Explanation, _ Value[*pb.RetryPolicy]) { x.Without("retry.idempotent") }, "retry.other.attempts=1"},
		"no meaning at all":          {func(x *Explanation, _ Value[*pb.RetryPolicy]) { x.Without("retry") }, ""},
		"amended by another": {func(x *Explanation, _ Value[*pb.RetryPolicy]) {
			x.Row("retry", "many", x.Entry.Policies.From("retry.other.attempts"))
			x.Amend("retry", "few")
			x.Amend("timeout", "an answer for no row")
		}, "retry=few"},
	} {
		x := explained(t, NewModel(&Policy[*pb.RetryPolicy]{Name: "retry", Explain: c.words}), nil, retries, true)
		var got []string
		for _, p := range x.Rows {
			got = append(got, p.GetPolicy()+"="+p.GetSummary())
			if p.GetFrom() != "projects/default/routes/r: rules[0].policies."+p.GetPolicy() {
				t.Errorf("%s: from %s", name, p.GetFrom())
			}
		}
		if all := strings.Join(got, " "); all != c.want {
			t.Errorf("%s: got %s, want %s", name, all, c.want)
		}
	}
}

// TestFirstAnswer: policies speak in the order of the model, in force or not. The first that
// answers ends the way, and what those behind it may answer does not count.
func TestFirstAnswer(t *testing.T) {
	says := func(text string) *pb.ExplainOutcome { return &pb.ExplainOutcome{Text: text} }
	m := NewModel(
		&Policy[*pb.RateLimitPolicy]{Name: "rate_limit", Explain: func(x *Explanation, _ Value[*pb.RateLimitPolicy]) { x.May(says("limit")) }},
		&Policy[*pb.HeadersPolicy]{Name: "headers", Explain: func(x *Explanation, _ Value[*pb.HeadersPolicy]) { x.Answers(says("headers")) }},
		&Policy[*pb.RetryPolicy]{Name: "retry", Explain: func(x *Explanation, _ Value[*pb.RetryPolicy]) {
			x.Answers(says("retry"))
			x.May(says("late"))
		}},
	)
	x := explained(t, m, nil, nil, true)
	if len(x.MayBe) != 1 || x.MayBe[0].GetText() != "limit" || x.Answer.GetText() != "headers" || len(x.Rows) != 0 {
		t.Errorf("may be %v, answer %v, rows %v", x.MayBe, x.Answer, x.Rows)
	}
	forward := &pb.RouteRule{Action: &pb.RouteRule_Forward{Forward: &pb.Forward{}}}
	for e, want := range map[*Entry]bool{{Rule: forward}: true, {Rule: forward, Problem: "broken"}: false, {Rule: &pb.RouteRule{}}: false} {
		if got := (&Explanation{Entry: e}).Forwards(); got != want {
			t.Errorf("%v: forwards %v", e.Rule, got)
		}
	}
}
