package ratelimit

import (
	"fmt"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// explain says what the limiter may answer. Proxies ask it about requests that go on to a
// backend, and about no others.
func explain(x *gateway.Explanation, v gateway.Value[*pb.RateLimitPolicy]) {
	all := limits(v.Levels)
	for _, r := range all {
		text := limitText(r.Value)
		switch {
		case x.Answer.GetDecidedBy() == pb.ExplainDecider_EXPLAIN_DECIDER_POLICY:
			text += "; not asked here, since the request is answered before"
		case !x.Forwards():
			text += "; not asked here, since no backend is behind this rule"
		}
		x.Row("rate_limit", text, r.Source)
	}
	if !x.Forwards() {
		return
	}
	const by = pb.ExplainDecider_EXPLAIN_DECIDER_LIMIT
	var closed *gateway.Sourced[*pb.RateLimit]
	for i, r := range all {
		if r.Value.GetOnFailure() == pb.RateLimitFailure_RATE_LIMIT_FAILURE_CLOSED && closed == nil {
			closed = &all[i]
		}
		if r.Value.GetShadow() {
			continue
		}
		o := gateway.MayOutcome(by, gateway.LimitExceeded, "limit %q is used up for %s; what is left of it is not known here", r.Value.GetName(), whose(x, r.Value))
		o.Policy = gateway.PolicyRow("rate_limit", limitText(r.Value), r.Source)
		x.May(o)
	}
	if closed != nil {
		o := gateway.MayOutcome(by, gateway.LimiterDown, "the limiter does not answer, and limit %q is closed then", closed.Value.GetName())
		o.Policy = gateway.PolicyRow("rate_limit", limitText(closed.Value), closed.Source)
		x.May(o)
	}
}

// whose says by which key a limit counts the request.
func whose(x *gateway.Explanation, l *pb.RateLimit) string {
	switch l.GetKey() {
	case pb.RateLimitKey_RATE_LIMIT_KEY_SHARED:
		return "all callers together"
	case pb.RateLimitKey_RATE_LIMIT_KEY_ADDRESS:
		return "the address of the client"
	}
	switch {
	case !x.Caller.Known():
		return "the address of the client, since no token says who calls"
	case x.Caller.Subject == "" || x.Caller.Issuer == "":
		return "the address of the client, since the token has no subject"
	}
	return fmt.Sprintf("subject %q of issuer %q", x.Caller.Subject, x.Caller.Issuer)
}

func limitText(l *pb.RateLimit) string {
	whose := map[pb.RateLimitKey]string{
		pb.RateLimitKey_RATE_LIMIT_KEY_ADDRESS: "for each client address",
		pb.RateLimitKey_RATE_LIMIT_KEY_SHARED:  "for all together",
	}[l.GetKey()]
	if whose == "" {
		whose = "for each consumer, or client address without one"
	}
	how := "at an even rate"
	if l.GetAlgorithm() == pb.RateLimitAlgorithm_RATE_LIMIT_ALGORITHM_FIXED_WINDOW {
		how = "in each fixed window"
	} else {
		burst := l.GetBurst()
		if burst == 0 {
			burst = l.GetRequests()
		}
		how += fmt.Sprintf(" with a burst of %d", burst)
	}
	text := fmt.Sprintf("%q: %d requests in %s %s, %s; then 429", l.GetName(), l.GetRequests(), gateway.ShortDuration(l.GetWindow().AsDuration()), whose, how)
	if l.GetShadow() {
		text += "; shadow: counted, but let pass"
	}
	if l.GetOnFailure() == pb.RateLimitFailure_RATE_LIMIT_FAILURE_CLOSED {
		return text + "; 503 when the limiter cannot be reached"
	}
	return text + "; passes when the limiter cannot be reached"
}
