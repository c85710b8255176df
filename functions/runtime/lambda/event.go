package lambda

import (
	"encoding/base64"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/trace"
)

// Event is an API Gateway HTTP API event, payload format 2.0, as the route
// $default of an API without authorizer sends it.
type Event struct {
	Version        string   `json:"version"`
	RouteKey       string   `json:"routeKey"`
	RawPath        string   `json:"rawPath"`
	RawQueryString string   `json:"rawQueryString"`
	Cookies        []string `json:"cookies,omitempty"`
	// Headers have lower-case names; the values of one name are joined by commas.
	Headers map[string]string `json:"headers"`
	// QueryStringParameters are decoded; the values of one name are joined by commas.
	QueryStringParameters map[string]string `json:"queryStringParameters,omitempty"`
	RequestContext        RequestContext    `json:"requestContext"`
	Body                  *string           `json:"body,omitempty"`
	IsBase64Encoded       bool              `json:"isBase64Encoded"`
}

// RequestContext is what is known of a request besides itself.
type RequestContext struct {
	AccountID    string `json:"accountId"`
	APIID        string `json:"apiId"`
	DomainName   string `json:"domainName"`
	DomainPrefix string `json:"domainPrefix"`
	HTTP         HTTP   `json:"http"`
	RequestID    string `json:"requestId"`
	RouteKey     string `json:"routeKey"`
	Stage        string `json:"stage"`
	// Time is such as 12/Mar/2020:19:03:58 +0000, TimeEpoch in milliseconds.
	Time      string `json:"time"`
	TimeEpoch int64  `json:"timeEpoch"`
}

// HTTP is the request line and who sent it.
type HTTP struct {
	Method    string `json:"method"`
	Path      string `json:"path"`
	Protocol  string `json:"protocol"`
	SourceIP  string `json:"sourceIp"`
	UserAgent string `json:"userAgent"`
}

// newEvent makes the event of a request. span is that of the handler; its trace
// context replaces the request's.
func newEvent(r *http.Request, body []byte, id, project string, span trace.SpanContext, now time.Time) *Event {
	domain, prefix := domainOf(r)
	now = now.UTC()
	e := &Event{
		Version: "2.0", RouteKey: "$default",
		// An HTTP API decodes the path, and only the path, unlike REST APIs and
		// function URLs.
		RawPath: r.URL.Path, RawQueryString: r.URL.RawQuery,
		Cookies: cookies(r.Header), Headers: headers(r, len(body), span),
		QueryStringParameters: query(r.URL.RawQuery),
		RequestContext: RequestContext{
			AccountID: account, APIID: project, DomainName: domain, DomainPrefix: prefix,
			HTTP: HTTP{
				Method: r.Method, Path: r.URL.Path, Protocol: r.Proto,
				SourceIP: sourceIP(r), UserAgent: r.UserAgent(),
			},
			RequestID: id, RouteKey: "$default", Stage: "$default",
			Time: now.Format("02/Jan/2006:15:04:05 -0700"), TimeEpoch: now.UnixMilli(),
		},
	}
	if len(body) > 0 {
		text := string(body)
		if e.IsBase64Encoded = binary(r.Header, body); e.IsBase64Encoded {
			text = base64.StdEncoding.EncodeToString(body)
		}
		e.Body = &text
	}
	return e
}

// domainOf is the host of a request without its port, and its first label.
func domainOf(r *http.Request) (domain, prefix string) {
	domain = r.Host
	if host, _, err := net.SplitHostPort(r.Host); err == nil {
		domain = host
	}
	prefix, _, _ = strings.Cut(domain, ".")
	return domain, prefix
}

// cookies are all cookies of all Cookie headers; an event has them nowhere else.
func cookies(h http.Header) []string {
	var out []string
	for _, line := range h["Cookie"] {
		for c := range strings.SplitSeq(line, ";") {
			if c = strings.TrimSpace(c); c != "" {
				out = append(out, c)
			}
		}
	}
	return out
}

// dropped are headers that an event does not have.
var dropped = []string{"Connection", "Cookie", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

func headers(r *http.Request, size int, span trace.SpanContext) map[string]string {
	out := make(map[string]string, len(r.Header)+4)
	for k, v := range r.Header {
		if !slices.Contains(dropped, k) {
			out[strings.ToLower(k)] = strings.Join(v, ",")
		}
	}
	out["host"] = r.Host
	if size > 0 || r.Header.Get("Content-Length") != "" {
		out["content-length"] = strconv.Itoa(size)
	}
	if span.IsValid() {
		out["x-amzn-trace-id"] = "Root=1-" + span.TraceID().String()[:8] + "-" + span.TraceID().String()[8:]
		out["traceparent"] = "00-" + span.TraceID().String() + "-" + span.SpanID().String() + "-" + span.TraceFlags().String()
	}
	return out
}

// query decodes a query string. What cannot be decoded stays as it is.
func query(raw string) map[string]string {
	if raw == "" {
		return nil
	}
	out := map[string]string{}
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		k, v, _ := strings.Cut(pair, "=")
		k, v = unescape(k), unescape(v)
		if old, ok := out[k]; ok {
			v = old + "," + v
		}
		out[k] = v
	}
	return out
}

func unescape(s string) string {
	if t, err := url.QueryUnescape(s); err == nil {
		return t
	}
	return s
}

// sourceIP is the caller's address as the proxy found it: the header that Envoy
// sets for it, else the last address of x-forwarded-for, which is the proxy's own
// entry.
func sourceIP(r *http.Request) string {
	if a := r.Header.Get("X-Envoy-External-Address"); a != "" {
		return a
	}
	if f := r.Header.Values("X-Forwarded-For"); len(f) > 0 {
		last := f[len(f)-1]
		return strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil { // it came by a Unix socket, from this machine
		return "127.0.0.1"
	}
	return host
}

// binary reports whether a body travels as base64. As on AWS that goes by the
// content type; a form is binary there, too. Text that is not UTF-8 must be.
func binary(h http.Header, body []byte) bool {
	if !utf8.Valid(body) {
		return true
	}
	if e := h.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return true
	}
	t := h.Get("Content-Type")
	if t == "" {
		return false
	}
	media, _, err := mime.ParseMediaType(t)
	if err != nil {
		media, _, _ = strings.Cut(strings.ToLower(t), ";")
		media = strings.TrimSpace(media)
	}
	switch {
	case strings.HasPrefix(media, "text/"), media == "application/json", media == "application/xml", media == "application/javascript":
		return false
	case strings.HasPrefix(media, "application/") && (strings.HasSuffix(media, "+json") || strings.HasSuffix(media, "+xml")):
		return false
	}
	return true
}
