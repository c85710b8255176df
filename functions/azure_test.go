package functions_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// azure is a custom handler of a folder below testdata/root.
func azure(id, source, function string, change ...func(*pb.Function)) *pb.Function {
	f := &pb.Function{
		Name: name(id), Source: source, Instances: 1, Timeout: durationpb.New(20 * time.Second), Env: map[string]string{"MODE": "test"},
		Contract: &pb.Function_Azure{Azure: &pb.AzureContract{Function: function}},
	}
	for _, c := range change {
		c(f)
	}
	return f
}

// TestAzure sends requests as invocation documents.
func TestAzure(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	r.want(azure("shop", "azure", ""), azure("returns", "azure", "returns"))
	shop, returns := r.readyOne("shop"), r.readyOne("returns")
	a := mustSend(t, shop, "POST", "/api/Orders/7?q=a%20b&q=c", `{"n":1}`, "content-type", "application/json", "x-request-id", "rid-1", "x-two", "1", "x-two", "2",
		"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	var got struct {
		Req struct {
			URL, Method, Query, Body, Identities string
			Headers                              map[string][]string
			Params                               map[string]string
		}
		Meta                 map[string]any
		ID, Trace, Mode, Env string
	}
	if err := json.Unmarshal([]byte(a.body), &got); err != nil {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	if a.status != 201 || a.header.Get("x-kind") != "azure" || a.header.Get("x-number") != "7" || a.header.Get("x-penstock-refused") != "" ||
		a.header.Get("content-type") != "application/json; charset=utf-8" {
		t.Errorf("%d %v", a.status, a.header)
	}
	q := got.Req
	if q.URL != "http://shop.example.com/api/Orders/7?q=a%20b&q=c" || q.Method != "POST" || q.Query != `{"q":"a b,c"}` || q.Body != `{"n":1}` ||
		q.Identities != "[]" || q.Params["id"] != "7" || strings.Join(q.Headers["X-Two"], ";") != "1;2" {
		t.Errorf("%+v", q)
	}
	if got.Meta["id"] != `"7"` || got.Meta["sys"].(map[string]any)["MethodName"] != "orders" {
		t.Errorf("metadata %v", got.Meta)
	}
	if got.ID != "rid-1" || !strings.HasPrefix(got.Trace, "00-0af7651916cd43dd8448eb211c80319c-") || got.Mode != "test" || got.Env != "custom" {
		t.Errorf("%s", a.body)
	}
	r.logs.await(t, "of Logs", func(m map[string]any) bool { return m["msg"] == "took an order" && m["request_id"] == "rid-1" })
	r.logs.await(t, "of what has no effect", func(m map[string]any) bool {
		what, _ := m["what"].(string)
		return strings.Contains(what, "orders/function.json:3: authLevel function")
	})
	for _, c := range []struct {
		i            *pb.Instance
		method, path string
		sent         string
		status       int
		body         string
	}{
		{shop, "GET", "/api/orders", "", 201, ""},
		{shop, "GET", "/api/orders/x", "", 404, ""},     // no number
		{shop, "DELETE", "/api/orders/7", "", 404, ""},  // no such method
		{shop, "GET", "/orders/7", "", 404, ""},         // no prefix
		{shop, "POST", "/api/silent", "", 204, ""},      // no output
		{shop, "POST", "/api/returns", "ab", 200, "ab"}, // $return
		{returns, "POST", "/any/path", "cd", 200, "cd"}, // the only one
		{returns, "POST", "/api/orders/7", "", 204, ""}, // nothing returned
		{shop, "POST", "/api/queue", "", 404, ""},       // not by requests
		{shop, "POST", "/api/orders/7", strings.Repeat("x", 6<<20+1), 413, ""},
	} {
		a := mustSend(t, c.i, c.method, c.path, c.sent)
		if a.status != c.status || c.body != "" && a.body != c.body {
			t.Errorf("%s %s: %d %.200s, want %d %s", c.method, c.path, a.status, a.body, c.status, c.body)
		}
	}
}

// TestAzureForward sends requests as they are.
func TestAzureForward(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	r.want(azure("items", "azureforward", ""))
	i := r.ready("items", 1)[0]
	for _, c := range []struct{ method, path, body string }{
		{"PUT", "/items/a%2Fb?q=%zz", "hello"}, {"GET", "/", ""}, {"GET", "/any/other//path", ""},
	} {
		a := mustSend(t, i, c.method, c.path, c.body, "x-request-id", "rid-2")
		var got struct{ Method, Path, Body, Host, ID string }
		if err := json.Unmarshal([]byte(a.body), &got); err != nil {
			t.Fatalf("%d %s: %v", a.status, a.body, err)
		}
		// The answer is the handler's, whatever its status.
		if a.status != 418 || got.Method != c.method || got.Path != c.path || got.Body != c.body || got.Host != "shop.example.com" || got.ID != "rid-2" {
			t.Errorf("%d %+v", a.status, got)
		}
	}
	if a := mustSend(t, i, "POST", "/items/x", ""); a.status != 404 {
		t.Errorf("a method that no function takes: %d", a.status)
	}
}

// TestAzureFaults: what a caller gets from a handler that fails.
func TestAzureFaults(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	r.want(azure("shop", "azure", ""), azure("hangs", "azure", "", timeout(500*time.Millisecond)))
	for _, c := range []struct {
		how, kind, log string
		status         int
		replaced       bool
	}{
		{how: "raise", status: 500, kind: "handler-error", log: "no such order"},
		{how: "status", status: 502, kind: "bad-response", log: "statusCode is"},
		{how: "header", status: 502, kind: "bad-response", log: "does not allow"},
		{how: "text", status: 502, kind: "bad-response", log: "must be an object with statusCode"},
		{how: "rubbish", status: 502, kind: "bad-response", log: "Outputs, ReturnValue and Logs"},
		{how: "big", status: 502, kind: "too-large", log: "larger than 6291456 bytes"},
		{how: "exit", status: 502, kind: "died", log: "exit status 3", replaced: true},
		{how: "hang", status: 504, kind: "deadline", log: "longer than the function's timeout", replaced: true},
	} {
		t.Run(c.how, func(t *testing.T) {
			function := "shop"
			if c.how == "hang" {
				function = "hangs"
			}
			before := r.readyOne(function)
			a := mustSend(t, before, "GET", "/api/fails/"+c.how, "", "x-request-id", "rid-"+c.how)
			if a.status != c.status || a.header.Get("x-penstock-error") != c.kind || !strings.Contains(a.body, `"request_id":"rid-`+c.how) {
				t.Errorf("%d %v %.300s", a.status, a.header, a.body)
			}
			r.logs.await(t, c.log, func(m map[string]any) bool {
				b, _ := json.Marshal(m)
				return strings.Contains(string(b), c.log)
			})
			if c.replaced {
				r.replacedBy(t, function, before)
			}
		})
	}
	if a := r.any(t, "shop", "GET", "/api/orders", ""); a.status != 201 {
		t.Errorf("afterwards: %d", a.status)
	}
}
