package compile_test

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// testReach: what is refused because no request can look like that is what no request
// through Envoy looks like: every path that arrives is possible, methods arrive as
// the warnings say, and parameters are compared as they stand in the URL.
func testReach(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn+`
---
kind: Route
name: all
rules:
- {name: blank, matches: [{path: {exact: /q}, query: [{name: a, value: {regex: "x(%20|[+])y"}}]}], direct_response: {status: 201}}
- {name: plain, matches: [{path: {exact: /q}, query: [{name: a, value: {exact: "x%20y"}}]}], direct_response: {status: 202}}
- {name: all, forward: {backends: [{backend: up}]}}
`)
	for _, m := range gateway.HTTP1Methods() {
		if a := r.do(t, port, m, "x.test/", "Content-Length: 0"); a.status != 200 || a.got == nil || a.got.Method != m {
			t.Errorf("%s over HTTP/1.1: %d", m, a.status)
		}
	}
	for _, m := range []string{"FOO", "BREW"} {
		if a := r.do(t, port, m, "x.test/", "Content-Length: 0"); a.status != 400 || a.got != nil {
			t.Errorf("%s over HTTP/1.1: %d", m, a.status)
		}
		if s := r.send2(t, port, m, "x.test", "/"); s != 200 {
			t.Errorf("%s over HTTP/2: %d", m, s)
		}
	}
	for query, want := range map[string]int{"x%20y": 201, "x+y": 201, "x%2520y": 200, "x%2By": 200, "%78%20y": 200} {
		if a := r.do(t, port, "GET", "x.test/q?a="+query); a.status != want {
			t.Errorf("a=%s: %d, want %d", query, a.status, want)
		}
	}
	random := rand.New(rand.NewPCG(3, 4))
	pieces := []string{"/", "a", ".", "..", "%41", "%20", "%2e", "%2F", "%c3%a9", "//", "/.", "/./", "%5c", "\\", "\"", "<", "{", "|", "~", "%7e", "!", "*", "'", "b"}
	arrived := 0
	for range 400 {
		var path strings.Builder
		for range random.IntN(7) {
			path.WriteString(pieces[random.IntN(len(pieces))])
		}
		a := r.do(t, port, "GET", "x.test/"+path.String())
		if a.got == nil {
			continue
		}
		arrived++
		route := &pb.Route{Name: "projects/p/routes/r", Rules: []*pb.RouteRule{{
			Name: "a", Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Regex{Regex: regexp.QuoteMeta(a.got.Path)}}}},
			Action: &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}},
		}}}
		for _, p := range policies.Model().Validate(route) {
			t.Errorf("%q arrives as %q: %s", path.String(), a.got.Path, p.Message)
		}
	}
	if arrived < 100 {
		t.Errorf("only %d paths arrived", arrived)
	}
}
