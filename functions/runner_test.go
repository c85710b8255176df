package functions_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

type echoed struct {
	Event struct {
		RawPath, RawQueryString string
		Headers                 map[string]string
		RequestContext          struct{ RequestID string }
		Body                    string
	}
	PID       int    `json:"pid"`
	RequestID string `json:"request_id"`
	Remaining int    `json:"remaining"`
	Trace     string `json:"trace"`
	Env       map[string]string
}

// TestPythonHandler is one invocation of an unmodified handler by awslambdaric:
// event, context, trace context, output, answer.
func TestPythonHandler(t *testing.T) {
	t.Setenv("SECRET_OF_THE_RUNNER", "hidden")
	r := startRunner(t)
	r.want(python("echo", "app.echo", count(2), env(map[string]string{"SHOP": "kettles", "AWS_LAMBDA_RUNTIME_API": "forged"})))
	both := r.ready("echo", 2)
	const traceID, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	const requestID = "5f0c0e4e-7f0b-4c39-9d6a-1d2f3a4b5c6d"
	a := mustSend(t, both[0], "POST", "/support?q=1", "hello", "traceparent", "00-"+traceID+"-"+parent+"-01",
		"x-request-id", requestID, "content-type", "text/plain")
	var e echoed
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || a.status != 200 {
		t.Fatalf("%d %s (%v)", a.status, a.body, err)
	}
	if e.Event.RawPath != "/support" || e.Event.RawQueryString != "q=1" || e.Event.Body != "hello" || e.Event.Headers["host"] != "shop.example.com" {
		t.Errorf("event: %+v", e.Event)
	}
	if e.RequestID != requestID || e.Event.RequestContext.RequestID != requestID {
		t.Errorf("request id %q in the context, %q in the event", e.RequestID, e.Event.RequestContext.RequestID)
	}
	if e.Remaining < 1 || e.Remaining > 20_000 {
		t.Errorf("remaining time %d ms of 20 s", e.Remaining)
	}
	if e.PID <= 0 || a.header.Get("x-instance") != both[0].GetId() {
		t.Errorf("pid %d, instance %q; reported %v", e.PID, a.header.Get("x-instance"), both[0])
	}
	if got := a.header["Set-Cookie"]; !slices.Equal(got, []string{"a=1", "b=2"}) {
		t.Errorf("cookies %q", got)
	}
	if a.header.Get("x-penstock-refused") != "" {
		t.Error("a function can make its answer look like a refusal")
	}
	if e.Env["SHOP"] != "kettles" || e.Env["SECRET_OF_THE_RUNNER"] != "" || e.Env["AWS_LAMBDA_RUNTIME_API"] == "forged" {
		t.Errorf("environment: %v", e.Env)
	}
	checkTrace(t, r.spans.GetSpans(), e, traceID, parent, both[0].GetId())
	line := r.logs.await(t, "of the handler's print", func(m map[string]any) bool { return m["msg"] == "echo /support" })
	if line["function"] != name("echo") || line["instance"] != both[0].GetId() || line["request_id"] != requestID || line["stream"] != "stdout" {
		t.Errorf("log record %v", line)
	}
}

// checkTrace: the caller's span, the server span, the handler's span, and the
// context that the handler got, in both forms.
func checkTrace(t *testing.T, spans tracetest.SpanStubs, e echoed, traceID, parent, instance string) {
	t.Helper()
	find := func(name string) tracetest.SpanStub {
		for _, s := range spans {
			if s.Name == name {
				return s
			}
		}
		t.Fatalf("no span %q in %v", name, spans)
		return tracetest.SpanStub{}
	}
	server, handler := find("echo"), find("echo handler")
	if server.SpanKind != trace.SpanKindServer || server.SpanContext.TraceID().String() != traceID || server.Parent.SpanID().String() != parent {
		t.Errorf("server span: %v, trace %s, parent %s", server.SpanKind, server.SpanContext.TraceID(), server.Parent.SpanID())
	}
	if handler.Parent.SpanID() != server.SpanContext.SpanID() {
		t.Errorf("the handler's span is not a child of the server's")
	}
	for key, want := range map[attribute.Key]string{
		"faas.name": name("echo"), "faas.instance": instance, "faas.coldstart": "true", "http.request.method": "POST",
		"http.response.status_code": "200", "faas.invocation_id": e.RequestID, "url.path": "/support",
	} {
		i := slices.IndexFunc(server.Attributes, func(a attribute.KeyValue) bool { return a.Key == key })
		if i < 0 || server.Attributes[i].Value.String() != want {
			t.Errorf("attribute %s of %v, want %s", key, server.Attributes, want)
		}
	}
	id := handler.SpanContext.SpanID().String()
	if want := "00-" + traceID + "-" + id + "-01"; e.Event.Headers["traceparent"] != want {
		t.Errorf("traceparent in the event is %q, want %q", e.Event.Headers["traceparent"], want)
	}
	if want := "Root=1-" + traceID[:8] + "-" + traceID[8:] + ";Parent=" + id + ";Sampled=1"; e.Trace != want {
		t.Errorf("_X_AMZN_TRACE_ID is %q, want %q", e.Trace, want)
	}
}

// TestRollout: a new version serves before the old one goes, a version that cannot
// start takes nothing away, and scaling keeps who serves.
func TestRollout(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	v1 := python("shop", "app.echo", count(2))
	r.want(v1)
	first := r.ready("shop", 2)

	r.want(clone(v1, count(3)))
	three := r.ready("shop", 3)
	for _, i := range first {
		if !slices.ContainsFunc(three, func(j *pb.Instance) bool { return i.GetId() == j.GetId() }) {
			t.Errorf("scaling up replaced %s", i.GetId())
		}
	}
	r.want(clone(v1, count(1)))
	one := r.ready("shop", 1)

	// A version that cannot start: the old one serves on, and the reason is told.
	r.want(clone(v1, count(1), func(f *pb.Function) { f.GetLambda().Handler = "app.absent" }))
	s := r.await("a problem", func(s *pb.RunnerState) bool { return s.GetProblems()[name("shop")] != "" })
	if p := s.GetProblems()[name("shop")]; !strings.Contains(p, "Handler 'absent' missing on module 'app'") {
		t.Errorf("problem %q", p)
	}
	if a := mustSend(t, one[0], "GET", "/", ""); a.status != 200 {
		t.Errorf("the old version answers %d", a.status)
	}

	// While a good version comes, there is at least one ready instance in each
	// state that is reported, and the old one ends.
	r.want(clone(v1, count(1), env(map[string]string{"V": "3"})))
	s = r.await("the third version alone", func(s *pb.RunnerState) bool {
		of := instances(s, "shop")
		if !slices.ContainsFunc(of, func(i *pb.Instance) bool { return i.GetState() == pb.InstanceState_INSTANCE_STATE_READY }) {
			t.Errorf("no instance is ready in %v", s)
		}
		return len(of) == 1 && of[0].GetId() != one[0].GetId() && of[0].GetState() == pb.InstanceState_INSTANCE_STATE_READY
	})
	if len(s.GetProblems()) > 0 {
		t.Errorf("problems are left: %v", s.GetProblems())
	}
	if a := mustSend(t, instances(s, "shop")[0], "GET", "/", ""); !strings.Contains(a.body, `"V": "3"`) {
		t.Errorf("the third version answers %s", a.body)
	}
	r.want()
	r.await("nothing", func(s *pb.RunnerState) bool { return len(s.GetInstances()) == 0 })
}

// TestControlPlaneAway: instances serve on while it is away, and when it is back
// it is told all at once.
func TestControlPlaneAway(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	r.want(python("shop", "app.echo"))
	before := r.ready("shop", 1)
	r.server.Stop()
	if a := mustSend(t, before[0], "GET", "/", ""); a.status != 200 {
		t.Errorf("without a control plane: %d", a.status)
	}
	r.update(func() { r.state, r.hellos = &pb.RunnerState{}, nil })
	r.listen()
	after := r.ready("shop", 1)
	if after[0].GetId() != before[0].GetId() || after[0].GetPid() != before[0].GetPid() {
		t.Errorf("the instance was replaced: %v, before %v", after[0], before[0])
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.hellos, []string{"test"}) {
		t.Errorf("hellos %q", r.hellos)
	}
}

// TestKill: a killed instance is replaced, no request is lost that a proxy may
// retry, and what ran in the dead process gets 502.
func TestKill(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	r.want(python("shop", "app.echo", count(2)))
	dead := r.ready("shop", 2)[0]
	if err := syscall.Kill(int(dead.GetPid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if a := r.any(t, "shop", "POST", fmt.Sprintf("/%d", i), "body"); a.status != 200 {
			t.Fatalf("request %d after the kill: %d %s", i, a.status, a.body)
		}
	}
	r.await("another in the place of the dead", func(s *pb.RunnerState) bool {
		of := instances(s, "shop")
		return len(of) == 2 && !slices.ContainsFunc(of, func(i *pb.Instance) bool {
			return i.GetId() == dead.GetId() || i.GetState() != pb.InstanceState_INSTANCE_STATE_READY
		})
	})
}
