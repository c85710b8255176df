package spans

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	resourcev1 "go.opentelemetry.io/proto/otlp/resource/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcgzip "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const function = "projects/shop/functions/orders@7"

// rig is a receiver for one instance, with a collector behind it.
type rig struct {
	collectortracev1.UnimplementedTraceServiceServer
	t        testing.TB
	address  string
	receiver *Receiver

	mu   sync.Mutex
	got  []*collectortracev1.ExportTraceServiceRequest
	down bool
	told []string
}

func serve(t testing.TB, s *grpc.Server) *grpc.ClientConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return dial(t, l.Addr().String())
}

func dial(t testing.TB, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func newRig(t testing.TB, owns func(net.Conn) bool) *rig {
	t.Helper()
	r := &rig{t: t}
	s := grpc.NewServer()
	collectortracev1.RegisterTraceServiceServer(s, r)
	r.receiver = New(serve(t, s), prometheus.NewRegistry())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = l.Addr().String()
	t.Cleanup(r.receiver.Serve(l, Source{
		Function: function, ID: "orders-1", Given: func(id [8]byte) bool { return id == [8]byte{9, 9, 9, 9, 9, 9, 9, 9} },
		Tell: func(text string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.told = append(r.told, text)
		},
	}, owns))
	return r
}

// Export implements the OTLP trace service.
func (r *rig) Export(_ context.Context, req *collectortracev1.ExportTraceServiceRequest) (*collectortracev1.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		return nil, status.Error(codes.Unavailable, "collector at 10.0.0.7")
	}
	r.got = append(r.got, req)
	return &collectortracev1.ExportTraceServiceResponse{}, nil
}

// taken are the requests since it was asked last.
func (r *rig) taken() []*collectortracev1.ExportTraceServiceRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.got
	r.got = nil
	return out
}

func (r *rig) post(path, contentType string, body []byte, headers ...string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, "http://"+r.address+path, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("content-type", contentType)
	for k := 0; k < len(headers); k += 2 {
		req.Header.Set(headers[k], headers[k+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func (r *rig) send(req *collectortracev1.ExportTraceServiceRequest) (int, string) {
	r.t.Helper()
	b, err := proto.Marshal(req)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.post("/v1/traces", "application/x-protobuf", b)
}

func text1(key, value string) *commonv1.KeyValue {
	return &commonv1.KeyValue{Key: key, Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: value}}}
}

// span is a good one, with changes.
func span(change ...func(*tracev1.Span)) *tracev1.Span {
	now := uint64(time.Now().UnixNano())
	s := &tracev1.Span{
		TraceId: bytes.Repeat([]byte{1}, 16), SpanId: bytes.Repeat([]byte{2}, 8), Name: "look up", StartTimeUnixNano: now - 1000, EndTimeUnixNano: now,
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func request(resource []*commonv1.KeyValue, spans ...*tracev1.Span) *collectortracev1.ExportTraceServiceRequest {
	return &collectortracev1.ExportTraceServiceRequest{ResourceSpans: []*tracev1.ResourceSpans{{
		Resource: &resourcev1.Resource{Attributes: resource}, ScopeSpans: []*tracev1.ScopeSpans{{Scope: &commonv1.InstrumentationScope{Name: "shop"}, Spans: spans}},
	}}}
}

func values(list []*commonv1.KeyValue) map[string]string {
	out := map[string]string{}
	for _, kv := range list {
		if _, twice := out[kv.GetKey()]; twice {
			out["twice"] += kv.GetKey()
		}
		out[kv.GetKey()] = kv.GetValue().GetStringValue()
	}
	return out
}

// TestMarks says of every span whose it is, whatever it says itself.
func TestMarks(t *testing.T) {
	r := newRig(t, nil)
	for name, c := range map[string]struct {
		resource []*commonv1.KeyValue
		service  string
	}{
		"nothing said":             {nil, "orders"},
		"a name of its own":        {[]*commonv1.KeyValue{text1("service.name", "checkout")}, "checkout"},
		"said twice":               {[]*commonv1.KeyValue{text1("service.name", "penstock-gateway"), text1("service.name", "checkout")}, "checkout"},
		"the gateway's":            {[]*commonv1.KeyValue{text1("service.name", "penstock-gateway")}, "orders"},
		"the gateway's, otherwise": {[]*commonv1.KeyValue{text1("service.name", " Penstock-Gateway")}, "orders"},
		"the SDK's":                {[]*commonv1.KeyValue{text1("service.name", "unknown_service:python")}, "orders"},
		"not text":                 {[]*commonv1.KeyValue{{Key: "service.name", Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_IntValue{IntValue: 1}}}}, "orders"},
		"reserved attributes": {[]*commonv1.KeyValue{
			text1("penstock.project", "other"), text1("Penstock.Function", "other"), text1("penstock.instance", "other"), text1("penstock.runner", "x"), text1("faas.name", "other"), text1("faas.instance", "other"),
		}, "orders"},
	} {
		t.Run(name, func(t *testing.T) {
			s := span(func(s *tracev1.Span) {
				s.Attributes = []*commonv1.KeyValue{text1("penstock.result", "ok"), text1("order", "7"), text1("faas.name", "other")}
				s.Events = []*tracev1.Span_Event{{Attributes: []*commonv1.KeyValue{text1("penstock.x", "1")}}}
			})
			if code, answer := r.send(request(c.resource, s)); code != http.StatusOK || answer != "" {
				t.Fatalf("%d %q", code, answer)
			}
			rs := r.taken()[0].GetResourceSpans()[0]
			got := values(rs.GetResource().GetAttributes())
			want := map[string]string{
				"service.name": c.service, "penstock.project": "shop", "penstock.function": "orders", "penstock.instance": "orders-1", "faas.name": function, "faas.instance": "orders-1",
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("the resource is %v\nwant %v", got, want)
			}
			out := rs.GetScopeSpans()[0].GetSpans()[0]
			if got := values(out.GetAttributes()); fmt.Sprint(got) != "map[order:7]" || len(out.GetEvents()[0].GetAttributes()) != 0 {
				t.Errorf("the span has %v, its event %v", got, out.GetEvents())
			}
		})
	}
}

// TestInvalid drops what a collector might refuse, together with all that it was sent
// with, and takes the rest.
func TestInvalid(t *testing.T) {
	r := newRig(t, nil)
	hour := uint64(time.Hour)
	for name, change := range map[string]func(*tracev1.Span){
		"a short trace id": func(s *tracev1.Span) { s.TraceId = s.TraceId[:15] },
		"no trace id":      func(s *tracev1.Span) { s.TraceId = nil },
		"a zero trace id":  func(s *tracev1.Span) { s.TraceId = make([]byte, 16) },
		"a long span id":   func(s *tracev1.Span) { s.SpanId = bytes.Repeat([]byte{1}, 9) },
		"a zero span id":   func(s *tracev1.Span) { s.SpanId = make([]byte, 8) },
		"a short parent":   func(s *tracev1.Span) { s.ParentSpanId = []byte{1} },
		"its own parent":   func(s *tracev1.Span) { s.ParentSpanId = s.SpanId },
		"a bad link":       func(s *tracev1.Span) { s.Links = []*tracev1.Span_Link{{TraceId: s.TraceId}} },
		"the runner's id":  func(s *tracev1.Span) { s.SpanId = bytes.Repeat([]byte{9}, 8) },
		"ends first":       func(s *tracev1.Span) { s.EndTimeUnixNano = s.StartTimeUnixNano - 1 },
		"the year 1970":    func(s *tracev1.Span) { s.StartTimeUnixNano = 1 },
		"tomorrow":         func(s *tracev1.Span) { s.StartTimeUnixNano += hour; s.EndTimeUnixNano += hour },
		"beyond all time":  func(s *tracev1.Span) { s.EndTimeUnixNano = 1<<64 - 1 },
		"before all time":  func(s *tracev1.Span) { s.StartTimeUnixNano = 1<<63 + 5 },
	} {
		t.Run(name, func(t *testing.T) {
			code, answer := r.send(request(nil, span(change), span(), span(change)))
			var res collectortracev1.ExportTraceServiceResponse
			if err := proto.Unmarshal([]byte(answer), &res); err != nil || code != http.StatusOK || res.GetPartialSuccess().GetRejectedSpans() != 2 || res.GetPartialSuccess().GetErrorMessage() == "" {
				t.Errorf("%d %v %v", code, &res, err)
			}
			if got := r.taken(); len(got) != 1 || len(got[0].GetResourceSpans()[0].GetScopeSpans()[0].GetSpans()) != 1 {
				t.Errorf("the collector got %v", got)
			}
			if r.send(request(nil, span(change))); len(r.taken()) != 0 {
				t.Error("the collector got a request without a span")
			}
		})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.told) != 1 || !strings.Contains(r.told[0], "2 of its own spans were not taken") {
		t.Errorf("the function's log has %q, want one line in 10 s", r.told)
	}
	if n := testutil.ToFloat64(r.receiver.metric.WithLabelValues(function, "invalid")); n != 42 {
		t.Errorf("%v spans are counted as invalid", n)
	}
}

// deep is an attribute that holds lists in lists.
func deep(n int) *commonv1.KeyValue {
	v := &commonv1.AnyValue{}
	for range n {
		v = &commonv1.AnyValue{Value: &commonv1.AnyValue_ArrayValue{ArrayValue: &commonv1.ArrayValue{Values: []*commonv1.AnyValue{v}}}}
	}
	return &commonv1.KeyValue{Key: "deep", Value: v}
}

func compress(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b)
	_ = z.Close()
	return out.Bytes()
}

// TestBadRequests answers what is not a request with what is wrong.
func TestBadRequests(t *testing.T) {
	r := newRig(t, nil)
	good, err := proto.Marshal(request(nil, span()))
	if err != nil {
		t.Fatal(err)
	}
	tower, err := proto.Marshal(request([]*commonv1.KeyValue{deep(100)}, span()))
	if err != nil {
		t.Fatal(err)
	}
	const binary, json = "application/x-protobuf", "application/json"
	for name, c := range map[string]struct {
		path, contentType string
		body              []byte
		headers           []string
		code              int
		text              string
	}{
		"metrics":             {"/v1/metrics", binary, good, nil, 404, "OTEL_METRICS_EXPORTER"},
		"metrics, JSON":       {"/v1/metrics", json, []byte("{}"), nil, 404, "OTEL_METRICS_EXPORTER"},
		"a form":              {"/v1/traces", "text/plain", good, nil, 415, "content-type must be"},
		"not protobuf":        {"/v1/traces", binary, []byte("hello"), nil, 400, "not a valid ExportTraceServiceRequest"},
		"not UTF-8":           {"/v1/traces", binary, bytes.Replace(good, []byte("look up"), []byte("look \xffp"), 1), nil, 400, "not a valid"},
		"a tower":             {"/v1/traces", binary, tower, nil, 400, "not a valid"},
		"too large":           {"/v1/traces", binary, make([]byte, maxBody+1), nil, 413, "2 MiB"},
		"too large inside":    {"/v1/traces", binary, compress(make([]byte, 50<<20)), []string{"content-encoding", "gzip"}, 413, "2 MiB"},
		"not gzip":            {"/v1/traces", binary, good, []string{"content-encoding", "gzip"}, 400, "cannot be read"},
		"another compression": {"/v1/traces", binary, good, []string{"content-encoding", "br"}, 400, "not gzip"},
		"not JSON":            {"/v1/traces", json, []byte(`{"resourceSpans": [`), nil, 400, "not a valid"},
		"ids in base64":       {"/v1/traces", json, []byte(`{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"AQEBAQEBAQEBAQEBAQEBAQ=="}]}]}]}`), nil, 400, "not hexadecimal"},
	} {
		t.Run(name, func(t *testing.T) {
			if code, answer := r.post(c.path, c.contentType, c.body, c.headers...); code != c.code || !strings.Contains(answer, c.text) {
				t.Errorf("%d %q, want %d and %q", code, answer, c.code, c.text)
			}
			if got := r.taken(); len(got) != 0 {
				t.Errorf("the collector got %v", got)
			}
		})
	}
	if code, answer := r.post("/v1/traces", binary, compress(good), "content-encoding", "gzip"); code != 200 || len(r.taken()) != 1 {
		t.Errorf("a compressed request: %d %q", code, answer)
	}
}

// TestJSON takes OTLP's JSON, whose ids are hexadecimal.
func TestJSON(t *testing.T) {
	r := newRig(t, nil)
	now := time.Now().UnixNano()
	body := fmt.Sprintf(`{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"web"}}]},"scopeSpans":[{"scope":{"name":"x"},"spans":[
		{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"EEE19B7EC3C1B174","parentSpanId":"","name":"I'm a span","startTimeUnixNano":"%d","endTimeUnixNano":%d,"kind":2,
		"links":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b173"}],"later":{"unknown":1}}]}, {"spans": null}]}]}`, now-5, now)
	if code, answer := r.post("/v1/traces", "application/json; charset=utf-8", []byte(body)); code != 200 || answer != "{}" {
		t.Fatalf("%d %s", code, answer)
	}
	got := r.taken()[0].GetResourceSpans()[0].GetScopeSpans()[0].GetSpans()[0]
	if hex.EncodeToString(got.GetTraceId()) != "5b8efff798038103d269b633813fc60c" || hex.EncodeToString(got.GetSpanId()) != "eee19b7ec3c1b174" ||
		got.GetKind() != tracev1.Span_SPAN_KIND_SERVER || hex.EncodeToString(got.GetLinks()[0].GetSpanId()) != "eee19b7ec3c1b173" || len(got.GetParentSpanId()) != 0 {
		t.Errorf("%v", got)
	}
}

// TestGRPC takes the same by gRPC, compressed and not, at the same address.
func TestGRPC(t *testing.T) {
	r := newRig(t, nil)
	client := collectortracev1.NewTraceServiceClient(dial(t, r.address))
	for _, options := range [][]grpc.CallOption{nil, {grpc.UseCompressor(grpcgzip.Name)}} {
		res, err := client.Export(t.Context(), request([]*commonv1.KeyValue{text1("service.name", "penstock-relay")}, span(), span(func(s *tracev1.Span) { s.SpanId = nil })), options...)
		if err != nil || res.GetPartialSuccess().GetRejectedSpans() != 1 {
			t.Fatalf("%v %v", res, err)
		}
		if got := values(r.taken()[0].GetResourceSpans()[0].GetResource().GetAttributes()); got["service.name"] != "orders" || got["penstock.instance"] != "orders-1" {
			t.Errorf("%v", got)
		}
	}
	_, err := client.Export(t.Context(), request([]*commonv1.KeyValue{deep(100)}, span()))
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a tower: %v", err)
	}
	_, err = client.Export(t.Context(), request([]*commonv1.KeyValue{text1("long", strings.Repeat("x", maxBody))}, span()))
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a long one: %v", err)
	}
	_, err = client.Export(t.Context(), request([]*commonv1.KeyValue{text1("long", strings.Repeat("x", 20<<20))}, span()), grpc.UseCompressor(grpcgzip.Name))
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one that is long when it is decompressed: %v", err)
	}
	r.mu.Lock()
	r.down = true
	r.mu.Unlock()
	if _, err = client.Export(t.Context(), request(nil, span())); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "10.0.0.7") {
		t.Errorf("without a collector: %v", err)
	}
	if code, answer := r.send(request(nil, span())); code != http.StatusServiceUnavailable || strings.Contains(answer, "10.0.0.7") {
		t.Errorf("without a collector: %d %s", code, answer)
	}
}

// TestBounds bounds what one instance sends, and what all do, whoever sends more.
func TestBounds(t *testing.T) {
	r := newRig(t, nil)
	now := time.Now()
	r.receiver.now = func() time.Time { return now }
	many := func(n int) *collectortracev1.ExportTraceServiceRequest {
		all := make([]*tracev1.Span, n)
		for i := range all {
			all[i] = span()
		}
		return request(nil, all...)
	}
	rejected := func(req *collectortracev1.ExportTraceServiceRequest) int64 {
		code, answer := r.send(req)
		var res collectortracev1.ExportTraceServiceResponse
		if err := proto.Unmarshal([]byte(answer), &res); err != nil || code != 200 {
			t.Fatalf("%d %v", code, err)
		}
		return res.GetPartialSuccess().GetRejectedSpans()
	}
	for range 2 {
		if n := rejected(many(ofInstance.burstSpans / 2)); n != 0 {
			t.Fatalf("%d of a burst are rejected", n)
		}
	}
	if n := rejected(many(100)); n != 100 {
		t.Errorf("%d of 100 are rejected after it", n)
	}
	now = now.Add(time.Second)
	if n := rejected(many(ofInstance.spans)); n != 0 {
		t.Errorf("%d are rejected a second later", n)
	}
	now = now.Add(time.Minute)
	wide := func() *collectortracev1.ExportTraceServiceRequest {
		return request([]*commonv1.KeyValue{text1("x", strings.Repeat("x", 2_000_000))}, span())
	}
	for range ofInstance.burstBytes / 2_001_000 {
		if n := rejected(wide()); n != 0 {
			t.Fatal("a burst of bytes is rejected")
		}
	}
	if n := rejected(wide()); n != 1 {
		t.Error("bytes are not bounded")
	}
	// Many resources with a span each: what marks them would be more than all that was sent.
	now = now.Add(time.Minute)
	grow := &collectortracev1.ExportTraceServiceRequest{}
	for range 20_000 {
		grow.ResourceSpans = append(grow.ResourceSpans, request(nil, span()).GetResourceSpans()...)
	}
	if n := rejected(grow); n != 20_000 {
		t.Errorf("%d of a request that grows too large are rejected", n)
	}
	r.receiver.budget = newBudget(limits{spans: 1, bytes: 1 << 20, burstSpans: 1, burstBytes: 1 << 20})
	if a, b := rejected(many(1)), rejected(many(1)); a != 0 || b != 1 {
		t.Errorf("the bound of all instances: %d, %d are rejected", a, b)
	}
}

// TestOwner takes nothing of connections that are not the instance's.
func TestOwner(t *testing.T) {
	var mine atomicBool
	r := newRig(t, func(net.Conn) bool { return mine.get() })
	http.DefaultClient.CloseIdleConnections()
	if code, _ := r.send(request(nil, span())); code != http.StatusForbidden || len(r.taken()) != 0 {
		t.Errorf("a foreign connection got %d", code)
	}
	if _, err := collectortracev1.NewTraceServiceClient(dial(t, r.address)).Export(t.Context(), request(nil, span())); err == nil || len(r.taken()) != 0 {
		t.Errorf("a foreign call got %v", err)
	}
	mine.set(true)
	http.DefaultClient.CloseIdleConnections()
	if code, _ := r.send(request(nil, span())); code != http.StatusOK || len(r.taken()) != 1 {
		t.Errorf("a connection of its own got %d", code)
	}
}

type atomicBool struct {
	mu sync.Mutex
	v  bool
}

func (a *atomicBool) get() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.v }

func (a *atomicBool) set(v bool) { a.mu.Lock(); defer a.mu.Unlock(); a.v = v }

// TestConnections closes connections beyond what an SDK needs.
func TestConnections(t *testing.T) {
	r := newRig(t, nil)
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range maxConnections {
		c, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nhost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 10)); err != nil { // it is served
			t.Fatal(err)
		}
		open = append(open, c)
	}
	c, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("one more connection is served")
	}
}

// FuzzRequests sends whatever comes to mind: what is passed on is valid, and says whose it
// is.
func FuzzRequests(f *testing.F) {
	good, _ := proto.Marshal(request([]*commonv1.KeyValue{text1("service.name", "penstock-x")}, span()))
	f.Add(good, false)
	f.Add([]byte(`{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174"}]}]}]}`), true)
	f.Add([]byte(`{"resourceSpans":[null,{"scopeSpans":null},{"scopeSpans":[null,{"spans":[null]}]}]}`), true)
	s := Source{Function: function, ID: "orders-1"}
	f.Fuzz(func(t *testing.T, body []byte, json bool) {
		decode := binary.unmarshal
		if json {
			decode = text.unmarshal
		}
		req := &collectortracev1.ExportTraceServiceRequest{}
		if decode(body, req) != nil {
			return
		}
		kept, _, _ := s.mark(req, time.Now())
		for _, rs := range req.GetResourceSpans() {
			got := values(rs.GetResource().GetAttributes())
			if got["penstock.instance"] != "orders-1" || strings.HasPrefix(got["service.name"], "penstock") || slices.Contains([]string{"service.name", "penstock.instance"}, got["twice"]) {
				t.Errorf("the resource is %v", got)
			}
			for _, ss := range rs.GetScopeSpans() {
				for _, span := range ss.GetSpans() {
					kept--
					if len(span.GetTraceId()) != 16 || len(span.GetSpanId()) != 8 {
						t.Errorf("%v is passed on", span)
					}
				}
			}
		}
		if kept != 0 {
			t.Errorf("%d spans more were counted than are passed on", kept)
		}
		if _, err := proto.Marshal(req); err != nil {
			t.Error(err)
		}
	})
}
