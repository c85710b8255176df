package compile_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// suiteTrace is the trace that the requests of the public suite are of.
const suiteTrace = "12345678901234567890123456789012"

// suiteRequest is a request of a rule: what the backend must get for its headers.
type suiteRequest struct {
	headers []string
	new     bool   // a trace of our own; else suiteTrace goes on
	state   string // the tracestate; "" none
}

// traced is a request with a traceparent; its tracestate must be passed on as want.
func traced(want string, lines ...string) suiteRequest {
	q := suiteRequest{headers: []string{"traceparent: 00-" + suiteTrace + "-1234567890123456-00"}, state: want}
	for _, l := range lines {
		q.headers = append(q.headers, "tracestate: "+l)
	}
	return q
}

// goesOn and begins are requests with headers alone, of one header each.
func goesOn(headers ...string) (out []suiteRequest) {
	for _, h := range headers {
		out = append(out, suiteRequest{headers: []string{h}})
	}
	return out
}

func begins(headers ...string) (out []suiteRequest) {
	for _, q := range goesOn(headers...) {
		q.new = true
		out = append(out, q)
	}
	return out
}

// traceSuite are the 41 rules of the public suite of the standard
// (https://github.com/w3c/trace-context, test/test.py at acab820b, strict, level 2), by its names.
func traceSuite() map[string][]suiteRequest {
	const valid, parent = "00-" + suiteTrace + "-1234567890123456-01", "traceparent: "
	version := func(v string) string { return parent + v + valid[2:] }
	trace := func(v string) string { return parent + "00-" + v + "-1234567890123456-01" }
	span := func(v string) string { return parent + "00-" + suiteTrace + "-" + v + "-01" }
	flags := func(v string) string { return parent + valid[:53] + v }
	members := func(from, to int) string {
		var out []string
		for i := from; i <= to; i++ {
			n := string(rune('0'+i/10)) + string(rune('0'+i%10))
			out = append(out, "bar"+n+"="+n)
		}
		return strings.Join(out, ",")
	}
	same := func(lines ...string) suiteRequest { return traced(strings.Join(lines, ","), lines...) }
	dropped := func(lines ...string) suiteRequest { return traced("", lines...) }
	letters := "abcdefghijklmnopqrstuvwxyz0123456789_-*/"
	value := " !\"#$%&'()*+-./0123456789:;<>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"
	z := strings.Repeat("z", 256)
	one := []suiteRequest{{headers: nil, new: true}}
	twice := suiteRequest{headers: []string{trace("12345678901234567890123456789011"), parent + valid}, new: true}
	return map[string][]suiteRequest{
		"both_traceparent_and_tracestate_missing":    one,
		"traceparent_included_tracestate_missing":    goesOn(parent + valid),
		"traceparent_duplicated":                     {twice},
		"traceparent_header_name":                    begins("trace-parent: "+valid, "trace.parent: "+valid),
		"traceparent_header_name_valid_casing":       goesOn("TraceParent: "+valid, "TrAcEpArEnT: "+valid, "TRACEPARENT: "+valid),
		"traceparent_version_0x00":                   begins(parent+valid+".", parent+valid+"-what-the-future-will-be-like"),
		"traceparent_version_0xcc":                   slices.Concat(goesOn(version("cc"), version("cc")+"-what-the-future-will-be-like"), begins(version("cc")+".what-the-future-will-be-like")),
		"traceparent_version_0xff":                   begins(version("ff")),
		"traceparent_version_illegal_characters":     begins(version(".0"), version("0.")),
		"traceparent_version_too_long":               begins(version("000"), version("0000")),
		"traceparent_version_too_short":              begins(version("0")),
		"traceparent_trace_id_all_zero":              begins(trace(strings.Repeat("0", 32))),
		"traceparent_trace_id_illegal_characters":    begins(trace("."+suiteTrace[1:]), trace(suiteTrace[:31]+".")),
		"traceparent_trace_id_too_long":              begins(trace(suiteTrace + "3")),
		"traceparent_trace_id_too_short":             begins(trace(suiteTrace[:31])),
		"traceparent_parent_id_all_zero":             begins(span("0000000000000000")),
		"traceparent_parent_id_illegal_characters":   begins(span(".234567890123456"), span("123456789012345.")),
		"traceparent_parent_id_too_long":             begins(span("12345678901234567")),
		"traceparent_parent_id_too_short":            begins(span("123456789012345")),
		"traceparent_trace_flags_illegal_characters": begins(flags(".0"), flags("0.")),
		"traceparent_trace_flags_too_long":           begins(flags("001")),
		"traceparent_trace_flags_too_short":          begins(flags("1")),
		"traceparent_ows_handling":                   goesOn(parent+" "+valid, parent+"\t"+valid, parent+valid+" ", parent+valid+"\t", parent+"\t "+valid+" \t"),
		"tracestate_included_traceparent_missing":    begins("tracestate: foo=1", "tracestate: foo=1,bar=2"),
		"tracestate_included_traceparent_included":   {same("foo=1,bar=2")},
		"tracestate_header_name":                     {{headers: []string{parent + valid, "trace-state: foo=1"}}, {headers: []string{parent + valid, "trace.state: foo=1"}}},
		"tracestate_header_name_valid_casing":        {{headers: []string{parent + valid, "TraceState: foo=1"}, state: "foo=1"}, {headers: []string{parent + valid, "TrAcEsTaTe: foo=1"}, state: "foo=1"}, {headers: []string{parent + valid, "TRACESTATE: foo=1"}, state: "foo=1"}},
		"tracestate_empty_header":                    {dropped(""), same("foo=1", ""), same("", "foo=1")},
		"tracestate_multiple_headers_different_keys": {same("foo=1,bar=2", "rojo=1,congo=2", "baz=3")},
		"tracestate_duplicated_keys":                 {same("foo=1,foo=1"), same("foo=1,foo=2"), same("foo=1", "foo=1"), same("foo=1", "foo=2")},
		"tracestate_all_allowed_characters":          {same(letters + "=" + value), same(letters + "@a-z0-9_-*/=" + value)},
		"tracestate_ows_handling":                    {same("foo=1 \t , \t bar=2, \t baz=3"), same("foo=1\t \t,\t \tbar=2,\t \tbaz=3"), traced("foo=1", " foo=1"), traced("foo=1", "\tfoo=1"), traced("foo=1", "foo=1 "), traced("foo=1", "foo=1\t"), traced("foo=1", "\t foo=1 \t")},
		"tracestate_key_illegal_characters":          {dropped("foo =1"), dropped("FOO=1"), dropped("foo.bar=1")},
		"tracestate_key_illegal_vendor_format":       {same("foo@=1,bar=2"), dropped("@foo=1,bar=2"), same("foo@@bar=1,bar=2"), same("foo@bar@baz=1,bar=2")},
		"tracestate_member_count_limit":              {same(members(1, 10), members(11, 20), members(21, 30), members(31, 32)), dropped(members(1, 10), members(11, 20), members(21, 30), members(31, 33))},
		"tracestate_key_length_limit":                {same("foo=1", z+"=1"), dropped("foo=1", z+"z=1"), same("foo=1", strings.Repeat("t", 241)+"@"+strings.Repeat("v", 14)+"=1"), same("foo=1", strings.Repeat("t", 242)+"@v=1"), same("foo=1", "t@"+strings.Repeat("v", 15)+"=1")},
		"tracestate_value_illegal_characters":        {dropped("foo=bar=baz"), dropped("foo=,bar=3")},
		"multiple_requests_with_valid_traceparent":   goesOn(parent+valid, parent+valid, parent+valid),
		"multiple_requests_without_traceparent":      slices.Concat(one, one, one),
		"multiple_requests_with_illegal_traceparent": begins(trace(strings.Repeat("0", 32)), trace(strings.Repeat("0", 32)), trace(strings.Repeat("0", 32))),
		"propagates_random_flag":                     goesOn(flags("02")),
	}
}

var traceparentForm = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$`)

// testTraceSuite counts the rules of the public suite that hold, in both directions: what
// the backend gets, and the trace that the client is told.
func testTraceSuite(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn+traceYAML)
	suite := traceSuite()
	if len(suite) != 41 {
		t.Errorf("%d rules, the suite has 41", len(suite))
	}
	held := 0
	for rule, requests := range suite {
		spans := map[string]bool{}
		if t.Run(rule, func(t *testing.T) {
			for _, q := range requests {
				a := r.do(t, port, "GET", "x.test/x", q.headers...)
				if a.got == nil {
					t.Fatalf("%q: %d", q.headers, a.status)
				}
				parents := a.got.Header.Values("traceparent")
				m := traceparentForm.FindStringSubmatch(strings.Join(parents, " "))
				if m == nil {
					t.Fatalf("%q: the backend got %q", q.headers, parents)
				}
				spans[m[2]] = true
				if (m[1] == suiteTrace) == q.new || m[2] == "1234567890123456" || a.header.Get("x-trace-id") != m[1] {
					t.Errorf("%q: the backend got %s, the client %s", q.headers, parents[0], a.header.Get("x-trace-id"))
				}
				if got := strings.Join(a.got.Header.Values("tracestate"), ","); got != q.state {
					t.Errorf("%q: the backend got tracestate %q, want %q", q.headers, got, q.state)
				}
				if rule == "propagates_random_flag" && m[3] != "03" {
					t.Errorf("%q: flags %s", q.headers, m[3])
				}
			}
			if len(spans) != len(requests) {
				t.Errorf("%d spans for %d requests", len(spans), len(requests))
			}
		}) {
			held++
		}
	}
	t.Logf("%d of %d rules hold", held, len(suite))
}
