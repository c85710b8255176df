package gateway

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// preflighted builds a route of rules for host a.test with the policies that are there now.
func preflighted(t *testing.T, prev *Snapshot, revision int64, rules string, others ...Object) (*Snapshot, *Host) {
	t.Helper()
	s := model.Build(prev, revision, Changes{Updates: append(objects(t, `
gateway g {'listeners':[{'name':'l','port':80}]}
backend b {}
route r {'hostnames':['a.test'],'rules':[`+strings.ReplaceAll(rules, "\n", "")+`]}`), others...)})
	return s, s.Host("projects/p/gateways/g", "l", "a.test")
}

// TestPreflights: a preflight goes to the rule of the request that it asks about, which
// answers it or refuses it; never to a wider rule behind it.
func TestPreflights(t *testing.T) {
	const forward = `'forward':{'backends':[{'backend':'b'}]}`
	const cors = `'policies':{'cors':{'allow_origins':['https://x.test']}}`
	_, h := preflighted(t, nil, 1, `
{'name':'any','matches':[{'path':{'prefix':'/'}}],`+forward+`,`+cors+`},
{'name':'read','matches':[{'path':{'prefix':'/a'},'methods':['GET']}],`+forward+`,`+cors+`},
{'name':'write','matches':[{'path':{'prefix':'/a'},'methods':['POST','PUT']}],`+forward+`},
{'name':'flag','matches':[{'path':{'prefix':'/a'},'methods':['GET'],'headers':[{'name':'x-flag','value':{'exact':'1'}}]}],`+forward+`,`+cors+`},
{'name':'not','matches':[{'path':{'prefix':'/n'},'methods':['GET'],'headers':[{'name':'x-flag','value':{'exact':'1'},'invert':true}]}],`+forward+`,`+cors+`},
{'name':'own','matches':[{'path':{'prefix':'/own'},'methods':['OPTIONS','GET']}],`+forward+`},
{'name':'gone','matches':[{'path':{'prefix':'/gone'},'methods':['POST']}],'redirect':{'path':'/'}}`)
	for _, c := range []struct{ path, method, headers, want string }{
		{"/z", "POST", "", "any"},
		{"/a", "GET", "", "read preflight"},
		{"/a", "PUT", "", "write preflight 403"},
		{"/a", "DELETE", "", "any"},
		{"/a", "GET", "content-type,x-flag", "flag preflight"},
		{"/a", "GET", "X-Flag", "flag preflight"},
		{"/a", "GET", "x-flag-2, y-x-flag", "read preflight"},
		{"/n", "GET", "", "not preflight"},
		{"/own", "GET", "", "own"},
		{"/gone", "POST", "", "any"},
	} {
		r := &Request{Method: "OPTIONS", Host: "a.test", Path: c.path, Headers: map[string][]string{"origin": {"https://x.test"}, requestMethod: {c.method}}}
		if c.headers != "" {
			r.Headers[requestHeaders] = []string{c.headers}
		}
		got := "none"
		if e := h.Find(r); e != nil {
			got = e.RuleName
			if e.Preflight {
				got += " preflight"
			}
			if d := e.Rule.GetDirectResponse(); d != nil {
				got += fmt.Sprintf(" %d", d.GetStatus())
				if e.Policies.Protected() || len(e.Backends) > 0 {
					t.Errorf("%+v: something is behind what refuses", c)
				}
			}
		}
		if got != c.want || !IsPreflight(r) {
			t.Errorf("%+v: %s", c, got)
		}
	}
	for _, r := range []*Request{
		{Method: "POST", Headers: map[string][]string{"origin": {"https://x.test"}, requestMethod: {"POST"}}},
		{Method: "OPTIONS", Headers: map[string][]string{"origin": {""}, requestMethod: {"POST"}}},
		{Method: "OPTIONS", Headers: map[string][]string{"origin": {"https://x.test"}}},
	} {
		if IsPreflight(r) {
			t.Errorf("%+v is not a preflight", r)
		}
	}
}

// TestPreflightsComeAndGo: hosts in which no policy answers preflights have no entries for
// them; the others keep theirs, by pointer, when something else changes.
func TestPreflightsComeAndGo(t *testing.T) {
	const plain = `{'name':'post','matches':[{'methods':['POST']}],'forward':{'backends':[{'backend':'b'}]}}`
	const answers = `{'name':'any','forward':{'backends':[{'backend':'b'}]},'policies':{'cors':{'allow_origins':['*']}}}`
	count := func(h *Host) (n int) {
		for _, e := range h.Entries {
			if e.Preflight {
				n++
			}
		}
		return n
	}
	s, h := preflighted(t, nil, 1, plain)
	if count(h) != 0 {
		t.Error("a host without a policy has entries for preflights")
	}
	s, h = preflighted(t, s, 2, plain, objects(t, `route s {'hostnames':['a.test'],'rules':[`+answers+`]}`)...)
	if count(h) != 1 {
		t.Errorf("%d entries for preflights", count(h))
	}
	first := h.Entries[slices.IndexFunc(h.Entries, func(e *Entry) bool { return e.Preflight })]
	s = model.Build(s, 3, Changes{Updates: objects(t, `route t {'hostnames':['a.test'],'rules':[{'matches':[{'path':{'exact':'/t'}}],'redirect':{'path':'/'}}]}`)})
	if h = s.Host("projects/p/gateways/g", "l", "a.test"); !slices.Contains(h.Entries, first) {
		t.Error("the entry is made anew")
	}
	if s = model.Build(s, 4, Changes{Deletes: []string{"projects/p/routes/s"}}); count(s.Host("projects/p/gateways/g", "l", "a.test")) != 0 {
		t.Error("entries for preflights stay behind")
	}
	if got := strings.Join(s.Host("projects/p/gateways/g", "l", "a.test").Entries[0].NotInPreflights(), " "); got != "" {
		t.Error(got)
	}
	if got := (&Entry{Match: &pb.RouteMatch{Headers: []*pb.HeaderMatch{{Name: "cookie"}, {Name: "x-a"}, {Name: "sec-fetch-site"}}}}).NotInPreflights(); strings.Join(got, " ") != "cookie sec-fetch-site" {
		t.Error(got)
	}
}
