package strict

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf16"
)

// splitJSON cuts a stream of JSON values into documents. JSON is YAML but for
// the surrogate pairs of escaped characters, which are resolved here. Many says
// that it is JSON, but too much of it.
func splitJSON(src *Source, text string) (chunks []chunk, bad Errors, many bool) {
	d := json.NewDecoder(strings.NewReader(text))
	for {
		var raw json.RawMessage
		err := d.Decode(&raw)
		switch {
		case errors.Is(err, io.EOF):
			return chunks, nil, false
		case err != nil:
			return nil, Errors{jsonError(src, text, err)}, false
		case len(chunks) == MaxDocuments:
			return nil, Errors{{File: src.Name, Message: fmt.Sprintf("more than %d documents", MaxDocuments), Hint: "split the file"}}, true
		}
		start := int(d.InputOffset()) - len(raw)
		line := strings.Count(text[:start], "\n")
		lineStart := strings.LastIndexByte(text[:start], '\n') + 1
		chunks = append(chunks, chunk{
			text: joinSurrogates(string(raw)), line: line, column: columnOf(text[lineStart:], start-lineStart) - 1,
		})
	}
}

// jsonError finds the place of a JSON syntax error.
func jsonError(src *Source, text string, err error) Error {
	offset, hint := len(strings.TrimRight(text, " \t\r\n")), "is the file complete?"
	if bad, ok := errors.AsType[*json.SyntaxError](err); ok && bad.Offset > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
		// Offset counts the bytes read, the offending one included.
		if at := int(bad.Offset) - 1; at < offset {
			offset, hint = at, ""
		}
	}
	start := strings.LastIndexByte(text[:offset], '\n') + 1
	p := Place{Source: src, Line: 1 + strings.Count(text[:offset], "\n"), Column: columnOf(text[start:], offset-start), Width: 1}
	return p.Errorf("", hint, "not valid JSON: %v", err)
}

var surrogates = regexp.MustCompile(`\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}`)

func joinSurrogates(text string) string {
	if !strings.Contains(text, `\u`) {
		return text
	}
	return surrogates.ReplaceAllStringFunc(text, func(m string) string {
		if m == `\\` {
			return m
		}
		var hi, lo rune
		if _, err := fmt.Sscanf(m, `\u%04x\u%04x`, &hi, &lo); err != nil {
			return m
		}
		return string(utf16.DecodeRune(hi, lo))
	})
}
