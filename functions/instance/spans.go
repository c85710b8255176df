package instance

import (
	"encoding/binary"
	"net"
	"sync/atomic"

	"go.opentelemetry.io/otel/trace"

	"github.com/penstock-gateway/penstock/functions/spans"
)

// ownCollector are variables with which an author says where the function's telemetry
// goes (OpenTelemetry, "OTLP Exporter Configuration"): it then gets no endpoint here.
var ownCollector = []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}

// takeSpans begins to take the spans that the process will make with an SDK of its own,
// and returns the variables that lead there; none when nobody takes them, or its author
// has a collector.
func (i *Instance) takeSpans(place *place) (map[string]string, error) {
	if i.o.Spans == nil {
		return nil, nil
	}
	for _, k := range ownCollector {
		if i.o.Env[k] != "" {
			return nil, nil
		}
	}
	l, err := place.ListenSpans()
	if l == nil || err != nil {
		return nil, err
	}
	var owns func(net.Conn) bool
	if !place.Private() {
		owns = i.owns
	}
	source := spans.Source{Function: i.o.Function, ID: i.o.ID, Given: i.given.has, Tell: i.o.SpansLost}
	i.stopSpans = i.o.Spans.Serve(l, source, owns)
	env := map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + l.Addr().String(), "OTEL_SERVICE_NAME": i.name,
		// Soon, so that a trace is whole when somebody looks at it.
		"OTEL_BSP_SCHEDULE_DELAY": "500",
	}
	for signal, endpoint := range map[string]string{"OTEL_METRICS_EXPORTER": "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_LOGS_EXPORTER": "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"} {
		if i.o.Env[endpoint] == "" { // only traces are taken
			env[signal] = "none"
		}
	}
	return env, nil
}

// givenIDs are the last ids of spans that the runner has made for an instance: a span of
// the function's with such an id would be shown in the place of the runner's.
type givenIDs struct {
	next atomic.Uint32
	ids  [512]atomic.Uint64
}

func (g *givenIDs) add(s trace.Span) {
	if id := s.SpanContext().SpanID(); g != nil && id.IsValid() {
		g.ids[g.next.Add(1)%uint32(len(g.ids))].Store(binary.BigEndian.Uint64(id[:]))
	}
}

func (g *givenIDs) has(id [8]byte) bool {
	n := binary.BigEndian.Uint64(id[:])
	for k := range g.ids {
		if g.ids[k].Load() == n {
			return true
		}
	}
	return false
}
