package spans

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// swollen are requests of less than maxBody that would take a hundred times as much
// memory: a list of what is empty, below a path of field numbers.
func swollen() map[string][]byte {
	out := map[string][]byte{}
	for name, path := range map[string][]protowire.Number{
		"resources": {1}, "scopes": {1, 2}, "spans": {1, 2, 2}, "attributes": {1, 2, 2, 9}, "events": {1, 2, 2, 11}, "links": {1, 2, 2, 13},
		"attributes of a resource": {1, 1, 1}, "values of an array": {1, 1, 1, 2, 5, 1}, "values of a map": {1, 1, 1, 2, 6, 1},
	} {
		last := len(path) - 1
		body := bytes.Repeat(protowire.AppendBytes(protowire.AppendTag(nil, path[last], protowire.BytesType), nil), maxBody/2-100)
		for i := last - 1; i >= 0; i-- {
			body = protowire.AppendBytes(protowire.AppendTag(nil, path[i], protowire.BytesType), body)
		}
		out[name] = body
	}
	return out
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (rawCodec) Unmarshal(b []byte, v any) error { return nil }
func (rawCodec) Name() string                    { return "proto" }

// allocated is how much memory f took in all.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestSwollen sends what is small on the way and would be large in memory: it is refused
// before it is decoded.
func TestSwollen(t *testing.T) {
	const enough = 64 << 20 // what would be decoded takes 80 MiB and more
	r := newRig(t, nil)
	conn := dial(t, r.address)
	jsonSpans := []byte(`{"resourceSpans":[{"scopeSpans":[{"spans":[` + strings.Repeat("{},", maxBody/3-100) + `{}]}]}]}`)
	for name, body := range swollen() {
		if len(body) > maxBody {
			t.Fatalf("%s: %d bytes", name, len(body))
		}
		took := allocated(func() {
			if code, answer := r.post("/v1/traces", "application/x-protobuf", compress(body), "content-encoding", "gzip"); code != 413 || !strings.Contains(answer, "decoded") {
				t.Errorf("%s: %d %q", name, code, answer)
			}
		})
		if took > enough {
			t.Errorf("%s: took %d MiB", name, took>>20)
		}
		took = allocated(func() {
			err := conn.Invoke(t.Context(), collectortracev1.TraceService_Export_FullMethodName, body, nil, grpc.ForceCodec(rawCodec{}), grpc.UseCompressor(gzip.Name))
			if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "decoded") {
				t.Errorf("%s, by gRPC: %v", name, err)
			}
		})
		if took > enough {
			t.Errorf("%s, by gRPC: took %d MiB", name, took>>20)
		}
	}
	took := allocated(func() {
		if code, answer := r.post("/v1/traces", "application/json", compress(jsonSpans), "content-encoding", "gzip"); code != 413 {
			t.Errorf("JSON: %d %q", code, answer)
		}
	})
	if took > enough {
		t.Errorf("JSON: took %d MiB", took>>20)
	}
	if got := r.taken(); len(got) != 0 {
		t.Errorf("the collector got %d requests", len(got))
	}
}

// TestWeigh: what SDKs send is taken up to the length of a request, and takes about what
// it was weighed.
func TestWeigh(t *testing.T) {
	s := span(func(s *tracev1.Span) {
		for i := range 12 {
			s.Attributes = append(s.Attributes, text1(fmt.Sprintf("http.%d", i), "GET"))
			s.Attributes = append(s.Attributes, &commonv1.KeyValue{Key: "ok", Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_BoolValue{BoolValue: true}}})
		}
	})
	n := (maxBody - 1000) / (proto.Size(s) + 4)
	all := make([]*tracev1.Span, n)
	for i := range all {
		all[i] = s
	}
	req := request(nil, all...)
	b, err := proto.Marshal(req)
	if err != nil || len(b) > maxBody || len(b) < maxBody*9/10 {
		t.Fatal(len(b), err)
	}
	got := &collectortracev1.ExportTraceServiceRequest{}
	took := int(allocated(func() { err = strict.Unmarshal(b, got) }))
	weight := binary.weigh(b)
	if err != nil || weight > maxDecoded || weight < took/2 || weight > took*2 {
		t.Errorf("weighs %d KiB and takes %d KiB, %v", weight>>10, took>>10, err)
	}
	json := []byte(`{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[` + strings.Repeat(`{"key":"http.method","value":{"stringValue":"a \"{[,"}},`, 30_000) + `{}]}]}]}]}`)
	took = int(allocated(func() { err = unmarshalJSON(json, got) }))
	weight = weighJSON(json)
	if err != nil || weight > maxDecoded || weight < took/4 || weight > took*2 {
		t.Errorf("JSON of %d KiB weighs %d KiB and takes %d KiB, %v", len(json)>>10, weight>>10, took>>10, err)
	}
}

// TestWork: an instance that sends more than the runner reads for it waits, and none but it.
func TestWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(nil, nil)
		e, other := r.endpoint(Source{Function: function}), r.endpoint(Source{Function: function})
		begin := time.Now()
		for range (workBurst + 2*workBytes) / maxBody {
			if _, _, err := e.decode(t.Context(), binary, make([]byte, maxBody-1)); err == nil {
				t.Fatal("zeros are valid")
			}
		}
		if took := time.Since(begin); took < time.Second || took > 4*time.Second {
			t.Errorf("took %s", took)
		}
		begin = time.Now()
		_, done, err := other.decode(t.Context(), binary, nil)
		if err != nil || time.Since(begin) > 0 {
			t.Fatalf("another instance: %v after %s", err, time.Since(begin))
		}
		done()
	})
}
