package ratelimit

import (
	"context"
	"errors"
	"time"
)

// Request asks for one limit of one request.
type Request struct {
	// Key names the counter. It has the limit's ID and whose counter it is.
	Key string
	// Spec is the limit. It must be valid.
	Spec Spec
	// Cost is how much is taken. 0 takes nothing and asks whether a request of cost
	// 1 would pass.
	Cost uint32
}

// Result is what became of a Request.
type Result struct {
	// Allowed reports whether the limit lets the request pass. A shadow limit that
	// says no refuses nothing.
	Allowed bool
	// Limit is how many requests can be free at most.
	Limit uint32
	// Remaining is how many are free now, after this decision.
	Remaining uint32
	// RetryAfter, of a limit that does not let pass, is when it would if nobody else
	// asked. For a cost above Limit, which never passes, it is when all is free.
	RetryAfter time.Duration
	// Effective is the time within which Remaining is all that should be used:
	// parameter t of the header RateLimit.
	Effective time.Duration
	// Degraded tells that nothing was counted: the backend was not there, and the
	// limit's failure policy decided.
	Degraded bool
}

// ErrUnavailable is wrapped by the errors of a backend that cannot be asked now:
// the limits' failure policies decide.
var ErrUnavailable = errors.New("the counters cannot be reached")

// Backend keeps counters.
type Backend interface {
	// Decide decides all limits of one request at once: when all that are no
	// shadows let it pass, all take their cost, else none does. A shadow limit
	// takes its cost where it fits. Results are in the order of the requests.
	// Errors wrap ErrUnavailable, or are ctx's.
	Decide(ctx context.Context, requests []Request) ([]Result, error)
	// Name is "memory" or "redis".
	Name() string
	// Close ends the backend.
	Close() error
}

// result describes a limit after a decision. The state is advanced to now.
func (l limit) result(s State, now int64, cost uint32, allowed bool) Result {
	r := Result{
		Allowed:   allowed,
		Limit:     uint32(l.burst),
		Remaining: uint32(min(l.free(s, now), l.burst)),
		Effective: micros(l.effective(s, now)),
	}
	if !allowed {
		r.RetryAfter = micros(l.wait(s, now, int64(cost)))
	}
	return r
}

// micros converts and saturates.
func micros(n int64) time.Duration {
	const most = int64(1<<63-1) / int64(time.Microsecond)
	return time.Duration(min(n, most)) * time.Microsecond
}

// refuses reports whether any limit that is not a shadow said no.
func refuses(requests []Request, results []Result) bool {
	for i, r := range results {
		if !r.Allowed && !requests[i].Spec.Shadow {
			return true
		}
	}
	return false
}
