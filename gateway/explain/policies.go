package explain

import (
	"cmp"
	"fmt"
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
	for i, a := range jwt.InForce(p) {
		x.policy("authentication.jwt", x.jwt(a, x.providers[i]), a.Source, "authentication.jwt")
	}
	if len(jwt.InForce(p)) == 0 {
		x.policy("authentication", "none: anybody may call", gateway.Source{}, "")
	}
	for _, r := range ratelimit.InForce(p) {
		text := limitText(r.Value)
		if !limited(e) {
			text += "; not asked here, since no backend is behind this rule"
		}
		x.policy("rate_limit", text, r.Source, "rate_limit")
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
	x.out.Policies = append(x.out.Policies, policyRow(name, summary, from, path))
}

func policyRow(name, summary string, from gateway.Source, path string) *pb.ExplainPolicy {
	row := &pb.ExplainPolicy{Policy: name, Summary: summary, From: "default"}
	if from.Object != nil {
		row.From = from.Object.GetName() + ": " + from.Path + "." + path
		row.Origin = from.Object.GetMetadata().GetOrigin()
	}
	return row
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
		if o != pb.RetryOn_RETRY_ON_STATUS_CODES {
			names = append(names, word(o.String(), "RETRY_ON_"))
		}
	}
	add("on", cmp.Or(strings.Join(names, ", "), "nothing but status_codes"))
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

func quoted(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = fmt.Sprintf("%q", s)
	}
	return out
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
