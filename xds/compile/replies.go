package compile

import (
	"cmp"
	"net/http"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	celfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/authn/jwt"
	"github.com/penstock-gateway/penstock/gateway"
)

// denied is the CEL condition of what a policy of the edge filter refused.
func denied(policy string) string {
	return "response.code_details == 'rbac_access_denied_matched_policy[" + policy + "]'"
}

func details(d string) string { return "response.code_details == '" + d + "'" }

func detailsStart(d string) string { return "response.code_details.startsWith('" + d + "')" }

// Challenges (RFC 6750, section 3).
const (
	wantsToken = `Bearer realm="penstock"`
	badToken   = wantsToken + `, error="invalid_token"`
)

var (
	jwtDenied = detailsStart("jwt_authn_access_denied")
	noToken   = detailsStart("jwt_authn_access_denied{Jwt_is_missing")
)

const (
	// noRouteYet: no route was chosen.
	noRouteYet = "(!has(xds.route_name) || xds.route_name == '')"
	// isGRPC: the client reads a status of gRPC, and the text beside it, not a body.
	isGRPC = "'content-type' in request.headers && request.headers['content-type'].startsWith('application/grpc')"
	// given: a body that somebody wrote for the client: the answer of a route, or of
	// the limiter.
	given = "response.code_details == 'direct_response' || response.code_details == 'request_rate_limited'"
)

// reply is an answer of Envoy's own and the condition that tells it: details are
// those of Envoy's source (StreamInfo::ResponseCodeDetailValues and the filters).
type reply struct {
	condition string
	answer    gateway.Answer
	// says: Envoy's own text is the detail, for it says more.
	says bool
	// challenge is the header WWW-Authenticate. Envoy's own has the URL of the request in
	// it as it came, in which a quotation mark begins what the caller likes: another
	// challenge, for which browsers ask for a password.
	challenge string
}

func when(condition string, a gateway.Answer) reply { return reply{condition: condition, answer: a} }

// edgeReplies are tried first, in this order.
var edgeReplies = []reply{
	when(denied(badMethod), gateway.BadMethod),
	when(denied(badHost)+" || "+details("missing_host_header")+" || "+details("http.invalid_authority"), gateway.BadHost),
	when(denied(longHost), gateway.HostTooLong),
	when(denied(badPath)+" || "+details("http1.invalid_url")+" || "+details("absolute_path_rejected"), gateway.BadPath),
	when(denied(badSemicolon), gateway.BadSemicolon),
	// Envoy has decoded the slashes before it refuses them.
	when(details("path_normalization_failed")+" && request.path.matches('^[^?]*(%00|#)')", gateway.BadPath),
	when(details("path_normalization_failed"), gateway.BadSlash),
	when(details("lua_response")+" && response.code == "+saysAmbiguous, gateway.AmbiguousPath),
	when(details("lua_response")+" && response.code == "+saysHeaderName, gateway.BadHeaderName),
	when(details("lua_response")+" && response.code == "+saysMisdirected, gateway.Misdirected),
	when(denied(manyHeaders)+" || "+details("http1.too_many_headers"), gateway.TooManyHeaders),
	when(denied(bigHeaders)+" || "+details("http1.headers_too_large")+" || "+details("request_headers_too_large"), gateway.HeadersTooBig),
	when(details("http1.https_url_on_plaintext_connection"), gateway.BadScheme),
	when(details("low_version"), gateway.OldProtocol),
	when(details("http1.invalid_transfer_encoding"), gateway.BadEncoding),
	when(detailsStart("http1."), gateway.BadProtocol),
	when(details("upgrade_failed"), gateway.BadUpgrade),
	// A request whose head does not come has no method. Its idle timer is the first to end it.
	when(details("request_header_timeout")+" || "+details("stream_idle_timeout")+" && !has(request.method)", gateway.SlowHeaders),
	when(details("stream_idle_timeout")+" && request.method != '' && "+noRouteYet, gateway.RoutesLoading),
	when("response.code == 408", gateway.SlowRequest),
	when("response.code == 413", gateway.BodyTooBig),
	when(detailsStart("overload"), gateway.Overloaded),
	// There is no scope for the host, so the jwt filter refuses by its default. (The
	// header WWW-Authenticate of that refusal stays: a mapping cannot remove it.)
	{condition: jwtDenied + " && " + noRouteYet, answer: gateway.NoRoute, challenge: wantsToken},
	// The guard or, for its audience, the jwt filter says with 403 that a token does
	// not hold; it is 401 (RFC 6750, section 3.1).
	{
		condition: detailsStart("rbac_access_denied_matched_policy["+jwt.BadToken) + " || " + detailsStart("jwt_authn_access_denied{Audiences"),
		answer:    gateway.RefusedToken, challenge: badToken,
	},
}

// routeReplies are for requests that have a route. A gRPC client gets Envoy's own.
var routeReplies = []reply{
	when(details("route_not_found"), gateway.NoRoute),
	{condition: jwtDenied + " && response.code == 401 && " + noToken, answer: gateway.Unauthenticated, says: true, challenge: wantsToken},
	{condition: jwtDenied + " && response.code == 401", answer: gateway.Unauthenticated, says: true, challenge: badToken},
	{condition: "response.code == 403", answer: gateway.Forbidden, says: true},
	when(details("rate_limiter_error"), gateway.LimiterDown),
	when(details("no_healthy_upstream")+" || "+details("cluster_not_found"), gateway.NoEndpoint),
	when("response.code == 504", gateway.BackendTimeout),
	when("response.code == 502", gateway.BackendProtocol),
	when(detailsStart("upstream_reset_"), gateway.BackendReset),
	{condition: "response.code >= 400", answer: gateway.Other, says: true},
}

// localReplies gives what Envoy answers by itself a status, a code and a reason, as
// a problem (RFC 9457); to gRPC clients as the text beside the status. What comes
// from a backend, a route or the limiter stays as it is.
func localReplies(p *packer, e gateway.Edge) *hcmv3.LocalReplyConfig {
	c := &hcmv3.LocalReplyConfig{}
	add := func(condition string, r reply, format *corev3.SubstitutionFormatString, text string) {
		m := mapper(p, condition, r.answer.Status)
		m.BodyFormatOverride = format
		if !r.says {
			m.Body = inline(text)
		}
		c.Mappers = append(c.Mappers, challenges(m, r.challenge))
	}
	for _, r := range edgeReplies {
		if r.answer == gateway.Misdirected && !e.StrictSNI {
			continue // nothing gives it, and a listener that does not change drains nothing
		}
		add("("+r.condition+") && "+isGRPC, r, nil, r.answer.Code+": "+r.answer.Detail)
		add(r.condition, r, problem(r.answer), r.answer.Detail)
	}
	none := when(details("direct_response")+" && xds.route_name == '"+noRouteName+"'", gateway.NoRoute)
	add(none.condition+" && !("+isGRPC+")", none, problem(none.answer), none.answer.Detail)
	c.Mappers = append(c.Mappers,
		challenges(mapper(p, jwtDenied+" && "+noToken+" && "+isGRPC, 0), wantsToken), challenges(mapper(p, jwtDenied+" && "+isGRPC, 0), badToken),
		mapper(p, "("+isGRPC+") || ("+given+")", 0))
	for _, r := range routeReplies {
		add(r.condition, r, problem(r.answer), r.answer.Detail)
	}
	return c
}

// challenges gives what a mapper is for the header WWW-Authenticate, unless it is "".
func challenges(m *hcmv3.ResponseMapper, challenge string) *hcmv3.ResponseMapper {
	if challenge != "" {
		m.HeadersToAdd = []*corev3.HeaderValueOption{{
			Header:       &corev3.HeaderValue{Key: "www-authenticate", Value: challenge},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}}
	}
	return m
}

// mapper is for answers that a CEL condition holds for; status 0 leaves theirs.
func mapper(p *packer, condition string, status uint32) *hcmv3.ResponseMapper {
	m := &hcmv3.ResponseMapper{
		Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{ExtensionFilter: &accesslogv3.ExtensionFilter{
			Name: "envoy.access_loggers.extension_filters.cel",
			ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: p.Pack(&celfilterv3.ExpressionFilter{
				Expression: condition,
			})},
		}}},
	}
	if status != 0 {
		m.StatusCode = wrapperspb.UInt32(status)
	}
	return m
}

func inline(text string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}}
}

// problem is the body of an answer, with the text of the reply as its detail.
func problem(a gateway.Answer) *corev3.SubstitutionFormatString {
	return problemOf(a, structpb.NewStringValue("%RESPONSE_CODE%"))
}

// problemOf is problem with a status of its own: a route that answers by itself has no
// RESPONSE_CODE yet when its body is made.
func problemOf(a gateway.Answer, status *structpb.Value) *corev3.SubstitutionFormatString {
	text := structpb.NewStringValue
	return &corev3.SubstitutionFormatString{
		ContentType: "application/problem+json",
		Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: map[string]*structpb.Value{
			"type":   text("about:blank"),
			"title":  text(cmp.Or(http.StatusText(int(a.Status)), "Error")),
			"status": status,
			"code":   text(a.Code),
			"detail": text("%LOCAL_REPLY_BODY%"),
		}}},
	}
}
