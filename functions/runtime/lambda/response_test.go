package lambda

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
)

func TestParseResponse(t *testing.T) {
	typed := func(t string, more ...string) http.Header {
		h := http.Header{"Content-Type": {t}}
		for i := 0; i < len(more); i += 2 {
			h.Add(more[i], more[i+1])
		}
		return h
	}
	const jsonType, text = "application/json", "text/plain; charset=utf-8"
	for name, c := range map[string]struct {
		in     string
		status int
		header http.Header
		body   string
	}{
		"whole": {`{"statusCode": 201, "headers": {"content-type": "text/html", "X-A": "1"}, "cookies": ["a=1", "b=2"], "body": "<p>", "isBase64Encoded": false}`,
			201, typed("text/html", "X-A", "1", "Set-Cookie", "a=1", "Set-Cookie", "b=2"), "<p>"},
		"base64":            {`{"statusCode": 200, "body": "/w==", "isBase64Encoded": true}`, 200, typed(text), "\xff"},
		"no type":           {`{"statusCode": 200, "body": "x"}`, 200, typed(text), "x"},
		"no body":           {`{"statusCode": 204}`, 204, http.Header{}, ""},
		"null body":         {`{"statusCode": 200, "body": null}`, 200, http.Header{}, ""},
		"status as text":    {`{"statusCode": "404", "body": "x"}`, 404, typed(text), "x"},
		"null headers":      {`{"statusCode": 200, "headers": null, "cookies": null, "body": "x"}`, 200, typed(text), "x"},
		"number header":     {`{"statusCode": 200, "headers": {"x-n": 12345678901, "x-b": true}}`, 200, http.Header{"X-N": {"12345678901"}, "X-B": {"true"}}, ""},
		"hop by hop":        {`{"statusCode": 200, "headers": {"connection": "close", "content-length": "9", "transfer-encoding": "chunked"}}`, 200, http.Header{}, ""},
		"unknown field":     {`{"statusCode": 200, "multiValueHeaders": {"a": ["b"]}, "body": "x"}`, 200, typed(text), "x"},
		"object":            {`{"message": "hi"}`, 200, typed(jsonType), `{"message": "hi"}`},
		"object with body":  {`{"body": "hi"}`, 200, typed(jsonType), `{"body": "hi"}`},
		"string":            {`"hi\n"`, 200, typed(jsonType), "hi\n"},
		"array":             {` [1, 2] `, 200, typed(jsonType), "[1, 2]"},
		"number":            {`3`, 200, typed(jsonType), "3"},
		"null":              {`null`, 200, typed(jsonType), "null"},
		"statusCode inside": {`{"a": {"statusCode": 500}}`, 200, typed(jsonType), `{"a": {"statusCode": 500}}`},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := ParseResponse([]byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			if r.Status != c.status || string(r.Body) != c.body || !reflect.DeepEqual(r.Header, c.header) {
				t.Errorf("%d %v %q, want %d %v %q", r.Status, r.Header, r.Body, c.status, c.header, c.body)
			}
		})
	}
}

func TestParseResponseRefuses(t *testing.T) {
	for in, want := range map[string]string{
		``:                                  "is not JSON",
		`hello`:                             `is not JSON: "hello"`,
		`{"statusCode": 200`:                "is not JSON",
		`{"statusCode": 99}`:                "statusCode is 99",
		`{"statusCode": 100}`:               "from 200 to 599",
		`{"statusCode": 200.5}`:             "statusCode is 200.5",
		`{"statusCode": null}`:              "statusCode is null",
		`{"statusCode": {}}`:                "statusCode is {}",
		`{"statusCode": 200, "headers": 1}`: "headers is a JSON number",
		`{"statusCode": 200, "headers": {"a": ["b"]}}`:                    `header "a" must be text, a number, a boolean or null, not ["b"]`,
		`{"statusCode": 200, "headers": {"a": {}}}`:                       `header "a" must be text`,
		`{"statusCode": 200, "cookies": [{}]}`:                            `header "Set-Cookie" must be text`,
		`{"statusCode": 1e9}`:                                             "statusCode is 1e9",
		`{"statusCode": "NaN"}`:                                           "statusCode is",
		`{"statusCode": 200, "headers": {"a b": "c"}}`:                    `header "a b"`,
		`{"statusCode": 200, "headers": {"a": "b\r\nc: d"}}`:              `header "a"`,
		`{"statusCode": 200, "cookies": ["a\n"]}`:                         `header "Set-Cookie"`,
		`{"statusCode": 200, "cookies": "a=b"}`:                           "cookies is a JSON string",
		`{"statusCode": 200, "body": 42, "isBase64Encoded": true}`:        "not base64",
		`{"statusCode": 200, "body": {"a": 1}}`:                           "body must be text",
		`{"statusCode": 200, "body": [1]}`:                                "body must be text",
		`{"statusCode": 200, "body": "%%%", "isBase64Encoded": true}`:     "not base64",
		`{"statusCode": 200, "body": "eA==", "isBase64Encoded": "maybe"}`: "isBase64Encoded is a JSON string",
	} {
		r, err := ParseResponse([]byte(in))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want an error with %q", in, r, err, want)
		}
	}
}

// TestAnswersThatAWSTakes: what handlers were seen to answer on AWS, in every event.
func TestAnswersThatAWSTakes(t *testing.T) {
	for name, c := range map[string]struct {
		in     string
		status int
		body   string
		header map[string]string // absent: ""
	}{
		"null header":              {`{"statusCode": 200, "headers": {"content-type": null, "x-a": "1"}, "body": "x"}`, 200, "x", map[string]string{"X-A": "1"}},
		"null headers":             {`{"statusCode": 200, "headers": null, "multiValueHeaders": null, "cookies": null, "body": "x"}`, 200, "x", nil},
		"number as body":           {`{"statusCode": 200, "body": 42}`, 200, "42", nil},
		"number with a fraction":   {`{"statusCode": 200, "body": 1.50}`, 200, "1.50", nil},
		"great number":             {`{"statusCode": 200, "body": 12345678901234567890}`, 200, "12345678901234567890", nil},
		"true as body":             {`{"statusCode": 200, "body": true}`, 200, "true", nil},
		"false as body":            {`{"statusCode": 200, "body": false}`, 200, "false", nil},
		"null as body":             {`{"statusCode": 200, "body": null}`, 200, "", nil},
		"status as text":           {`{"statusCode": "201", "body": "x"}`, 201, "x", nil},
		"status with a fraction":   {`{"statusCode": 200.0, "body": "x"}`, 200, "x", nil},
		"number and true in heads": {`{"statusCode": 200, "headers": {"x-n": 5, "x-t": true, "x-f": 0.10}, "body": "x"}`, 200, "x", map[string]string{"X-N": "5", "X-T": "true", "X-F": "0.10"}},
		"null isBase64Encoded":     {`{"statusCode": 200, "body": "x", "isBase64Encoded": null}`, 200, "x", nil},
		"unknown members":          {`{"statusCode": 200, "body": "x", "more": {"a": 1}}`, 200, "x", nil},
		"wrong length":             {`{"statusCode": 200, "headers": {"content-length": 999}, "body": "x"}`, 200, "x", nil},
		"one header in two cases":  {`{"statusCode": 200, "headers": {"X-A": "1", "x-a": "2"}, "body": "x"}`, 200, "x", map[string]string{"X-A": "1,2"}},
	} {
		for _, shape := range []Shape{HTTPAPIV2, RESTAPIV1, FunctionURL, ALB} {
			r, err := shape.parse([]byte(c.in))
			if err != nil {
				t.Errorf("%s, shape %d: %v", name, shape, err)
				continue
			}
			if r.Status != c.status || string(r.Body) != c.body {
				t.Errorf("%s, shape %d: %d %q", name, shape, r.Status, r.Body)
			}
			for k, want := range c.header {
				if got := strings.Join(r.Header.Values(k), ","); got != want {
					t.Errorf("%s, shape %d: %s is %q, want %q", name, shape, k, got, want)
				}
			}
		}
	}
	r, err := RESTAPIV1.parse([]byte(`{"statusCode": 200, "headers": {"x-a": "1", "x-b": "2"}, "multiValueHeaders": {"x-a": null, "x-b": ["3", null, 4]}}`))
	if err != nil || r.Header.Get("x-a") != "1" || strings.Join(r.Header.Values("x-b"), ",") != "3,4" {
		t.Errorf("nulls among the values of multiValueHeaders: %v, %v", r, err)
	}
}

// FuzzParseResponse: whatever a handler answers can be written as HTTP, or is an
// error.
func FuzzParseResponse(f *testing.F) {
	f.Add([]byte(`{"statusCode": 200, "headers": {"a": "b"}, "cookies": ["c"], "body": "eA==", "isBase64Encoded": true}`))
	f.Add([]byte(`"text"`))
	f.Add([]byte(`{"statusCode": "204", "body": null}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, err := ParseResponse(payload)
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		r.write(w)
		if w.Code < 200 || w.Code > 599 {
			t.Errorf("status %d", w.Code)
		}
		for k, vs := range w.Header() {
			for _, v := range vs {
				if strings.ContainsAny(k+v, "\r\n") {
					t.Errorf("header %q: %q", k, v)
				}
			}
		}
	})
}
