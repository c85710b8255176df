package explain

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	"github.com/penstock-gateway/penstock/gateway/policy/timeout"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestUnknownPolicies: policies that explain has no words for are printed by their fields,
// with where they were written.
func TestUnknownPolicies(t *testing.T) {
	// Other values than the policies that explain knows.
	model := gateway.NewModel(
		&gateway.Policy[*pb.RateLimitPolicy]{Name: "rate_limit", Merge: gateway.Sum},
		&gateway.Policy[*pb.HeadersPolicy]{Name: "headers", Merge: gateway.Sum},
	)
	policies := func(name string) *pb.Policies {
		return &pb.Policies{
			RateLimit: &pb.RateLimitPolicy{Limits: []*pb.RateLimit{{Name: name, Requests: 5, Window: durationpb.New(time.Minute), Key: pb.RateLimitKey_RATE_LIMIT_KEY_SHARED}}},
			Headers:   &pb.HeadersPolicy{Request: &pb.HeaderChange{Remove: []string{"x-" + name}}},
		}
	}
	s := model.Build(nil, 1, gateway.Changes{Updates: []gateway.Object{
		&pb.Gateway{Name: "projects/default/gateways/g", Listeners: []*pb.Listener{{Name: "l", Port: 80}}, Policies: policies("g")},
		&pb.Route{Name: "projects/default/routes/r", Rules: []*pb.RouteRule{{Policies: policies("r"), Action: &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}}}}},
	}})
	var got []string
	for _, p := range Explain(s, &pb.ExplainRequest{Url: "http://a.test/"}, nil).GetPolicies() {
		if p.GetFrom() != "default" {
			got = append(got, p.GetPolicy()+" | "+p.GetSummary()+" | "+p.GetFrom())
		}
	}
	want := `rate_limit | limits: [{name: "g", requests: 5, window: 1m, key: RATE_LIMIT_KEY_SHARED}] | projects/default/gateways/g: policies.rate_limit
rate_limit | limits: [{name: "r", requests: 5, window: 1m, key: RATE_LIMIT_KEY_SHARED}] | projects/default/routes/r: rules[0].policies.rate_limit
headers | request: {remove: ["x-g"]} | projects/default/gateways/g: policies.headers
headers | request: {remove: ["x-r"]} | projects/default/routes/r: rules[0].policies.headers`
	if all := strings.Join(got, "\n"); all != want {
		t.Errorf("got\n%s\nwant\n%s", all, want)
	}
}

// TestUnknownFields: of a policy whose levels merge, each field that no row tells is printed,
// but not what means nothing for the request.
func TestUnknownFields(t *testing.T) {
	route := &pb.Route{Name: "projects/p/routes/r"}
	at := gateway.Source{Object: route, Path: "policies"}
	retries := &pb.RetryPolicy{Idempotent: &pb.RetryRule{Attempts: proto.Uint32(3), StatusCodes: []uint32{502, 503}}, Other: &pb.RetryRule{Attempts: proto.Uint32(1)}}
	forward := &pb.RouteRule{Action: &pb.RouteRule_Forward{Forward: &pb.Forward{}}}
	for name, c := range map[string]struct {
		rule   *pb.RouteRule
		method string
		in     *gateway.Effective
		told   []string
		want   string
	}{
		"none told":    {forward, "GET", retry.Policy.InForce(gateway.Sourced[*pb.RetryPolicy]{Source: at, Value: retries}), nil, "retry.idempotent.attempts=3 retry.idempotent.status_codes=[502, 503]"},
		"some told":    {forward, "GET", retry.Policy.InForce(gateway.Sourced[*pb.RetryPolicy]{Source: at, Value: retries}), []string{"retry.idempotent.attempts"}, "retry.idempotent.status_codes=[502, 503]"},
		"other group":  {forward, "POST", retry.Policy.InForce(gateway.Sourced[*pb.RetryPolicy]{Source: at, Value: retries}), nil, "retry.other.attempts=1"},
		"timeouts":     {forward, "POST", timeout.Policy.InForce(gateway.Sourced[*pb.TimeoutPolicy]{Source: at, Value: &pb.TimeoutPolicy{Idle: durationpb.New(90 * time.Second)}}), []string{"timeout.request"}, "timeout.idle=1m30s"},
		"no forward":   {&pb.RouteRule{}, "GET", retry.Policy.InForce(gateway.Sourced[*pb.RetryPolicy]{Source: at, Value: retries}), nil, ""},
		"switched off": {forward, "GET", retry.Policy.InForce(gateway.Sourced[*pb.RetryPolicy]{Source: at, Value: &pb.RetryPolicy{Idempotent: &pb.RetryRule{Attempts: proto.Uint32(0)}}}), nil, ""},
	} {
		x := &explainer{out: &pb.ExplainResponse{}, request: gateway.Request{Method: c.method}}
		for _, told := range c.told {
			x.policy(told, "", gateway.Source{}, "")
		}
		x.rest(&gateway.Entry{Route: route, Rule: c.rule, Policies: c.in})
		var got []string
		for _, p := range x.out.GetPolicies()[len(c.told):] {
			got = append(got, p.GetPolicy()+"="+p.GetSummary())
			if p.GetFrom() != "projects/p/routes/r: policies."+p.GetPolicy() {
				t.Errorf("%s: from %s", name, p.GetFrom())
			}
		}
		if all := strings.Join(got, " "); all != c.want {
			t.Errorf("%s: got %s, want %s", name, all, c.want)
		}
	}
}
