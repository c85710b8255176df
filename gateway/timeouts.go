package gateway

import (
	"slices"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// functionSlack is how much longer a route waits than its function may take, so that
// the function's own answer, with its reason, comes first.
const functionSlack = 10 * time.Second

// RequestTimeout is how long a route waits for a response to begin (see
// TimeoutPolicy.request); 0 means for ever. Unless p says so it follows what is behind
// the route: the function that may take the longest, its start included, or
// DefaultRequestTimeout for backends. p may be nil. follows is the function, or nil.
func RequestTimeout(p *pb.TimeoutPolicy, targets []Target) (d time.Duration, follows *pb.Function) {
	if d := p.GetRequest(); d != nil {
		return d.AsDuration(), nil
	}
	for _, t := range targets {
		if f := t.Function; f == nil {
			if d < DefaultRequestTimeout {
				d, follows = DefaultRequestTimeout, nil
			}
		} else if need := FunctionTimeout(f) + functionWait(f) + functionSlack; need > d {
			d, follows = need, f
		}
	}
	if d == 0 {
		d = DefaultRequestTimeout
	}
	return d, follows
}

// ShortTry is how long a try of an idempotent request waits for its response to begin,
// where that is shorter than RequestTimeout so that an endpoint that hangs costs little; 0
// where it is not. It is for requests that are repeated after a reset, whose time nobody
// has set, and only where each backend is known to have another endpoint: functions may have to start
// first, and a name may have one address. t and r may be nil.
func ShortTry(t *pb.TimeoutPolicy, r *pb.RetryPolicy, targets []Target) time.Duration {
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
	return DefaultTryTimeout
}

// FunctionTimeout is how long a function may take until its response begins.
func FunctionTimeout(f *pb.Function) time.Duration {
	if d := f.GetTimeout().AsDuration(); d > 0 {
		return d
	}
	return DefaultFunctionTimeout
}

// functionWait is how long a request may wait for an instance.
func functionWait(f *pb.Function) time.Duration {
	if f.GetScale() == nil {
		return 0
	}
	d := DefaultStartTimeout
	for _, set := range []time.Duration{f.GetStartTimeout().AsDuration(), f.GetScale().GetMaxWait().AsDuration()} {
		if set > 0 {
			d = set
		}
	}
	return d
}

// distinctPort is the port of a target, or 0 when all of its endpoints have it, so that the
// target is the same as one that names no port.
func (t Target) distinctPort() uint32 {
	all := t
	if all.Port = 0; len(all.StaticEndpoints()) == len(t.StaticEndpoints()) {
		return 0
	}
	return t.Port
}

// StaticEndpoints are the endpoints of a backend or, when a subset is named, those
// that carry all its labels; when a port is named, those of them that have it.
func (t Target) StaticEndpoints() []*pb.Endpoint {
	var labels map[string]string
	for _, s := range t.Backend.GetSubsets() {
		if s.GetName() == t.Subset {
			labels = s.GetLabels()
		}
	}
	var out []*pb.Endpoint
	for _, e := range t.Backend.GetStatic().GetEndpoints() {
		matches := t.Port == 0 || e.GetPort() == t.Port
		for k, v := range labels {
			got, ok := e.GetLabels()[k]
			matches = matches && ok && got == v
		}
		if matches {
			out = append(out, e)
		}
	}
	return out
}

// Alone reports whether no target has an endpoint beside the one that a request went
// to, as far as is known: a name may have several addresses, a function several
// instances.
func Alone(targets []Target) bool {
	for _, t := range targets {
		if t.Function != nil || t.Backend.GetDns() != nil || len(t.StaticEndpoints()) > 1 {
			return false
		}
	}
	return true
}
