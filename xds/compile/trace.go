package compile

import (
	"strings"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	headertometadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	upstreamcodecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// The trace context of a request (W3C Trace Context, level 2,
// https://www.w3.org/TR/trace-context-2). Envoy's tracer takes what is well-formed of
// version 00, switches tracing off for what is not, forwards any tracestate, and
// knows the sampled flag alone. So the early header mutation leaves what it may
// read, and the flags are put right behind it, on the way to the backend.
const (
	// traceparentHeader, tracestateHeader carry the checked values through the mutation.
	traceparentHeader = "x-penstock-traceparent"
	tracestateHeader  = "x-penstock-tracestate"
	// tracestateHeadHeader has the bytes of tracestate up to its middle.
	tracestateHeadHeader = "x-penstock-tracestate-head"
	// traceFlagsHeader carries the flags for the backend to filterTraceFlags.
	traceFlagsHeader = "x-penstock-trace-flags"
	// traceFlagsKey is where the flags are in the metadata of a request, for retries
	// too: headers for a backend are the same for all tries.
	traceMetadata, traceFlagsKey = "penstock.trace", "flags"
)

// CEL's regular expressions may have a hundred steps, so lengths are tested by any
// bytes (\C), the characters without their number.
const (
	// goodTraceparent: of version 00, or of a later one, which may say more behind a
	// dash (section 3.2.4). ff is not a version.
	goodTraceparent = `'traceparent' in request.headers && ` +
		`request.headers['traceparent'].matches(r'^\C{2}-\C{32}-\C{16}-\C{2}(-|$)') && ` +
		`request.headers['traceparent'].matches('^(00-[0-9a-f]*[1-9a-f][0-9a-f]*-[0-9a-f]*[1-9a-f][0-9a-f]*-[0-9a-f]+$` +
		`|(0[1-9a-f]|[1-9a-e][0-9a-f]|f[0-9a-e])-[0-9a-f]*[1-9a-f][0-9a-f]*-[0-9a-f]*[1-9a-f][0-9a-f]*-[0-9a-f]+(-|$))')`
	// sizeOfTraceparent is the length of version 00; what follows is of a later one.
	sizeOfTraceparent = "55"
	// beforeFlags is the part of it that Envoy writes right.
	beforeFlags = "53"
	// notRandom: the caller says that the trace id is not random. One of our own is.
	notRandom = `'` + traceparentHeader + `' in request.headers && ` +
		`!request.headers['` + traceparentHeader + `'].matches(r'^\C{54}[2367abef]')`
)

// traceMutations replace the headers of the trace context by what is well-formed of
// them. traced says that Envoy goes on with a span of its own; else a later version
// passes as it came.
func traceMutations(traced bool) []*mutationv3.HeaderMutation {
	parent, m := "%REQ("+traceparentHeader+")", []*mutationv3.HeaderMutation{
		set(traceparentHeader, cel(goodTraceparent, requestHeader("traceparent"))), remove("traceparent"),
		set(tracestateHeader, cel(goodTracestate(), requestHeader("tracestate"))), remove("tracestate"),
		set(tracestateHeadHeader, "%REQ("+tracestateHeader+"):"+middleOfTracestate+"%"),
	}
	if traced {
		parent += ":" + sizeOfTraceparent
		m = append(m, set(traceFlagsHeader, "%CEL("+notRandom+" ? '01' : '03')%"))
	}
	return append(m,
		set("traceparent", parent+"%"), remove(traceparentHeader),
		set("tracestate", cel(shortTracestate(), requestHeader(tracestateHeader))), remove(tracestateHeader), remove(tracestateHeadHeader),
	)
}

// cel is a header's value: an expression where a condition holds, else nothing.
func cel(condition, value string) string { return "%CEL(" + condition + " ? " + value + " : '')%" }

// requestHeader is the value of a header in CEL; several lines are one list.
func requestHeader(name string) string { return "request.headers['" + name + "']" }

func matches(s, re string) string { return s + ".matches(r'" + re + "')" }

// capture is the group of an expression that matches all of a text: else it is an
// error, and the header is not set.
func capture(s, re string) string { return "re.capture(" + s + ", r'" + re + "')" }

// middleOfTracestate is where a key or a value of a tracestate of at most 512 bytes is
// that has more than 256.
const middleOfTracestate = "256"

// The characters of tracestate (section 3.3.1), in the fewest ranges.
const (
	ows  = `[ \t]*`
	text = `[ -+\--<>-~]`
	ink  = `[!-+\--<>-~]` // text without the blank
	// member with the blanks around it, which are not part of it.
	member = ows + `([a-z0-9][a-z0-9_*/@\-]*=` + text + `*` + ink + ows + `)?`
)

// goodTracestate is the condition for what may be forwarded (section 3.3.1): it has at
// most 512 bytes and 32 members, of which some is not empty, and comes with a
// traceparent. Keys that are there twice are passed on, as the standard allows.
func goodTracestate() string {
	state := requestHeader("tracestate")
	second := capture(state, `(?:\C*?,){16}(\C*)`)
	return strings.Join([]string{
		`'` + traceparentHeader + `' in request.headers && 'tracestate' in request.headers`,
		`size(` + state + `) <= 512`,
		matches(state, `^`+member+`(,`+member+`)*$`),
		matches(state, `=`),
		`!(` + matches(state, `(,\C*){16}`) + ` && ` + matches(second, `(,\C*){16}`) + `)`,
	}, " && ")
}

// shortTracestate is the condition that no key and no value has more than 256 bytes.
// One that has covers the middle: it is parted there, and its parts are measured.
func shortTracestate() string {
	state, head := requestHeader(tracestateHeader), requestHeader(tracestateHeadHeader)
	tail := state
	for range 4 {
		tail = capture(tail, `\C{64}(\C*)`)
	}
	const word = `[a-z0-9_*/@\-]*`
	value := `size(` + capture(head, `\C*=(`+text+`*)`) + `) + size(` + capture(tail, `((?:`+text+`*`+ink+`)?)\C*`) + `) <= 256`
	key := `size(` + capture(head, `(?:\C*[, \t])?(`+word+`)`) + `) + size(` + capture(tail, `(`+word+`)\C*`) + `) <= 256`
	return `'` + tracestateHeader + `' in request.headers && (size(` + state + `) <= 256 || (` +
		matches(head, `=`+text+`*$`) + ` ? ` + value + ` : ` + key + `))`
}

// traceFlags moves the flags out of the request, to where the way to each backend
// finds them.
func traceFlags() *headertometadatav3.Config {
	return &headertometadatav3.Config{RequestRules: []*headertometadatav3.Config_Rule{{
		Header:          traceFlagsHeader,
		OnHeaderPresent: &headertometadatav3.Config_KeyValuePair{MetadataNamespace: traceMetadata, Key: traceFlagsKey},
		Remove:          true,
	}}}
}

// upstreamFilters run on each try, behind what Envoy's tracer writes.
func upstreamFilters(p *packer) []*hcmv3.HttpFilter {
	flags := &headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{RequestMutations: []*mutationv3.HeaderMutation{
		set("traceparent", "%REQ(traceparent):"+beforeFlags+"%%DYNAMIC_METADATA("+traceMetadata+":"+traceFlagsKey+")%"),
		// Envoy sends an empty tracestate where there is none. A value that is empty is
		// not set.
		set(tracestateHeader, "%REQ(tracestate)%"), remove("tracestate"),
		set("tracestate", "%REQ("+tracestateHeader+")%"), remove(tracestateHeader),
	}}}
	return []*hcmv3.HttpFilter{
		{Name: filterTraceFlags, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: p.Pack(flags)}},
		{Name: "envoy.filters.http.upstream_codec", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: p.Pack(&upstreamcodecv3.UpstreamCodec{})}},
	}
}
