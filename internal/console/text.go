package console

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	// nameWidth is the width of the column of processes.
	nameWidth = 9
	// maxValue bounds an attribute at a terminal, in characters; the JSON has it all.
	maxValue = 240
	// maxKey bounds a name.
	maxKey = 80
	// maxText bounds a message or a multi-line attribute likewise.
	maxText = 2000
)

// Colours that are readable on light and dark terminals.
var palette = []string{"36", "35", "34", "32", "96", "95", "94", "92"}

// text is a record for a person: time to the second, process, text. The caller
// holds mu.
func (w *Writer) text(r *record) []byte {
	name := r.process
	// What a function wrote is shown as its own line; the instance and the stream
	// are in `penstock fn logs`.
	if stream := r.take("stream"); stream != "" {
		if f := r.take("function"); f != "" {
			name = "fn " + clean(short(f), maxKey)
			r.attrs = nil
			r.msg = goLogLine.ReplaceAllString(r.msg, "")
		}
	}
	var b strings.Builder
	at := r.time.Local().Format(time.TimeOnly)
	b.WriteString(w.paint("2", at) + " " + w.paint(w.colorOf(name), fmt.Sprintf("%-*s", nameWidth, name)) + " ")
	switch {
	case r.level >= slog.LevelError:
		b.WriteString(w.paint("31", "ERROR") + " ")
	case r.level >= slog.LevelWarn:
		b.WriteString(w.paint("33", "WARN") + " ")
	}
	b.WriteString(clean(r.msg, maxText))
	var below []string
	for _, a := range r.attrs {
		v := show(a.value)
		if strings.ContainsRune(strings.TrimSpace(v), '\n') {
			below = append(below, clean(v, maxText))
			continue
		}
		v = clean(short(v), maxValue)
		if v == "" || strings.ContainsAny(v, " \t\"") {
			v = strconv.Quote(v)
		}
		b.WriteString(" " + w.paint("2", clean(a.key, maxKey)+"=") + v)
	}
	for _, v := range below {
		b.WriteString("\n" + v)
	}
	// Further lines are indented, so that it is seen where a record begins.
	indent := "\n" + strings.Repeat(" ", len(at)+nameWidth+2)
	return []byte(strings.ReplaceAll(b.String(), "\n", indent) + "\n")
}

func (w *Writer) colorOf(name string) string {
	c, ok := w.colors[name]
	if !ok {
		c = palette[len(w.colors)%len(palette)]
		w.colors[name] = c
	}
	return c
}

func (w *Writer) paint(code, s string) string {
	if !w.color {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// short leaves out what every name of the default project begins with.
func short(name string) string {
	name = strings.TrimPrefix(name, "projects/default/")
	return strings.TrimPrefix(name, "functions/")
}

// show is the text of a value; numbers with three digits.
func show(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		f, err := v.Float64()
		if err != nil || !strings.ContainsAny(v.String(), ".eE") {
			return v.String()
		}
		return strconv.FormatFloat(f, 'g', 3, 64)
	case json.RawMessage:
		return string(v)
	}
	return fmt.Sprint(v)
}

// clean removes what would drive the terminal (what a process prints must not) and
// bounds the length.
func clean(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsGraphic(r) {
			return r
		}
		return -1
	}, strings.TrimRight(s, "\n"))
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
