package spans

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// format is one of the two that bodies of OTLP over HTTP have.
type format struct {
	mediaType string
	marshal   func(proto.Message) ([]byte, error)
	weigh     func([]byte) int
	unmarshal func([]byte, *collectortracev1.ExportTraceServiceRequest) error
}

var (
	binary = format{
		"application/x-protobuf", proto.Marshal, func(b []byte) int { return requestShape.weigh(b, strict.RecursionLimit) },
		func(b []byte, req *collectortracev1.ExportTraceServiceRequest) error { return strict.Unmarshal(b, req) },
	}
	text = format{"application/json", protojson.Marshal, weighJSON, unmarshalJSON}
)

// serveHTTP is OTLP over HTTP (OpenTelemetry Protocol Specification, "OTLP/HTTP").
func (e *endpoint) serveHTTP(w http.ResponseWriter, r *http.Request) {
	f := binary
	switch mediaType, _, _ := mime.ParseMediaType(r.Header.Get("content-type")); mediaType {
	case binary.mediaType:
	case text.mediaType:
		f = text
	default:
		e.fail(w, f, http.StatusUnsupportedMediaType, codes.InvalidArgument, fmt.Sprintf("content-type must be %s or %s", binary.mediaType, text.mediaType))
		return
	}
	switch {
	case r.URL.Path != "/v1/traces":
		e.fail(w, f, http.StatusNotFound, codes.Unimplemented, "this endpoint takes traces only, at /v1/traces: set OTEL_METRICS_EXPORTER and OTEL_LOGS_EXPORTER to none, or give them an endpoint of their own")
		return
	case r.Method != http.MethodPost:
		e.fail(w, f, http.StatusMethodNotAllowed, codes.Unimplemented, "use POST")
		return
	}
	body, err := readBody(w, r)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		e.fail(w, f, http.StatusRequestEntityTooLarge, codes.ResourceExhausted, fmt.Sprintf("a request may have %d MiB, also when it is decompressed: send smaller batches", maxBody>>20))
		return
	case err != nil:
		e.fail(w, f, http.StatusBadRequest, codes.InvalidArgument, "the body cannot be read: "+err.Error())
		return
	}
	req, done, err := e.decode(r.Context(), f, body)
	switch {
	case errors.Is(err, errHeavy):
		e.fail(w, f, http.StatusRequestEntityTooLarge, codes.ResourceExhausted, err.Error())
		return
	case err != nil:
		e.fail(w, f, http.StatusBadRequest, codes.InvalidArgument, err.Error())
		return
	}
	defer done()
	out := e.take(r.Context(), req)
	if out.err != nil {
		w.Header().Set("retry-after", "1")
		e.fail(w, f, http.StatusServiceUnavailable, codes.Unavailable, unavailable)
		return
	}
	answer(w, f, http.StatusOK, out.response())
}

// readBody reads a body of at most maxBody, also when it is decompressed.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body := http.MaxBytesReader(w, r.Body, maxBody)
	switch encoding := r.Header.Get("content-encoding"); encoding {
	case "", "identity":
		return io.ReadAll(body)
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(http.MaxBytesReader(nil, z, maxBody))
	default:
		return nil, fmt.Errorf("content-encoding %.20q is not gzip", encoding)
	}
}

// fail answers with a google.rpc.Status, as the specification wants it.
func (e *endpoint) fail(w http.ResponseWriter, f format, code int, c codes.Code, message string) {
	answer(w, f, code, &rpcstatus.Status{Code: int32(c), Message: message})
}

func answer(w http.ResponseWriter, f format, code int, m proto.Message) {
	b, err := f.marshal(m)
	if err != nil {
		code, b = http.StatusInternalServerError, nil
	}
	w.Header().Set("content-type", f.mediaType)
	w.WriteHeader(code)
	_, _ = w.Write(b)
}

// unmarshalJSON reads OTLP's JSON, in which ids are hexadecimal and not base64 as in the
// JSON of protobuf elsewhere ("JSON Protobuf Encoding").
func unmarshalJSON(b []byte, req *collectortracev1.ExportTraceServiceRequest) error {
	var all struct {
		ResourceSpans []map[string]json.RawMessage `json:"resourceSpans"`
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	var err error
	for _, rs := range all.ResourceSpans {
		err = errors.Join(err, each(rs, "scopeSpans", func(ss map[string]json.RawMessage) error {
			return each(ss, "spans", func(span map[string]json.RawMessage) error {
				return errors.Join(hexIDs(span), each(span, "links", hexIDs))
			})
		}))
	}
	if err != nil {
		return err
	}
	plain, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return protojson.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: strict.RecursionLimit}.Unmarshal(plain, req)
}

// each changes the objects of a list that is a member of an object.
func each(parent map[string]json.RawMessage, name string, change func(map[string]json.RawMessage) error) error {
	raw, ok := parent[name]
	if !ok || bytes.Equal(raw, []byte("null")) {
		return nil
	}
	var list []map[string]json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for i, item := range list {
		if err := change(item); err != nil {
			return fmt.Errorf("%s[%d]: %w", name, i, err)
		}
	}
	changed, err := json.Marshal(list)
	parent[name] = changed
	return err
}

// hexIDs makes base64 of the ids of a span or a link.
func hexIDs(o map[string]json.RawMessage) error {
	for _, name := range []string{"traceId", "spanId", "parentSpanId"} {
		raw, ok := o[name]
		if !ok {
			continue
		}
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		id, err := hex.DecodeString(strings.TrimSpace(s))
		if err != nil {
			return fmt.Errorf("%s %.40q is not hexadecimal", name, s)
		}
		o[name], _ = json.Marshal(base64.StdEncoding.EncodeToString(id))
	}
	return nil
}
