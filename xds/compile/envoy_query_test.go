package compile_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/gateway/explain"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// testQuery: a parameter that a client encodes reaches the rule for its value, however it is
// encoded, and explain says the same as Envoy.
func testQuery(t *testing.T, r *rig) {
	random := rand.New(rand.NewPCG(5, 6))
	values := []string{"a b", "a+b", "x&y=z", "#1", "é", "日本", "50%", "a/b?c", "plain", "\"q\"", "a;b", "{}", " ", "+", "%", "\t"}
	const letters = "ab +&=#%;/?é'\"<>|~"
	for len(values) < 60 {
		var b strings.Builder
		for range 1 + random.IntN(5) {
			b.WriteRune([]rune(letters)[random.IntN(len([]rune(letters)))])
		}
		if u, err := url.PathUnescape(b.String()); err != nil || u == b.String() { // no escapes of its own
			values = append(values, b.String())
		}
	}
	var rules strings.Builder
	rules.WriteString("---\nkind: Route\nname: all\nrules:\n")
	for i, v := range values {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&rules, "- {name: v%d, matches: [{path: {exact: /v%d}, query: [{name: q, value: {exact: %s}}]}], direct_response: {status: 200}}\n", i, i, text)
	}
	port := r.serve(t, gatewayOn+rules.String())
	check := func(i int, raw string, want bool) {
		target := fmt.Sprintf("/v%d?x=1&q=%s&q=other", i, raw)
		a := r.do(t, port, "GET", "a.x.test"+target)
		x := explain.Explain(r.snapshot, &pb.ExplainRequest{Method: "GET", Url: fmt.Sprintf("http://a.x.test:%d%s", port, target)}, nil)
		if (a.status == 200) != want || outcome(t, x) != a.status {
			t.Errorf("%q as %s: %d, want a match: %t; explain says %q", values[i], raw, a.status, want, x.GetOutcome().GetText())
		}
	}
	for i, v := range values {
		form := url.QueryEscape(v)
		check(i, form, true)
		check(i, strings.ReplaceAll(form, "+", "%20"), true)
		check(i, strings.ToLower(form), strings.ToLower(v) == v)
		check(i, form+"x", false)
		check(i, "x"+form, false)
		check(i, strings.ReplaceAll(form, "%", "%25"), form == strings.ReplaceAll(form, "%", "%25"))
	}
}
