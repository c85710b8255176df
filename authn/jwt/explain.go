package jwt

import (
	"fmt"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// explain verifies the token of the request as proxies do, with the keys that they have.
func explain(x *gateway.Explanation, v gateway.Value[*pb.AuthenticationPolicy]) {
	asked := tokens(v.Levels)
	if len(asked) == 0 {
		x.Row("authentication", "none: anybody may call", gateway.Source{})
		return
	}
	project, _, _, _ := gateway.KindOf(x.Entry.Route.GetName())
	providers := Providers(asked, project)
	verdict := Check(providers, x.Request.Headers[TokenHeader], Facts{
		Keys: func(secret string) string {
			s, _ := x.Snapshot.Get(secret).(*pb.Secret)
			return gateway.VerificationKeys(s.GetJwks())
		},
		Consumer: func(name string) *pb.Consumer {
			c, _ := x.Snapshot.Get(name).(*pb.Consumer)
			return c
		},
		Now: x.Now,
	})
	x.Caller = gateway.Caller{Issuer: verdict.Issuer, Subject: verdict.Subject}
	for i, a := range asked {
		x.Row(policyField, describe(x, a, providers[i], verdict), a.Source)
	}
	if o := refusal(x, asked, providers, verdict); o != nil {
		x.Answers(o)
	}
}

// policyField is the field of Policies that rows are about.
const policyField = "authentication.jwt"

// refusal is the answer to a request whose token does not do; nil when it passes.
func refusal(x *gateway.Explanation, asked []gateway.Sourced[*pb.JwtAuthentication], providers []*Provider, v Verdict) *pb.ExplainOutcome {
	if v.Passes {
		return nil
	}
	reason := v.Reason
	if !strings.HasPrefix(reason, "the request") {
		reason = "the token " + reason
	}
	out := gateway.AnsweredOutcome(pb.ExplainDecider_EXPLAIN_DECIDER_AUTHENTICATION, v.Answer, "%s", reason)
	if i := slices.Index(providers, v.Provider); i >= 0 {
		out.Policy = gateway.PolicyRow(policyField, describe(x, asked[i], providers[i], v), asked[i].Source)
	}
	return out
}

func describe(x *gateway.Explanation, a gateway.Sourced[*pb.JwtAuthentication], p *Provider, v Verdict) string {
	j := a.Value
	var b strings.Builder
	fmt.Fprintf(&b, "a token of issuer %q for audience %s", j.GetIssuer(), strings.Join(gateway.Quoted(j.GetAudiences()), " or "))
	if p.Secret != "" {
		b.WriteString(", checked with " + p.Secret)
	} else {
		b.WriteString(", checked with the keys written there")
	}
	fmt.Fprintf(&b, ", valid for at most %s", gateway.ShortDuration(p.maxLifetime()))
	if len(j.GetConsumers()) > 0 {
		b.WriteString("; only of consumer " + strings.Join(j.GetConsumers(), " or "))
	}
	for _, c := range j.GetClaimHeaders() {
		fmt.Fprintf(&b, "; claim %s becomes header %s", c.GetClaim(), c.GetHeader())
	}
	switch {
	case !v.Passes && v.Provider == p:
		fmt.Fprintf(&b, "; refused: %d", v.Answer.Status)
	case j.GetOptional() && len(x.Request.Headers[TokenHeader]) == 0:
		b.WriteString("; optional: this request brings none and passes as nobody")
	case v.Passes:
		b.WriteString("; the token of this request is good")
	}
	return b.String()
}
