package retry

import (
	"slices"
	"time"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/timeout"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

const (
	// DefaultAttempts is the number of retries beside the first try, for either group of
	// methods.
	DefaultAttempts = 2
	// DefaultTry bounds a try of an idempotent request that another endpoint may answer:
	// three of them, the retries included, take timeout.DefaultRequest.
	DefaultTry = timeout.DefaultRequest / (1 + DefaultAttempts)
)

// ShortTry is how long a try of an idempotent request waits for its response to begin,
// where that is shorter than timeout.Request so that an endpoint that hangs costs little; 0
// where it is not. It is for requests that are repeated after a reset, whose time nobody
// has set, and only where each backend is known to have another endpoint: functions may have to start
// first, and a name may have one address. t and r may be nil.
func ShortTry(t *pb.TimeoutPolicy, r *pb.RetryPolicy, targets []gateway.Target) time.Duration {
	rule := r.GetIdempotent()
	switch {
	case t.GetRequest() != nil, rule.GetPerTryTimeout() != nil:
		return 0
	case rule != nil && rule.Attempts != nil && rule.GetAttempts() == 0:
		return 0
	case len(rule.GetOn()) > 0 && !slices.Contains(rule.GetOn(), pb.RetryOn_RETRY_ON_RESET) && !slices.Contains(rule.GetOn(), pb.RetryOn_RETRY_ON_5XX):
		return 0
	}
	for _, target := range targets {
		if len(target.StaticEndpoints()) < 2 {
			return 0
		}
	}
	if len(targets) == 0 {
		return 0
	}
	return DefaultTry
}

// IdempotentMethods are the methods that the idempotent retry rule is for: those
// that RFC 9110, section 9.2.2, defines as idempotent, without TRACE, which the
// edge refuses.
func IdempotentMethods() []string { return []string{"GET", "HEAD", "OPTIONS", "PUT", "DELETE"} }

// DefaultIdempotentOn are the conditions on which idempotent requests are
// retried by default. Where there is one endpoint alone (see gateway.Alone), a request that it
// did not answer is not sent to it again: it would take as long once more.
func DefaultIdempotentOn(alone bool) []pb.RetryOn {
	if alone {
		return DefaultOtherOn()
	}
	return append(DefaultOtherOn(), pb.RetryOn_RETRY_ON_RESET)
}

// DefaultOtherOn are the conditions on which all other requests are retried
// by default: those that show that the request was never sent.
func DefaultOtherOn() []pb.RetryOn {
	return []pb.RetryOn{
		pb.RetryOn_RETRY_ON_CONNECT_FAILURE, pb.RetryOn_RETRY_ON_REFUSED_STREAM, pb.RetryOn_RETRY_ON_RESET_BEFORE_REQUEST,
	}
}
