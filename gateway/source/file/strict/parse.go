package strict

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Limits of one file. They bound memory and time for input that was made to hurt.
const (
	// MaxSize is the size of one file in bytes.
	MaxSize = 4 << 20
	// MaxDocuments is the number of documents in one file.
	MaxDocuments = 100_000
	// MaxDepth is how deep mappings and lists may nest.
	MaxDepth = 64
	// MaxValues is the number of keys, values and lists in one file.
	MaxValues = 500_000
	// MaxErrors is the number of errors after which reading a file ends.
	MaxErrors = 1000
)

// Doc is one document of a file: a mapping.
type Doc struct {
	Source *Source
	// Root is the mapping. Lines are those of the file.
	Root *yaml.Node
}

// chunk is the text of one document and where it begins.
type chunk struct {
	text string
	// line is the 0-based line of its first character, column the 0-based column.
	line, column int
}

// Parse splits a file into documents and parses each of them. Documents that are
// empty or hold only comments are left out. A document with a problem is left out
// and does not keep the others from being read.
func Parse(name string, data []byte) ([]*Doc, Errors) {
	src := &Source{Name: name}
	if len(data) > MaxSize {
		return nil, Errors{{File: name, Message: fmt.Sprintf("the file has %d bytes, the limit is %d (4 MiB)", len(data), MaxSize), Hint: "split it into several files"}}
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	src.lines = splitLines(string(data))
	if bad := checkText(src, data); len(bad) > 0 {
		return nil, bad
	}
	chunks, bad := split(src, string(data))
	if len(bad) > 0 {
		return nil, bad
	}
	var docs []*Doc
	var errs Errors
	nodes := 0
	for i, c := range chunks {
		roots, bad := c.parse(src, i == len(chunks)-1, &nodes)
		errs = append(errs, bad...)
		if len(bad) == 0 {
			for _, r := range roots {
				docs = append(docs, &Doc{Source: src, Root: r})
			}
		}
		if nodes > MaxValues {
			return nil, Errors{{File: name, Message: fmt.Sprintf("the file has more than %d values", MaxValues), Hint: "split it into several files"}}
		}
		if len(errs) >= MaxErrors {
			return nil, append(errs, TooMany(name))
		}
	}
	return docs, errs
}

// TooMany is the last error of a file with more than MaxErrors.
func TooMany(name string) Error {
	return Error{File: name, Message: "too many errors: the rest of the file was not read"}
}

// checkText refuses what is not a UTF-8 text.
func checkText(src *Source, data []byte) Errors {
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return Errors{{File: src.Name, Line: 1, Column: 1, Message: "the file is UTF-16", Hint: "save it as UTF-8"}}
	}
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		bad := ""
		switch {
		case r == utf8.RuneError && size == 1:
			bad = fmt.Sprintf("byte 0x%02x is not valid UTF-8", data[i])
		case r < 0x20 && r != '\n' && r != '\r' && r != '\t', r == 0x7f:
			bad = fmt.Sprintf("control character U+%04X", r)
		}
		if bad != "" {
			line := 1 + bytes.Count(data[:i], []byte("\n"))
			start := bytes.LastIndexByte(data[:i], '\n') + 1
			column := utf8.RuneCount(data[start:i]) + 1
			return Errors{{File: src.Name, Line: line, Column: column, Message: bad, Hint: "save the file as UTF-8 text"}}
		}
		i += size
	}
	return nil
}

// split cuts a stream into documents: at the YAML markers --- and ..., or between
// JSON values that stand one after the other.
func split(src *Source, text string) ([]chunk, Errors) {
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		// What is not JSON may still be YAML's flow style.
		chunks, bad, many := splitJSON(src, text)
		if len(bad) == 0 || many || filepath.Ext(src.Name) == ".json" {
			return chunks, bad
		}
	}
	var chunks []chunk
	var current strings.Builder
	start, content := 0, false
	flush := func() *Error {
		if content {
			if len(chunks) == MaxDocuments {
				return &Error{File: src.Name, Line: start + 1, Column: 1, Message: fmt.Sprintf("more than %d documents", MaxDocuments), Hint: "split the file"}
			}
			chunks = append(chunks, chunk{text: current.String(), line: start})
		}
		current.Reset()
		content = false
		return nil
	}
	for i, l := range src.lines {
		if marker(l, "---") || marker(l, "...") {
			if e := flush(); e != nil {
				return nil, Errors{*e}
			}
			start = i
			// What follows the marker on its line keeps its column.
			l = "   " + l[3:]
		}
		trimmed := strings.TrimLeft(l, " \t")
		if trimmed != "" && trimmed[0] != '#' {
			content = true
		}
		current.WriteString(l)
		current.WriteByte('\n')
	}
	if e := flush(); e != nil {
		return nil, Errors{*e}
	}
	return chunks, nil
}

func marker(line, m string) bool {
	return strings.HasPrefix(line, m) && (len(line) == 3 || line[3] == ' ' || line[3] == '\t')
}

// parse reads one document into a node tree with the file's lines.
func (c chunk) parse(src *Source, last bool, nodes *int) ([]*yaml.Node, Errors) {
	if strings.HasPrefix(c.text, "%") {
		p := Place{Source: src, Line: c.line + 1, Column: 1, Width: len(src.line(c.line + 1))}
		return nil, Errors{p.Errorf("", "take the line away", "YAML directives are not accepted")}
	}
	var doc yaml.Node
	if err := unmarshal(c.text, &doc); err != nil {
		return nil, Errors{c.syntaxError(src, err, last)}
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	root := doc.Content[0]
	if errs := c.check(src, root, nodes); len(errs) > 0 {
		return nil, errs
	}
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return nil, nil
	}
	// JSON has no streams of documents: there a list holds them.
	roots := []*yaml.Node{root}
	if root.Kind == yaml.SequenceNode {
		roots = root.Content
	}
	var errs Errors
	for _, r := range roots {
		if r.Kind != yaml.MappingNode && len(errs) < MaxErrors {
			errs = append(errs, placeOf(src, r).Errorf("", `write "kind: Route" and so on; one resource a document, with --- between them, or a list of resources`,
				"expected a mapping, got %s", describe(r)))
		}
	}
	return roots, errs
}

// unmarshal parses text, turning a panic of the parser into an error: whatever
// stands in a file, the process lives on.
func unmarshal(text string, into *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: the parser failed: %v", r)
		}
	}()
	return yaml.Unmarshal([]byte(text), into)
}

// check walks the tree once: it gives nodes the file's lines, counts them, bounds
// the depth and refuses anchors, aliases, tags and merge keys.
func (c chunk) check(src *Source, root *yaml.Node, nodes *int) Errors {
	var errs Errors
	var walk func(n *yaml.Node, depth int) bool
	refuse := func(n *yaml.Node, hint, format string, args ...any) {
		if len(errs) < MaxErrors {
			errs = append(errs, placeOf(src, n).Errorf("", hint, format, args...))
		}
	}
	walk = func(n *yaml.Node, depth int) bool {
		if n.Line == 1 {
			n.Column += c.column
		}
		n.Line += c.line
		if *nodes++; *nodes > MaxValues {
			return false
		}
		if depth > MaxDepth {
			refuse(n, "", "nested more than %d deep", MaxDepth)
			return false
		}
		switch {
		case n.Kind == yaml.AliasNode:
			refuse(n, "write the value out", "YAML alias *%s: aliases are not accepted", n.Value)
			return true
		case n.Anchor != "":
			refuse(n, "take the anchor away", "YAML anchor &%s: anchors are not accepted", n.Anchor)
		case n.Style&yaml.TaggedStyle != 0:
			refuse(n, "take the tag away", "YAML tag %s: tags are not accepted", n.Tag)
		}
		for i, child := range n.Content {
			if n.Kind == yaml.MappingNode && i%2 == 0 && child.Tag == "!!merge" {
				child.Line += c.line
				refuse(child, "write the fields out", "YAML merge key <<: merge keys are not accepted")
				child.Line -= c.line
			}
			if !walk(child, depth+1) {
				return false
			}
		}
		return true
	}
	walk(root, 1)
	return errs
}

// placeOf is where a node stands. The width of a mapping or list is one character.
func placeOf(src *Source, n *yaml.Node) Place {
	p := Place{Source: src, Line: n.Line, Column: n.Column, Width: 1}
	if n.Kind != yaml.ScalarNode && n.Kind != yaml.AliasNode {
		return p
	}
	value, _, _ := strings.Cut(n.Value, "\n")
	p.Width = utf8.RuneCountInString(value)
	switch {
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		p.Width = 1
	case n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0:
		p.Width += 2
	case n.Kind == yaml.AliasNode:
		p.Width++
	}
	return p
}

var (
	yamlError     = regexp.MustCompile(`^yaml: (?:line (\d+): )?((?s).*)$`)
	unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
)

// syntaxError finds the place of a syntax error. The parser names the line where
// the construct began, or the one before, so the place is looked for: it is after
// the longest run of lines that parses by itself.
func (c chunk) syntaxError(src *Source, err error, last bool) Error {
	problem, guess := err.Error(), 0
	if m := yamlError.FindStringSubmatch(problem); m != nil {
		problem = m[2]
		guess, _ = strconv.Atoi(m[1])
	}
	lines := strings.Split(c.text, "\n")
	if m := unknownAnchor.FindStringSubmatch(problem); m != nil {
		for i, l := range lines {
			if at := strings.Index(l, "*"+m[1]); at >= 0 {
				p := Place{Source: src, Line: c.line + i + 1, Column: columnOf(l, at), Width: len(m[1]) + 1}
				return p.Errorf("", "write the value out", "YAML alias *%s: aliases are not accepted", m[1])
			}
		}
	}
	at := c.badLine(lines, guess)
	text := lines[at]
	indent := text[:len(text)-len(strings.TrimLeft(text, " \t"))]
	p := Place{Source: src, Line: c.line + at + 1, Column: columnOf(text, len(indent)), Width: len([]rune(text)) - len(indent)}
	if at == 0 {
		p.Column += c.column
	}
	// A block of a private key may be what was cut off.
	p.Hide = strings.Contains(c.text, "rivate_key") || strings.Contains(c.text, "rivateKey") || strings.Contains(c.text, "PRIVATE KEY")
	if tab := strings.IndexByte(indent, '\t'); tab >= 0 {
		p.Column, p.Width = columnOf(text, tab), 1
		return p.Errorf("", "indent with spaces", "a tab in the indentation: YAML does not allow it")
	}
	return p.Errorf("", syntaxHint(problem, last), "not valid YAML: %s", problem)
}

func syntaxHint(problem string, last bool) string {
	switch {
	case strings.Contains(problem, "expected node content"):
		return "a value is missing, or a bracket that is opened here is not closed"
	case strings.Contains(problem, "expected ',' or"):
		return "a bracket that is opened here is not closed"
	case strings.Contains(problem, "unexpected end of stream") && last:
		return "a quote that is opened here is not closed: is the file complete?"
	case strings.Contains(problem, "mapping values are not allowed"):
		return `quote text that holds ": ", and indent evenly`
	case strings.Contains(problem, "could not find expected ':'"), strings.Contains(problem, "did not find expected"):
		return "is a colon missing, or the line indented wrongly?"
	}
	return ""
}

// badLine returns the index of the first line that cannot be parsed together with
// those before it. Lines that only a later one completes, as in a bracket over
// several lines, are passed over. Work is bounded: in a long document it is the
// parser's guess.
func (c chunk) badLine(lines []string, guess int) int {
	const (
		budget = 4 << 20
		span   = 200
	)
	first := max(0, guess-2)
	good, spent, size := first, 0, 0
	for _, l := range lines[:min(first, len(lines))] {
		size += len(l) + 1
	}
	for i := first; i < len(lines) && i-good < span; i++ {
		size += len(lines[i]) + 1
		if spent += size; spent > budget {
			good = max(good, guess-1)
			break
		}
		var n yaml.Node
		if unmarshal(c.text[:min(size, len(c.text))], &n) == nil {
			good = i + 1
		}
	}
	for i := good; i < len(lines); i++ {
		if t := strings.TrimSpace(lines[i]); t != "" && t[0] != '#' {
			return i
		}
	}
	return max(0, min(good, len(lines)-1))
}
