package console

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

var noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.Local)

func lines(f Format, color bool, process string, in ...string) string {
	var b bytes.Buffer
	w := New(&b, f, color)
	w.now = func() time.Time { return noon }
	for _, l := range in {
		w.Line(process, l)
	}
	return b.String()
}

func TestText(t *testing.T) {
	at := func(s string) string {
		tm, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return tm.Local().Format(time.TimeOnly)
	}
	for _, test := range []struct{ process, line, want string }{
		{"plain", "listens on 8090", "12:00:00 plain     listens on 8090\n"},
		{"plain", "   ", ""},
		{"plain", "{not json", "12:00:00 plain     {not json\n"},
		{"plain", `{"a":1}`, "12:00:00 plain     {\"a\":1}\n"}, // not a record
		{"plain", `{"msg":"x"} and more`, "12:00:00 plain     {\"msg\":\"x\"} and more\n"},
		{
			"control", `{"time":"2026-11-30T21:07:00.5Z","level":"INFO","msg":"runner connected","service":"control","runner":"local","n":3,"seconds":0.26595553}`,
			at("2026-11-30T21:07:00.5Z") + " control   runner connected runner=local n=3 seconds=0.266\n",
		},
		{
			"runner", `{"time":"2026-11-30T21:07:00.5Z","level":"INFO","msg":"2026/11/30 21:06:59 catalog listens","service":"runner","function":"projects/default/functions/catalog","instance":"catalog-5","stream":"stderr"}`,
			at("2026-11-30T21:07:00.5Z") + " fn catalog catalog listens\n",
		},
		{
			"runner", `{"level":"ERROR","msg":"function cannot be run","function":"projects/default/functions/x","error":"pip failed:\n    one\n    two"}`,
			"12:00:00 runner    ERROR function cannot be run function=x\n                   pip failed:\n                       one\n                       two\n",
		},
		{
			"envoy", `[2026-11-30 21:07:10.191][21149][warning][main] [source/server/server.cc:1028] caught ENVOY_SIGTERM`,
			"12:00:00 envoy     WARN caught ENVOY_SIGTERM component=main\n",
		},
		{"jaeger", `{"level":"warn","ts":1796072816.9,"caller":"a.go:1","msg":"no assets","error":"not there"}`, "12:00:00 jaeger    WARN no assets error=\"not there\"\n"},
		{"evil", "{\"msg\":\"\\u001b[2Jgone\\u0007\",\"a\":\"\\u001b]0;x\\u0007\"}", "12:00:00 evil      [2Jgone a=]0;x\n"},
		{"evil", "a\x1b[31mb\u0085c", "12:00:00 evil      a[31mbc\n"},
		{"long", `{"msg":"m","a":"` + strings.Repeat("x", 2*maxValue) + `"}`, "12:00:00 long      m a=" + strings.Repeat("x", maxValue) + "…\n"},
		{"nested", `{"msg":"m","a":{"b":[1]},"ok":true,"none":null,"empty":""}`, "12:00:00 nested    m a=\"{\\\"b\\\":[1]}\" ok=true none=<nil> empty=\"\"\n"},
	} {
		if got := lines(Text, false, test.process, test.line); got != test.want {
			t.Errorf("%s %q:\n%q, want\n%q", test.process, test.line, got, test.want)
		}
	}
}

func TestColors(t *testing.T) {
	out := lines(Text, true, "control", "a", `{"level":"ERROR","msg":"b"}`)
	if !strings.Contains(out, "\x1b[36mcontrol") || !strings.Contains(out, "\x1b[31mERROR") {
		t.Errorf("%q", out)
	}
}

// TestJSON: every line of every process becomes one object, and no line is wrapped
// in another one's text.
func TestJSON(t *testing.T) {
	for _, test := range []struct{ process, line, want string }{
		{"plain", `say "hi"`, `{"level":"INFO","msg":"say \"hi\"","service":"plain"}`},
		{
			"control", `{"time":"2026-11-30T21:07:00.5Z","level":"WARN","msg":"a <b>","service":"control","n":12345678901234567890,"x":{"y":[1,2.50]}}`,
			`{"level":"WARN","msg":"a <b>","n":12345678901234567890,"service":"control","x":{"y":[1,2.50]}}`,
		},
		{"envoy", `[2026-11-30 21:07:10.191][1][critical][main] [a/b.cc:1] boom`, `{"component":"main","level":"ERROR","msg":"boom","service":"envoy"}`},
		{"jaeger", `{"level":"warn","ts":1.5,"msg":"m"}`, `{"level":"WARN","msg":"m","service":"jaeger"}`},
	} {
		out := lines(JSON, true, test.process, test.line)
		var got map[string]json.RawMessage
		if err := json.Unmarshal([]byte(out), &got); err != nil || strings.Count(out, "\n") != 1 {
			t.Fatalf("%q: %v", out, err)
		}
		var at time.Time
		if err := json.Unmarshal(got["time"], &at); err != nil {
			t.Errorf("%q: %v", out, err)
		}
		delete(got, "time")
		b, err := marshal(got)
		if err != nil || string(b) != test.want {
			t.Errorf("%s\nwant %s (%v)", b, test.want, err)
		}
	}
}

func TestLogger(t *testing.T) {
	var b bytes.Buffer
	w := New(&b, Text, false)
	w.Logger("up").With("a", 1).Warn("careful", slog.Any("error", os.ErrNotExist))
	_, _ = w.Progress("up").Write([]byte("one\ntwo\n"))
	got := strings.Split(b.String(), "\n")
	for i, want := range []string{"up        WARN careful a=1 error=\"file does not exist\"", "up        one", "up        two", ""} {
		if _, line, _ := strings.Cut(got[i], " "); line != want {
			t.Errorf("line %d: %q, want %q", i, got[i], want)
		}
	}
}

func TestFormat(t *testing.T) {
	for s, want := range map[string]Format{"": Auto, "auto": Auto, "text": Text, "json": JSON} {
		if f, err := ParseFormat(s); err != nil || f != want {
			t.Errorf("%q: %q, %v", s, f, err)
		}
	}
	if _, err := ParseFormat("xml"); err == nil || !strings.Contains(err.Error(), "auto, text or json") {
		t.Errorf("xml: %v", err)
	}
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if f := Auto.For(file); f != JSON {
		t.Errorf("a file gets %s", f)
	}
	if f := Text.For(file); f != Text {
		t.Errorf("a file that is to have text gets %s", f)
	}
}

// FuzzLine: whatever a process writes, the terminal is not driven by it, and the
// JSON is one object per line.
func FuzzLine(f *testing.F) {
	f.Add(`{"msg":"a","b":{"c":[null]}}`)
	f.Add("[2026-11-30 21:07:10.191][1][warning][main] [x.cc:1] \x1b[2J")
	f.Add(`{"stream":"stderr","function":"f","msg":"\u001b]0;"}`)
	f.Fuzz(func(t *testing.T, line string) {
		for _, r := range lines(Text, false, "p", line) {
			if r != '\n' && r != '\t' && r != utf8.RuneError && !unicode.IsGraphic(r) {
				t.Errorf("%q lets %q through", line, r)
			}
		}
		for out := range strings.Lines(lines(JSON, false, "p", line)) {
			if !json.Valid([]byte(out)) {
				t.Errorf("%q is not JSON", out)
			}
		}
	})
}
