package compile_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	rand2 "crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/explain"
	"github.com/penstock-gateway/penstock/gateway/policies"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// TestExplain: what explain foresees is what Envoy does, over generated configurations and
// requests: status, code, redirect, rule, deciding limits and callers, and which backend
// answers. PENSTOCK_EXPLAIN=SEED:CONFIGURATIONS runs others.
func TestExplain(t *testing.T) {
	seed, configurations := uint64(11), 40
	also := []uint64{2119} // a token without a subject, and a limit for each consumer
	if s := os.Getenv("PENSTOCK_EXPLAIN"); s != "" {
		a, b, _ := strings.Cut(s, ":")
		var err1, err2 error
		seed, err1 = strconv.ParseUint(a, 10, 64)
		configurations, err2 = strconv.Atoi(b)
		if err1 != nil || err2 != nil {
			t.Fatalf("PENSTOCK_EXPLAIN=%q is not SEED:CONFIGURATIONS", s)
		}
		also = nil
	}
	for i := range configurations {
		also = append(also, seed+uint64(i))
	}
	c := newComparison(t)
	for _, seed := range also {
		c.compare(t, seed)
		if t.Failed() {
			t.Fatalf("PENSTOCK_EXPLAIN=%d:1 runs this configuration alone", seed)
		}
	}
	t.Logf("seed %d: %d configurations, %d requests, 0 differences; decided by %v", seed, len(also), c.requests, c.deciders)
}

const requestsEach = 80

// comparison is a rig with backends of several kinds.
type comparison struct {
	*rig
	keys     map[string]*ecdsa.PrivateKey
	sets     map[string]string
	other    *upstream
	refusing uint32 // a port that refuses connections
	requests int
	timeouts uint64 // of calls to the limiter
	deciders map[string]int
}

func newComparison(t *testing.T) *comparison {
	c := &comparison{rig: newRig(t), keys: map[string]*ecdsa.PrivateKey{}, sets: map[string]string{}, other: newUpstream(t), refusing: refusingPort(t), deciders: map[string]int{}}
	for _, issuer := range issuers {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand2.Reader)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "one", Algorithm: "ES256", Use: "sig"}}})
		if err != nil {
			t.Fatal(err)
		}
		c.keys[issuer], c.sets[issuer] = key, string(b)
	}
	return c
}

// refusingPort is one that is bound, so that nobody else gets it, and does not listen.
func refusingPort(t *testing.T) uint32 {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	a, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(a.(*syscall.SockaddrInet4).Port)
}

// backends are an answering one of each kind, one that refuses, and one that does both.
func (c *comparison) backends() map[string]*pb.Backend {
	at := func(name string, protocol pb.BackendProtocol, ports ...uint32) *pb.Backend {
		b := &pb.Backend{Name: "projects/default/backends/" + name, Protocol: protocol}
		s := &pb.StaticTarget{}
		for _, p := range ports {
			s.Endpoints = append(s.Endpoints, &pb.Endpoint{Address: "127.0.0.1", Port: p})
		}
		b.Target = &pb.Backend_Static{Static: s}
		return b
	}
	const h1, h2 = pb.BackendProtocol_BACKEND_PROTOCOL_UNSPECIFIED, pb.BackendProtocol_BACKEND_PROTOCOL_H2C
	return map[string]*pb.Backend{
		"up": at("up", h1, c.upstream.endpoint.Port), "other": at("other", h1, c.other.endpoint.Port), "h2": at("h2", h2, c.upstream.endpoint.Port),
		"refusing": at("refusing", h1, c.refusing), "mixed": at("mixed", h1, c.refusing, c.other.endpoint.Port),
	}
}

// compare applies one configuration and sends requests to it.
func (c *comparison) compare(t *testing.T, seed uint64) {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 1)), keys: c.sets, backends: c.backends()}
	for range 4 {
		g.ports = append(g.ports, envoytest.FreePort(t))
	}
	objects := c.valid(t, g.configuration())
	if g.oneIn(3) {
		compile.SetTrees(t, 1)
		c.setEager(0)
	}
	c.apply(t, objects)
	open := map[int]bool{}
	for _, gw := range c.snapshot.Gateways() {
		for _, l := range gw.GetListeners() {
			open[int(l.GetPort())] = true
			c.open(t, int(l.GetPort()))
		}
	}
	mode := pick(g, "ok", "ok", "over", "broken")
	c.limiter.setOver(mode == "over")
	c.limiter.setBroken(mode == "broken")
	traces := map[string]*foreseen{}
	for range requestsEach {
		q := g.request(c.authorization)
		f := &foreseen{request: q, out: explain.Explain(c.snapshot, q.explained(), nil), mode: mode}
		c.requests++
		c.deciders[strings.TrimPrefix(f.out.GetOutcome().GetDecidedBy().String(), "EXPLAIN_DECIDER_")]++
		if !open[q.port] {
			if f.out.GetOutcome().GetDecidedBy() != pb.ExplainDecider_EXPLAIN_DECIDER_LISTENER && f.out.GetOutcome().GetCode() != gateway.BadHost.Code {
				t.Errorf("%s: nothing listens there, and explain says %v", q.text(), f.out.GetOutcome())
			}
			continue
		}
		f.judge(t, c)
		if id := f.got.header.Get("x-trace-id"); id != "" {
			traces[id] = f
		}
	}
	c.routes(t, traces)
	if t.Failed() {
		for _, o := range objects {
			if b, err := json.Marshal(gateway.ToResource(o)); err == nil && !strings.Contains(o.GetName(), "/secrets/") {
				t.Logf("%s", b)
			}
		}
	}
}

// valid leaves out routes that would be refused, for matches that nothing satisfies or
// changes that do not go together. What refers to what is not there stays: a stored state
// may hold it.
func (c *comparison) valid(t *testing.T, all []gateway.Object) []gateway.Object {
	var out []gateway.Object
	for _, o := range all {
		policies.Model().Normalize(o)
		if problems := policies.Model().Validate(o); len(problems) == 0 {
			out = append(out, o)
		} else if _, route := o.(*pb.Route); !route {
			t.Fatalf("%s: %v", o.GetName(), problems)
		}
	}
	return out
}

// foreseen is a request with what explain says of it and what came.
type foreseen struct {
	request *sent
	out     *pb.ExplainResponse
	mode    string // of the limiter
	got     answer
}

func (f *foreseen) errorf(t *testing.T, format string, args ...any) {
	t.Helper()
	o := f.out.GetOutcome()
	t.Errorf("%.600s\n  got %d %q %.120q\n  explain: %s %s%s, rule %s of %s, listener %s, limiter %s\n  %s", f.request.text(), f.got.status, f.got.header, f.got.body,
		o.GetText(), o.GetCode(), o.GetLocation(), f.out.GetRule().GetRule(), f.out.GetRule().GetRoute(), f.out.GetListener(), f.mode, fmt.Sprintf(format, args...))
}

// outcomeTexts are the lines of outcomes.
func outcomeTexts(all []*pb.ExplainOutcome) (out []string) {
	for _, o := range all {
		out = append(out, o.GetText())
	}
	return out
}

// judge sends the request and compares the answer.
func (f *foreseen) judge(t *testing.T, c *comparison) {
	before := []int{c.upstream.count(), c.other.count()}
	c.limiter.take()
	f.got = c.exchange(t, f.request)
	reached := []int{c.upstream.count() - before[0], c.other.count() - before[1]}
	calls := c.limiter.take()
	want := f.expected()
	i := slices.IndexFunc(want, func(o *pb.ExplainOutcome) bool { return f.same(t, o) })
	if i < 0 && c.limiterTimedOut(t) {
		f.mode = "broken" // an outage, on a busy machine
		want = f.expected()
		i = slices.IndexFunc(want, func(o *pb.ExplainOutcome) bool { return f.same(t, o) })
	}
	if i < 0 {
		f.errorf(t, "want one of %q", outcomeTexts(want))
		return
	}
	o := want[i]
	if passes := o.GetStatus() == 200 && o.GetDecidedBy() == pb.ExplainDecider_EXPLAIN_DECIDER_BACKEND; passes != (f.got.header.Get("x-from-upstream") != "") || !passes && slices.Max(reached) > 0 {
		f.errorf(t, "reached %v", reached)
	}
	for j, names := range [][]string{{"up", "h2"}, {"other", "mixed"}} {
		if reached[j] > 0 && !slices.ContainsFunc(f.out.GetBackends(), func(b *pb.ExplainBackend) bool {
			return slices.Contains(names, b.GetName()[strings.LastIndexByte(b.GetName(), '/')+1:]) && b.GetPercent() > 0
		}) {
			f.errorf(t, "reached %v, want one of %v", reached, f.out.GetBackends())
		}
	}
	f.limits(t, calls)
}

// limiterTimedOut reports whether a call to the limiter has taken too long for Envoy since
// it was last asked for.
func (c *comparison) limiterTimedOut(t *testing.T) bool {
	before := c.timeouts
	c.timeouts = c.envoy.Stat(t, "cluster.penstock.limiter.upstream_rq_timeout")
	return c.timeouts > before
}

// expected is what of the outcome can be, given how limiter and backends do here.
func (f *foreseen) expected() []*pb.ExplainOutcome {
	o := f.out.GetOutcome()
	for _, m := range o.GetMayBe() {
		if m.GetDecidedBy() == pb.ExplainDecider_EXPLAIN_DECIDER_LIMIT && (m.GetStatus() == 429 && f.mode == "over" || m.GetStatus() == 503 && f.mode == "broken") {
			return []*pb.ExplainOutcome{m}
		}
	}
	if o.GetCertain() || o.GetStatus() != 200 && len(f.out.GetBackends()) < 2 {
		return []*pb.ExplainOutcome{o}
	}
	var answers, refuses bool
	for _, b := range f.out.GetBackends() {
		switch {
		case strings.HasSuffix(b.GetName(), "/refusing"):
			refuses = true
		case strings.HasSuffix(b.GetName(), "/mixed"):
			answers, refuses = true, true
		default:
			answers = true
		}
	}
	all := append([]*pb.ExplainOutcome{o}, o.GetMayBe()...)
	return slices.DeleteFunc(all, func(o *pb.ExplainOutcome) bool {
		switch {
		case o.GetDecidedBy() == pb.ExplainDecider_EXPLAIN_DECIDER_LIMIT, o.GetStatus() == 504, o.GetStatus() == 502:
			return true
		case o.GetStatus() == 200:
			return !answers
		case o.GetCertain(), o.GetCode() == gateway.NoEndpoint.Code && len(f.out.GetBackends()) > 1:
			return false
		}
		return !refuses
	})
}

// same reports whether the answer is the outcome.
func (f *foreseen) same(t *testing.T, o *pb.ExplainOutcome) bool {
	status, code := f.got.status, o.GetCode()
	if s := f.got.header.Get("grpc-status"); s != "" && f.got.header.Get("x-from-upstream") == "" {
		return status == 200 && s == fmt.Sprint(o.GetGrpcStatus())
	}
	if f.request.method == http.MethodHead {
		code = "" // there is no body
	}
	return status == int(o.GetStatus()) && (code == "" && f.request.method == http.MethodHead || f.got.code(t) == code) && strings.EqualFold(f.got.header.Get("location"), o.GetLocation())
}

// limits compares what the limiter was asked with the limits that explain names.
func (f *foreseen) limits(t *testing.T, calls [][]string) {
	var named []*pb.ExplainPolicy
	for _, p := range f.out.GetPolicies() {
		if p.GetPolicy() == "rate_limit" && !strings.Contains(p.GetSummary(), "not asked here") {
			named = append(named, p)
		}
	}
	behind := f.out.GetOutcome().GetDecidedBy() == pb.ExplainDecider_EXPLAIN_DECIDER_AUTHENTICATION && len(f.out.GetOutcome().GetMayBe()) == 0
	if len(calls) == 0 {
		if len(named) > 0 && !behind && f.mode != "broken" {
			f.errorf(t, "the limiter was not asked, want %v", named)
		}
		return
	}
	if len(calls[0])-1 != len(named) {
		f.errorf(t, "the limiter was asked %q, want %v", calls, named)
		return
	}
	for i, d := range calls[0][1:] {
		from, _, _ := strings.Cut(named[i].GetFrom(), ":")
		name, _, _ := strings.Cut(strings.TrimPrefix(named[i].GetSummary(), `"`), `"`)
		if !strings.Contains(d, from) || !strings.Contains(d, "#"+name) {
			f.errorf(t, "the limiter was asked %q, want %v", d, named[i])
		}
	}
	// Who is counted: the outcomes of limits say so.
	for _, m := range f.out.GetOutcome().GetMayBe() {
		_, who, subject := strings.Cut(m.GetText(), "for subject ")
		if subject {
			sub, _ := strconv.QuotedPrefix(who)
			if s, _ := strconv.Unquote(sub); !strings.Contains(strings.Join(calls[0], "\n"), "sub="+s) {
				f.errorf(t, "the limiter was asked %q, want subject %s", calls, sub)
			}
		}
	}
}

// routes compares the routes that the spans of requests name.
func (c *comparison) routes(t *testing.T, traces map[string]*foreseen) {
	for id, f := range traces {
		name := c.routeOf(t, id)
		r := f.out.GetRule()
		switch f.out.GetOutcome().GetDecidedBy() {
		case pb.ExplainDecider_EXPLAIN_DECIDER_EDGE:
			continue
		case pb.ExplainDecider_EXPLAIN_DECIDER_ROUTE_MATCH, pb.ExplainDecider_EXPLAIN_DECIDER_METHOD:
			if strings.HasPrefix(name, "projects/") {
				f.errorf(t, "the route was %q", name)
			}
			continue
		}
		if !strings.HasPrefix(name, r.GetRoute()+"/"+r.GetRule()+"/") {
			f.errorf(t, "the route was %q", name)
		}
	}
}

// routeOf waits for the span of a request, and returns the route that it names.
func (c *comparison) routeOf(t *testing.T, id string) (name string) {
	poll(t, "the span of trace "+id, func() bool {
		for _, s := range c.spans.trace(t, id, 1) {
			if s.GetKind() != tracev1.Span_SPAN_KIND_SERVER {
				continue
			}
			for _, a := range s.GetAttributes() {
				if a.GetKey() == "penstock.route" {
					name = a.GetValue().GetStringValue()
				}
			}
			return true
		}
		return false
	})
	return name
}

// exchange sends a request as it is. A connection that is closed without an answer has
// status 0.
func (r *rig) exchange(t *testing.T, q *sent) answer {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", q.port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, q.text()); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: q.method})
	if err != nil {
		return answer{body: err.Error(), header: http.Header{}}
	}
	b, _ := io.ReadAll(res.Body)
	return answer{status: res.StatusCode, header: res.Header, body: string(b)}
}

// authorization makes a header line with a token of some kind, good and bad; "" for none.
func (c *comparison) authorization(g *generator) string {
	if g.oneIn(5) {
		return ""
	}
	issuer := pick(g, issuers...)
	now := time.Now().Unix()
	header := map[string]any{"alg": "ES256", "kid": "one", "typ": "JWT"}
	claims := map[string]any{"iss": issuer, "aud": "app", "sub": pick(g, "alice", "alice", "bob", "carol"), "exp": now + 3600, "plan": "gold", "n": 7}
	key := c.keys[issuer]
	switch g.IntN(30) {
	case 0:
		claims["aud"] = pick[any](g, "foreign", []string{"x", "app"}, []string{"api"}, "https://app.test/x", "app.test/x", "app/", []any{"app", 1}, nil, "")
	case 1:
		claims["exp"] = pick[any](g, now-3600, 0, nil, "soon", now+3*3600, now+30*3600, 5e9, 1e17, 1e19, 2e19, -1)
	case 2:
		claims["iss"] = pick[any](g, "https://three.test", nil, 1, issuer+"/")
	case 3:
		claims["nbf"] = pick[any](g, now-60, now+3600, "x")
	case 4:
		claims["iat"] = pick[any](g, now-60, now+3600, "x", -5, 5e9)
	case 5:
		claims["sub"] = pick[any](g, " alice", "al\nice", nil, 7, "", "é")
	case 6:
		claims["plan"] = pick[any](g, " gold", "a\rb", 1.5, true, []string{"a"}, nil, map[string]any{"a": 1}, -3)
		claims["n"] = pick[any](g, 1.5, -1, 1e17, "7")
		claims["https://claims.test/x"] = pick[any](g, "yes", " no", 3)
	case 7:
		header["kid"] = pick[any](g, "two", nil, "", 1)
	case 8:
		header["alg"] = pick[any](g, "none", "RS256", "HS256", "es256", nil)
	case 9:
		header["crit"] = []string{"exp"}
	case 10:
		key = c.keys[issuers[(slices.Index(issuers, issuer)+1)%2]]
	}
	token := signed(header, claims, key)
	switch g.IntN(25) {
	case 0:
		return "Authorization: " + pick(g, "Basic YTpi", "Bearer", "Bearer ", token, "", "Bearer a.b.c", "Bearer ..", "Bearer  ")
	case 1:
		return "Authorization: " + pick(g, "bearer ", "BEARER  ", "Basic ", "Bearer x ", "xBearer ", "Bearer \"") + token
	case 2:
		return "Authorization: Bearer " + token + pick(g, " ", ",", " x", ".x", "=", ".", "\tAAAA")
	case 3:
		return "Authorization: Bearer " + c.altered(g, token)
	}
	return "Authorization: Bearer " + token
}

// altered is a token with another signature, which may be as good as the first.
func (c *comparison) altered(g *generator, token string) string {
	at := strings.LastIndexByte(token, '.') + 1
	b, err := base64.RawURLEncoding.DecodeString(token[at:])
	if err != nil {
		panic(err)
	}
	half := len(b) / 2
	switch g.IntN(8) {
	case 0:
		b = append(b, 0)
	case 1:
		b = append(b, 0, 0)
	case 2:
		b = append(b, b...)
	case 3: // zeros before both numbers
		b = slices.Concat([]byte{0}, b[:half], []byte{0}, b[half:])
	case 4:
		b = b[:len(b)-pick(g, 1, 2, half, len(b))]
	case 5:
		b = b[1:]
	case 6:
		b[len(b)-1] ^= 1
	default:
		return token[:len(token)-20] + strings.Repeat("A", 20)
	}
	return token[:at] + base64.RawURLEncoding.EncodeToString(b)
}

// signed is a token with whatever header and claims; a nil leaves one out.
func signed(header, claims map[string]any, key *ecdsa.PrivateKey) string {
	text := unsigned(header, claims)
	return text + "." + base64.RawURLEncoding.EncodeToString(es256(key, text))
}

// unsigned is what of a token is signed.
func unsigned(header, claims map[string]any) string {
	var parts []string
	for _, m := range []map[string]any{header, claims} {
		for k, v := range m {
			if v == nil {
				delete(m, k)
			}
		}
		b, err := json.Marshal(m)
		if err != nil {
			panic(err)
		}
		parts = append(parts, base64.RawURLEncoding.EncodeToString(b))
	}
	return strings.Join(parts, ".")
}

// es256 signs as RFC 7518, section 3.4, says.
func es256(key *ecdsa.PrivateKey, text string) []byte {
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand2.Reader, key, sum[:])
	if err != nil {
		panic(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}
