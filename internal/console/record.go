package console

import (
	"encoding/json"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"
)

// record is a log line that was understood.
type record struct {
	time    time.Time
	level   slog.Level
	process string
	msg     string
	attrs   []attr // in the order in which they came
}

type attr struct {
	key   string
	value any // a string, json.Number, bool, nil, or json.RawMessage of what is nested
}

// envoyLine is Envoy's default log format: [time][thread][level][component] and,
// after the place in its source, the text.
// https://www.envoyproxy.io/docs/envoy/latest/operations/cli#cmdoption-log-format
var envoyLine = regexp.MustCompile(`^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+\]\[\d+\]\[(\w+)\]\[(\w+)\] (?:\[[^\]]+:\d+\] )?(.*)$`)

// goLogLine is how programs that use Go's package log begin a line.
var goLogLine = regexp.MustCompile(`^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(?:\.\d+)? `)

// parse understands a line as well as it can; what it does not understand is text.
func parse(process, line string, now time.Time) *record {
	r := &record{time: now, process: process, msg: line}
	if strings.HasPrefix(line, "{") && r.parseJSON(line) {
		return r
	}
	if m := envoyLine.FindStringSubmatch(line); m != nil {
		r.level, r.msg = level(m[1]), m[3]
		r.attrs = append(r.attrs, attr{"component", m[2]})
	}
	return r
}

// parseJSON reads the records of slog and of zap. It reports false when line is not
// one, and leaves r as it was.
func (r *record) parseJSON(line string) bool {
	d := json.NewDecoder(strings.NewReader(line))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return false
	}
	out := record{time: r.time, process: r.process}
	found := false
	for d.More() {
		t, err := d.Token()
		key, ok := t.(string)
		if err != nil || !ok {
			return false
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return false
		}
		value := scalar(raw)
		text, _ := value.(string)
		switch key {
		case "msg":
			out.msg, found = text, true
		case "level":
			out.level = level(text)
		case "time":
			if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
				out.time = at
			}
		case "service":
			if out.process == "" {
				out.process = text
			}
		case "ts", "caller": // zap's clock and place
		default:
			out.attrs = append(out.attrs, attr{key, value})
		}
	}
	if _, err := d.Token(); err != nil || !found || strings.TrimSpace(line[d.InputOffset():]) != "" {
		return false
	}
	*r = out
	return true
}

// scalar is the value of JSON that is not an object or array; else the JSON itself.
func scalar(raw json.RawMessage) any {
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return raw
	}
	switch v.(type) {
	case map[string]any, []any:
		return raw
	}
	return v
}

// level understands the names of slog, zap and Envoy.
func level(s string) slog.Level {
	switch s = strings.ToLower(s); s {
	case "trace", "debug":
		return slog.LevelDebug
	case "warn", "warning":
		return slog.LevelWarn
	case "error", "err", "critical", "fatal", "panic", "dpanic":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// take removes an attribute and returns its text; "" when there is none.
func (r *record) take(key string) string {
	i := slices.IndexFunc(r.attrs, func(a attr) bool { return a.key == key })
	if i < 0 {
		return ""
	}
	s, _ := r.attrs[i].value.(string)
	r.attrs = slices.Delete(r.attrs, i, i+1)
	return s
}
