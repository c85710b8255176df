package gateway

import (
	"fmt"
	"regexp"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// QueryRegex is the expression that a match of a query parameter becomes in Envoy, which
// compares values as they stand in the URL: it matches the text in every way in which
// clients encode it. A blank is + or %20 (application/x-www-form-urlencoded, RFC 3986);
// letters, digits and - . _ ~ are as they are, since no client encodes them (RFC 3986,
// section 2.3); every other character is itself, where it may stand in a value, or its
// bytes in UTF-8, percent-encoded with digits in either case. Escapes in the text of the
// match stand for what they decode to.
//
// It is "" for a match that is compared as it is: an expression, a text of letters and
// digits alone, and one too long for an expression (longQuery).
func QueryRegex(m *pb.StringMatch) string {
	pattern := queryPattern(m)
	if checkRegex(pattern) != nil {
		return ""
	}
	return pattern
}

// longQuery reports whether a match is compared as it is for its length alone.
func longQuery(m *pb.StringMatch) bool { return QueryRegex(m) != queryPattern(m) }

func queryPattern(m *pb.StringMatch) string {
	var text, before, after string
	switch k := m.GetMatch().(type) {
	case *pb.StringMatch_Exact:
		text = k.Exact
	case *pb.StringMatch_Prefix:
		text, after = k.Prefix, ".*"
	case *pb.StringMatch_Suffix:
		text, before = k.Suffix, ".*"
	}
	if !strings.ContainsFunc(text, func(r rune) bool { return r > 0x7f || !unreserved(byte(r)) }) {
		return ""
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		c, escaped := text[i], false
		if c == '%' && i+2 < len(text) && isHex(text[i+1]) && isHex(text[i+2]) {
			c, escaped = unhex(text[i+1])<<4|unhex(text[i+2]), true
			i += 2
		}
		b.WriteString(encodings(c, escaped))
	}
	return before + b.String() + after
}

// encodings matches a byte of a value in the ways in which it may stand in a URL. escaped
// tells that the match has it as an escape.
func encodings(c byte, escaped bool) string {
	escape := hexDigits(fmt.Sprintf("%%%02X", c))
	switch {
	case unreserved(c) && !escaped:
		return regexp.QuoteMeta(string(rune(c)))
	case c == ' ':
		return `(?:[+]|%20)`
	case c <= ' ' || c >= 0x7f || c == '&' || c == '#' || escaped && (c == '+' || c == '%'):
		return escape
	case c == '%':
		return "%(?:25)?"
	}
	return "(?:" + regexp.QuoteMeta(string(rune(c))) + "|" + escape + ")"
}

// hexDigits takes the letters of an escape in either case.
func hexDigits(escape string) string {
	var b strings.Builder
	for _, r := range escape {
		if 'A' <= r && r <= 'F' {
			fmt.Fprintf(&b, "[%c%c]", r, r+'a'-'A')
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}
