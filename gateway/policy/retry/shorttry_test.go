package retry_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestShortTry: a short try is for idempotent requests whose time nobody has set, and that
// another endpoint is known to be there for.
func TestShortTry(t *testing.T) {
	static := func(ports ...uint32) gateway.Target {
		b := &pb.Backend{Target: &pb.Backend_Static{Static: &pb.StaticTarget{}}}
		for _, p := range ports {
			b.GetStatic().Endpoints = append(b.GetStatic().Endpoints, &pb.Endpoint{Address: "10.0.0.1", Port: p})
		}
		return gateway.Target{Backend: b}
	}
	two := []gateway.Target{static(1, 2)}
	port := static(1, 2)
	port.Port = 1
	rule := func(r *pb.RetryRule) *pb.RetryPolicy { return &pb.RetryPolicy{Idempotent: r} }
	second := durationpb.New(time.Second)
	for _, c := range []struct {
		name    string
		time    *pb.TimeoutPolicy
		retry   *pb.RetryPolicy
		targets []gateway.Target
		short   bool
	}{
		{"nothing is said", nil, nil, two, true},
		{"other bounds", &pb.TimeoutPolicy{Idle: second, MaxStreamDuration: second}, nil, two, true},
		{"more retries", nil, rule(&pb.RetryRule{Attempts: proto.Uint32(5)}), two, true},
		{"retries on any 5xx", nil, rule(&pb.RetryRule{On: []pb.RetryOn{pb.RetryOn_RETRY_ON_5XX}}), two, true},
		{"times of other methods", nil, &pb.RetryPolicy{Other: &pb.RetryRule{PerTryTimeout: second}}, two, true},
		{"the request's time", &pb.TimeoutPolicy{Request: second}, nil, two, false},
		{"no bound", &pb.TimeoutPolicy{Request: durationpb.New(0)}, nil, two, false},
		{"the time of a try", nil, rule(&pb.RetryRule{PerTryTimeout: second}), two, false},
		{"no retries", nil, rule(&pb.RetryRule{Attempts: proto.Uint32(0)}), two, false},
		{"no retries on reset", nil, rule(&pb.RetryRule{On: []pb.RetryOn{pb.RetryOn_RETRY_ON_CONNECT_FAILURE}}), two, false},
		{"one endpoint", nil, nil, []gateway.Target{static(1)}, false},
		{"one endpoint of a port", nil, nil, []gateway.Target{port}, false},
		{"a name", nil, nil, []gateway.Target{{Backend: &pb.Backend{Target: &pb.Backend_Dns{Dns: &pb.DnsTarget{Hostname: "x.test", Port: 80}}}}}, false},
		{"a function", nil, nil, []gateway.Target{{Function: &pb.Function{}}}, false},
		{"a backend of two with one endpoint", nil, nil, []gateway.Target{static(1, 2), static(1)}, false},
		{"two backends of two", nil, nil, []gateway.Target{static(1, 2), static(3, 4)}, true},
		{"nothing behind it", nil, nil, nil, false},
	} {
		want := time.Duration(0)
		if c.short {
			want = retry.DefaultTry
		}
		if got := retry.ShortTry(c.time, c.retry, c.targets); got != want {
			t.Errorf("%s: %s, want %s", c.name, got, want)
		}
	}
}
