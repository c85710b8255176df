package sim

import (
	"math"
	"slices"
	"strings"
	"testing"
)

func TestReadLog(t *testing.T) {
	for name, in := range map[string]string{
		"csv":           "time,method,duration\n2026-11-24T19:00:01Z,GET,200ms\n2026-11-24T19:00:00.5Z,GET,1.5s\n",
		"csv, numbers":  "duration_ms,start_time\r\n200,1764010801\r\n1500,1764010800.5\r\n",
		"json":          `{"time":"2026-11-24T20:00:01+01:00","duration":"0.2s","x":[1]}` + "\n\n" + `{"time":"2026-11-24T19:00:00.5Z","duration":"1500ms"}`,
		"json, numbers": `{"timestamp":5.5,"duration_us":200000}` + "\n" + `{"timestamp":5,"duration_s":1.5}` + "\n",
		"mark":          "\xef\xbb\xbfTime , Duration_S\n1, 0.2\n0.5, 1.5\n",
	} {
		got, err := ReadLog("a.log", strings.NewReader(in))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !slices.Equal(got.Arrivals, []float64{0, 0.5}) || !slices.Equal(got.Times, []float64{1.5, 0.2}) || got.Length != 1.5 {
			t.Errorf("%s: %+v", name, got)
		}
		if r := Run(Defaults(), got, Ours().New(Defaults())); r.Requests != 2 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestReadLogErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                                    "a.log: the file is empty",
		"time,duration\n":                     "a.log: no requests",
		"when,duration\n1,2s\n":               "a.log: line 1: header: no time: one of time, timestamp, start_time",
		"time,took\n1,2s\n":                   "a.log: line 1: header: no duration: one of duration",
		"time,timestamp,duration":             `line 1: header: "time" and "timestamp" both give the time`,
		"time,duration,duration_ms\n":         `"duration" and "duration_ms" both give the duration`,
		"time,duration\n1,2s\n2,12\n":         `a.log: line 3: duration "12" is not one such as 12.5ms (for a bare number name the field duration_ms)`,
		"time,duration\n1,2s\nyesterday,2s\n": `a.log: line 3: time "yesterday" is neither RFC 3339`,
		"time,duration\n1,2s\n2026-11-24T19:00:00Z,2s\n":   "line 3: time \"2026-11-24T19:00:00Z\": dates and numbers of seconds are mixed",
		"time,duration\n1,2s,3\n":                          "a.log: line 2: wrong number of fields",
		"time,duration\n1,\"2s\n":                          "a.log: line 2: extraneous",
		"time,duration\n1,-2s\n":                           "line 2: duration -2s is not between 0 and 1h0m0s",
		"time,duration_ms\n1,NaN\n":                        "line 2: duration NaN is not between",
		"time,duration\nNaN,2s\n":                          "line 2: time \"NaN\" is not a number of seconds",
		"time,duration\n0,2s\n1764010801,2s\n":             "a.log: from line 2 to line 3 it spans 20417 days, more than 31",
		"{\"time\":1,\"duration\":\"2s\"}\n{\"time\":2}\n": "a.log: line 2: no duration",
		"{\"time\":1,\"duration\":\"2s\"}\n[1]\n":          "a.log: line 2: not a JSON object",
		"{\"time\":null,\"duration\":\"2s\"}\n":            `line 1: time "null"`,
		"{\"time\":1,\"duration\":{}}\n":                   `line 1: duration "{}"`,
		"{\"time\":1,\"duration\":\"2s\"}\n{\"x\":\"" + strings.Repeat("y", maxLine) + "\"}": "line 2: longer than",
	} {
		if _, err := ReadLog("a.log", strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", in, err, want)
		}
	}
}

func FuzzReadLog(f *testing.F) {
	for _, s := range []string{"time,duration\n1,2s\n", "time,duration_ms\n2026-11-24T19:00:00Z,3\n", `{"time":1,"duration":"2s"}`, "{", "time,duration\n\"1\",\"2s", "\xef\xbb\xbf", "{\"time\":1e400}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		trace, err := ReadLog("f", strings.NewReader(in))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f: ") {
				t.Errorf("%v does not name the file", err)
			}
			return
		}
		if len(trace.Arrivals) == 0 || len(trace.Arrivals) != len(trace.Times) || !slices.IsSorted(trace.Arrivals) || trace.Arrivals[0] != 0 {
			t.Errorf("%+v", trace)
		}
		for i, d := range trace.Times {
			if !(d >= 0 && d <= 3600) || math.IsNaN(trace.Arrivals[i]) || trace.Arrivals[i] > trace.Length {
				t.Errorf("request %d: at %g for %g of %g", i, trace.Arrivals[i], d, trace.Length)
			}
		}
	})
}
