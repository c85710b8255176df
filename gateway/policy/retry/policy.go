package retry

import (
	"slices"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Policy says what is tried again.
var Policy = &gateway.Policy[*pb.RetryPolicy]{Name: "retry", Merge: gateway.Nearer, Check: check, Explain: explain}

func check(c *gateway.Check, p *pb.RetryPolicy) {
	checkRule(c, "idempotent", p.GetIdempotent())
	checkRule(c, "other", p.GetOther())
}

func checkRule(c *gateway.Check, path string, r *pb.RetryRule) {
	request := c.Policies().GetTimeout().GetRequest()
	t := r.GetPerTryTimeout()
	if t != nil && request != nil && request.AsDuration() > 0 && t.AsDuration() > request.AsDuration() {
		c.Add(path+".per_try_timeout", "%v is longer than timeout.request, %v, whose place it takes for each try; make it shorter", t.AsDuration(), request.AsDuration())
	}
	if slices.Contains(r.GetOn(), pb.RetryOn_RETRY_ON_STATUS_CODES) && len(r.GetStatusCodes()) == 0 {
		c.Add(path+".on", "has RETRY_ON_STATUS_CODES, but status_codes is empty; name the codes there")
	}
	if r != nil && r.Attempts != nil && r.GetAttempts() == 0 && (len(r.GetOn()) > 0 || len(r.GetStatusCodes()) > 0) {
		c.Add(path+".attempts", "is 0, which switches retries off, but on or status_codes say when to retry; remove one")
	}
}
