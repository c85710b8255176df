package istio_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	"github.com/penstock-gateway/penstock/gateway/source/kubernetes/istio"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// applied is a store of Backends to which files are applied one after the other.
type applied map[string]*pb.Backend

// apply reads a file as `penstock apply` does and returns what is wrong with it.
func (a applied) apply(t *testing.T, yaml string) string {
	t.Helper()
	calls := 0
	set, errs := file.Options{Stored: func(names []string) (out []*pb.Backend) {
		calls++
		for _, n := range names {
			if b := a[n]; b != nil {
				out = append(out, b)
			}
		}
		return out
	}}.Decode("x.yaml", []byte(yaml))
	if calls > 1 {
		t.Errorf("the store was asked %d times", calls)
	}
	if len(errs) > 0 {
		return errs.Error()
	}
	for _, o := range set.Objects() {
		b, ok := o.(*pb.Backend)
		if !ok {
			continue
		}
		if before := a[b.GetName()]; before != nil && b.GetMetadata().GetEtag() != "" && b.GetMetadata().GetEtag() != before.GetMetadata().GetEtag() {
			t.Errorf("etag %q, stored is %q", b.GetMetadata().GetEtag(), before.GetMetadata().GetEtag())
		}
		if bad := set.Locate([]gateway.Problem{{Object: b.GetName(), Field: "static", Message: "bad"}}); bad[0].File != "x.yaml" || bad[0].Line == 0 {
			t.Errorf("a problem of %s is at %v", b.GetName(), bad)
		}
		b = proto.CloneOf(b)
		b.Metadata.Etag, b.Metadata.Uid = "e"+string(rune('a'+len(b.GetSubsets()))), "uid"
		a[b.GetName()] = b
	}
	return ""
}

func ruleFor(name, rest string) string {
	return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: " + name + "}\nspec: {host: a, " + rest + "}\n"
}

// TestRuleAlone: a DestinationRule that is applied alone changes the Backend that is stored,
// takes the place of what a rule of its name was before, and leaves all else.
func TestRuleAlone(t *testing.T) {
	const full, pool = "projects/default/backends/a", "static: {endpoints: [{address: 127.0.0.1, port: 1, labels: {v: \"1\"}}, {address: 127.0.0.1, port: 2, labels: {v: \"2\"}}]}\n"
	a := applied{}
	want := func(step, subsets string, lb pb.LoadBalancing, note string) {
		t.Helper()
		b := a[full]
		var got []string
		for _, s := range b.GetSubsets() {
			got = append(got, s.GetName()+"="+s.GetLabels()["v"])
		}
		slices.Sort(got)
		if s := strings.Join(got, " "); s != subsets || b.GetLoadBalancing() != lb || len(b.GetStatic().GetEndpoints()) != 2 || b.GetMetadata().GetAnnotations()[istio.RulesAnnotation] != note {
			t.Errorf("%s: subsets %q, %v, %v", step, s, b.GetLoadBalancing(), b.GetMetadata())
		}
	}
	const none, random, robin = pb.LoadBalancing_LOAD_BALANCING_UNSPECIFIED, pb.LoadBalancing_LOAD_BALANCING_RANDOM, pb.LoadBalancing_LOAD_BALANCING_ROUND_ROBIN
	both := "subsets: [{name: one, labels: {v: \"1\"}}, {name: two, labels: {v: \"2\"}}]"
	for _, step := range []struct {
		name, yaml, refused string
		subsets             string
		lb                  pb.LoadBalancing
		note                string
	}{
		{"the rule first", ruleFor("r", both), `neither the files that are read together nor the store have a "kind: Backend" with "name: a"`, "", none, ""},
		{"the Backend", "kind: Backend\nname: a\n" + pool, "", "", none, ""},
		{"the rule", ruleFor("r", both), "", "one=1 two=2", none, "default/r=subsets.one subsets.two"},
		{"again", ruleFor("r", both), "", "one=1 two=2", none, "default/r=subsets.one subsets.two"},
		{"other labels", ruleFor("r", "subsets: [{name: one, labels: {v: \"2\"}}]"), "", "one=2", none, "default/r=subsets.one"},
		{"another rule", ruleFor("q", "trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: three, labels: {v: \"1\"}}]"), "", "one=2 three=1", random, "default/q=load_balancing subsets.three; default/r=subsets.one"},
		{"a rule against another", ruleFor("r", "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}"), "the Backend has load_balancing LOAD_BALANCING_RANDOM", "one=2 three=1", random, "default/q=load_balancing subsets.three; default/r=subsets.one"},
		{"the other one changed", ruleFor("q", "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}"), "", "one=2", robin, "default/q=load_balancing; default/r=subsets.one"},
		{"nothing left of it", ruleFor("q", "subsets: []"), "", "one=2", none, "default/r=subsets.one"},
		{"what the Backend says itself", "kind: Backend\nname: a\nload_balancing: RANDOM\nsubsets: [{name: own, labels: {v: \"1\"}}]\n" + pool, "", "own=1", random, ""},
		{"agrees", ruleFor("r", "trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: own, labels: {v: \"1\"}}]"), "", "own=1", random, ""},
		{"does not agree", ruleFor("r", "subsets: [{name: own, labels: {v: \"2\"}}]"), `subset "own" is there already with other labels`, "own=1", random, ""},
		{"both in one file", "kind: Backend\nname: a\n" + pool + "---\n" + ruleFor("r", both), "", "one=1 two=2", none, "default/r=subsets.one subsets.two"},
		{"then alone", ruleFor("r", "subsets: [{name: two, labels: {v: \"1\"}}]"), "", "two=1", none, "default/r=subsets.two"},
	} {
		if got := a.apply(t, step.yaml); step.refused == "" && got != "" || !strings.Contains(got, step.refused) {
			t.Errorf("%s: %q, want %q", step.name, got, step.refused)
		}
		if len(a) > 0 {
			want(step.name, step.subsets, step.lb, step.note)
		}
	}
}
