package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/authn/jwt"
	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/ratelimit"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// judge verifies the request's token as the proxies do, with the keys that they have.
func (x *explainer) judge(e *gateway.Entry) {
	project, _, _, _ := gateway.KindOf(e.Route.GetName())
	x.providers = jwt.Providers(jwt.InForce(e.Policies), project)
	x.verdict = jwt.Check(x.providers, x.request.Headers[jwt.TokenHeader], jwt.Facts{
		Keys: func(secret string) string {
			s, _ := x.snapshot.Get(secret).(*pb.Secret)
			return gateway.VerificationKeys(s.GetJwks())
		},
		Consumer: func(name string) *pb.Consumer {
			c, _ := x.snapshot.Get(name).(*pb.Consumer)
			return c
		},
		Now: x.known.Now,
	})
}

// refusedToken is the answer to a request whose token does not do.
func (x *explainer) refusedToken(e *gateway.Entry) *pb.ExplainOutcome {
	v := x.verdict
	reason := v.Reason
	if !strings.HasPrefix(reason, "the request") {
		reason = "the token " + reason
	}
	out := answered(byAuth, v.Answer, "%s", reason)
	if i := slices.Index(x.providers, v.Provider); i >= 0 {
		a := jwt.InForce(e.Policies)[i]
		out.Policy = policyRow("authentication.jwt", x.jwt(a, x.providers[i]), a.Source, "authentication.jwt")
	}
	return out
}

func (x *explainer) jwt(a gateway.Sourced[*pb.JwtAuthentication], p *jwt.Provider) string {
	j := a.Value
	var b strings.Builder
	fmt.Fprintf(&b, "a token of issuer %q for audience %s", j.GetIssuer(), strings.Join(quoted(j.GetAudiences()), " or "))
	if p.Secret != "" {
		b.WriteString(", checked with " + p.Secret)
	} else {
		b.WriteString(", checked with the keys written there")
	}
	lifetime := gateway.DefaultMaxLifetime
	if d := j.GetMaxLifetime(); d != nil {
		lifetime = d.AsDuration()
	}
	fmt.Fprintf(&b, ", valid for at most %s", short(lifetime))
	if len(j.GetConsumers()) > 0 {
		b.WriteString("; only of consumer " + strings.Join(j.GetConsumers(), " or "))
	}
	for _, c := range j.GetClaimHeaders() {
		fmt.Fprintf(&b, "; claim %s becomes header %s", c.GetClaim(), c.GetHeader())
	}
	switch v := x.verdict; {
	case !v.Passes && v.Provider == p:
		fmt.Fprintf(&b, "; refused: %d", v.Answer.Status)
	case j.GetOptional() && len(x.request.Headers[jwt.TokenHeader]) == 0:
		b.WriteString("; optional: this request brings none and passes as nobody")
	case v.Passes:
		b.WriteString("; the token of this request is good")
	}
	return b.String()
}

// limited reports whether proxies ask the limiter: they do so for requests that go on to a
// backend, and for no others.
func limited(e *gateway.Entry) bool { return e.Problem == "" && e.Rule.GetForward() != nil }

// limits are what the limiter may answer to a request that comes to it.
func (x *explainer) limits(e *gateway.Entry) []*pb.ExplainOutcome {
	if !limited(e) {
		return nil
	}
	var out []*pb.ExplainOutcome
	var closed *gateway.Sourced[*pb.RateLimit]
	all := ratelimit.InForce(e.Policies)
	for i, r := range all {
		if r.Value.GetOnFailure() == pb.RateLimitFailure_RATE_LIMIT_FAILURE_CLOSED && closed == nil {
			closed = &all[i]
		}
		if r.Value.GetShadow() {
			continue
		}
		o := may(byLimit, gateway.LimitExceeded, "limit %q is used up for %s; what is left of it is not known here", r.Value.GetName(), x.whose(r.Value))
		o.Policy = policyRow("rate_limit", limitText(r.Value), r.Source, "rate_limit")
		out = append(out, o)
	}
	if closed != nil {
		o := may(byLimit, gateway.LimiterDown, "the limiter does not answer, and limit %q is closed then", closed.Value.GetName())
		o.Policy = policyRow("rate_limit", limitText(closed.Value), closed.Source, "rate_limit")
		out = append(out, o)
	}
	return out
}

// whose says by which key a limit counts this request.
func (x *explainer) whose(l *pb.RateLimit) string {
	switch l.GetKey() {
	case pb.RateLimitKey_RATE_LIMIT_KEY_SHARED:
		return "all callers together"
	case pb.RateLimitKey_RATE_LIMIT_KEY_ADDRESS:
		return "the address of the client"
	}
	if x.verdict.Issuer != "" || x.verdict.Subject != "" {
		return fmt.Sprintf("subject %q of issuer %q", x.verdict.Subject, x.verdict.Issuer)
	}
	return "the address of the client, since no token says who calls"
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
	text := fmt.Sprintf("%q: %d requests in %s %s, %s; then 429", l.GetName(), l.GetRequests(), short(l.GetWindow().AsDuration()), whose, how)
	if l.GetShadow() {
		text += "; shadow: counted, but let pass"
	}
	if l.GetOnFailure() == pb.RateLimitFailure_RATE_LIMIT_FAILURE_CLOSED {
		return text + "; 503 when the limiter cannot be reached"
	}
	return text + "; passes when the limiter cannot be reached"
}
