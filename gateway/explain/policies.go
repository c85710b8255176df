package explain

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/authn/jwt"
	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/headers"
	"github.com/penstock-gateway/penstock/gateway/policy/ratelimit"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	"github.com/penstock-gateway/penstock/gateway/policy/timeout"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// policies lists what is done to the request, in the order of the way: who may
// call, how often, then what the router does.
func (x *explainer) policies(e *gateway.Entry) {
	p := e.Policies
	for _, a := range jwt.InForce(p) {
		x.policy("authentication.jwt", x.jwt(a), a.Source, "authentication.jwt")
	}
	if len(jwt.InForce(p)) == 0 {
		x.policy("authentication", "none: anybody may call", gateway.Source{}, "")
	}
	for _, r := range ratelimit.InForce(p) {
		x.policy("rate_limit", limitText(r.Value), r.Source, "rate_limit")
	}
	for _, h := range headers.Policy.Of(p).Levels {
		x.policy("headers", headersText(h.Value), h.Source, "headers")
	}
	if e.Rule.GetForward() != nil {
		x.timeouts(e)
		x.retries(e)
	}
	x.rest(e)
}

// policy adds one row. path is that of the field within the policies.
func (x *explainer) policy(name, summary string, from gateway.Source, path string) {
	row := &pb.ExplainPolicy{Policy: name, Summary: summary, From: "default"}
	if from.Object != nil {
		row.From = from.Object.GetName() + ": " + from.Path + "." + path
		row.Origin = from.Object.GetMetadata().GetOrigin()
	}
	x.out.Policies = append(x.out.Policies, row)
}

func (x *explainer) timeouts(e *gateway.Entry) {
	p, set := e.Policies, timeout.Policy.Of(e.Policies).Merged
	request, follows := gateway.RequestTimeout(set, e.Backends)
	idle := gateway.DefaultIdleTimeout
	if d := set.GetIdle(); d != nil {
		idle = d.AsDuration()
	}
	text := orNone(request, "%s until the response begins, for each try; then 504")
	if try := gateway.ShortTry(set, retry.Policy.Of(p).Merged, e.Backends); try > 0 && slices.Contains(gateway.IdempotentMethods(), x.request.Method) {
		text = orNone(try, "%s until the response begins, for each try, since "+x.request.Method+" is idempotent and another endpoint can answer; then 504")
	}
	if follows != nil {
		text += fmt.Sprintf("; it follows %s, which may take %s", follows.GetName(), short(gateway.FunctionTimeout(follows)))
	}
	for _, t := range e.Backends {
		if f := t.Function; f != nil && request > 0 && request < gateway.FunctionTimeout(f) {
			text += fmt.Sprintf("; shorter than the timeout of %s, %s", f.GetName(), short(gateway.FunctionTimeout(f)))
		}
	}
	x.policy("timeout.request", text, p.From("timeout.request"), "timeout.request")
	x.policy("timeout.idle", orNone(idle, "%s without a byte in either direction; then the stream ends"), p.From("timeout.idle"), "timeout.idle")
	stream := "none: what flows may last"
	if d := set.GetMaxStreamDuration().AsDuration(); d > 0 {
		stream = short(d) + " from the first byte of the request; then it ends, whatever flows"
	}
	x.policy("timeout.max_stream_duration", stream, p.From("timeout.max_stream_duration"), "timeout.max_stream_duration")
}

func orNone(d time.Duration, format string) string {
	if d == 0 {
		return "none: switched off"
	}
	return fmt.Sprintf(format, short(d))
}

// short prints a duration without zero parts: 5m, not 5m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// retries explains the rule of the group that the request's method is in.
func (x *explainer) retries(e *gateway.Entry) {
	p, set := e.Policies, retry.Policy.Of(e.Policies).Merged
	group, rule, on, methods := "other", set.GetOther(), gateway.DefaultOtherRetryOn(), "which is not idempotent"
	for _, m := range gateway.IdempotentMethods() {
		if m == x.request.Method {
			group, rule, on, methods = "idempotent", set.GetIdempotent(), gateway.DefaultIdempotentRetryOn(gateway.Alone(e.Backends)), "which is idempotent"
		}
	}
	path := "retry." + group
	attempts := uint32(gateway.DefaultRetryAttempts)
	if rule != nil && rule.Attempts != nil {
		attempts = rule.GetAttempts()
	}
	add := func(field, summary string) {
		x.policy(path+"."+field, summary, p.From(path+"."+field), path+"."+field)
	}
	if attempts == 0 {
		add("attempts", fmt.Sprintf("no retries for %s, %s", x.request.Method, methods))
		return
	}
	add("attempts", fmt.Sprintf("%d retries beside the first try for %s, %s", attempts, x.request.Method, methods))
	if len(rule.GetOn()) > 0 {
		on = rule.GetOn()
	}
	var names []string
	for _, o := range on {
		names = append(names, word(o.String(), "RETRY_ON_"))
	}
	add("on", strings.Join(names, ", "))
	if codes := rule.GetStatusCodes(); len(codes) > 0 {
		add("status_codes", "also on "+strings.Trim(strings.ReplaceAll(fmt.Sprint(codes), " ", ", "), "[]"))
	}
	if t := rule.GetPerTryTimeout(); t != nil {
		add("per_try_timeout", short(t.AsDuration())+" until the response begins, for each try, in the place of timeout.request")
	}
}

// word makes "connect-failure" of RETRY_ON_CONNECT_FAILURE.
func word(enum, prefix string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(enum, prefix), "_", "-"))
}

// bearerToken is where a route takes a token from (authn/jwt); the token itself, which
// is not checked here, may be a placeholder.
var bearerToken = regexp.MustCompile(`^(?i:bearer) +[A-Za-z0-9_.-]+$`)

func (x *explainer) jwt(a gateway.Sourced[*pb.JwtAuthentication]) string {
	j := a.Value
	var b strings.Builder
	fmt.Fprintf(&b, "a token of issuer %q for audience %s", j.GetIssuer(), strings.Join(quoted(j.GetAudiences()), " or "))
	if k, ok := j.GetKeys().(*pb.JwtAuthentication_JwksSecret); ok {
		name := k.JwksSecret
		if a.Source.Object != nil {
			if project, _, _, err := gateway.KindOf(a.Source.Object.GetName()); err == nil {
				name = gateway.Resolve(project, gateway.KindSecrets, name)
			}
		}
		b.WriteString(", checked with " + name)
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
	sent := x.request.Headers["authorization"]
	switch {
	case len(sent) == 1 && bearerToken.MatchString(sent[0]):
		b.WriteString("; this request brings a token, which is not checked here")
	case len(sent) > 0:
		b.WriteString("; this request's Authorization is not one Bearer token: 401")
	case j.GetOptional():
		b.WriteString("; optional: this request brings none and passes as nobody")
	default:
		b.WriteString("; this request brings none: 401")
	}
	return b.String()
}

func quoted(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = fmt.Sprintf("%q", s)
	}
	return out
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

func headersText(h *pb.HeadersPolicy) string {
	var parts []string
	for _, c := range []struct {
		name   string
		change *pb.HeaderChange
	}{{"request", h.GetRequest()}, {"response", h.GetResponse()}} {
		for _, s := range c.change.GetSet() {
			parts = append(parts, fmt.Sprintf("%s: set %s to %q", c.name, s.GetName(), s.GetValue()))
		}
		for _, s := range c.change.GetAdd() {
			parts = append(parts, fmt.Sprintf("%s: add %s %q", c.name, s.GetName(), s.GetValue()))
		}
		for _, n := range c.change.GetRemove() {
			parts = append(parts, fmt.Sprintf("%s: remove %s", c.name, n))
		}
	}
	if len(parts) == 0 {
		return "changes nothing"
	}
	return strings.Join(parts, "; ")
}
