package compression

import (
	"strings"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	brotliv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/brotli/compressor/v3"
	gzipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/gzip/compressor/v3"
	zstdv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/zstd/compressor/v3"
	matcheractionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/matcher/action/v3"
	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	compressorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/compressor/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// Proxies is compression in proxies: a filter that is made of the entry of the route, since
// Envoy's compressors have content types and lengths in the listener only. gRPC compresses
// its messages by itself.
var Proxies = &policy.Policy{
	Model: Policy, Filters: []policy.Filter{filter}, Route: route,
	GRPC: func(*gateway.Effective) string { return "" },
}

const filterName = "penstock.v1.compression"

var filter = policy.Filter{
	Name: filterName, Stage: policy.Traffic, Mode: policy.Always, AtHost: true,
	Config: nothing, Entry: &matchingv3.ExtensionWithMatcherPerRoute{},
}

// nothing is the filter of routes without an entry.
func nothing(p *policy.Packer) policy.Message {
	return &matchingv3.ExtensionWithMatcher{
		ExtensionConfig: &corev3.TypedExtensionConfig{Name: filterName, TypedConfig: p.Pack(&compositev3.Composite{})},
		// It takes a matcher with a condition; no method is a space.
		XdsMatcher: &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherTree_{MatcherTree: &xdsmatcherv3.Matcher_MatcherTree{
			Input: method(p),
			TreeType: &xdsmatcherv3.Matcher_MatcherTree_ExactMatchMap{ExactMatchMap: &xdsmatcherv3.Matcher_MatcherTree_MatchMap{
				Map: map[string]*xdsmatcherv3.Matcher_OnMatch{" ": on(p, "skip", &matcheractionv3.SkipFilter{})},
			}},
		}}},
	}
}

func method(p *policy.Packer) *xdscorev3.TypedExtensionConfig {
	return &xdscorev3.TypedExtensionConfig{Name: "method", TypedConfig: p.Pack(&matcherv3.HttpRequestHeaderMatchInput{HeaderName: ":method"})}
}

func on(p *policy.Packer, name string, action policy.Message) *xdsmatcherv3.Matcher_OnMatch {
	return &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{Action: &xdscorev3.TypedExtensionConfig{
		Name: name, TypedConfig: p.Pack(action),
	}}}
}

func route(r *policy.Route) error {
	p := inForce(Policy.Of(r.Entry.Policies))
	if p == nil {
		return nil
	}
	chain := &compositev3.FilterChainConfiguration{}
	for i, a := range p.GetAlgorithms() {
		chain.TypedConfig = append(chain.TypedConfig, compressor(&r.Packer, a, p, i == 0))
	}
	r.Set(&filter, &matchingv3.ExtensionWithMatcherPerRoute{XdsMatcher: &xdsmatcherv3.Matcher{
		OnNoMatch: on(&r.Packer, "compress", &compositev3.ExecuteFilterAction{FilterChain: chain}),
	}})
	return nil
}

// libraries are Envoy's, by algorithm.
var libraries = map[pb.CompressionAlgorithm]policy.Message{
	pb.CompressionAlgorithm_COMPRESSION_ALGORITHM_GZIP:   &gzipv3.Gzip{},
	pb.CompressionAlgorithm_COMPRESSION_ALGORITHM_BROTLI: &brotliv3.Brotli{},
	pb.CompressionAlgorithm_COMPRESSION_ALGORITHM_ZSTD:   &zstdv3.Zstd{},
}

func compressor(p *policy.Packer, a pb.CompressionAlgorithm, c *pb.CompressionPolicy, first bool) *corev3.TypedExtensionConfig {
	name := codings[a]
	common := &compressorv3.Compressor_CommonDirectionConfig{MinContentLength: wrapperspb.UInt32(minLength(c))}
	for _, t := range contentTypes(c) {
		m := &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: t}, IgnoreCase: true}
		if family, all := strings.CutSuffix(t, "*"); all {
			m.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: family}
		}
		common.ContentTypeMatcher = append(common.ContentTypeMatcher, m)
	}
	return &corev3.TypedExtensionConfig{Name: filterName + "." + name, TypedConfig: p.Pack(&compressorv3.Compressor{
		CompressorLibrary: &corev3.TypedExtensionConfig{Name: name, TypedConfig: p.Pack(libraries[a])},
		ChooseFirst:       first,
		ResponseDirectionConfig: &compressorv3.Compressor_ResponseDirectionConfig{
			CommonConfig: common, WeakenEtagOnCompress: true,
			// A part of a response is a part of what is not compressed (RFC 9110, section 14.2).
			UncompressibleResponseCodes: []uint32{206},
		},
	})}
}
