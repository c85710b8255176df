package functions_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/functions"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestGoEvents: aws-lambda-go reads the events of every shape, and its answers are
// read.
func TestGoEvents(t *testing.T) {
	t.Parallel()
	root := goBootstrap(t)
	r := startRunner(t, func(c *functions.Config) { c.Root = root })
	shapes := map[string]pb.LambdaEvent{
		"rest": pb.LambdaEvent_LAMBDA_EVENT_REST_API_V1, "alb": pb.LambdaEvent_LAMBDA_EVENT_ALB,
		"url": pb.LambdaEvent_LAMBDA_EVENT_FUNCTION_URL, "raw": pb.LambdaEvent_LAMBDA_EVENT_RAW,
	}
	for id, shape := range shapes {
		r.wantMore(&pb.Function{Name: name(id), Source: "go", Env: map[string]string{"EVENT": id}, Contract: &pb.Function_Lambda{Lambda: &pb.LambdaContract{
			Runtime: pb.LambdaRuntime_LAMBDA_RUNTIME_PROVIDED, Handler: "bootstrap", Event: shape,
		}}})
	}
	for _, c := range []struct {
		shape, path, body, want, failure string
		cookies                          []string
	}{
		{"rest", "/a%20b?q=x%20y&q=z", "hello", "POST/a%20b[x y z]agent/17.7.7.7hello", `{"message": "Internal server error"}`, []string{"a=1", "b=2"}},
		{"alb", "/a%20b?q=x%20y&q=z", "hello", "POST/a%20b[x%20y z]zagent/1hello", internalError, nil},
		{"url", "/a%20b?q=x%20y&q=z", "hello", "POST/a%20bx y,zagent/1hello", internalError, []string{"a=1", "b=2"}},
	} {
		t.Run(c.shape, func(t *testing.T) {
			i := r.readyOne(c.shape)
			a := mustSend(t, i, "POST", c.path, c.body, "content-type", "text/plain", "user-agent", "agent/1", "x-forwarded-for", "7.7.7.7")
			if a.status != 201 || a.body != c.want || !slices.Equal(a.header["Set-Cookie"], c.cookies) {
				t.Errorf("%d %v %q", a.status, a.header, a.body)
			}
			a = mustSend(t, i, "GET", "/error", "")
			if a.status != 502 || !strings.HasPrefix(a.body, c.failure) || a.header.Get("x-penstock-error") != "handler-error" || strings.Contains(a.body, "no such order") {
				t.Errorf("%d %v %q", a.status, a.header, a.body)
			}
		})
	}
	raw := r.readyOne("raw")
	// {"custom": {"plan": "gold"}}
	a := mustSend(t, raw, "POST", "/any", `{"n": 1}`, "x-amz-client-context", "eyJjdXN0b20iOiB7InBsYW4iOiAiZ29sZCJ9fQ==", "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	var got struct {
		Event      map[string]any
		Custom     map[string]string
		Deadline   bool
		ARN, Trace string
	}
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != 200 || got.Event["n"] != 1.0 || got.Custom["plan"] != "gold" || !got.Deadline ||
		got.ARN != "arn:aws:lambda:us-east-1:000000000000:function:raw" || !strings.HasPrefix(got.Trace, "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=") {
		t.Errorf("%d %s, %v", a.status, a.body, err)
	}
	for body, want := range map[string]string{`{"fail": 1}`: "502 handler-error", "a=b": "400 bad-request", "": "200 "} {
		a := mustSend(t, raw, "POST", "/", body)
		if got := strings.Join([]string{map[int]string{200: "200", 400: "400", 502: "502"}[a.status], a.header.Get("x-penstock-error")}, " "); got != want {
			t.Errorf("%q: %d %v %s", body, a.status, a.header, a.body)
		}
	}
}
