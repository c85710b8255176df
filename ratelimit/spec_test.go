package ratelimit

import (
	"strings"
	"testing"
	"time"
)

func gcra(id string, requests uint32, window time.Duration) Spec {
	return Spec{ID: id, Name: id, Requests: requests, Window: window}
}

func TestSpecText(t *testing.T) {
	for _, c := range []struct {
		spec Spec
		text string
	}{
		{Spec{ID: "projects/default/routes/limited#per-consumer", Name: "per-consumer", Requests: 5, Window: time.Minute},
			"v1|5|60s|0|gcra|consumer|open|-|per-consumer|projects/default/routes/limited#per-consumer"},
		{Spec{ID: "a|b%c d", Name: "x\"y", Requests: 1, Window: 1500 * time.Millisecond, Burst: 7, Key: Shared, OnFailure: Closed, Shadow: true},
			"v1|1|1500ms|7|gcra|shared|closed|shadow|x%22y|a%7Cb%25c%20d"},
		{Spec{ID: "é", Name: "n", Requests: MaxRequests, Window: MaxWindow, Algorithm: FixedWindow, Key: Address},
			"v1|1000000000|31622400s|0|fixed|address|open|-|n|%C3%A9"},
		{Spec{ID: "i", Name: "n", Requests: 2, Window: 1001 * time.Microsecond}, "v1|2|1001us|0|gcra|consumer|open|-|n|i"},
	} {
		if got := c.spec.String(); got != c.text {
			t.Errorf("String() = %q, want %q", got, c.text)
		}
		got, err := ParseSpec(c.text)
		if err != nil || got != c.spec {
			t.Errorf("ParseSpec(%q) = %+v, %v, want %+v", c.text, got, err, c.spec)
		}
	}
}

func TestParseSpecErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", `version ""`},
		{"v2|5|60s|0|gcra|consumer|open|-|n|i", "older than the control plane"},
		{"v1|5|60s", "3 fields, expected 10"},
		{"v1|5|60s|0|gcra|consumer|open|-|n|i|more", "11 fields"},
		{"v1|0|60s|0|gcra|consumer|open|-|n|i", "requests is 0"},
		{"v1|-1|60s|0|gcra|consumer|open|-|n|i", `requests is "-1"`},
		{"v1|1000000001|60s|0|gcra|consumer|open|-|n|i", "requests is 1000000001"},
		{"v1|4294967296|60s|0|gcra|consumer|open|-|n|i", "requests"},
		{"v1|5|60|0|gcra|consumer|open|-|n|i", `window is "60"`},
		{"v1|5|1m|0|gcra|consumer|open|-|n|i", `window is "1m"`},
		{"v1|5|999us|0|gcra|consumer|open|-|n|i", "window is 999µs"},
		{"v1|5|31622401s|0|gcra|consumer|open|-|n|i", "window"},
		{"v1|5|99999999999999999999s|0|gcra|consumer|open|-|n|i", "window"},
		{"v1|5|60s|1000000001|gcra|consumer|open|-|n|i", "burst is 1000000001"},
		{"v1|5|60s|9|fixed|consumer|open|-|n|i", "burst belongs to algorithm gcra"},
		{"v1|5|60s|0|sliding|consumer|open|-|n|i", `algorithm is "sliding", it must be one of gcra, fixed`},
		{"v1|5|60s|0|gcra|ip|open|-|n|i", `key is "ip"`},
		{"v1|5|60s|0|gcra|consumer|ajar|-|n|i", `failure policy is "ajar"`},
		{"v1|5|60s|0|gcra|consumer|open|yes|n|i", `shadow is "yes"`},
		{"v1|5|60s|0|gcra|consumer|open|-||i", "name has 0 bytes"},
		{"v1|5|60s|0|gcra|consumer|open|-|n|", "id has 0 bytes"},
		{"v1|5|60s|0|gcra|consumer|open|-|%0A|i", "printable ASCII"},
		{"v1|5|60s|0|gcra|consumer|open|-|n|%zz", "invalid URL escape"},
		{"v1|5|60s|0|gcra|consumer|open|-|n|" + strings.Repeat("x", MaxID+1), "id has 513 bytes"},
		{"v1|5|60s|0|gcra|consumer|open|-|n|" + strings.Repeat("x", 10*MaxID), "too long"},
		{"v1|05|60s|0|gcra|consumer|open|-|n|i", "canonical"},
		{"v1|5|60000ms|0|gcra|consumer|open|-|n|i", "canonical"},
		{"v1|5|60s|0|gcra|consumer|open|-|n|%61", "canonical"},
	} {
		if s, err := ParseSpec(c.text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("ParseSpec(%.60q) = %+v, %v; want an error with %q", c.text, s, err, c.want)
		}
	}
}

func TestEnumText(t *testing.T) {
	if got := Algorithm(9).String() + Key(9).String() + Failure(9).String(); got != "invalid(9)invalid(9)invalid(9)" {
		t.Error(got)
	}
	bad := Spec{ID: "i", Name: "n", Requests: 1, Window: time.Second + 1, Algorithm: 9, Key: 9, OnFailure: 9}
	if err := bad.Validate(); err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("Validate reports not all four problems: %v", err)
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add("v1|5|60s|0|gcra|consumer|open|-|per-consumer|projects/default/routes/limited#per-consumer")
	f.Add("v1|1|1500ms|7|gcra|shared|closed|shadow|x%22y|a%7Cb%25c%20d")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSpec(text)
		if err != nil {
			return
		}
		if s.String() != text {
			t.Errorf("ParseSpec takes %q, whose text is %q", text, s.String())
		}
		if err := s.Validate(); err != nil {
			t.Errorf("ParseSpec takes the invalid %q: %v", text, err)
		}
	})
}

func FuzzSpecRoundTrip(f *testing.F) {
	f.Add("projects/p/routes/r#n", "n", uint32(5), int64(60_000_000), uint32(3), uint8(0), false)
	f.Add("a|%\x00é", "\"\\ ", uint32(1), int64(1000), uint32(0), uint8(5), true)
	f.Fuzz(func(t *testing.T, id, name string, requests uint32, window int64, burst uint32, bits uint8, shadow bool) {
		s := Spec{
			ID: id, Name: name, Requests: requests, Window: micros(window), Burst: burst, Algorithm: Algorithm(bits & 1),
			Key: Key(bits >> 1 & 3), OnFailure: Failure(bits >> 3 & 1), Shadow: shadow,
		}
		if s.Validate() != nil {
			return
		}
		if got, err := ParseSpec(s.String()); err != nil || got != s {
			t.Errorf("ParseSpec(%q) = %+v, %v; want %+v", s.String(), got, err, s)
		}
	})
}
