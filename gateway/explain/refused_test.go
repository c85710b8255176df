package explain

import (
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestRefused: what proxies refuse and what they do instead, for each part of the way.
func TestRefused(t *testing.T) {
	s := snapshot(t, `{'gateway': {'name': 'projects/default/gateways/g', 'listeners': [{'name': 'a', 'port': 8080}, {'name': 'b', 'port': 8081}]}}

{'backend': {'name': 'projects/default/backends/one', 'static': {'endpoints': [{'address': '127.0.0.1', 'port': 1}]}}}

{'backend': {'name': 'projects/default/backends/two', 'static': {'endpoints': [{'address': '127.0.0.1', 'port': 2}]}}}

{'route': {'name': 'projects/default/routes/r', 'rules': [
  {'name': 'direct', 'matches': [{'path': {'prefix': '/direct'}}], 'direct_response': {'status': 201}},
  {'name': 'split', 'matches': [{'path': {'prefix': '/'}}], 'forward': {'backends': [{'backend': 'backends/one', 'weight': 1}, {'backend': 'backends/two', 'weight': 1}]}}]}}`)
	const gateway, route, one, two = "projects/default/gateways/g", "projects/default/routes/r", "projects/default/backends/one", "projects/default/backends/two"
	nothing := func(object, field string) Refusal {
		return Refusal{Object: object, Field: field, Detail: "no\nsuch thing", Instead: Nothing}
	}
	for _, c := range []struct {
		what    string
		url     string
		refused []Refusal
		status  uint32
		text    string
		told    int
	}{
		{"another listener", "http://x:8081/direct", []Refusal{nothing(gateway, "a")}, 201, "201 Created", 0},
		{"the listener", "http://x:8080/direct", []Refusal{nothing(gateway, "a")}, 0, "nothing listens for http on port 8080: Envoy refused projects/default/gateways/g (a): no such thing; nothing is served", 1},
		{"the rule", "http://x:8080/direct", []Refusal{nothing(route, "rules[0]")}, 503, "Envoy refused projects/default/routes/r (rules[0]): no such thing", 1},
		{"another rule", "http://x:8080/direct", []Refusal{nothing(route, "rules[1]")}, 201, "201", 0},
		{"one of two backends", "http://x:8080/", []Refusal{nothing(one, "")}, 200, "200 by " + two, 1},
		{"both backends", "http://x:8080/", []Refusal{nothing(one, ""), nothing(two, "")}, 503, "PK-ROUTE-BROKEN", 2},
		{"a path before the rule", "http://x:8080/direct", []Refusal{{Object: route, Field: "rules[0]", Instead: Nothing, Prefix: "/d"}}, 503, "", 1},
		{"every path that begins so", "http://x:8080/dim", []Refusal{{Object: route, Field: "rules[0]", Instead: Nothing, Prefix: "/d"}}, 503, "every path that begins with /d is answered so", 1},
		{"other paths", "http://x:8080/e", []Refusal{{Object: route, Field: "rules[0]", Instead: Nothing, Prefix: "/d"}}, 200, "", 0},
		{"a whole table", "http://x:8080/direct", []Refusal{{Object: gateway, Field: "a", Detail: "no"}}, 0, "not known: Envoy refused projects/default/gateways/g (a): no; what was accepted before is served in its place", 1},
	} {
		e := Explain(s, &pb.ExplainRequest{Method: "GET", Url: c.url}, &Known{Refused: c.refused})
		o := e.GetOutcome()
		if o.GetStatus() != c.status || !strings.Contains(o.GetText(), c.text) || len(e.GetRefused()) != c.told {
			t.Errorf("%s: %d %q, %d told of; want %d %q, %d", c.what, o.GetStatus(), o.GetText(), len(e.GetRefused()), c.status, c.text, c.told)
		}
	}
}
