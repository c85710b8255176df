// Package console writes what several processes log as one stream: lines for a
// person at a terminal, or one JSON object per line for a machine.
package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/penstock-gateway/penstock/telemetry"
)

// Format is how lines are written.
type Format string

// The formats. Auto is Text at a terminal and JSON elsewhere.
const (
	Auto Format = "auto"
	Text Format = "text"
	JSON Format = "json"
)

// ParseFormat checks a format that a person gave; "" is Auto.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case "":
		return Auto, nil
	case Auto, Text, JSON:
		return f, nil
	}
	return "", fmt.Errorf("%q is not a log format: it must be auto, text or json", s)
}

// For decides Auto for a writer.
func (f Format) For(w io.Writer) Format {
	if f != Auto {
		return f
	}
	if telemetry.IsTerminal(w) {
		return Text
	}
	return JSON
}

// Writer writes the lines of several processes, never mixed within a line. It is
// safe for concurrent use. Make it with New.
type Writer struct {
	format Format
	color  bool
	now    func() time.Time

	mu     sync.Mutex
	w      io.Writer
	colors map[string]string
}

// New returns a Writer to w. color puts colours on the names of processes in the
// format Text. https://no-color.org
func New(w io.Writer, f Format, color bool) *Writer {
	return &Writer{format: f.For(w), color: color, now: time.Now, w: w, colors: map[string]string{}}
}

// Line writes one line that a process wrote, as it is, without its line feed. It
// may be a JSON record (of slog, zap), a line of Envoy's log, or any text. Without a
// process it is the one that the record names.
func (w *Writer) Line(process, line string) {
	if strings.TrimSpace(line) == "" {
		return
	}
	r := parse(process, line, w.now())
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []byte
	if w.format == JSON {
		out = r.json()
	} else {
		out = w.text(r)
	}
	// Logs that cannot be written must not stop the process.
	_, _ = w.w.Write(out)
}

// Logger returns a logger whose records are lines of a process.
func (w *Writer) Logger(process string) *slog.Logger {
	return slog.New(slog.NewJSONHandler(&lineWriter{w: w, process: process}, nil))
}

// Progress returns a writer that makes a record of each line written to it.
func (w *Writer) Progress(process string) io.Writer {
	return &lineWriter{w: w, process: process}
}

// lineWriter cuts what is written to it in lines; each Write ends one.
type lineWriter struct {
	w       *Writer
	process string
}

// Write implements io.Writer.
func (l *lineWriter) Write(b []byte) (int, error) {
	for line := range bytes.Lines(b) {
		l.w.Line(l.process, string(bytes.TrimRight(line, "\n")))
	}
	return len(b), nil
}

// json is the record as one JSON object: time, level, msg, service, then the rest.
func (r *record) json() []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	add := func(key string, value any) {
		v, err := marshal(value)
		if err != nil {
			v, _ = marshal(fmt.Sprint(value))
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		k, _ := marshal(key)
		b.Write(k)
		b.WriteByte(':')
		b.Write(v)
	}
	add("time", r.time.Format(time.RFC3339Nano))
	add("level", r.level.String())
	add("msg", r.msg)
	add("service", r.process)
	for _, a := range r.attrs {
		add(a.key, a.value)
	}
	b.WriteString("}\n")
	return b.Bytes()
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimRight(b.Bytes(), "\n"), err
}
