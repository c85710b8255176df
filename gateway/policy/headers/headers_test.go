package headers_test

import (
	"fmt"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/headers"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func change(set, add, remove string) *pb.HeaderChange {
	list := func(s string) (out []*pb.Header) {
		for _, f := range strings.Fields(s) {
			name, value, _ := strings.Cut(f, "=")
			out = append(out, &pb.Header{Name: name, Value: value})
		}
		return out
	}
	return &pb.HeaderChange{Set: list(set), Add: list(add), Remove: strings.Fields(remove)}
}

func TestNet(t *testing.T) {
	for name, c := range map[string]struct {
		levels []*pb.HeaderChange
		want   string
	}{
		"nothing":                           {[]*pb.HeaderChange{nil, {}}, "[]"},
		"one of each":                       {[]*pb.HeaderChange{change("a=1", "b=2", "c")}, "[{c true []} {a true [1]} {b false [2]}]"},
		"the nearer set wins":               {[]*pb.HeaderChange{change("a=1", "", ""), change("a=2", "", "")}, "[{a true [2]}]"},
		"a set undoes an add":               {[]*pb.HeaderChange{change("", "a=1", ""), change("a=2", "", "")}, "[{a true [2]}]"},
		"an add keeps a set":                {[]*pb.HeaderChange{change("a=1", "", ""), change("", "a=2", "")}, "[{a true [1 2]}]"},
		"a remove undoes a set":             {[]*pb.HeaderChange{change("a=1", "", ""), change("", "", "a")}, "[{a true []}]"},
		"a set undoes a remove":             {[]*pb.HeaderChange{change("", "", "a"), change("a=1", "", "")}, "[{a true [1]}]"},
		"an add after a remove":             {[]*pb.HeaderChange{change("", "", "a"), change("", "a=1", "")}, "[{a true [1]}]"},
		"adds add up":                       {[]*pb.HeaderChange{change("", "a=1 a=2", ""), change("", "a=3", "")}, "[{a false [1 2 3]}]"},
		"within a level a remove is before": {[]*pb.HeaderChange{change("a=1", "", "a")}, "[{a true [1]}]"},
	} {
		if got := fmt.Sprint(headers.Net(c.levels)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestApply(t *testing.T) {
	r := &routev3.Route{}
	headers.Apply(r, []gateway.Sourced[*pb.HeadersPolicy]{
		{Value: &pb.HeadersPolicy{Request: change("a=50%", "b=x", "c"), Response: change("d=%REQ(a)%", "", "")}},
		{Value: &pb.HeadersPolicy{Request: change("", "a=2", "b"), Response: change("", "", "e")}},
	})
	var got []string
	for _, h := range r.GetRequestHeadersToAdd() {
		got = append(got, fmt.Sprintf("%s=%s %s", h.GetHeader().GetKey(), h.GetHeader().GetValue(), h.GetAppendAction()))
	}
	for _, h := range r.GetResponseHeadersToAdd() {
		got = append(got, fmt.Sprintf("response %s=%s %s", h.GetHeader().GetKey(), h.GetHeader().GetValue(), h.GetAppendAction()))
	}
	want := "[a=50%% OVERWRITE_IF_EXISTS_OR_ADD a=2 APPEND_IF_EXISTS_OR_ADD response d=%%REQ(a)%% OVERWRITE_IF_EXISTS_OR_ADD]"
	if fmt.Sprint(got) != want || fmt.Sprint(r.GetRequestHeadersToRemove()) != "[c b]" || fmt.Sprint(r.GetResponseHeadersToRemove()) != "[e]" {
		t.Errorf("%v %v %v", got, r.GetRequestHeadersToRemove(), r.GetResponseHeadersToRemove())
	}
}
