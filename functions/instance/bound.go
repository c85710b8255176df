package instance

import (
	"context"
	"net/http"
	"sync"
	"time"
)

const (
	// headerLate is "true" on a request that the proxy sends again because the response
	// to it did not begin within the route's timeout.request (Envoy,
	// include_is_timeout_retry_header). Clients cannot send it: the edge removes x-envoy-*.
	headerLate = "x-envoy-is-timeout-retry"
	// headerRepeat is on requests of routes with a per_try_timeout: these are to be
	// begun again at another instance.
	headerRepeat = "x-penstock-repeat"
	// KindTimeout is the value of HeaderError for a request whose response did not begin
	// within the route's timeout.request.
	KindTimeout = "timeout"
)

// Late answers a request whose time was over before it came here, and reports whether it
// did. Envoy repeats an idempotent request whose try has timed out, which for a function
// would mean to begin it again after the caller has waited for as long as he was to.
func Late(w http.ResponseWriter, r *http.Request) bool {
	late := r.Header.Get(headerLate) == "true" && r.Header.Get(headerRepeat) == ""
	r.Header.Del(headerLate)
	r.Header.Del(headerRepeat)
	if late {
		Refuse(w, r, RequestID(r), http.StatusGatewayTimeout, KindTimeout, "the response did not begin within the route's timeout.request", false)
	}
	return late
}

// watch bounds an invocation. Until its response begins it has the function's timeout,
// from when it was admitted or, while its body still comes, from the last part of that.
// What has begun may last: it is ended when it pauses for Options.Silence, when the caller
// takes nothing for the function's timeout, or is gone for that long and the handler
// cannot be told. caller is the context of the request.
func (i *Instance) watch(rec *recorder, caller context.Context, cancel context.CancelCauseFunc) (stop func()) {
	var mu sync.Mutex // so that nothing happens to the connection after stop
	var timer *time.Timer
	var left time.Time // when the caller was seen to be gone
	over := false
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(i.o.Timeout, func() {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return
		}
		now := time.Now()
		if caller.Err() != nil && left.IsZero() {
			left = now
		}
		switch more := rec.more(now, left, i.o.Timeout, i.o.Silence); {
		case more > 0:
			timer.Reset(more)
		case rec.expire() && !i.contract.Cancels():
			// The caller does not take the answer. The handler, which cannot be given
			// up, has the same time again to come to its end without the caller.
			timer.Reset(i.o.Timeout)
		default:
			rec.upload.overdue()
			cancel(context.DeadlineExceeded)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
		timer.Stop()
	}
}

// more is how long an invocation may go on before it is looked at again; 0: no longer.
// left is when the caller was seen to be gone.
func (r *recorder) more(now, left time.Time, timeout, silence time.Duration) time.Duration {
	last := r.upload.lastPart()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.expired:
		return 0
	case !r.begun || r.internal:
		return max(0, last.Add(timeout).Sub(now))
	case r.writing > 0:
		return max(0, r.moved.Add(timeout).Sub(now))
	case !left.IsZero():
		return max(0, left.Add(timeout).Sub(now))
	}
	// Whether the caller is gone is to be seen in time, too.
	return max(0, min(timeout, r.moved.Add(silence).Sub(now)))
}
