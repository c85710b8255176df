package retry

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/timeout"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// explain tells the rule of the group that the method of the request is in. The other means
// nothing for it, and none does where no backend is behind the rule.
func explain(x *gateway.Explanation, v gateway.Value[*pb.RetryPolicy]) {
	if x.Entry.Rule.GetForward() == nil {
		x.Without("retry")
		return
	}
	method := x.Request.Method
	group, rule, on, kind, rest := "other", v.Merged.GetOther(), DefaultOtherOn(), "which is not idempotent", "idempotent"
	if slices.Contains(IdempotentMethods(), method) {
		group, rule, on, kind = "idempotent", v.Merged.GetIdempotent(), DefaultIdempotentOn(gateway.Alone(x.Entry.Backends)), "which is idempotent"
		rest = "other"
		tellShortTry(x, v.Merged)
	}
	x.Without("retry." + rest)
	path, attempts := "retry."+group, Attempts(rule)
	add := func(field, format string, args ...any) {
		x.Row(path+"."+field, fmt.Sprintf(format, args...), x.Entry.Policies.From(path+"."+field))
	}
	if attempts == 0 {
		add("attempts", "no retries for %s, %s", method, kind)
		x.Without(path)
		return
	}
	add("attempts", "%d retries beside the first try for %s, %s", attempts, method, kind)
	if len(rule.GetOn()) > 0 {
		on = rule.GetOn()
	}
	var names []string
	for _, o := range on {
		if o != pb.RetryOn_RETRY_ON_STATUS_CODES {
			names = append(names, word(o.String(), "RETRY_ON_"))
		}
	}
	add("on", "%s", cmp.Or(strings.Join(names, ", "), "nothing but status_codes"))
	if codes := rule.GetStatusCodes(); len(codes) > 0 {
		add("status_codes", "also on %s", strings.Trim(strings.ReplaceAll(fmt.Sprint(codes), " ", ", "), "[]"))
	}
	if t := rule.GetPerTryTimeout(); t != nil {
		add("per_try_timeout", "%s until the response begins, for each try, in the place of timeout.request", gateway.ShortDuration(t.AsDuration()))
	}
}

// tellShortTry puts the time of a short try into the row of the request's time.
func tellShortTry(x *gateway.Explanation, p *pb.RetryPolicy) {
	if try := ShortTry(timeout.Policy.Of(x.Entry.Policies).Merged, p, x.Entry.Backends); try > 0 {
		x.Amend("timeout.request", fmt.Sprintf("%s until the response begins, for each try, since %s is idempotent and another endpoint can answer; then 504", gateway.ShortDuration(try), x.Request.Method))
	}
}

// word makes "connect-failure" of RETRY_ON_CONNECT_FAILURE.
func word(enum, prefix string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(enum, prefix), "_", "-"))
}
