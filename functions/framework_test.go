package functions_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

const (
	frameworkPython = pb.FunctionsFrameworkRuntime_FUNCTIONS_FRAMEWORK_RUNTIME_PYTHON
	frameworkNode   = pb.FunctionsFrameworkRuntime_FUNCTIONS_FRAMEWORK_RUNTIME_NODE
)

// frameworks are the two languages, each with the same functions in a folder below
// testdata/root.
var frameworks = []struct {
	name, source, broken string
	runtime              pb.FunctionsFrameworkRuntime
}{
	{"python", "gcf", "gcfbroken", frameworkPython},
	{"node", "gcfnode", "gcfnodebroken", frameworkNode},
}

// gcf is a Functions Framework function.
func gcf(id, source string, runtime pb.FunctionsFrameworkRuntime, target string, change ...func(*pb.Function)) *pb.Function {
	f := &pb.Function{
		Name: name(id), Source: source, Instances: 1, Timeout: durationpb.New(10 * time.Minute),
		Contract: &pb.Function_FunctionsFramework{FunctionsFramework: &pb.FunctionsFrameworkContract{Runtime: runtime, Target: target}},
	}
	for _, c := range change {
		c(f)
	}
	return f
}

func cloudEvent(f *pb.Function) {
	f.GetFunctionsFramework().Signature = pb.FunctionSignature_FUNCTION_SIGNATURE_CLOUDEVENT
}

// TestFramework: requests and CloudEvents by Google's own frameworks.
func TestFramework(t *testing.T) {
	t.Parallel()
	for _, l := range frameworks {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			r := startRunner(t)
			r.want(gcf("echo", l.source, l.runtime, "echo"), gcf("event", l.source, l.runtime, "event", cloudEvent), gcf("plain", l.source, l.runtime, "plain"))
			echo := r.ready("echo", 1)[0]
			const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
			a := mustSend(t, echo, "POST", "/a/b?q=1&r=2", "hello", "x-request-id", "rid-1", "content-type", "text/plain", "traceparent", "00-"+trace+"-"+parent+"-01")
			var got struct{ Method, Path, Query, Body, Trace, ID, Target string }
			if err := json.Unmarshal([]byte(a.body), &got); err != nil {
				t.Fatalf("%d %s: %v", a.status, a.body, err)
			}
			if a.status != 201 || a.header.Get("x-kind") != "http" || a.header.Get("x-penstock-refused") != "" {
				t.Errorf("%d %v", a.status, a.header)
			}
			if got.Method != "POST" || got.Path != "/a/b" || got.Query != "q=1&r=2" || got.Body != "hello" || got.ID != "rid-1" || got.Target != "echo" {
				t.Errorf("%+v", got)
			}
			if !strings.HasPrefix(got.Trace, "00-"+trace+"-") || strings.Contains(got.Trace, parent) {
				t.Errorf("traceparent %q", got.Trace)
			}
			line := r.logs.await(t, "of the function's print", func(m map[string]any) bool { return m["msg"] == "echo /a/b" })
			if line["request_id"] != "rid-1" || line["function"] != name("echo") {
				t.Errorf("log record %v", line)
			}
			if a := mustSend(t, r.readyOne("plain"), "GET", "/x", ""); a.status != 200 || a.body != "plain /x" {
				t.Errorf("%d %s", a.status, a.body)
			}
			events(t, r, r.readyOne("event"))
		})
	}
}

// events sends CloudEvents in both forms, what is none, and one that fails.
func events(t *testing.T, r *runner, i *pb.Instance) {
	binary := []string{"ce-specversion", "1.0", "ce-type", "shop.order", "ce-source", "/shop", "ce-id", "1", "content-type", "application/json"}
	for _, c := range []struct {
		what, body string
		headers    []string
		status     []int
	}{
		{"binary", `{"n":1}`, binary, []int{200, 204}},
		{"structured", `{"specversion":"1.0","type":"shop.order","source":"/shop","id":"2","data":{"n":2}}`, []string{"content-type", "application/cloudevents+json"}, []int{200, 204}},
		{"fails", `{"fail":true}`, binary, []int{500}},
	} {
		a := mustSend(t, i, "POST", "/", c.body, append([]string{"x-request-id", "rid-" + c.what}, c.headers...)...)
		if a.status != c.status[0] && a.status != c.status[len(c.status)-1] {
			t.Errorf("%s: %d %s", c.what, a.status, a.body)
		}
		if c.what == "fails" && (a.header.Get("x-penstock-error") != "handler-error" || strings.Contains(a.body, "no such event")) {
			t.Errorf("%v %s", a.header, a.body)
		}
		r.logs.await(t, "of the event "+c.what, func(m map[string]any) bool {
			msg, _ := m["msg"].(string)
			return m["request_id"] == "rid-"+c.what && strings.HasPrefix(msg, "event shop.order /shop")
		})
	}
}

// readyOne waits for the only instance of one of several functions.
func (r *runner) readyOne(function string) *pb.Instance {
	r.t.Helper()
	return instances(r.await("ready "+function, func(s *pb.RunnerState) bool {
		of := instances(s, function)
		return len(of) == 1 && of[0].GetState() == pb.InstanceState_INSTANCE_STATE_READY
	}), function)[0]
}

type frameworkFault struct {
	target, path, kind, log string
	status                  int
	replaced                bool
	language                string // empty: both
}

// TestFrameworkFaults: what a caller and the author get from a function that fails.
func TestFrameworkFaults(t *testing.T) {
	t.Parallel()
	cases := []frameworkFault{
		{target: "raises", path: "/", status: 500, kind: "handler-error", log: "no such order"},
		{target: "rejects", path: "/", status: 500, kind: "handler-error", log: "no such promise", language: "node"},
		{target: "rubbish", path: "/", status: 500, kind: "handler-error", log: "TypeError", language: "python"},
		{target: "prints", path: "/", status: 200, log: "prints too much", language: "python"},
		{target: "exits", path: "/exit", status: 502, kind: "died", log: "exited with code 3", language: "python"},
		// This framework answers before it lets its process end.
		{target: "exits", path: "/exit", status: 500, kind: "handler-error", log: "exit status 3", replaced: true, language: "node"},
		{target: "hangs", path: "/hang", status: 504, kind: "deadline", log: "longer than the function's timeout", replaced: true},
		{target: "big", path: "/", status: 200},
	}
	for _, l := range frameworks {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			r := startRunner(t)
			cases := slices.DeleteFunc(slices.Clone(cases), func(c frameworkFault) bool { return c.language != "" && c.language != l.name })
			for _, c := range cases {
				r.wantMore(gcf(c.target, l.source, l.runtime, c.target, func(f *pb.Function) {
					if c.target == "hangs" {
						// Also of the request afterwards, which a busy machine answers in time.
						f.Timeout = durationpb.New(5 * time.Second)
					}
				}))
			}
			for _, c := range cases {
				t.Run(c.target, func(t *testing.T) {
					before := r.readyOne(c.target)
					a := mustSend(t, before, "GET", c.path, "", "x-request-id", "rid-"+c.target)
					if a.status != c.status || a.header.Get("x-penstock-error") != c.kind || (c.kind != "" && !strings.Contains(a.body, `"request_id":"rid-`)) {
						t.Errorf("%d %v %.300s", a.status, a.header, a.body)
					}
					if c.target == "big" && len(a.body) != 50<<20 {
						t.Errorf("%d bytes", len(a.body))
					}
					if c.log != "" {
						r.logs.await(t, c.log, func(m map[string]any) bool {
							b, _ := json.Marshal(m)
							return m["function"] == name(c.target) && strings.Contains(string(b), c.log)
						})
					}
					if c.replaced {
						r.replacedBy(t, c.target, before)
					}
					if c.target == "exits" || c.target == "hangs" {
						if a := r.any(t, c.target, "GET", "/after", ""); a.status != 200 || a.body != "well" {
							t.Errorf("afterwards: %d %s", a.status, a.body)
						}
					}
				})
			}
			t.Run("breaks", func(t *testing.T) {
				// The framework for Node.js leaves such an answer open.
				r := startRunner(t, silence(500*time.Millisecond))
				r.want(gcf("breaks", l.source, l.runtime, "breaks", timeout(500*time.Millisecond)))
				if a, err := send(t.Context(), r.readyOne("breaks"), "GET", "/", ""); err == nil {
					t.Errorf("an answer that breaks off is read as whole: %d %q", a.status, a.body)
				}
			})
		})
	}
}

// wantMore adds a function to those that are wanted.
func (c *control) wantMore(f *pb.Function) {
	c.update(func() { c.wanted = append(c.wanted[:len(c.wanted):len(c.wanted)], f) })
}

// TestFrameworkStart: functions that cannot start say why.
func TestFrameworkStart(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	for id, c := range map[string]struct {
		function *pb.Function
		want     []string
	}{
		"py-target":  {gcf("py-target", "gcf", frameworkPython, "nobody"), []string{"expected to contain a function named 'nobody'"}},
		"py-import":  {gcf("py-import", "gcfbroken", frameworkPython, "x"), []string{"boom at import"}},
		"py-no-main": {gcf("py-no-main", "gcfnode", frameworkPython, "x"), []string{"holds no main.py"}},
		"js-target":  {gcf("js-target", "gcfnode", frameworkNode, "nobody"), []string{"nobody", "is not defined in the provided module"}},
		"js-import":  {gcf("js-import", "gcfnodebroken", frameworkNode, "x"), []string{"boom at import"}},
		"js-no-main": {gcf("js-no-main", "gcf", frameworkNode, "x"), []string{"neither index.js nor function.js"}},
	} {
		t.Run(id, func(t *testing.T) {
			r.wantMore(c.function)
			s := r.await("the problem of "+id, func(s *pb.RunnerState) bool { return s.GetProblems()[name(id)] != "" })
			for _, w := range c.want {
				if p := s.GetProblems()[name(id)]; !strings.Contains(p, w) {
					t.Errorf("the problem lacks %q: %s", w, p)
				}
			}
		})
	}
}
