package lambda

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/trace"
)

func span(t testing.TB) trace.SpanContext {
	t.Helper()
	traceID, err1 := trace.TraceIDFromHex("0af7651916cd43dd8448eb211c80319c")
	spanID, err2 := trace.SpanIDFromHex("b7ad6b7169203331")
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: spanID, TraceFlags: trace.FlagsSampled})
}

// TestEvent compares with an event in the form that AWS documents.
func TestEvent(t *testing.T) {
	r := httptest.NewRequest("POST", "/my/path%20a?parameter1=value1&parameter1=value2&p%202=a+b&bad=%zz&flag", nil)
	r.Host = "shop.example.com:8080"
	r.Header = http.Header{
		"Content-Type": {"application/json"}, "Header2": {"value1", "value2"}, "Cookie": {"cookie1=a; cookie2=b", "cookie3=c"},
		"User-Agent": {"agent/1"}, "X-Forwarded-For": {"6.6.6.6, 10.0.0.9"}, "Connection": {"keep-alive"}, "Traceparent": {"00-forged"},
	}
	now := time.Date(2020, 3, 12, 20, 3, 58, 390e6, time.FixedZone("", 3600))
	b, err := json.Marshal(newEvent(r, []byte(`{"a":1}`), "JKJaXmPLvHcESHA=", "default", span(t), now))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
		"version": "2.0", "routeKey": "$default", "rawPath": "/my/path a",
		"rawQueryString": "parameter1=value1&parameter1=value2&p%202=a+b&bad=%zz&flag",
		"cookies": ["cookie1=a", "cookie2=b", "cookie3=c"],
		"headers": {
			"content-type": "application/json", "header2": "value1,value2", "host": "shop.example.com:8080", "user-agent": "agent/1",
			"x-forwarded-for": "6.6.6.6, 10.0.0.9", "content-length": "7",
			"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
			"x-amzn-trace-id": "Root=1-0af76519-16cd43dd8448eb211c80319c"
		},
		"queryStringParameters": {"parameter1": "value1,value2", "p 2": "a b", "bad": "%zz", "flag": ""},
		"requestContext": {
			"accountId": "000000000000", "apiId": "default", "domainName": "shop.example.com", "domainPrefix": "shop",
			"http": {"method": "POST", "path": "/my/path a", "protocol": "HTTP/1.1", "sourceIp": "10.0.0.9", "userAgent": "agent/1"},
			"requestId": "JKJaXmPLvHcESHA=", "routeKey": "$default", "stage": "$default",
			"time": "12/Mar/2020:19:03:58 +0000", "timeEpoch": 1584039838390
		},
		"body": "{\"a\":1}", "isBase64Encoded": false
	}`
	var got, expected any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &expected); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, expected) {
		t.Errorf("event\n%s\nwant\n%s", b, want)
	}
}

// TestEventLeavesOut: what an event of AWS does not have when there is none.
func TestEventLeavesOut(t *testing.T) {
	b, err := json.Marshal(newEvent(httptest.NewRequest("GET", "/", nil), nil, "id", "p", trace.SpanContext{}, time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for _, absent := range []string{"body", "cookies", "queryStringParameters"} {
		if _, ok := got[absent]; ok {
			t.Errorf("%s is there: %s", absent, b)
		}
	}
	if got["isBase64Encoded"] != false || got["rawQueryString"] != "" {
		t.Errorf("%s", b)
	}
}

func TestBinary(t *testing.T) {
	for name, c := range map[string]struct {
		contentType, encoding, body string
		want                        bool
	}{
		"json":           {"application/json; charset=utf-8", "", "{}", false},
		"text":           {"text/csv", "", "a,b", false},
		"problem":        {"application/problem+json", "", "{}", false},
		"svg":            {"image/svg+xml", "", "<svg/>", true},
		"xml":            {"application/soap+xml", "", "<a/>", false},
		"form":           {"application/x-www-form-urlencoded", "", "a=b", true},
		"multipart":      {"multipart/form-data; boundary=x", "", "--x", true},
		"bytes":          {"application/octet-stream", "", "abc", true},
		"none":           {"", "", "abc", false},
		"none, bytes":    {"", "", "\xff", true},
		"text, bytes":    {"text/plain", "", "\xff", true},
		"compressed":     {"application/json", "gzip", "abc", true},
		"identity":       {"application/json", "identity", "abc", false},
		"malformed type": {"application/json;;", "", "{}", false},
	} {
		h := http.Header{}
		h.Set("Content-Type", c.contentType)
		h.Set("Content-Encoding", c.encoding)
		if got := binary(h, []byte(c.body)); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestSourceIP(t *testing.T) {
	for name, c := range map[string]struct {
		headers http.Header
		want    string
	}{
		"connection": {http.Header{}, "192.0.2.1"},
		"forwarded":  {http.Header{"X-Forwarded-For": {"1.1.1.1", "2.2.2.2,3.3.3.3"}}, "3.3.3.3"},
		"envoy":      {http.Header{"X-Forwarded-For": {"1.1.1.1"}, "X-Envoy-External-Address": {"4.4.4.4"}}, "4.4.4.4"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header = c.headers
		if got := sourceIP(r); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestXRay(t *testing.T) {
	if got := xray(span(t)); got != "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1" {
		t.Error(got)
	}
	if got := xray(span(t).WithTraceFlags(0)); !strings.HasSuffix(got, ";Sampled=0") {
		t.Error(got)
	}
	if got := xray(trace.SpanContext{}); got != "" {
		t.Error(got)
	}
}

// FuzzEvent: any request makes an event that is JSON, and nothing of its body is
// lost.
func FuzzEvent(f *testing.F) {
	f.Add("/a", "a=b&a=c", "a=1; b=2", "text/plain", []byte("body"))
	f.Add("//%2e", "%zz&&=;", ";;", "multipart/", []byte{0xff})
	f.Fuzz(func(t *testing.T, path, rawQuery, cookie, contentType string, body []byte) {
		r := &http.Request{Method: "POST", Proto: "HTTP/1.1", Host: "h", RemoteAddr: "1.2.3.4:5", Header: http.Header{
			"Cookie": {cookie}, "Content-Type": {contentType},
		}, Body: io.NopCloser(strings.NewReader(""))}
		u := *httptest.NewRequest("GET", "/", nil).URL
		u.Path, u.RawQuery = path, rawQuery
		r.URL = &u
		e := newEvent(r, body, "id", "p", trace.SpanContext{}, time.Unix(0, 0))
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var back Event
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if len(body) == 0 {
			if back.Body != nil {
				t.Errorf("a body out of nothing: %s", b)
			}
		} else if !back.IsBase64Encoded && (*back.Body != string(body) || !utf8.Valid(body)) {
			t.Errorf("body %q became %q", body, *back.Body)
		}
	})
}
