package gateway

import (
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// FunctionTimeout is how long a function may take until its response begins.
func FunctionTimeout(f *pb.Function) time.Duration {
	if d := f.GetTimeout().AsDuration(); d > 0 {
		return d
	}
	return DefaultFunctionTimeout
}

// FunctionWait is how long a request may wait for an instance.
func FunctionWait(f *pb.Function) time.Duration {
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
