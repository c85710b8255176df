package relay

import (
	"testing"

	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
)

// TestCutQueries: queries do not leave the machine, whatever the attribute is
// called; all else stays.
func TestCutQueries(t *testing.T) {
	text := func(s string) *commonv1.AnyValue {
		return &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: s}}
	}
	s := &tracev1.Span{}
	for _, kv := range [][2]string{
		{"http.url", "http://h/p?token=x"}, {"url.full", "http://h/p?a=b?c"}, {"http.target", "/p?token=x"},
		{"url.query", "token=x"}, {"note", "what? this stays"}, {"http.url", "http://h/p"},
	} {
		s.Attributes = append(s.Attributes, &commonv1.KeyValue{Key: kv[0], Value: text(kv[1])})
	}
	s.Attributes = append(s.Attributes, &commonv1.KeyValue{Key: "http.url", Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_IntValue{IntValue: 1}}})
	cutQueries(s)
	for i, want := range []string{"http://h/p", "http://h/p", "/p", "", "what? this stays", "http://h/p"} {
		if got := s.GetAttributes()[i].GetValue().GetStringValue(); got != want {
			t.Errorf("%s: %q, want %q", s.GetAttributes()[i].GetKey(), got, want)
		}
	}
}
