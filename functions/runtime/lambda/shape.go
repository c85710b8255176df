package lambda

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/trace"

	"github.com/penstock-gateway/penstock/functions/instance"
)

// Shape is the form of the event that a handler gets, and of its answer.
type Shape int

const (
	// HTTPAPIV2 is an API Gateway HTTP API, payload format 2.0.
	HTTPAPIV2 Shape = iota
	// RESTAPIV1 is the proxy integration of an API Gateway REST API, payload format
	// 1.0.
	RESTAPIV1
	// FunctionURL is a function URL: payload format 2.0 with the path as it came.
	FunctionURL
	// ALB is the target group of an Application Load Balancer. The event has
	// single and multi-value headers and query parameters at once, so that it does
	// for handlers of either setting.
	ALB
	// Raw is not HTTP: the request's body is the event, the answer is the body.
	Raw
)

// request is all that an event is made of.
type request struct {
	*http.Request
	body        []byte
	id, project string
	function    string
	region      string
	span        trace.SpanContext
	now         time.Time
}

// event makes the event of a request.
func (s Shape) event(r request) ([]byte, error) {
	switch s {
	case RESTAPIV1:
		return json.Marshal(newRESTEvent(r))
	case ALB:
		return json.Marshal(newALBEvent(r))
	case Raw:
		return rawEvent(r.body)
	}
	e := newEvent(r.Request, r.body, r.id, r.project, r.span, r.now)
	if s == FunctionURL {
		e.RawPath = r.URL.EscapedPath()
		e.RequestContext.HTTP.Path = e.RawPath
	}
	return json.Marshal(e)
}

// parse reads a handler's answer.
func (s Shape) parse(payload []byte) (*Response, error) {
	switch s {
	case RESTAPIV1, ALB:
		return parseStrict(payload, s == RESTAPIV1)
	case Raw:
		if !json.Valid(payload) {
			return nil, fmt.Errorf("the handler's answer is not JSON: %.100q", payload)
		}
		return &Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: payload}, nil
	}
	return ParseResponse(payload)
}

// internal is the body of an answer in place of a handler's that failed. (A load
// balancer's is a page in HTML; here it is JSON as all others.)
func (s Shape) internal() []byte {
	if s == RESTAPIV1 { // small letters, unlike HTTP APIs
		return []byte(`{"message": "Internal server error"}`)
	}
	return []byte(`{"message":"Internal Server Error"}`)
}

// rawEvent is a body that must be JSON; none is an empty object, as for Invoke.
func rawEvent(body []byte) ([]byte, error) {
	if len(body) == 0 {
		return []byte("{}"), nil
	}
	if !json.Valid(body) {
		return nil, &instance.Failed{
			Status: http.StatusBadRequest, Kind: instance.KindBadRequest,
			Detail: "the request body is the event of this function and must be JSON",
		}
	}
	return body, nil
}

// clientContext is what a caller of Invoke sends along: base64 of JSON.
func clientContext(r *http.Request) (string, error) {
	h := r.Header.Get("X-Amz-Client-Context")
	if h == "" {
		return "", nil
	}
	b, err := base64.StdEncoding.DecodeString(h)
	if err != nil || !json.Valid(b) || strings.ContainsAny(string(b), "\r\n\x00") {
		return "", &instance.Failed{
			Status: http.StatusBadRequest, Kind: instance.KindBadRequest, Detail: "x-amz-client-context must be base64 of JSON in one line",
		}
	}
	return string(b), nil
}

// RESTEvent is the event of a REST API's proxy integration.
type RESTEvent struct {
	Resource   string `json:"resource"`
	Path       string `json:"path"`
	HTTPMethod string `json:"httpMethod"`
	// Headers has the last value of each name, MultiValueHeaders all.
	Headers                         map[string]string   `json:"headers"`
	MultiValueHeaders               map[string][]string `json:"multiValueHeaders"`
	QueryStringParameters           map[string]string   `json:"queryStringParameters"`
	MultiValueQueryStringParameters map[string][]string `json:"multiValueQueryStringParameters"`
	PathParameters                  map[string]string   `json:"pathParameters"`
	StageVariables                  map[string]string   `json:"stageVariables"`
	RequestContext                  RESTContext         `json:"requestContext"`
	Body                            *string             `json:"body"`
	IsBase64Encoded                 bool                `json:"isBase64Encoded"`
}

// RESTContext is the requestContext of a RESTEvent.
type RESTContext struct {
	AccountID         string `json:"accountId"`
	APIID             string `json:"apiId"`
	DomainName        string `json:"domainName"`
	DomainPrefix      string `json:"domainPrefix"`
	ExtendedRequestID string `json:"extendedRequestId"`
	HTTPMethod        string `json:"httpMethod"`
	// Identity has the names of AWS; all but the address and the agent are null.
	Identity         map[string]*string `json:"identity"`
	Path             string             `json:"path"`
	Protocol         string             `json:"protocol"`
	RequestID        string             `json:"requestId"`
	RequestTime      string             `json:"requestTime"`
	RequestTimeEpoch int64              `json:"requestTimeEpoch"`
	ResourceID       string             `json:"resourceId"`
	ResourcePath     string             `json:"resourcePath"`
	Stage            string             `json:"stage"`
}

// identityNames are the members of identity that are null here: who calls is not
// known by means of AWS.
var identityNames = []string{
	"accessKey", "accountId", "caller", "cognitoAuthenticationProvider", "cognitoAuthenticationType", "cognitoIdentityId",
	"cognitoIdentityPoolId", "principalOrgId", "user", "userArn",
}

// restStage is the stage of a REST API, whose names have no $.
const restStage = "default"

func newRESTEvent(r request) *RESTEvent {
	domain, prefix := domainOf(r.Request)
	path := r.URL.EscapedPath()
	now := r.now.UTC()
	e := &RESTEvent{
		Resource: "/{proxy+}", Path: path, HTTPMethod: r.Method,
		MultiValueHeaders: map[string][]string{}, PathParameters: map[string]string{"proxy": strings.TrimPrefix(path, "/")},
		MultiValueQueryStringParameters: multiQuery(r.URL.RawQuery, unescape),
		RequestContext: RESTContext{
			AccountID: account, APIID: r.project, DomainName: domain, DomainPrefix: prefix, ExtendedRequestID: r.id, HTTPMethod: r.Method,
			Identity: map[string]*string{}, Path: path, Protocol: r.Proto, RequestID: r.id,
			RequestTime: now.Format("02/Jan/2006:15:04:05 -0700"), RequestTimeEpoch: now.UnixMilli(),
			ResourceID: "proxy", ResourcePath: "/{proxy+}", Stage: restStage,
		},
	}
	if path == "/" {
		e.Resource, e.PathParameters = "/", nil
		e.RequestContext.ResourcePath = "/"
	}
	for k, v := range multiHeaders(r) {
		e.MultiValueHeaders[textproto.CanonicalMIMEHeaderKey(k)] = v
	}
	e.Headers = lastOf(e.MultiValueHeaders)
	e.QueryStringParameters = lastOf(e.MultiValueQueryStringParameters)
	for _, name := range identityNames {
		e.RequestContext.Identity[name] = nil
	}
	ip, agent := sourceIP(r.Request), r.UserAgent()
	e.RequestContext.Identity["sourceIp"], e.RequestContext.Identity["userAgent"] = &ip, &agent
	if len(r.body) > 0 {
		// Without binary media types, a REST API takes every body for text.
		text := string(r.body)
		if e.IsBase64Encoded = !utf8.Valid(r.body); e.IsBase64Encoded {
			text = base64.StdEncoding.EncodeToString(r.body)
		}
		e.Body = &text
	}
	return e
}

// ALBEvent is the event of a load balancer's target group.
type ALBEvent struct {
	RequestContext ALBContext `json:"requestContext"`
	HTTPMethod     string     `json:"httpMethod"`
	Path           string     `json:"path"`
	// Query parameters are as they came, not decoded.
	QueryStringParameters           map[string]string   `json:"queryStringParameters"`
	MultiValueQueryStringParameters map[string][]string `json:"multiValueQueryStringParameters"`
	// Headers have lower-case names, and the last value of each.
	Headers           map[string]string   `json:"headers"`
	MultiValueHeaders map[string][]string `json:"multiValueHeaders"`
	Body              string              `json:"body"`
	IsBase64Encoded   bool                `json:"isBase64Encoded"`
}

// ALBContext is the requestContext of an ALBEvent.
type ALBContext struct {
	ELB struct {
		TargetGroupARN string `json:"targetGroupArn"`
	} `json:"elb"`
}

func newALBEvent(r request) *ALBEvent {
	e := &ALBEvent{
		HTTPMethod: r.Method, Path: r.URL.EscapedPath(), Body: string(r.body), MultiValueHeaders: multiHeaders(r),
		MultiValueQueryStringParameters: multiQuery(r.URL.RawQuery, func(s string) string { return s }),
	}
	if e.MultiValueQueryStringParameters == nil {
		e.MultiValueQueryStringParameters = map[string][]string{}
	}
	e.RequestContext.ELB.TargetGroupARN = "arn:aws:elasticloadbalancing:" + r.region + ":" + account + ":targetgroup/" + r.function + "/0000000000000000"
	e.Headers, e.QueryStringParameters = lastOf(e.MultiValueHeaders), lastOf(e.MultiValueQueryStringParameters)
	if e.IsBase64Encoded = len(r.body) > 0 && albBinary(r.Header, r.body); e.IsBase64Encoded {
		e.Body = base64.StdEncoding.EncodeToString(r.body)
	}
	return e
}

// albBinary is the rule of load balancers: encoded bodies, and all but four kinds
// of text. Text that is not UTF-8 must be, too.
func albBinary(h http.Header, body []byte) bool {
	if h.Get("Content-Encoding") != "" || !utf8.Valid(body) {
		return true
	}
	media, _, _ := strings.Cut(strings.ToLower(h.Get("Content-Type")), ";")
	switch media = strings.TrimSpace(media); media {
	case "application/json", "application/javascript", "application/xml":
		return false
	}
	return media != "" && !strings.HasPrefix(media, "text/")
}

// multiHeaders are the headers of an event with all values, with lower-case names;
// Cookie is among them, unlike in format 2.0.
func multiHeaders(r request) map[string][]string {
	out := make(map[string][]string, len(r.Header)+4)
	for k, v := range r.Header {
		if k == "Cookie" || !slices.Contains(dropped, k) {
			out[strings.ToLower(k)] = v
		}
	}
	for k, v := range headers(r.Request, len(r.body), r.span) {
		switch k { // what it adds or replaces
		case "host", "content-length", "x-amzn-trace-id", "traceparent":
			out[k] = []string{v}
		}
	}
	return out
}

// multiQuery are the query parameters with all values; nil: none.
func multiQuery(raw string, decode func(string) string) map[string][]string {
	var out map[string][]string
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		k, v, _ := strings.Cut(pair, "=")
		if out == nil {
			out = map[string][]string{}
		}
		k = decode(k)
		out[k] = append(out[k], decode(v))
	}
	return out
}

func lastOf(all map[string][]string) map[string]string {
	if all == nil {
		return nil
	}
	out := make(map[string]string, len(all))
	for k, v := range all {
		if len(v) > 0 {
			out[k] = v[len(v)-1]
		}
	}
	return out
}

// strictDocument is an answer in payload format 1.0 or to a load balancer.
type strictDocument struct {
	replyDocument
	StatusDescription string                       `json:"statusDescription"`
	MultiValueHeaders map[string][]json.RawMessage `json:"multiValueHeaders"`
}

// parseStrict reads an answer that must be an object with statusCode. Where a
// header stands in both, the values of multiValueHeaders count.
func parseStrict(payload []byte, rest bool) (*Response, error) {
	var d strictDocument
	if err := json.Unmarshal(payload, &d); err != nil {
		return nil, fmt.Errorf("the handler's answer must be an object with statusCode, headers and body: %w", err)
	}
	if len(d.StatusCode) == 0 || string(d.StatusCode) == "null" {
		return nil, fmt.Errorf("the handler's answer has no statusCode: %.100q", payload)
	}
	d.Cookies = nil // not in this format
	r, err := d.head()
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(d.MultiValueHeaders)) {
		values := d.MultiValueHeaders[name]
		if values == nil {
			continue // null: the single value, where there is one, stays
		}
		r.Header.Del(name)
		for _, v := range values {
			if err := r.addHeader(name, v); err != nil {
				return nil, err
			}
		}
	}
	if err := r.parseBody(&d.replyDocument); err != nil {
		return nil, err
	}
	if rest && r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if !rest && r.Header.Get("Content-Type") == "" && len(r.Body) > 0 {
		r.Header.Set("Content-Type", "application/octet-stream")
	}
	return r, nil
}
