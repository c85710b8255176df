package ratelimit_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	policy "github.com/penstock-gateway/penstock/gateway/policy/ratelimit"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/ratelimit"
)

var (
	route = &pb.Route{Name: "projects/p/routes/r"}
	gate  = &pb.Gateway{Name: "projects/p/gateways/g"}
)

func limit(o gateway.Object, path string, change func(*pb.RateLimit)) gateway.Sourced[*pb.RateLimit] {
	l := &pb.RateLimit{Name: "l", Requests: 5, Window: durationpb.New(time.Minute)}
	if change != nil {
		change(l)
	}
	return gateway.Sourced[*pb.RateLimit]{Source: gateway.Source{Object: o, Path: path}, Value: l}
}

func entry(limits ...gateway.Sourced[*pb.RateLimit]) *gateway.Entry {
	var levels []gateway.Sourced[*pb.RateLimitPolicy]
	for _, l := range limits {
		levels = append(levels, gateway.Sourced[*pb.RateLimitPolicy]{Source: l.Source, Value: &pb.RateLimitPolicy{Limits: []*pb.RateLimit{l.Value}}})
	}
	return &gateway.Entry{Route: route, RuleName: "one", Policies: policy.Policy.InForce(levels...)}
}

func TestSpecOf(t *testing.T) {
	for name, c := range map[string]struct {
		limit gateway.Sourced[*pb.RateLimit]
		want  string
	}{
		"on a gateway": {limit(gate, "policies", nil), "v1|5|60s|0|gcra|consumer|open|-|l|projects/p/gateways/g#l"},
		"on a route":   {limit(route, "policies", nil), "v1|5|60s|0|gcra|consumer|open|-|l|projects/p/routes/r#l"},
		"on a rule":    {limit(route, "rules[3].policies", nil), "v1|5|60s|0|gcra|consumer|open|-|l|projects/p/routes/r/one#l"},
		"everything": {limit(route, "policies", func(l *pb.RateLimit) {
			l.Burst, l.Shadow = 7, true
			l.Key, l.OnFailure = pb.RateLimitKey_RATE_LIMIT_KEY_ADDRESS, pb.RateLimitFailure_RATE_LIMIT_FAILURE_CLOSED
		}), "v1|5|60s|7|gcra|address|closed|shadow|l|projects/p/routes/r#l"},
		"window": {limit(route, "policies", func(l *pb.RateLimit) {
			l.Algorithm, l.Key = pb.RateLimitAlgorithm_RATE_LIMIT_ALGORITHM_FIXED_WINDOW, pb.RateLimitKey_RATE_LIMIT_KEY_SHARED
		}), "v1|5|60s|0|fixed|shared|open|-|l|projects/p/routes/r#l"},
	} {
		s := policy.SpecOf(c.limit, entry())
		if s.String() != c.want {
			t.Errorf("%s: %s, want %s", name, s, c.want)
		}
		if back, err := ratelimit.ParseSpec(s.String()); err != nil || back != s {
			t.Errorf("%s: the limiter reads %+v, %v", name, back, err)
		}
	}
}

// describe is the actions of each descriptor.
func describe(limits []*routev3.RateLimit) string {
	var out []string
	for _, l := range limits {
		var d []string
		for _, a := range l.GetActions() {
			switch s := a.GetActionSpecifier().(type) {
			case *routev3.RateLimit_Action_GenericKey_:
				d = append(d, s.GenericKey.GetDescriptorKey())
			case *routev3.RateLimit_Action_Metadata:
				d = append(d, fmt.Sprintf("%s from %s", s.Metadata.GetDescriptorKey(), s.Metadata.GetMetadataKey().GetPath()[0].GetKey()))
			case *routev3.RateLimit_Action_MaskedRemoteAddress_:
				d = append(d, fmt.Sprintf("address/%d/%d", s.MaskedRemoteAddress.GetV4PrefixMaskLen().GetValue(), s.MaskedRemoteAddress.GetV6PrefixMaskLen().GetValue()))
			}
		}
		out = append(out, strings.Join(d, ","))
	}
	return strings.Join(out, "; ")
}

func TestPerRoute(t *testing.T) {
	shared := limit(route, "policies", func(l *pb.RateLimit) { l.Key = pb.RateLimitKey_RATE_LIMIT_KEY_SHARED })
	closed := limit(route, "policies", func(l *pb.RateLimit) { l.OnFailure = pb.RateLimitFailure_RATE_LIMIT_FAILURE_CLOSED })
	who := policy.Claims{Namespace: "ns", Payload: "jwt-1"}
	for name, c := range map[string]struct {
		limits []gateway.Sourced[*pb.RateLimit]
		who    policy.Claims
		want   string
		closed bool
	}{
		"none":                  {nil, who, "", false},
		"consumer":              {[]gateway.Sourced[*pb.RateLimit]{limit(gate, "policies", nil)}, who, "limit,iss from jwt-1,sub from jwt-1,address/32/64", false},
		"nobody is known":       {[]gateway.Sourced[*pb.RateLimit]{limit(gate, "policies", nil)}, policy.Claims{}, "limit,address/32/64", false},
		"shared":                {[]gateway.Sourced[*pb.RateLimit]{shared}, who, "limit", false},
		"one closed closes all": {[]gateway.Sourced[*pb.RateLimit]{shared, closed}, policy.Claims{}, "limit; limit,address/32/64", true},
	} {
		p, isClosed, err := policy.PerRoute(entry(c.limits...), c.who)
		if err != nil || isClosed != c.closed || describe(p.GetRateLimits()) != c.want || (p == nil) != (c.limits == nil) {
			t.Errorf("%s: %s %v %v", name, describe(p.GetRateLimits()), isClosed, err)
		}
		if p != nil && (p.GetDomain() != "penstock" || p.ValidateAll() != nil) {
			t.Errorf("%s: %v %v", name, p, p.ValidateAll())
		}
	}
	_, _, err := policy.PerRoute(entry(limit(gate, "policies", func(l *pb.RateLimit) { l.Window = durationpb.New(1) })), who)
	if err == nil || !strings.Contains(err.Error(), `limit "l": window is 1ns`) {
		t.Error(err)
	}
}

func TestFilter(t *testing.T) {
	for _, closed := range []bool{true, false} {
		f := policy.Filter("penstock/limiter", closed)
		if err := f.ValidateAll(); err != nil || f.GetFailureModeDeny() != closed || f.GetStatusOnError().GetCode() != 503 || f.GetRateLimitedStatus().GetCode() != 429 || len(f.GetRateLimits()) != 0 {
			t.Error(f, err)
		}
	}
}
