package spans

import (
	"bytes"
	"slices"
	"strings"
	"time"

	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	resourcev1 "go.opentelemetry.io/proto/otlp/resource/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Attributes of the resource of every span that a function made, which it has no say in.
const (
	AttrProject  = "penstock.project"
	AttrFunction = "penstock.function"
	AttrInstance = "penstock.instance"
)

const (
	serviceName = "service.name"
	// reserved begins what only Penstock's own processes say of themselves: names of
	// services and of attributes.
	reserved = "penstock"
	// unknownService begins the name that an SDK takes when it has none (OpenTelemetry
	// semantic conventions, "Service").
	unknownService = "unknown_service"
	// The time of a span has to be within these of now, or one false time would make a
	// trace unreadable.
	oldest, newest = 24 * time.Hour, time.Minute
)

// size is what a request costs.
func size(req *collectortracev1.ExportTraceServiceRequest) int { return proto.Size(req) }

// mark drops what is not a valid span and what an instance may not say, and says whose
// the rest is.
func (s *Source) mark(req *collectortracev1.ExportTraceServiceRequest, now time.Time) (kept, invalid int, why string) {
	for _, rs := range req.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			ss.Spans = slices.DeleteFunc(ss.GetSpans(), func(span *tracev1.Span) bool {
				problem := s.problem(span, now)
				if problem != "" {
					invalid, why = invalid+1, problem
					return true
				}
				kept++
				cleanSpan(span)
				return false
			})
			if ss.GetScope() != nil {
				ss.Scope.Attributes = unreserved(ss.Scope.Attributes)
			}
		}
		rs.ScopeSpans = slices.DeleteFunc(rs.GetScopeSpans(), func(ss *tracev1.ScopeSpans) bool { return len(ss.GetSpans()) == 0 })
		s.own(rs)
	}
	req.ResourceSpans = slices.DeleteFunc(req.GetResourceSpans(), func(rs *tracev1.ResourceSpans) bool { return len(rs.GetScopeSpans()) == 0 })
	return kept, invalid, why
}

// problem is why a span is not taken: a collector refuses all that comes together with
// one that is not valid.
func (s *Source) problem(span *tracev1.Span, now time.Time) string {
	begin, end := int64(span.GetStartTimeUnixNano()), int64(span.GetEndTimeUnixNano())
	switch {
	case !valid(span.GetTraceId(), 16):
		return "a trace id is not 16 bytes, or all zero"
	case !valid(span.GetSpanId(), 8):
		return "a span id is not 8 bytes, or all zero"
	case len(span.GetParentSpanId()) != 0 && len(span.GetParentSpanId()) != 8:
		return "the id of a parent is not 8 bytes"
	case slices.ContainsFunc(span.GetLinks(), func(l *tracev1.Span_Link) bool { return !valid(l.GetTraceId(), 16) || !valid(l.GetSpanId(), 8) }):
		return "the ids of a link are not valid"
	case bytes.Equal(span.GetParentSpanId(), span.GetSpanId()):
		return "a span is its own parent"
	case s.Given != nil && s.Given([8]byte(span.GetSpanId())):
		return "a span has the id of one of the runner's"
	case begin < now.Add(-oldest).UnixNano() || end < begin || end > now.Add(newest).UnixNano():
		return "a span ends before it begins, or is not of the last 24 hours"
	}
	return ""
}

func valid(id []byte, length int) bool {
	return len(id) == length && slices.ContainsFunc(id, func(b byte) bool { return b != 0 })
}

func cleanSpan(span *tracev1.Span) {
	span.Attributes = unreserved(span.Attributes)
	for _, e := range span.GetEvents() {
		e.Attributes = unreserved(e.Attributes)
	}
	for _, l := range span.GetLinks() {
		l.Attributes = unreserved(l.Attributes)
	}
}

// unreserved leaves out what only the runner says.
func unreserved(list []*commonv1.KeyValue) []*commonv1.KeyValue {
	return slices.DeleteFunc(list, func(kv *commonv1.KeyValue) bool {
		key := strings.ToLower(kv.GetKey())
		return strings.HasPrefix(key, reserved+".") || key == "faas.name" || key == "faas.instance"
	})
}

// own says whose a resource is. Its service may have the name that the function gives
// it, but not that of a part of Penstock.
func (s *Source) own(rs *tracev1.ResourceSpans) {
	project, name := s.names()
	if rs.Resource == nil {
		rs.Resource = &resourcev1.Resource{}
	}
	service := ""
	rs.Resource.Attributes = slices.DeleteFunc(unreserved(rs.Resource.Attributes), func(kv *commonv1.KeyValue) bool {
		if kv.GetKey() != serviceName {
			return false
		}
		service = strings.TrimSpace(kv.GetValue().GetStringValue())
		return true
	})
	if service == "" || strings.HasPrefix(service, unknownService) || strings.HasPrefix(strings.ToLower(service), reserved) {
		service = name
	}
	for _, a := range [][2]string{
		{serviceName, service}, {AttrProject, project}, {AttrFunction, name}, {AttrInstance, s.ID}, {"faas.name", s.Function}, {"faas.instance", s.ID},
	} {
		rs.Resource.Attributes = append(rs.Resource.Attributes, &commonv1.KeyValue{
			Key: a[0], Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: a[1]}},
		})
	}
}

// names are the project and the function of projects/PROJECT/functions/NAME@VERSION.
func (s *Source) names() (project, name string) {
	project, name, _ = strings.Cut(strings.TrimPrefix(s.Function, "projects/"), "/functions/")
	name, _, _ = strings.Cut(name, "@")
	return project, name
}
