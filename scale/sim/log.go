package sim

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds on an access log: what a simulation can go through.
const (
	maxLogLines = 5_000_000
	maxLogSpan  = 31 * 24 * time.Hour
	maxDuration = time.Hour
	maxLine     = 1 << 20
)

var (
	timeFields     = []string{"time", "timestamp", "start_time"}
	durationFields = map[string]time.Duration{
		"duration": 0, "duration_s": time.Second, "duration_ms": time.Millisecond, "duration_us": time.Microsecond,
	}
)

// ReadLog reads a trace from an access log: when each request began, and how long it
// took. There are two forms.
//
// CSV (RFC 4180) with a header line, and JSON lines, an object for each request. Of
// both the following columns or fields are used, and others are passed over:
//
//	time, timestamp or start_time    RFC 3339 ("2026-11-24T19:00:00.123Z"), or seconds
//	                                 since any moment, as a number
//	duration                         with its unit: "12.5ms", "1.2s"
//	duration_s, duration_ms,         the same as a number
//	duration_us
//
// Lines need not be in order. Everything that cannot be read is an error that names
// the line. A log whose times contain waits of the system that wrote it gives service
// times that are too long by as much.
func ReadLog(name string, in io.Reader) (Trace, error) {
	b := bufio.NewReaderSize(in, 64<<10)
	l := logReader{name: name}
	var err error
	first, peekErr := firstByte(b)
	switch {
	case peekErr != nil && !errors.Is(peekErr, io.EOF):
		return Trace{}, fmt.Errorf("%s: %w", name, peekErr)
	case peekErr != nil:
		return Trace{}, fmt.Errorf("%s: the file is empty: it must be CSV with a header, or one JSON object a line", name)
	case first == '{':
		err = l.json(b)
	default:
		err = l.csv(b)
	}
	if err != nil {
		return Trace{}, err
	}
	return l.trace()
}

// firstByte skips a byte order mark and white space but no line ends that count.
func firstByte(b *bufio.Reader) (byte, error) {
	if bom, err := b.Peek(3); err == nil && bytes.Equal(bom, []byte("\xef\xbb\xbf")) {
		_, _ = b.Discard(3)
	}
	first, err := b.Peek(1)
	if err != nil {
		return 0, err
	}
	return first[0], nil
}

type logReader struct {
	name string
	// absolute says whether times are dates; all must be the same kind.
	absolute, known bool
	zero            time.Time
	at              []float64
	took            []float64
	lines           []int
}

func (l *logReader) fail(line int, format string, args ...any) error {
	return fmt.Errorf("%s: line %d: %s", l.name, line, fmt.Sprintf(format, args...))
}

// columns finds which of the names hold the time and the duration.
func columns(names []string) (at, took int, unit time.Duration, err error) {
	at, took = -1, -1
	for i, n := range names {
		if slices.Contains(timeFields, n) {
			if at >= 0 {
				return 0, 0, 0, fmt.Errorf("%q and %q both give the time: keep one", names[at], n)
			}
			at = i
		}
		if u, ok := durationFields[n]; ok {
			if took >= 0 {
				return 0, 0, 0, fmt.Errorf("%q and %q both give the duration: keep one", names[took], n)
			}
			took, unit = i, u
		}
	}
	switch {
	case at < 0:
		return 0, 0, 0, fmt.Errorf("no time: one of %s is needed", strings.Join(timeFields, ", "))
	case took < 0:
		return 0, 0, 0, errors.New("no duration: one of duration, duration_s, duration_ms, duration_us is needed")
	}
	return at, took, unit, nil
}

func (l *logReader) csv(in io.Reader) error {
	r := csv.NewReader(in)
	r.ReuseRecord = true
	header, err := r.Read()
	if err != nil {
		return fmt.Errorf("%s: header: %w", l.name, err)
	}
	names := make([]string, len(header))
	for i, h := range header {
		names[i] = strings.ToLower(strings.TrimSpace(h))
	}
	at, took, unit, err := columns(names)
	if err != nil {
		return l.fail(1, "header: %v", err)
	}
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if pe, ok := errors.AsType[*csv.ParseError](err); ok {
			return l.fail(pe.Line, "%v", pe.Err)
		} else if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		line, _ := r.FieldPos(0)
		if err := l.add(line, strings.TrimSpace(record[at]), strings.TrimSpace(record[took]), unit); err != nil {
			return err
		}
	}
}

func (l *logReader) json(in io.Reader) error {
	s := bufio.NewScanner(in)
	s.Buffer(make([]byte, 0, 64<<10), maxLine)
	line := 0
	for s.Scan() {
		line++
		text := bytes.TrimSpace(s.Bytes())
		if len(text) == 0 {
			continue
		}
		var object map[string]json.RawMessage
		if err := json.Unmarshal(text, &object); err != nil {
			return l.fail(line, "not a JSON object: %v", err)
		}
		var names []string
		for k := range object {
			names = append(names, k)
		}
		slices.Sort(names)
		at, took, unit, err := columns(names)
		if err != nil {
			return l.fail(line, "%v", err)
		}
		if err := l.add(line, scalar(object[names[at]]), scalar(object[names[took]]), unit); err != nil {
			return err
		}
	}
	if err := s.Err(); errors.Is(err, bufio.ErrTooLong) {
		return l.fail(line+1, "longer than %d bytes", maxLine)
	} else if err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	return nil
}

// scalar is the text of a string or number; of anything else the JSON, which no
// parser of times or durations takes.
func scalar(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil && len(raw) > 0 && raw[0] == '"' {
		return s
	}
	return string(raw)
}

func (l *logReader) add(line int, at, took string, unit time.Duration) error {
	if len(l.at) == maxLogLines {
		return l.fail(line, "more than %d requests: replay a part", maxLogLines)
	}
	seconds, err := l.moment(line, at)
	if err != nil {
		return err
	}
	var d float64
	if unit == 0 {
		parsed, err := time.ParseDuration(took)
		if err != nil {
			return l.fail(line, "duration %q is not one such as 12.5ms (for a bare number name the field duration_ms)", took)
		}
		d = parsed.Seconds()
	} else {
		v, err := strconv.ParseFloat(took, 64)
		if err != nil {
			return l.fail(line, "duration %q is not a number", took)
		}
		d = v / float64(time.Second/unit)
	}
	if !(d >= 0 && d <= maxDuration.Seconds()) {
		return l.fail(line, "duration %s is not between 0 and %v", took, maxDuration)
	}
	l.at, l.took, l.lines = append(l.at, seconds), append(l.took, d), append(l.lines, line)
	return nil
}

func (l *logReader) moment(line int, text string) (float64, error) {
	seconds, err := strconv.ParseFloat(text, 64)
	absolute := err != nil
	var date time.Time
	if absolute {
		if date, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return 0, l.fail(line, "time %q is neither RFC 3339, such as 2026-11-24T19:00:00.123Z, nor a number of seconds", text)
		}
	}
	switch {
	case !l.known:
		l.known, l.absolute, l.zero = true, absolute, date
	case l.absolute != absolute:
		return 0, l.fail(line, "time %q: dates and numbers of seconds are mixed", text)
	}
	if absolute {
		return date.Sub(l.zero).Seconds(), nil
	}
	if math.IsNaN(seconds) || math.Abs(seconds) > 1e12 {
		return 0, l.fail(line, "time %q is not a number of seconds", text)
	}
	return seconds, nil
}

func (l *logReader) trace() (Trace, error) {
	n := len(l.at)
	if n == 0 {
		return Trace{}, fmt.Errorf("%s: no requests", l.name)
	}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case l.at[a] < l.at[b]:
			return -1
		case l.at[a] > l.at[b]:
			return 1
		}
		return 0
	})
	first, last := l.at[order[0]], l.at[order[n-1]]
	if span := last - first; span > maxLogSpan.Seconds() {
		return Trace{}, fmt.Errorf("%s: from line %d to line %d it spans %.0f days, more than %.0f: replay a part, or mend the odd time",
			l.name, l.lines[order[0]], l.lines[order[n-1]], span/86400, maxLogSpan.Hours()/24)
	}
	t := Trace{Name: l.name, Arrivals: make([]float64, n), Times: make([]float64, n)}
	for i, k := range order {
		t.Arrivals[i], t.Times[i] = l.at[k]-first, l.took[k]
		t.Length = max(t.Length, t.Arrivals[i]+t.Times[i])
	}
	return t, nil
}
