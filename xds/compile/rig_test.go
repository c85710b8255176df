package compile_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/ports/porttest"
	"github.com/penstock-gateway/penstock/internal/socket"
	"github.com/penstock-gateway/penstock/ratelimit"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
	"github.com/penstock-gateway/penstock/xds/compile"
	"github.com/penstock-gateway/penstock/xds/delivery"
)

// rig is a real Envoy with the real delivery behind it, an upstream that tells
// what it got, and servers that record what Envoy asks of limiter and collector.
type rig struct {
	envoy    *envoytest.Envoy
	server   *delivery.Server
	grpc     *grpc.Server
	whole    *testing.T // that the rig lives for
	tls      *tls.Config
	address  string // of xDS
	compiler *compile.Compiler
	view     compile.View
	snapshot *gateway.Snapshot
	last     *xds.Generation
	revision int64
	way      way
	codes    map[string]bool // of the gateway's own answers so far

	upstream *upstream
	limiter  *limiter
	spans    *collector
	key      *ecdsa.PrivateKey
	// instances of functions.
	instances map[string][]compile.Endpoint
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{whole: t, codes: map[string]bool{}, upstream: newUpstream(t), limiter: newLimiter(t), spans: newCollector(t), view: compile.View{Project: "default", Gateway: "-"}, instances: map[string][]compile.Endpoint{}}
	var err error
	if r.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	r.setEager(0)
	dir := t.TempDir()
	ca, err := pki.OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(base, spiffe string) (cert, key string) {
		cert, key, err := ca.EnsureFiles(dir, base, pki.Request{SPIFFE: spiffe, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	cert, key := issue("control", "spiffe://penstock.local/control")
	if r.tls, err = pki.ServerTLS(cert, key, filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	r.address = porttest.Address(t)
	r.listen()
	t.Cleanup(func() { r.server.Close() })
	cert, key = issue("proxy", "spiffe://penstock.local/proxy/default/-/one")
	r.envoy = envoytest.Start(t, envoytest.Options{
		LogLevel: "warning", Config: bootstrap.Config{
			NodeID: "one", XDSAddresses: []string{r.address}, XDSServerName: "localhost", FastTraces: true,
			CAFile: filepath.Join(dir, "ca.crt"), CertFile: cert, KeyFile: key,
		},
	})
	return r
}

// setEager changes how many hosts of a listener are eager.
func (r *rig) setEager(hosts int) {
	r.compiler = compile.New(compile.Settings{Limiters: []compile.Endpoint{r.limiter.endpoint}, OTLP: r.spans.endpoint, EagerHosts: hosts})
}

// listen starts the delivery.
func (r *rig) listen() {
	r.whole.Helper()
	r.server = delivery.New(delivery.Options{Authenticate: func(ctx context.Context) (delivery.Identity, error) {
		id, err := pki.PeerSPIFFE(ctx)
		return delivery.Identity{Proxy: "one", SPIFFE: id, View: r.view.String()}, err
	}, Logger: slog.New(slog.DiscardHandler)})
	r.grpc = grpc.NewServer(append(delivery.GRPCOptions(0), grpc.Creds(credentials.NewTLS(r.tls)))...)
	r.server.Register(r.grpc)
	r.address = serveOn(r.whole, r.grpc, r.address)
}

func serveGRPC(t *testing.T, s *grpc.Server) string {
	t.Helper()
	return serveOn(t, s, "127.0.0.1:0")
}

func serveOn(t *testing.T, s *grpc.Server, address string) string {
	t.Helper()
	l := porttest.Listen(t, address)
	serveListener(t, s, l)
	return l.Addr().String()
}

func serveListener(t *testing.T, s *grpc.Server, l net.Listener) {
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { s.Stop(); wg.Wait() })
}

func endpointOf(t *testing.T, address string) compile.Endpoint {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return compile.Endpoint{Address: a.IP.String(), Port: uint32(a.Port)}
}

// jwks is the key set of the rig's issuer.
func (r *rig) jwks() string {
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: r.key.Public(), KeyID: "one", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// token signs claims; iss, aud, sub, exp have defaults.
func (r *rig) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	all := map[string]any{"iss": "https://issuer.test", "aud": "app", "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
	for k, v := range claims {
		if v == nil {
			delete(all, k)
		} else {
			all[k] = v
		}
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: r.key}, (&jose.SignerOptions{}).WithHeader("kid", "one"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := jwt.Signed(s).Claims(all).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// objects reads YAML with UPSTREAM, JWKS and ports filled in.
func (r *rig) objects(t *testing.T, yaml string, ports map[string]int) []gateway.Object {
	t.Helper()
	jwks, err := json.Marshal(r.jwks())
	if err != nil {
		t.Fatal(err)
	}
	pairs := []string{"UPSTREAM", fmt.Sprintf("{endpoints: [{address: %s, port: %d}]}", r.upstream.endpoint.Address, r.upstream.endpoint.Port), "JWKS", string(jwks)}
	for name, port := range ports {
		pairs = append(pairs, name, fmt.Sprint(port))
	}
	return decode(t, strings.NewReplacer(pairs...).Replace(yaml))
}

func decode(t testing.TB, yaml string) []gateway.Object {
	t.Helper()
	objects := parse(t, yaml)
	for _, o := range objects {
		for _, p := range policies.Model().Validate(o) {
			t.Fatalf("%s: %s: %s", p.Object, p.Field, p.Message)
		}
	}
	return objects
}

// parse is decode without the validation.
func parse(t testing.TB, yaml string) []gateway.Object {
	t.Helper()
	objects, errs := file.Decode("in.yaml", []byte(yaml))
	if len(errs) > 0 {
		t.Fatal(errs.Error())
	}
	for _, o := range objects {
		policies.Model().Normalize(o)
	}
	return objects
}

// apply replaces the whole state and returns when Envoy has acknowledged it.
func (r *rig) apply(t *testing.T, objects []gateway.Object) {
	t.Helper()
	keep := map[string]bool{}
	for _, o := range objects {
		keep[o.GetName()] = true
	}
	c := gateway.Changes{Updates: objects}
	if r.snapshot != nil {
		for o := range r.snapshot.All() {
			if !keep[o.GetName()] {
				c.Deletes = append(c.Deletes, o.GetName())
			}
		}
	}
	r.revision++
	r.snapshot = policies.Model().Build(r.snapshot, r.revision, c)
	r.update(t)
}

// update compiles the present state and waits until Envoy serves it.
func (r *rig) update(t *testing.T) {
	t.Helper()
	g, problems := r.compiler.Compile(compile.Input{
		Snapshot: r.snapshot, View: r.view, Previous: r.last,
		Instances: func(f string) []compile.Endpoint { return r.instances[f] },
	})
	for _, p := range problems {
		t.Errorf("problem: %s %s: %s", p.Object, p.Field, p.Message)
	}
	r.last = g
	r.server.Update(r.view.String(), g)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	poll(t, "the proxy to connect", func() bool { return len(r.server.Proxies()) > 0 })
	rep, err := r.server.Wait(ctx, r.revision, nil)
	if err != nil {
		t.Fatalf("wait: %v: %+v", err, rep)
	}
	for _, p := range rep.Problems {
		t.Errorf("Envoy: %s %s: %s", p.State, p.Ref, p.Detail)
	}
}

func poll(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatal("waited in vain for " + what)
		case <-tick.C:
		}
	}
}

// open waits until a port accepts connections: an acknowledged listener may still
// be waiting for what it names.
func (r *rig) open(t *testing.T, port int) {
	t.Helper()
	poll(t, fmt.Sprintf("port %d to be open", port), func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   string
	// got is what the upstream saw; nil when the request did not reach it.
	got *seen
}

// do sends a request to a port of Envoy, in the rig's way. header are "name: value" lines.
func (r *rig) do(t *testing.T, port int, method, url string, header ...string) answer {
	t.Helper()
	host, path, _ := strings.Cut(url, "/")
	return r.send(t, port, method, host, "/"+path, header...)
}

// raw sends bytes as they are and reads one HTTP/1.1 response.
func (r *rig) raw(t *testing.T, port int, request string) answer {
	t.Helper()
	before := r.upstream.count()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	in := bufio.NewReader(c)
	res, err := http.ReadResponse(in, &http.Request{Method: method})
	if err == nil && res.StatusCode == http.StatusContinue {
		res, err = http.ReadResponse(in, &http.Request{Method: method})
	}
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	a := answer{status: res.StatusCode, header: res.Header}
	if res.StatusCode != http.StatusSwitchingProtocols {
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatalf("%q: %v", request, err)
		}
		a.body = string(b)
	}
	a.got = r.upstream.after(before)
	r.coded(t, method, a)
	return a
}

// written are the bodies of the routes that answer with an error by themselves.
var written = []string{"mine", "100% short"}

// coded checks that an answer of the gateway's own has a code, and notes it.
func (r *rig) coded(t *testing.T, method string, a answer) {
	t.Helper()
	if a.status < 400 || a.header.Get("x-from-upstream") != "" || method == http.MethodHead || slices.Contains(written, a.body) {
		return
	}
	if r.codes[a.code(t)] = true; !strings.HasPrefix(a.code(t), "PK-") {
		t.Errorf("an answer %d without a code: %q", a.status, a.body)
	}
}

// seen is a request as the upstream got it.
type seen struct {
	Method, Host, Path string
	Header             http.Header
}

// upstream answers 200 with what the path asks for.
type upstream struct {
	endpoint compile.Endpoint
	mu       sync.Mutex
	requests []*seen
}

func newUpstream(t *testing.T) *upstream {
	u := &upstream{}
	s := httptest.NewUnstartedServer(u)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	u.endpoint = endpointOf(t, s.Listener.Addr().String())
	return u
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	u.mu.Lock()
	u.requests = append(u.requests, &seen{Method: req.Method, Host: req.Host, Path: req.RequestURI, Header: req.Header.Clone()})
	u.mu.Unlock()
	w.Header().Set("x-from-upstream", "yes")
	w.Header().Set("x-up-proto", req.Proto)
	w.Header().Set("x-envoy-decorator-operation", "evil")
	w.Header().Set("ratelimit", `"mine";r=1`)
	w.Header().Set("ratelimit-policy", `"mine";q=1`)
	w.Header().Set("x-envoy-upstream-healthchecked-cluster", "evil")
	for _, line := range req.Header["X-Respond"] {
		name, value, _ := strings.Cut(line, ":")
		w.Header().Add(name, strings.TrimSpace(value))
	}
	_, _ = io.Copy(io.Discard, req.Body)
	if n, err := strconv.Atoi(req.Header.Get("x-respond-bytes")); err == nil {
		_, _ = io.WriteString(w, strings.Repeat("upstream", n/8))
		return
	}
	_, _ = io.WriteString(w, "upstream")
}

func (u *upstream) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.requests)
}

func (u *upstream) after(n int) *seen {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.requests) == n {
		return nil
	}
	return u.requests[len(u.requests)-1]
}

// limiter records the calls and answers what the test wants.
type limiter struct {
	ratelimitv3.UnimplementedRateLimitServiceServer
	endpoint compile.Endpoint
	mu       sync.Mutex
	calls    []*ratelimitv3.RateLimitRequest
	over     bool
	broken   bool
}

func newLimiter(t *testing.T) *limiter {
	l := &limiter{}
	s := grpc.NewServer()
	ratelimitv3.RegisterRateLimitServiceServer(s, l)
	// As `penstock up` has it; the collector of a rig is on a port.
	dir, err := os.MkdirTemp("", "limiter-") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l.endpoint = compile.Endpoint{Address: filepath.Join(dir, "limiter.sock")}
	on, err := socket.Listen(t.Context(), l.endpoint.Address)
	if err != nil {
		t.Fatal(err)
	}
	serveListener(t, s, on)
	return l
}

func (l *limiter) ShouldRateLimit(_ context.Context, req *ratelimitv3.RateLimitRequest) (*ratelimitv3.RateLimitResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken {
		return nil, status.Error(codes.Unavailable, "broken")
	}
	l.calls = append(l.calls, req)
	code := ratelimitv3.RateLimitResponse_OK
	if l.over && !onlyShadows(req) {
		// As the real one does.
		return &ratelimitv3.RateLimitResponse{
			OverallCode:          ratelimitv3.RateLimitResponse_OVER_LIMIT,
			ResponseHeadersToAdd: []*corev3.HeaderValue{{Key: "content-type", Value: "application/problem+json"}},
			RawBody:              []byte(`{"type": "about:blank", "title": "Too many requests", "status": 429, "code": "` + ratelimit.CodeExceeded + `", "detail": "later"}`),
		}, nil
	}
	res := &ratelimitv3.RateLimitResponse{OverallCode: code}
	if code == ratelimitv3.RateLimitResponse_OVER_LIMIT {
		res.ResponseHeadersToAdd = []*corev3.HeaderValue{{Key: "content-type", Value: "application/problem+json"}}
		res.RawBody = fmt.Appendf(nil, `{"type":"about:blank","title":"Too many requests","status":429,"code":%q,"detail":"over"}`, ratelimit.CodeExceeded) // as the real one has it
	}
	return res, nil
}

// onlyShadows reports whether all limits of a call only count, as the real limiter has it.
func onlyShadows(req *ratelimitv3.RateLimitRequest) bool {
	return !slices.ContainsFunc(req.GetDescriptors(), func(d *ratelimitcommonv3.RateLimitDescriptor) bool {
		spec, err := ratelimit.ParseSpec(d.GetEntries()[0].GetValue())
		return err != nil || !spec.Shadow
	})
}

// take returns the calls since the last take, each as "domain" and for each
// descriptor "key=value" entries joined by ','.
func (l *limiter) take() (calls [][]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.calls {
		call := []string{c.GetDomain()}
		for _, d := range c.GetDescriptors() {
			var entries []string
			for _, e := range d.GetEntries() {
				entries = append(entries, e.GetKey()+"="+e.GetValue())
			}
			call = append(call, strings.Join(entries, ","))
		}
		calls = append(calls, call)
	}
	l.calls = nil
	return calls
}

func (l *limiter) setOver(over bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = over
}

func (l *limiter) setBroken(broken bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = broken
}

// collector keeps the spans that Envoy sends.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	endpoint compile.Endpoint
	mu       sync.Mutex
	spans    []*tracev1.Span
}

func newCollector(t *testing.T) *collector {
	c := &collector{}
	s := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(s, c)
	c.endpoint = endpointOf(t, serveGRPC(t, s))
	return c
}

func (c *collector) Export(_ context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.GetResourceSpans() {
		for _, s := range r.GetScopeSpans() {
			c.spans = append(c.spans, s.GetSpans()...)
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// trace waits for n spans of a trace and returns them in order of their start.
func (c *collector) trace(t *testing.T, id string, n int) []*tracev1.Span {
	t.Helper()
	var out []*tracev1.Span
	poll(t, fmt.Sprintf("%d spans of trace %s", n, id), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		out = out[:0]
		for _, s := range c.spans {
			if fmt.Sprintf("%x", s.GetTraceId()) == id {
				out = append(out, s)
			}
		}
		return len(out) >= n
	})
	slices.SortStableFunc(out, func(a, b *tracev1.Span) int {
		return int(int64(a.GetStartTimeUnixNano()) - int64(b.GetStartTimeUnixNano()))
	})
	return out
}
