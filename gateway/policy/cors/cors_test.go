package cors_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func origins(list ...string) *pb.CorsPolicy { return &pb.CorsPolicy{AllowOrigins: list} }

func regexes(credentials bool, list ...string) *pb.CorsPolicy {
	return &pb.CorsPolicy{AllowOriginRegexes: list, AllowCredentials: credentials}
}

func route(p *pb.CorsPolicy, h *pb.HeadersPolicy) *pb.Route {
	return &pb.Route{Name: "projects/p/routes/r", Policies: &pb.Policies{Cors: p, Headers: h}, Rules: []*pb.RouteRule{{
		Action: &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}},
	}}}
}

// TestBadInput: each mistake is told with its field and how to mend it, and nothing else.
func TestBadInput(t *testing.T) {
	sets := &pb.HeadersPolicy{Response: &pb.HeaderChange{Set: []*pb.Header{{Name: "access-control-allow-origin", Value: "*"}}}}
	for _, c := range []struct {
		policy  *pb.CorsPolicy
		headers *pb.HeadersPolicy
		want    string // "" for none
	}{
		{policy: origins("*")},
		{policy: origins("https://app.test", "http://localhost:3000", "https://*.app.test", "https://[::1]:8443", "https://127.0.0.1:8443", "capacitor://localhost", "https://xn--bcher-kva.test")},
		{policy: &pb.CorsPolicy{Disabled: true}},
		{policy: regexes(true, `https://pr-[0-9]+\.app\.test`, `https?://(?:.*\.)?app\.test(?::[0-9]+)?`)},
		{policy: regexes(false, `https://.*`)},

		{policy: &pb.CorsPolicy{AllowCredentials: true}, want: "allow_origins: names no origin"},
		{policy: &pb.CorsPolicy{Disabled: true, AllowOrigins: []string{"*"}}, want: "disabled: switches CORS off, but other fields"},
		{policy: &pb.CorsPolicy{Disabled: true, MaxAge: durationpb.New(time.Second)}, want: "disabled: switches CORS off, but other fields"},
		{policy: origins("null"), want: `allow_origins[0]: "null" is what browsers send for every page without an origin`},
		{policy: origins("app.test"), want: `allow_origins[0]: "app.test" must begin with a scheme`},
		{policy: origins("//app.test"), want: "must begin with a scheme"},
		{policy: origins("https://app.test/"), want: "is a URL; an origin is a scheme, a host and perhaps a port"},
		{policy: origins("https://user@app.test"), want: "is a URL"},
		{policy: origins("https://app.test:443"), want: "names the default port of its scheme, which browsers never send; remove :443"},
		{policy: origins("http://app.test:80"), want: "remove :80"},
		{policy: origins("https://app.test:0"), want: "has a port that is not a number from 1 to 65535"},
		{policy: origins("https://app.test:"), want: "has a port"},
		{policy: origins("https://app.*.test"), want: `has "*" inside`},
		{policy: origins("https://*app.test"), want: `has "*" inside`},
		{policy: origins("https://*"), want: `has "*" inside`},
		{policy: origins("https://*.test"), want: "every host of a top-level domain"},
		{policy: origins("https://bücher.test"), want: "xn--"},
		{policy: origins("https://::1"), want: "has a"},
		{policy: &pb.CorsPolicy{AllowOrigins: []string{"*"}, AllowCredentials: true}, want: "allow_origins[0]: is every origin, so with allow_credentials"},
		{policy: origins("https://app.test", "https://APP.test"), want: "allow_origins"},
		{policy: regexes(false, `(`), want: "allow_origin_regexes[0]: \"(\" is no"},
		{policy: regexes(false, `.*\.app\.test`), want: "must begin with https://"},
		{policy: regexes(false, `https://a|null`), want: `matches "null" or "*"`},
		{policy: regexes(false, `https://a\.test|.*`), want: `matches "null" or "*"`},
		{policy: regexes(true, `https?://.*`), want: "matches every origin, so with allow_credentials"},
		{policy: regexes(true, `https://[^/]+`), want: "matches every origin, so with allow_credentials"},
		{policy: &pb.CorsPolicy{AllowOrigins: []string{"*"}, AllowMethods: []string{"GET", "*"}}, want: `allow_methods[1]: is "*" beside other values`},
		{policy: &pb.CorsPolicy{AllowOrigins: []string{"*"}, AllowHeaders: []string{"*", "x-a"}}, want: `allow_headers[0]: is "*" beside other values`},
		{policy: &pb.CorsPolicy{AllowOrigins: []string{"*"}, AllowHeaders: []string{"x a"}}, want: "allow_headers[0]"},
		{policy: &pb.CorsPolicy{AllowOrigins: []string{"https://app.test"}, AllowCredentials: true, ExposeHeaders: []string{"*"}}, want: "expose_headers: browsers take"},
		{policy: &pb.CorsPolicy{AllowOrigins: []string{"*"}, MaxAge: durationpb.New(1500 * time.Millisecond)}, want: "max_age: must be a whole number of seconds, got 1.5s"},
		{policy: &pb.CorsPolicy{AllowOrigins: []string{"*"}, MaxAge: durationpb.New(48 * time.Hour)}, want: "max_age"},
		{policy: origins("*"), headers: sets, want: "policies.cors: and headers.response of the same policies both say access-control-allow-origin"},
	} {
		r := route(c.policy, c.headers)
		policies.Model().Normalize(r)
		var got []string
		for _, p := range policies.Model().Validate(r) {
			got = append(got, p.Field+": "+p.Message)
		}
		if c.want == "" && got != nil || c.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], "policies.cors") || !strings.Contains(got[0], c.want)) {
			t.Errorf("%v: %q, want %q", c.policy, got, c.want)
		}
	}
}

// TestWarnings: what is valid and lets in more than is meant, or does nothing, is told.
func TestWarnings(t *testing.T) {
	forward := func(methods []string, headers ...string) *pb.RouteRule {
		m := &pb.RouteMatch{Methods: methods}
		for _, h := range headers {
			m.Headers = append(m.Headers, &pb.HeaderMatch{Name: h, Value: &pb.StringMatch{Match: &pb.StringMatch_Exact{Exact: "1"}}})
		}
		return &pb.RouteRule{Matches: []*pb.RouteMatch{m}, Action: &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "b"}}}}}
	}
	direct := &pb.RouteRule{Action: &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}}, Policies: &pb.Policies{Cors: origins("*")}}
	for _, c := range []struct {
		policy *pb.CorsPolicy
		rule   *pb.RouteRule
		want   string
	}{
		{origins("https://app.test"), forward(nil), ""},
		{&pb.CorsPolicy{AllowOrigins: []string{"http://app.test"}, AllowCredentials: true}, forward(nil), "is not encrypted"},
		{&pb.CorsPolicy{AllowOrigins: []string{"http://localhost:3000", "http://127.0.0.1"}, AllowCredentials: true}, forward(nil), ""},
		{regexes(false, `https://app.example\.test`), forward(nil), `has a dot before "example.test"`},
		{regexes(false, `https://.*example\.test`), forward(nil), `a host such as evilexample.test is allowed`},
		{regexes(false, `https://[a-z]+example\.test`), forward(nil), `a host such as evilexample.test is allowed`},
		{regexes(false, `https://.*\.example\.test(:[0-9]+)?`), forward(nil), ""},
		{regexes(false, `https://app\.test.*`), forward(nil), "lets any text follow"},
		{origins("*"), forward([]string{"POST"}, "x-a"), ""},
		{origins("*"), forward([]string{"POST"}, "cookie"), "no preflight tells of the header cookie"},
		{nil, direct, "holds for forwarded requests only"},
	} {
		r := route(c.policy, nil)
		r.Rules = []*pb.RouteRule{c.rule}
		s := policies.Model().Build(nil, 1, gateway.Changes{Updates: []gateway.Object{
			&pb.Gateway{Name: "projects/p/gateways/g", Listeners: []*pb.Listener{{Name: "l", Port: 80}}}, &pb.Backend{Name: "projects/p/backends/b"}, r,
		}})
		var got []string
		for _, w := range slices.Concat(policies.Model().Warnings(r), s.PolicyWarnings([]string{r.GetName()})) {
			got = append(got, w.Message)
		}
		if c.want == "" && got != nil || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%v: %q, want %q", c.policy, got, c.want)
		}
	}
}

// TestPage: the example of the page is valid, and nothing of it is warned of.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../../docs/cors.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\n")
	example, _, found := strings.Cut(rest, "```")
	objects, errs := file.Decode("cors.md", []byte(example))
	if !found || len(errs) > 0 || len(objects) != 1 {
		t.Fatal(errs, len(objects))
	}
	policies.Model().Normalize(objects[0])
	if got := slices.Concat(policies.Model().Validate(objects[0]), policies.Model().Warnings(objects[0])); got != nil {
		t.Error(got)
	}
}
