// Package ratelimit compiles limits to Envoy's ratelimit filter. All limits of a
// route go to the limiter in one request, so they are decided at once: all take,
// or none. Each is one descriptor that holds the whole limit, so the limiter needs
// no configuration.
package ratelimit

import (
	"fmt"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rlsconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/ratelimit/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/ratelimit"
)

const (
	// Domain is the rate limit domain of all requests to the limiter.
	Domain = "penstock"
	// LimitKey is the descriptor entry that holds the limit.
	LimitKey = "limit"
	// timeout bounds the call to the limiter. A warm decision takes well under 1 ms
	// and a Redis has its own budget of 50 ms in the limiter; 250 ms leave room for
	// a first connection on a busy machine, and a dead limiter costs a request no
	// more than that.
	timeout = 250 * time.Millisecond
	// A client gets a /64 at least, so single IPv6 addresses count together.
	ipv4Bits, ipv6Bits = 32, 64
)

// Filter is the configuration of the filter. Without an answer of the limiter
// closed refuses with 503, else the request passes. cluster is the limiter.
func Filter(cluster string, closed bool) *ratelimitv3.RateLimit {
	return &ratelimitv3.RateLimit{
		Domain:          Domain,
		FailureModeDeny: closed,
		StatusOnError:   &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		Timeout:         durationpb.New(timeout),
		RateLimitService: &rlsconfigv3.RateLimitServiceConfig{
			TransportApiVersion: corev3.ApiVersion_V3,
			GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cluster},
			}},
		},
		// The limiter sends the RateLimit fields of the current draft itself.
		EnableXRatelimitHeaders:        ratelimitv3.RateLimit_OFF,
		DisableXEnvoyRatelimitedHeader: true,
		RateLimitedStatus:              &typev3.HttpStatus{Code: typev3.StatusCode_TooManyRequests},
	}
}

// Off is the entry of a route that has the filter in its chain and no limits.
func Off() *ratelimitv3.RateLimitPerRoute { return &ratelimitv3.RateLimitPerRoute{} }

// Claims says where the identity of the caller is.
type Claims struct {
	// Namespace and Payload are the path in the dynamic metadata to the payload of
	// the verified token. An empty Payload: the route has no authentication.
	Namespace, Payload string
}

// PerRoute is the entry of a route for the filter, nil when it has no limits.
// closed says that one of them is to refuse when the limiter cannot be reached;
// then all of the route do, for they are one call. The error names the limit.
func PerRoute(e *gateway.Entry, who Claims) (p *ratelimitv3.RateLimitPerRoute, closed bool, err error) {
	limits := InForce(e.Policies)
	if len(limits) == 0 {
		return nil, false, nil
	}
	p = &ratelimitv3.RateLimitPerRoute{Domain: Domain}
	for _, l := range limits {
		spec := SpecOf(l, e)
		if err := spec.Validate(); err != nil {
			return nil, false, fmt.Errorf("limit %q: %w", spec.Name, err)
		}
		closed = closed || spec.OnFailure == ratelimit.Closed
		p.RateLimits = append(p.RateLimits, &routev3.RateLimit{Actions: actions(spec, who)})
	}
	return p, closed, nil
}

// SpecOf is the limit as the limiter gets it. Its counter belongs to the object
// that carries the limit, and to the rule when it stands on one.
func SpecOf(l gateway.Sourced[*pb.RateLimit], e *gateway.Entry) ratelimit.Spec {
	id := "default"
	if o := l.Source.Object; o != nil {
		id = o.GetName()
	}
	if strings.HasPrefix(l.Source.Path, "rules[") {
		id += "/" + e.RuleName
	}
	s := ratelimit.Spec{
		ID: id + "#" + l.Value.GetName(), Name: l.Value.GetName(),
		Requests: l.Value.GetRequests(), Window: l.Value.GetWindow().AsDuration(),
		Burst: l.Value.GetBurst(), Shadow: l.Value.GetShadow(),
	}
	if l.Value.GetAlgorithm() == pb.RateLimitAlgorithm_RATE_LIMIT_ALGORITHM_FIXED_WINDOW {
		s.Algorithm = ratelimit.FixedWindow
	}
	switch l.Value.GetKey() {
	case pb.RateLimitKey_RATE_LIMIT_KEY_ADDRESS:
		s.Key = ratelimit.Address
	case pb.RateLimitKey_RATE_LIMIT_KEY_SHARED:
		s.Key = ratelimit.Shared
	}
	if l.Value.GetOnFailure() == pb.RateLimitFailure_RATE_LIMIT_FAILURE_CLOSED {
		s.OnFailure = ratelimit.Closed
	}
	return s
}

// actions are the entries of the descriptor, in order: limit, then of the caller
// iss and sub when a token told them, then the client's address, which Envoy
// always calls masked_remote_address.
func actions(s ratelimit.Spec, who Claims) []*routev3.RateLimit_Action {
	out := []*routev3.RateLimit_Action{{ActionSpecifier: &routev3.RateLimit_Action_GenericKey_{
		GenericKey: &routev3.RateLimit_Action_GenericKey{DescriptorKey: LimitKey, DescriptorValue: s.String()},
	}}}
	if s.Key == ratelimit.ConsumerOrAddress && who.Payload != "" {
		for _, claim := range []string{"iss", "sub"} {
			out = append(out, &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_Metadata{
				Metadata: &routev3.RateLimit_Action_MetaData{
					DescriptorKey: claim, MetadataKey: who.path(claim), SkipIfAbsent: true,
					Source: routev3.RateLimit_Action_MetaData_DYNAMIC,
				},
			}})
		}
	}
	if s.Key != ratelimit.Shared {
		out = append(out, &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_MaskedRemoteAddress_{
			MaskedRemoteAddress: &routev3.RateLimit_Action_MaskedRemoteAddress{
				V4PrefixMaskLen: wrapperspb.UInt32(ipv4Bits), V6PrefixMaskLen: wrapperspb.UInt32(ipv6Bits),
			},
		}})
	}
	return out
}

func (c Claims) path(claim string) *metadatav3.MetadataKey {
	k := &metadatav3.MetadataKey{Key: c.Namespace}
	for _, s := range []string{c.Payload, claim} {
		k.Path = append(k.Path, &metadatav3.MetadataKey_PathSegment{Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: s}})
	}
	return k
}
