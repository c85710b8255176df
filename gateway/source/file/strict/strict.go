// Package strict decodes YAML and JSON documents into protobuf messages and
// refuses whatever it does not understand, with file, line, column and a
// suggestion.
//
// It walks the YAML node tree against the message descriptor. Nothing passes
// through untyped JSON on the way, so that every error has its place, and the
// place of every field is known afterwards (Places): problems that are found
// later, by a server say, can be shown in the file too.
//
// Stricter than YAML: no anchors, aliases, merge keys, tags, directives or
// duplicate keys; numbers are decimal; text that looks like a number must be
// quoted.
package strict

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Error is one thing wrong in a file.
type Error struct {
	// File as the user named it.
	File string
	// Line and Column are 1-based; 0 when the error is of the file as a whole.
	// Columns count characters.
	Line, Column int
	// Path of the field, such as rules[0].matches[1].path; may be empty.
	Path string
	// Message says what is wrong.
	Message string
	// Hint says how to mend it, such as `did you mean "timeout"?`; may be empty.
	Hint string
	// Snippet is the source line with the place marked below it; may be empty.
	Snippet string
}

// Error renders the error as
//
//	routes.yaml:14:9: unknown field "timeouts" in rules[0].policies
//	   14 |         timeouts: 5s
//	      |         ^^^^^^^^ did you mean "timeout"?
func (e Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	b.WriteString(": " + e.Message)
	switch {
	case e.Snippet != "":
		b.WriteString("\n" + e.Snippet)
		if e.Hint != "" {
			b.WriteString(" " + e.Hint)
		}
	case e.Hint != "":
		b.WriteString(": " + e.Hint)
	}
	return b.String()
}

// Errors is every problem of one load, in order of file and line.
type Errors []Error

// maxPrinted bounds what Errors prints: the first errors usually explain the rest.
const maxPrinted = 50

// Error renders all errors, the first 50 in full.
func (e Errors) Error() string {
	var b strings.Builder
	for i, one := range e {
		if i == maxPrinted {
			fmt.Fprintf(&b, "\nand %d more", len(e)-i)
			break
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(one.Error())
	}
	return b.String()
}

// Err is the errors as one error value; nil when there are none.
func (e Errors) Err() error {
	if len(e) == 0 {
		return nil
	}
	return e
}

// Source is the text of one file.
type Source struct {
	// Name as the user named it.
	Name  string
	lines []string
}

// line returns the text of a 1-based line without its end; "" when there is none.
func (s *Source) line(n int) string {
	if s == nil || n < 1 || n > len(s.lines) {
		return ""
	}
	return s.lines[n-1]
}

// Place is a stretch of one line of a file.
type Place struct {
	Source *Source
	// Line and Column are 1-based; Column and Width count characters.
	Line, Column, Width int
	// Hide keeps the line out of errors, because it may hold a secret.
	Hide bool
}

// File is the name of the file; "" for the zero Place.
func (p Place) File() string {
	if p.Source == nil {
		return ""
	}
	return p.Source.Name
}

// Errorf makes an error at the place. Hint may be empty.
func (p Place) Errorf(path, hint, format string, args ...any) Error {
	return Error{
		File: p.File(), Line: p.Line, Column: p.Column, Path: path,
		Message: fmt.Sprintf(format, args...), Hint: hint, Snippet: p.snippet(),
	}
}

// maxSnippet is how much of a long line is shown around the place, in characters.
const maxSnippet = 100

// snippet is the source line and a second line that marks the place.
func (p Place) snippet() string {
	text := []rune(p.Source.line(p.Line))
	if len(text) == 0 || p.Hide {
		return ""
	}
	start := min(max(p.Column-1, 0), len(text))
	width := max(1, min(p.Width, len(text)-start))
	from := 0
	if start > maxSnippet*2/3 {
		from = start - maxSnippet/3
	}
	to := min(len(text), from+maxSnippet)
	width = max(1, min(width, to-start))
	before, after := "", ""
	if from > 0 {
		before = "…"
	}
	if to < len(text) {
		after = "…"
	}
	pad := []rune(before + string(text[from:start]))
	for i, r := range pad {
		// A tab stays a tab, so that the mark stands below its place.
		if r != '\t' {
			pad[i] = ' '
		}
	}
	return fmt.Sprintf("%5d | %s%s%s\n      | %s%s", p.Line, before, string(text[from:to]), after, string(pad), strings.Repeat("^", width))
}

// Places maps field paths to where they stand in files.
type Places map[string]Place

// Find returns the place of a field path, or of the nearest field around it that
// was written down. The path "" is the whole document.
func (p Places) Find(path string) (Place, bool) {
	for {
		if at, ok := p[path]; ok {
			return at, true
		}
		if path == "" {
			return Place{}, false
		}
		path = parent(path)
	}
}

// parent cuts the last element off a path: "a.b[1]" -> "a.b" -> "a" -> "".
func parent(path string) string {
	return path[:max(0, strings.LastIndexAny(path, ".["))]
}

// join appends a field to a path.
func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

// splitLines cuts text into lines without their ends (\n or \r\n).
func splitLines(text string) []string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimSuffix(l, "\r")
	}
	return lines
}

// columnOf is the 1-based column of a byte offset in a line.
func columnOf(line string, offset int) int {
	return utf8.RuneCountInString(line[:min(offset, len(line))]) + 1
}
