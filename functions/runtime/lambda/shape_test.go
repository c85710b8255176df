package lambda

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/penstock-gateway/penstock/functions/instance"
)

// sample is a request with what shapes treat differently: several values, an
// encoded path, cookies.
func sample(t testing.TB, body string) request {
	r := httptest.NewRequest("POST", "/lambda/a%20b?query=1234ABCD&q=x%20y&q=z", nil)
	r.Host = "lambda-alb-123578498.us-east-1.elb.amazonaws.com"
	r.Header = http.Header{
		"Content-Type": {"application/x-www-form-urlencoded"}, "Header2": {"value1", "value2"}, "Cookie": {"a=1; b=2"}, "User-Agent": {"agent/1"},
		"X-Forwarded-For": {"72.12.164.125"}, "X-Forwarded-Proto": {"http"}, "Connection": {"keep-alive"}, "Traceparent": {"00-forged"},
	}
	return request{
		Request: r, body: []byte(body), id: "c6af9ac6-7b61-11e6-9a41-93e8deadbeef", project: "default", function: "shop", region: "us-east-1", span: span(t),
		now: time.Date(2015, 4, 9, 12, 34, 56, 0, time.UTC),
	}
}

// TestShapes compares with events in the form that AWS documents.
func TestShapes(t *testing.T) {
	for name, c := range map[string]struct {
		shape Shape
		want  string
	}{
		"rest": {RESTAPIV1, `{
			"resource": "/{proxy+}", "path": "/lambda/a%20b", "httpMethod": "POST",
			"headers": {
				"Content-Type": "application/x-www-form-urlencoded", "Header2": "value2", "Cookie": "a=1; b=2", "User-Agent": "agent/1", "X-Forwarded-For": "72.12.164.125",
				"X-Forwarded-Proto": "http", "Host": "lambda-alb-123578498.us-east-1.elb.amazonaws.com", "Content-Length": "5",
				"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "X-Amzn-Trace-Id": "Root=1-0af76519-16cd43dd8448eb211c80319c"
			},
			"multiValueHeaders": {
				"Content-Type": ["application/x-www-form-urlencoded"], "Header2": ["value1", "value2"], "Cookie": ["a=1; b=2"], "User-Agent": ["agent/1"],
				"X-Forwarded-For": ["72.12.164.125"], "X-Forwarded-Proto": ["http"], "Host": ["lambda-alb-123578498.us-east-1.elb.amazonaws.com"], "Content-Length": ["5"],
				"Traceparent": ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"], "X-Amzn-Trace-Id": ["Root=1-0af76519-16cd43dd8448eb211c80319c"]
			},
			"queryStringParameters": {"query": "1234ABCD", "q": "z"},
			"multiValueQueryStringParameters": {"query": ["1234ABCD"], "q": ["x y", "z"]},
			"pathParameters": {"proxy": "lambda/a%20b"}, "stageVariables": null,
			"requestContext": {
				"accountId": "000000000000", "apiId": "default", "domainName": "lambda-alb-123578498.us-east-1.elb.amazonaws.com", "domainPrefix": "lambda-alb-123578498",
				"extendedRequestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef", "httpMethod": "POST",
				"identity": {"accessKey": null, "accountId": null, "caller": null, "cognitoAuthenticationProvider": null, "cognitoAuthenticationType": null,
					"cognitoIdentityId": null, "cognitoIdentityPoolId": null, "principalOrgId": null, "sourceIp": "72.12.164.125", "user": null, "userAgent": "agent/1", "userArn": null},
				"path": "/lambda/a%20b", "protocol": "HTTP/1.1", "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef", "requestTime": "09/Apr/2015:12:34:56 +0000",
				"requestTimeEpoch": 1428582896000, "resourceId": "proxy", "resourcePath": "/{proxy+}", "stage": "default"
			},
			"body": "a=b&c", "isBase64Encoded": false
		}`},
		"alb": {ALB, `{
			"requestContext": {"elb": {"targetGroupArn": "arn:aws:elasticloadbalancing:us-east-1:000000000000:targetgroup/shop/0000000000000000"}},
			"httpMethod": "POST", "path": "/lambda/a%20b",
			"queryStringParameters": {"query": "1234ABCD", "q": "z"}, "multiValueQueryStringParameters": {"query": ["1234ABCD"], "q": ["x%20y", "z"]},
			"headers": {
				"content-type": "application/x-www-form-urlencoded", "header2": "value2", "cookie": "a=1; b=2", "user-agent": "agent/1", "x-forwarded-for": "72.12.164.125",
				"x-forwarded-proto": "http", "host": "lambda-alb-123578498.us-east-1.elb.amazonaws.com", "content-length": "5",
				"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x-amzn-trace-id": "Root=1-0af76519-16cd43dd8448eb211c80319c"
			},
			"multiValueHeaders": {
				"content-type": ["application/x-www-form-urlencoded"], "header2": ["value1", "value2"], "cookie": ["a=1; b=2"], "user-agent": ["agent/1"],
				"x-forwarded-for": ["72.12.164.125"], "x-forwarded-proto": ["http"], "host": ["lambda-alb-123578498.us-east-1.elb.amazonaws.com"], "content-length": ["5"],
				"traceparent": ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"], "x-amzn-trace-id": ["Root=1-0af76519-16cd43dd8448eb211c80319c"]
			},
			"body": "YT1iJmM=", "isBase64Encoded": true
		}`},
		"function url": {FunctionURL, `{
			"version": "2.0", "routeKey": "$default", "rawPath": "/lambda/a%20b", "rawQueryString": "query=1234ABCD&q=x%20y&q=z", "cookies": ["a=1", "b=2"],
			"headers": {
				"content-type": "application/x-www-form-urlencoded", "header2": "value1,value2", "user-agent": "agent/1", "x-forwarded-for": "72.12.164.125",
				"x-forwarded-proto": "http", "host": "lambda-alb-123578498.us-east-1.elb.amazonaws.com", "content-length": "5",
				"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x-amzn-trace-id": "Root=1-0af76519-16cd43dd8448eb211c80319c"
			},
			"queryStringParameters": {"query": "1234ABCD", "q": "x y,z"},
			"requestContext": {
				"accountId": "000000000000", "apiId": "default", "domainName": "lambda-alb-123578498.us-east-1.elb.amazonaws.com", "domainPrefix": "lambda-alb-123578498",
				"http": {"method": "POST", "path": "/lambda/a%20b", "protocol": "HTTP/1.1", "sourceIp": "72.12.164.125", "userAgent": "agent/1"},
				"requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef", "routeKey": "$default", "stage": "$default",
				"time": "09/Apr/2015:12:34:56 +0000", "timeEpoch": 1428582896000
			},
			"body": "YT1iJmM=", "isBase64Encoded": true
		}`},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := c.shape.event(sample(t, "a=b&c"))
			if err != nil {
				t.Fatal(err)
			}
			var got, want any
			if err := errors.Join(json.Unmarshal(b, &got), json.Unmarshal([]byte(c.want), &want)); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("event\n%s\nwant\n%s", b, c.want)
			}
		})
	}
}

// TestShapesEmpty: what stands for what a request does not have.
func TestShapesEmpty(t *testing.T) {
	r := request{Request: httptest.NewRequest("GET", "/", nil), span: trace.SpanContext{}, now: time.Now()}
	for shape, want := range map[Shape][]string{
		RESTAPIV1: {`"resource":"/"`, `"body":null`, `"queryStringParameters":null`, `"multiValueQueryStringParameters":null`, `"pathParameters":null`},
		ALB:       {`"body":""`, `"queryStringParameters":{}`, `"isBase64Encoded":false`},
		Raw:       {`{}`},
	} {
		b, err := shape.event(r)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(string(b), w) {
				t.Errorf("%d lacks %s: %s", shape, w, b)
			}
		}
	}
}

func TestRaw(t *testing.T) {
	if b, err := Raw.event(sample(t, `[1]`)); err != nil || string(b) != "[1]" {
		t.Errorf("%s, %v", b, err)
	}
	if f, ok := errors.AsType[*instance.Failed](second(Raw.event(sample(t, `a=b`)))); !ok || f.Status != 400 {
		t.Errorf("%v", f)
	}
	r := httptest.NewRequest("POST", "/", nil)
	for header, want := range map[string]string{"": "", "eyJhIjoxfQ==": `{"a":1}`, "!": "error", "YQ==": "error", "ewp9": "error"} {
		r.Header.Set("X-Amz-Client-Context", header)
		got, err := clientContext(r)
		if want == "error" && err == nil || want != "error" && (err != nil || got != want) {
			t.Errorf("%q: %q, %v", header, got, err)
		}
	}
}

func second(_ []byte, err error) error { return err }

// TestStrict: answers of REST APIs and load balancers.
func TestStrict(t *testing.T) {
	for _, c := range []struct {
		shape        Shape
		text         string
		status       int
		body, header string
		err          string
	}{
		{RESTAPIV1, `{"statusCode": 200, "body": "{}"}`, 200, "{}", "Content-Type: application/json", ""},
		{ALB, `{"statusCode": 200, "statusDescription": "200 OK", "isBase64Encoded": true, "body": "YQ=="}`, 200, "a", "Content-Type: application/octet-stream", ""},
		{RESTAPIV1, `{"statusCode": "201", "headers": {"X-A": "1", "Set-Cookie": "c=3"}, "multiValueHeaders": {"Set-Cookie": ["a=1", "b=2"]}}`, 201, "", "Set-Cookie: a=1|b=2", ""},
		{ALB, `{"statusCode": 302, "multiValueHeaders": {"location": ["/x"]}}`, 302, "", "Location: /x", ""},
		{RESTAPIV1, `"text"`, 0, "", "", "must be an object with statusCode"},
		{RESTAPIV1, `{"body": "x"}`, 0, "", "", "has no statusCode"},
		{ALB, `{"statusCode": null}`, 0, "", "", "has no statusCode"},
		{ALB, `{"statusCode": 99}`, 0, "", "", "from 200 to 599"},
		{RESTAPIV1, `{"statusCode": 200, "body": "%", "isBase64Encoded": true}`, 0, "", "", "not base64"},
		{RESTAPIV1, `{"statusCode": 200, "multiValueHeaders": {"a": "b"}}`, 0, "", "", "multiValueHeaders"},
		{RESTAPIV1, `{"statusCode": 200, "multiValueHeaders": {"a": [{}]}}`, 0, "", "", "must be text, a number, a boolean or null, not {}"},
		{Raw, `[1, 2]`, 200, "[1, 2]", "Content-Type: application/json", ""},
		{Raw, `x`, 0, "", "", "is not JSON"},
	} {
		r, err := c.shape.parse([]byte(c.text))
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.text, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		name, values, _ := strings.Cut(c.header, ": ")
		if r.Status != c.status || string(r.Body) != c.body || strings.Join(r.Header[name], "|") != values {
			t.Errorf("%s: %+v", c.text, r)
		}
	}
}

// FuzzShapes: whatever a handler answers is an answer or an error.
func FuzzShapes(f *testing.F) {
	for _, s := range []string{`{"statusCode": 200, "headers": {"a": 1}, "multiValueHeaders": {"a": ["b"]}, "body": "x"}`, `{"statusCode": "3"}`, `[]`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range []Shape{HTTPAPIV2, RESTAPIV1, FunctionURL, ALB, Raw} {
			r, err := s.parse([]byte(text))
			if err == nil && (r.Status < 200 || r.Status > 599) {
				t.Errorf("status %d", r.Status)
			}
		}
	})
}
