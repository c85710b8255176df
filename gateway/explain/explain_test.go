package explain

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

var update = flag.Bool("update", false, "rewrite the want sections of the golden files")

// TestGolden runs testdata/*.txtar. The section "config" holds resources, one JSON
// object each, with blank lines between and quotes that may be written as ';
// "instances" holds instances in the same way. Each other section is a request: its name is the method, the URL
// and headers, its text the explanation.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var s *gateway.Snapshot
	var known *Known
	for i, f := range ar.Files {
		switch f.Name {
		case "config":
			s = snapshot(t, string(f.Data))
		case "instances":
			known = decodeInstances(t, string(f.Data))
		default:
			req := requestOf(t, f.Name)
			got := text(Explain(s, req, known))
			if *update {
				ar.Files[i].Data = []byte(got)
			} else if got != string(f.Data) {
				t.Errorf("%s\ngot:\n%s\nwant:\n%s", f.Name, got, f.Data)
			}
		}
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func paragraphs(text string) []string {
	var out []string
	for p := range strings.SplitSeq(text, "\n\n") {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, strings.ReplaceAll(p, "'", `"`))
		}
	}
	return out
}

func snapshot(t *testing.T, text string) *gateway.Snapshot {
	t.Helper()
	var c gateway.Changes
	for _, p := range paragraphs(text) {
		r := &pb.Resource{}
		if err := protojson.Unmarshal([]byte(p), r); err != nil {
			t.Fatalf("%v\n%s", err, p)
		}
		o := gateway.FromResource(r)
		policies.Model().Normalize(o)
		if problems := policies.Model().Validate(o); len(problems) > 0 {
			t.Fatalf("%s: %v", o.GetName(), problems)
		}
		c.Updates = append(c.Updates, o)
	}
	return policies.Model().Build(nil, 42, c)
}

// decodeInstances reads what is known of functions: one without an instance has an
// activator.
func decodeInstances(t *testing.T, text string) *Known {
	t.Helper()
	byFunction := map[string][]*pb.Instance{}
	for _, p := range paragraphs(text) {
		i := &pb.Instance{}
		if err := protojson.Unmarshal([]byte(p), i); err != nil {
			t.Fatal(err)
		}
		byFunction[i.GetFunction()] = append(byFunction[i.GetFunction()], i)
	}
	return &Known{Function: func(name string) Function { return Function{Instances: byFunction[name], Activator: true} }}
}

func requestOf(t *testing.T, line string) *pb.ExplainRequest {
	t.Helper()
	fields := strings.Fields(line)
	if len(fields) < 2 {
		t.Fatalf("%q is not a request", line)
	}
	req := &pb.ExplainRequest{Method: fields[0], Url: fields[1], Headers: map[string]string{}}
	for _, h := range fields[2:] {
		k, v, _ := strings.Cut(h, "=")
		if k == "project" {
			req.Project = v
			continue
		}
		req.Headers[k] = strings.ReplaceAll(v, "+", " ")
	}
	return req
}

// text is an explanation for people.
func text(r *pb.ExplainResponse) string {
	var b strings.Builder
	if l := r.GetListener(); l != nil {
		fmt.Fprintf(&b, "listener %s of %s at %s\n", l.GetListener(), l.GetGateway(), l.GetAddress())
	}
	if r.GetHost() != "" {
		fmt.Fprintf(&b, "host     %s\n", r.GetHost())
	}
	if u := r.GetRule(); u != nil {
		fmt.Fprintf(&b, "rule     %s of %s%s\n         %s\n", u.GetRule(), u.GetRoute(), origin(u.GetOrigin()), u.GetMatch())
	}
	for _, p := range r.GetPolicies() {
		fmt.Fprintf(&b, "policy   %s: %s\n         from %s%s\n", p.GetPolicy(), p.GetSummary(), p.GetFrom(), origin(p.GetOrigin()))
	}
	for _, k := range r.GetBackends() {
		fmt.Fprintf(&b, "backend  %.4g %% %s %s %s\n", k.GetPercent(), k.GetName(), cmp.Or(k.GetSubset(), "-"), strings.Join(k.GetEndpoints(), " "))
		for _, i := range k.GetInstances() {
			fmt.Fprintf(&b, "         %s %s:%d %s\n", i.GetId(), i.GetAddress(), i.GetPort(), i.GetState())
		}
	}
	o := r.GetOutcome()
	fmt.Fprintf(&b, "outcome  %s\n", o.GetText())
	if p := o.GetPolicy(); p != nil {
		fmt.Fprintf(&b, "         by %s, from %s%s\n", p.GetPolicy(), p.GetFrom(), origin(p.GetOrigin()))
	}
	for _, m := range o.GetMayBe() {
		fmt.Fprintf(&b, "or       %s\n", m.GetText())
	}
	for _, m := range r.GetNotMatched() {
		fmt.Fprintf(&b, "not      %s of %s%s\n         %s\n", m.GetRule(), m.GetRoute(), origin(m.GetOrigin()), m.GetReason())
	}
	return b.String()
}

func origin(o *pb.Origin) string {
	if o == nil {
		return ""
	}
	return fmt.Sprintf(" (%s:%d)", o.GetFile(), o.GetLine())
}

// TestManyRules bounds the answer.
func TestManyRules(t *testing.T) {
	c := gateway.Changes{Updates: []gateway.Object{&pb.Gateway{
		Name: "projects/default/gateways/g", Listeners: []*pb.Listener{{Name: "http", Port: 80}},
	}}}
	for i := range maxMisses + 50 {
		c.Updates = append(c.Updates, &pb.Route{Name: fmt.Sprintf("projects/default/routes/r%04d", i), Rules: []*pb.RouteRule{{
			Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Exact{Exact: fmt.Sprint("/", i)}}}},
			Action:  &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}},
		}}})
	}
	r := Explain(policies.Model().Build(nil, 1, c), &pb.ExplainRequest{Url: "http://a/none"}, nil)
	if n := len(r.GetNotMatched()); n != maxMisses+1 {
		t.Fatalf("%d rows", n)
	}
	if last := r.GetNotMatched()[maxMisses].GetReason(); last != "and 50 more rules" {
		t.Error(last)
	}
}

// FuzzExplain looks for panics in what a user types.
func FuzzExplain(f *testing.F) {
	s := policies.Model().Build(nil, 1, gateway.Changes{Updates: []gateway.Object{
		&pb.Gateway{Name: "projects/default/gateways/g", Listeners: []*pb.Listener{{Name: "http", Port: 80}}},
		&pb.Route{Name: "projects/default/routes/r", Hostnames: []string{"*", "*.x", "a.x"}, Rules: []*pb.RouteRule{{
			Action: &pb.RouteRule_Redirect{Redirect: &pb.Redirect{Scheme: "https"}},
		}}},
	}})
	f.Add("GET", "http://a.x/b?c=d#e", "x-a", "1")
	f.Add("POST", "https://[::1]:443/%zz", "authorization", "Bearer x")
	f.Add("", "http://a.x:0/../..//", "a_b", "")
	f.Fuzz(func(t *testing.T, method, url, header, value string) {
		r := Explain(s, &pb.ExplainRequest{Method: method, Url: url, Headers: map[string]string{header: value}}, nil)
		if r.GetOutcome().GetText() == "" || r.GetOutcome().GetDecidedBy() == 0 {
			t.Errorf("%q %q: no outcome", method, url)
		}
	})
}

// TestEdgeForms: methods that the edge refuses, and the port in a redirect.
func TestEdgeForms(t *testing.T) {
	redirect := func(path string, d *pb.Redirect) *pb.RouteRule {
		return &pb.RouteRule{
			Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Exact{Exact: path}}}},
			Action:  &pb.RouteRule_Redirect{Redirect: d},
		}
	}
	s := policies.Model().Build(nil, 1, gateway.Changes{Updates: []gateway.Object{
		&pb.Gateway{Name: "projects/default/gateways/g", Listeners: []*pb.Listener{{Name: "a", Port: 80}, {Name: "b", Port: 8080}}},
		&pb.Route{Name: "projects/default/routes/r", Rules: []*pb.RouteRule{
			redirect("/move", &pb.Redirect{Path: "/z"}), redirect("/secure", &pb.Redirect{Scheme: "https"}),
			redirect("/away", &pb.Redirect{Host: "other.test"}), redirect("/port", &pb.Redirect{Port: 81}),
		}},
	}})
	for _, c := range []struct{ method, url, want string }{
		{"GET", "http://x.test/move", "302 http://x.test/z"},
		{"GET", "http://x.test:8080/move", "302 http://x.test:8080/z"},
		{"GET", "http://[::1]:8080/move", "302 http://[::1]:8080/z"},
		{"GET", "http://x.test/secure", "302 https://x.test/secure"},
		{"GET", "http://x.test:8080/secure", "302 https://x.test/secure"},
		{"GET", "http://x.test:8080/away", "302 http://other.test/away"},
		{"GET", "http://x.test:8080/port", "302 http://x.test:81/port"},
		{"delete", "http://x.test/move", `400 Bad Request: HTTP/1.1 carries no method "delete" here; over HTTP/2 the edge and the routes decide (PK-EDGE-PROTOCOL)`},
		{"trace", "http://x.test/move", `400 Bad Request: HTTP/1.1 carries no method "trace" here; over HTTP/2 the edge and the routes decide (PK-EDGE-PROTOCOL)`},
		{"TRACE", "http://x.test/move", "405 Method Not Allowed: the edge refuses TRACE (PK-EDGE-METHOD)"},
		{"M-SEARCH", "http://x.test/move", `400 Bad Request: HTTP/1.1 carries no method "M-SEARCH" here; over HTTP/2 the edge and the routes decide (PK-EDGE-PROTOCOL)`},
	} {
		if got := Explain(s, &pb.ExplainRequest{Method: c.method, Url: c.url}, nil).GetOutcome().GetText(); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.method, c.url, got, c.want)
		}
	}
}

// TestFunctions: what callers of a function get, whatever it does, and never 503 for one
// that the first request starts.
func TestFunctions(t *testing.T) {
	const name = "projects/default/functions/f"
	s := policies.Model().Build(nil, 1, gateway.Changes{Updates: []gateway.Object{
		&pb.Gateway{Name: "projects/default/gateways/g", Listeners: []*pb.Listener{{Name: "http", Port: 80}}},
		&pb.Function{Name: name, Source: "f", Contract: &pb.Function_Server{Server: &pb.ServerContract{Command: []string{"./f"}}}},
		&pb.Route{Name: "projects/default/routes/r", Rules: []*pb.RouteRule{{
			Action: &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "functions/f"}}}},
		}}},
	}})
	ready := []*pb.Instance{{Function: name, State: pb.InstanceState_INSTANCE_STATE_READY}}
	for _, c := range []struct {
		known  *Known
		f      Function
		status uint32
		text   string
	}{
		{nil, Function{}, 200, "200 by " + name + ", or the status that it answers with; whether it runs is not known here"},
		{&Known{}, Function{Activator: true}, 200, "200 by the activator of " + name + ": the first request starts an instance, which answers"},
		{&Known{}, Function{Activator: true, Instances: []*pb.Instance{{State: pb.InstanceState_INSTANCE_STATE_STARTING}}}, 200, "200 by the activator of " + name + ": the first request starts an instance, which answers"},
		{&Known{}, Function{Instances: ready}, 200, "200 by " + name + ", or the status that it answers with"},
		{&Known{}, Function{Activator: true, Instances: ready, Trouble: "of another instance"}, 200, "200 by " + name + ", or the status that it answers with"},
		{&Known{}, Function{Activator: true, Trouble: "exit code 7"}, 503, "503 Service Unavailable by the activator of " + name + ": exit code 7"},
		{&Known{}, Function{StandIn: name + "@3"}, 200, "200 by " + name + "@3, or the status that it answers with: it serves until " + name + " is ready"},
		{&Known{}, Function{Nowhere: "no runner is connected"}, 503, "503 Service Unavailable: nothing takes requests of " + name + ": no runner is connected (PK-BACKEND-NONE)"},
	} {
		if c.known != nil {
			c.known.Function = func(string) Function { return c.f }
		}
		o := Explain(s, &pb.ExplainRequest{Url: "http://a/"}, c.known).GetOutcome()
		if o.GetText() != c.text || o.GetStatus() != c.status || o.GetDecidedBy() != byFunction || o.GetCertain() {
			t.Errorf("%+v: %v", c.f, o)
		}
	}
}
