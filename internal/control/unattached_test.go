package control

import (
	"slices"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestUnattachedRoute: a route that no listener serves is said to be so, by the write, by
// get and by status, until a listener takes it.
func TestUnattachedRoute(t *testing.T) {
	p := start(t, t.TempDir())
	route := direct("r", "/r", "")
	route.Hostnames = []string{"b.test"}
	apply := func(want string, resources ...*pb.Resource) {
		t.Helper()
		resp, err := pb.NewConfigServiceClient(p.conn).Apply(t.Context(), &pb.ApplyRequest{Resources: resources})
		if err != nil {
			t.Fatal(err)
		}
		var warnings []string
		for _, w := range resp.GetResult().GetWarnings() {
			warnings = append(warnings, w.GetMessage())
		}
		// The exit code of the command follows from this.
		if problems := resp.GetResult().GetServing().GetProblems(); (len(problems) == 1 && problems[0].GetState() == "not-attached") != (want != "") {
			t.Errorf("problems of the write %v, want %q", problems, want)
		}
		if got := strings.Join(warnings, "\n"); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("warnings %q, want %q", got, want)
		}
	}
	told := func(want string) {
		t.Helper()
		r, err := pb.NewRouteServiceClient(p.conn).GetRoute(t.Context(), &pb.GetRouteRequest{Name: route.GetName()})
		if err != nil {
			t.Fatal(err)
		}
		got := r.GetRoute().GetStatus().GetConditions()[0]
		if unattached := got.GetReason() == "NotAttached"; unattached != (want != "") || got.GetOk() || !strings.Contains(got.GetMessage(), want) {
			t.Errorf("get: %v, want %q", got, want)
		}
		st, err := pb.NewProxyServiceClient(p.conn).GetStatus(t.Context(), &pb.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if problems := st.GetProblems(); len(problems) > 0 != (want != "") || len(problems) > 0 && (problems[0].GetObject() != route.GetName() || !strings.Contains(problems[0].GetMessage(), want)) {
			t.Errorf("status: %v, want %q", problems, want)
		}
		problems := slices.DeleteFunc(lastReport(t, p.waitServing(t)).GetProblems(), func(q *pb.ProxyProblem) bool { return q.GetState() == "no-proxy" })
		if len(problems) > 0 != (want != "") || len(problems) > 0 && problems[0].GetObject() != route.GetName() {
			t.Errorf("wait: %v, want %q", problems, want)
		}
	}
	gateway := func(hosts ...string) *pb.Resource {
		return &pb.Resource{Kind: &pb.Resource_Gateway{Gateway: &pb.Gateway{
			Name: "projects/default/gateways/edge", Listeners: []*pb.Listener{{Name: "http", Address: "127.0.0.1", Port: 8080, Hostnames: hosts}},
		}}}
	}
	apply("attached to no listener: its project has no Gateway", resource(route))
	told("its project has no Gateway")
	apply("", gateway("a.test"))
	told("its hostnames are b.test, those of the listeners of edge are a.test")
	apply("", gateway("*.test"))
	told("")
}
