package compile_test

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// generator makes configurations and requests for TestExplain, always the same ones from
// one seed.
type generator struct {
	*rand.Rand
	ports []int
	used  int // of ports, by listeners
	// keys are inline key sets of the issuers, by name.
	keys map[string]string
	// backends that are there, by name, with what they do.
	backends map[string]*pb.Backend
}

func pick[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

// oneIn reports true for one call in n.
func (g *generator) oneIn(n int) bool { return g.IntN(n) == 0 }

// some picks up to n different ones.
func some[T any](g *generator, n int, of ...T) []T {
	var out []T
	for _, i := range g.Perm(len(of))[:g.IntN(min(n, len(of))+1)] {
		out = append(out, of[i])
	}
	return out
}

var (
	hostPatterns = []string{"a.test", "b.test", "*.a.test", "*.test", "x.y.a.test", "other.org", "*"}
	pathTexts    = []string{"/", "/a", "/a/", "/a/b", "/ab", "/A/b", "/a/b/c", "/q", "/x%20y", "/v;v=1", "/a%2Fb", "/a//b"}
	pathRegexes  = []string{"/a.*", "/[ab]+", "/a/(b|c)/?", "/.*b", "/(?i:Q)", "/a/[^/]*"}
	issuers      = []string{"https://one.test", "https://two.test"}
	methodSets   = [][]string{nil, nil, nil, {"GET"}, {"POST"}, {"GET", "POST"}, {"DELETE", "PUT", "PATCH"}, {"PURGE"}}
)

// configuration makes the objects of one state.
func (g *generator) configuration() []gateway.Object {
	var out []gateway.Object
	for _, b := range g.backends {
		out = append(out, b)
	}
	for i, issuer := range issuers {
		out = append(out, &pb.Secret{Name: fmt.Sprintf("projects/default/secrets/keys%d", i), Value: &pb.Secret_Jwks{Jwks: g.keys[issuer]}})
	}
	for _, who := range []string{"alice", "bob"} {
		out = append(out, &pb.Consumer{Name: "projects/default/consumers/" + who, Jwt: &pb.JwtIdentity{Issuer: issuers[0], Subject: who}})
	}
	names := []string{"edge"}
	if g.oneIn(3) {
		names = append(names, "second")
	}
	ports := g.ports
	for _, name := range names {
		gw := &pb.Gateway{Name: "projects/default/gateways/" + name, Policies: g.policies(6)}
		for i := range 1 + g.IntN(2) {
			gw.Listeners = append(gw.Listeners, &pb.Listener{
				Name: fmt.Sprintf("l%d", i), Address: "127.0.0.1", Port: uint32(ports[0]), Hostnames: some(g, pick(g, 0, 0, 0, 1, 3), hostPatterns...),
				Edge: g.edge(), TrustedHops: pick(g, uint32(0), 0, 0, 1),
			})
			ports = ports[1:]
			g.used++
		}
		out = append(out, gw)
	}
	for i := range 2 + g.IntN(5) {
		r := &pb.Route{
			Name: fmt.Sprintf("projects/default/routes/r%d", i), Hostnames: some(g, pick(g, 0, 3), hostPatterns...),
			RuleOrder: pick(g, pb.RuleOrder_RULE_ORDER_UNSPECIFIED, pb.RuleOrder_RULE_ORDER_UNSPECIFIED, pb.RuleOrder_RULE_ORDER_AS_LISTED), Policies: g.policies(4),
		}
		if g.oneIn(4) {
			r.Gateways = []string{pick(g, names...)}
		}
		for j := range 1 + g.IntN(4) {
			r.Rules = append(r.Rules, g.rule(fmt.Sprintf("rule%d", j)))
		}
		out = append(out, r)
	}
	return out
}

func (g *generator) edge() *pb.EdgeProfile {
	if g.IntN(3) > 0 {
		return nil
	}
	return &pb.EdgeProfile{
		EncodedSlashes:  pick(g, pb.EncodedSlashes_ENCODED_SLASHES_UNSPECIFIED, pb.EncodedSlashes_ENCODED_SLASHES_KEEP, pb.EncodedSlashes_ENCODED_SLASHES_DECODE),
		Semicolons:      pick(g, pb.Semicolons_SEMICOLONS_UNSPECIFIED, pb.Semicolons_SEMICOLONS_KEEP),
		RepeatedSlashes: pick(g, pb.RepeatedSlashes_REPEATED_SLASHES_UNSPECIFIED, pb.RepeatedSlashes_REPEATED_SLASHES_KEEP),
		HeaderUnderscores: pick(g, pb.HeaderUnderscores_HEADER_UNDERSCORES_UNSPECIFIED, pb.HeaderUnderscores_HEADER_UNDERSCORES_ALLOW,
			pb.HeaderUnderscores_HEADER_UNDERSCORES_REFUSE),
		MaxHeaders: pick(g, uint32(0), 0, 20), MaxHeadersKib: pick(g, uint32(0), 0, 2),
	}
}

func (g *generator) rule(name string) *pb.RouteRule {
	r := &pb.RouteRule{Name: name, Policies: g.policies(5)}
	for range g.IntN(3) {
		r.Matches = append(r.Matches, g.match())
	}
	switch g.IntN(6) {
	case 0:
		d := &pb.Redirect{Status: pick(g, uint32(0), 301, 303, 307, 308), Scheme: pick(g, "", "", "https", "http"), Host: pick(g, "", "", "away.test"), Port: pick(g, uint32(0), 0, 80, 443, 8443)}
		switch g.IntN(3) {
		case 0:
			d.Path = pick(g, "/to", "/to?x=1")
		case 1:
			d.PrefixRewrite = pick(g, "/", "/to", "/to/")
		}
		r.Action = &pb.RouteRule_Redirect{Redirect: d}
	case 1:
		r.Action = &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: pick(g, uint32(200), 204, 403, 404, 410, 429, 503), Body: pick(g, "", "said so")}}
	default:
		f := &pb.Forward{PrefixRewrite: pick(g, "", "", "", "/z"), HostRewrite: pick(g, "", "", "h.test")}
		for range pick(g, 1, 1, 1, 2, 3) {
			f.Backends = append(f.Backends, &pb.WeightedBackend{Backend: pick(g, "up", "up", "other", "h2", "refusing", "empty", "mixed", "absent"), Weight: uint32(1 + g.IntN(3))})
			if last := f.Backends[len(f.Backends)-1]; last.GetBackend() == "empty" {
				last.Backend, last.Port = "up", 9
			}
		}
		r.Action = &pb.RouteRule_Forward{Forward: f}
	}
	return r
}

func (g *generator) match() *pb.RouteMatch {
	m := &pb.RouteMatch{Methods: pick(g, methodSets...)}
	if g.IntN(8) > 0 {
		m.Path = &pb.PathMatch{IgnoreCase: g.oneIn(4)}
		switch text := pick(g, pick(g, "/", "/a"), pick(g, pathTexts...)); g.IntN(5) {
		case 0:
			m.Path.Match = &pb.PathMatch_Exact{Exact: text}
		case 1:
			m.Path.Match, m.Path.IgnoreCase = &pb.PathMatch_Regex{Regex: pick(g, pathRegexes...)}, false
		case 2:
			m.Path.Match = &pb.PathMatch_TextPrefix{TextPrefix: text}
		default:
			m.Path.Match = &pb.PathMatch_Prefix{Prefix: text}
		}
	}
	if g.oneIn(4) {
		m.Headers = append(m.Headers, &pb.HeaderMatch{
			Name: pick(g, "x-env", "x-env", "x_env", "host", "x-real-ip", "user-agent", "x-forwarded-proto"), Value: g.text("beta", "prod", "a.test", "http", "https"), Invert: g.oneIn(4),
		})
	}
	if g.oneIn(5) {
		m.Query = append(m.Query, &pb.QueryMatch{Name: pick(g, "q", "r"), Value: g.text("1", "a b", "é")})
	}
	return m
}

// text matches some of the values.
func (g *generator) text(values ...string) *pb.StringMatch {
	v := pick(g, values...)
	switch g.IntN(6) {
	case 0:
		return &pb.StringMatch{Match: &pb.StringMatch_Prefix{Prefix: v[:1]}}
	case 1:
		return &pb.StringMatch{Match: &pb.StringMatch_Suffix{Suffix: v[len(v)-1:]}}
	case 2:
		return &pb.StringMatch{Match: &pb.StringMatch_Regex{Regex: "[a-z]+.?t?a?|1"}}
	case 3:
		return &pb.StringMatch{Match: &pb.StringMatch_Present{Present: g.oneIn(2)}}
	}
	return &pb.StringMatch{Match: &pb.StringMatch_Exact{Exact: v}}
}

// policies are there for one object in n.
func (g *generator) policies(n int) *pb.Policies {
	if !g.oneIn(n) {
		return nil
	}
	p := &pb.Policies{}
	if g.IntN(3) > 0 {
		i := g.IntN(2)
		j := &pb.JwtAuthentication{Issuer: issuers[i], Audiences: pick(g, []string{"app"}, []string{"app", "api"}, []string{"https://app.test/x"}), Optional: g.oneIn(3)}
		j.Keys = &pb.JwtAuthentication_JwksSecret{JwksSecret: fmt.Sprintf("keys%d", i)}
		if g.oneIn(3) {
			j.Keys = &pb.JwtAuthentication_Jwks{Jwks: g.keys[issuers[i]]}
		}
		if !j.Optional && g.oneIn(3) {
			j.Consumers = pick(g, []string{"alice"}, []string{"alice", "bob"})
		}
		if g.oneIn(2) {
			j.ClaimHeaders = []*pb.ClaimHeader{{Claim: pick(g, "sub", "plan", "n", "https://claims.test/x"), Header: "x-claim"}}
		}
		if g.oneIn(4) {
			j.MaxLifetime = durationpb.New(2 * 3600 * 1e9)
		}
		p.Authentication = &pb.AuthenticationPolicy{Jwt: j}
	}
	if g.oneIn(3) {
		p.Cors = pick(g, &pb.CorsPolicy{AllowOrigins: []string{"https://a.test", "https://*.b.test"}, AllowCredentials: true},
			&pb.CorsPolicy{AllowOrigins: []string{"*"}}, &pb.CorsPolicy{Disabled: true})
	}
	if g.oneIn(2) {
		p.RateLimit = &pb.RateLimitPolicy{}
		for i := range 1 + g.IntN(2) {
			p.RateLimit.Limits = append(p.RateLimit.Limits, &pb.RateLimit{
				Name: fmt.Sprintf("limit%d", i), Requests: 5, Window: durationpb.New(60e9), Shadow: g.oneIn(4),
				Key:       pick(g, pb.RateLimitKey_RATE_LIMIT_KEY_UNSPECIFIED, pb.RateLimitKey_RATE_LIMIT_KEY_ADDRESS, pb.RateLimitKey_RATE_LIMIT_KEY_SHARED),
				OnFailure: pick(g, pb.RateLimitFailure_RATE_LIMIT_FAILURE_UNSPECIFIED, pb.RateLimitFailure_RATE_LIMIT_FAILURE_CLOSED),
			})
		}
	}
	return p
}

// sent is a request of HTTP/1.1 as it is written.
type sent struct {
	port         int
	method, host string
	// target is the path with the query.
	target string
	lines  []string
}

func (q *sent) text() string {
	return strings.Join(append([]string{q.method + " " + q.target + " HTTP/1.1", "Host: " + q.host}, q.lines...), "\r\n") + "\r\n\r\n"
}

// explained is the same request for Explain.
func (q *sent) explained() *pb.ExplainRequest {
	return &pb.ExplainRequest{
		Method: q.method, Url: fmt.Sprintf("http://127.0.0.1:%d%s", q.port, q.target), HeaderLines: append([]string{"host: " + q.host}, q.lines...),
	}
}

// request makes one; tokens are made by name.
func (g *generator) request(token func(*generator) string) *sent {
	q := &sent{
		port:   g.ports[g.IntN(g.used)],
		method: pick(g, "GET", "GET", "GET", "GET", "GET", "GET", "POST", "POST", "PUT", "DELETE", "PURGE", "HEAD", "OPTIONS"),
		host:   pick(g, "a.test", "a.test", "b.test", "x.a.test", "x.y.a.test", "c.test", "other.org", "none.example", "127.0.0.1"),
		target: g.path() + pick(g, "", "", "", "?", "?q=1", "?q=2&q=1", "?r=a+b&q=a%20b", "?q=%C3%A9", "?q"),
	}
	if g.oneIn(15) {
		q.method = pick(g, "TRACE", "get", "FOO", "M-SEARCH")
	}
	if g.oneIn(30) {
		q.port = g.ports[3]
	}
	switch g.IntN(10) {
	case 0:
		q.host = strings.ToUpper(q.host[:1]) + q.host[1:]
	case 1:
		q.host += "."
	case 2:
		q.host += fmt.Sprintf(":%d", pick(g, q.port, 80, 443, 8080))
	case 3:
		if g.oneIn(2) {
			break
		}
		q.host = pick(g, q.host+"..", "a b", "a%2etest", "", q.host+":0", "-", "["+q.host+"]")
	}
	if g.oneIn(3) {
		q.lines = append(q.lines, pick(g, "x-env: ", "X-Env: ", "x_env: ", "x-real-ip: ", "user-agent: ")+pick(g, "beta", "prod", "a.test", "http", ""))
	}
	if g.oneIn(10) {
		q.lines = append(q.lines, "x-env: "+pick(g, "beta", "dev"))
	}
	if g.oneIn(8) {
		q.lines = append(q.lines, "X-Forwarded-Proto: "+pick(g, "https", "http", "ftp"))
	}
	if g.oneIn(12) {
		q.lines = append(q.lines, "Content-Type: "+pick(g, "application/grpc", "application/grpc+proto", "application/json"))
	}
	if g.oneIn(15) {
		for i := range 10 + g.IntN(100) {
			q.lines = append(q.lines, fmt.Sprintf("x-many-%d: 1", i))
		}
	}
	if g.oneIn(20) {
		q.lines = append(q.lines, "x-big: "+strings.Repeat("b", pick(g, 1000, 1500, 3000, 50000, 61000, 70000)))
	}
	if g.oneIn(6) {
		q.lines = append(q.lines, "Origin: "+pick(g, "https://a.test", "https://x.b.test", "https://b.test", "null", ""))
		if g.oneIn(2) {
			q.method = "OPTIONS"
			q.lines = append(q.lines, "Access-Control-Request-Method: "+pick(g, "GET", "POST", "PUT", "DELETE"),
				"Access-Control-Request-Headers: "+pick(g, "x-env", "content-type,x-env", "x-other", "X-Real-IP"))
		}
	}
	for range pick(g, 0, 1, 1, 1, 1, 1, 2) {
		if line := token(g); line != "" {
			q.lines = append(q.lines, line)
		}
	}
	return q
}

func (g *generator) path() string {
	p := pick(g, pathTexts[:8]...)
	if g.oneIn(6) {
		p = pick(g, pathTexts...)
	}
	switch g.IntN(8) {
	case 0:
		p += pick(g, "/", "/b", "b", "/b/c", "//", "/.", "/..", "%2F", ";x", "%20", "/%41")
	case 1:
		p = strings.ToUpper(p)
	case 2:
		if g.oneIn(2) {
			break
		}
		p = pick(g, "/a/../q", "//a", "/%61", "/a%00", "/a%2", "/a%3B", "/\\a", "/a%c0%af", "/a\"b", "/a|b", "/é", "/a%7f", "/%%37B", "/%2%34", "/%%37%42", "/%%37x", "/a%2/../b", "/%c0%af/../a", "/.", "/a/./b", "/%2e%2e/a", "/a%5Cb", "/a;x/b")
	}
	return p
}
