package gateway

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxRegexSize is the largest program that Envoy takes for a regular expression
// (re2.max_program_size.error_level, whose default is 100).
const MaxRegexSize = 100

// CheckRegex says why proxies would not take a regular expression (RE2); "" when they do.
func CheckRegex(pattern string) string {
	if err := checkRegex(pattern); err != nil {
		return err.Error()
	}
	return ""
}

// checkRegex reports whether Envoy 1.40 takes a regular expression. Envoy uses RE2,
// whose syntax Go has as well, on bytes (encoding Latin-1), so that a character
// beyond U+00FF can only be named, never matched, and is refused here.
func checkRegex(pattern string) error {
	re, err := syntax.Parse(latin1(pattern), syntax.Perl)
	if err != nil {
		if e, ok := errors.AsType[*syntax.Error](err); ok {
			return fmt.Errorf("is not a valid RE2 regular expression: %s: %q", e.Code, e.Expr)
		}
		return fmt.Errorf("is not a valid RE2 regular expression: %w", err)
	}
	if splitsCharacter(pattern) {
		return errors.New("has a character beyond ASCII in a class or before a repetition, where only its last byte would count: expressions work on bytes; write a group, such as (?:é|ü) or (?:é)+")
	}
	if c, ok := beyondLatin1(re); ok {
		return fmt.Errorf("names %U, which can never match: expressions work on bytes, so write the UTF-8 bytes, as in \\xc3\\xa9", c)
	}
	if n := regexSize(re.Simplify()); n > MaxRegexSize {
		return fmt.Errorf("is too large: its program has about %d steps and Envoy takes %d; shorten it or split it into several matches", n, MaxRegexSize)
	}
	return nil
}

// beyondLatin1 finds a character or range that starts beyond U+00FF and was
// written as such. Negated classes and folded letters reach there by themselves.
func beyondLatin1(re *syntax.Regexp) (rune, bool) {
	switch re.Op {
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			if r > 0xff {
				return r, true
			}
		}
	case syntax.OpCharClass:
		if len(re.Rune) > 0 && re.Rune[0] > 0xff {
			return re.Rune[0], true
		}
	}
	for _, sub := range re.Sub {
		if r, ok := beyondLatin1(sub); ok {
			return r, true
		}
	}
	return 0, false
}

// splitsCharacter reports whether bytes of a character beyond ASCII would be taken
// for characters of their own.
func splitsCharacter(pattern string) bool {
	if !strings.ContainsFunc(pattern, func(r rune) bool { return r > 0x7f }) {
		return false
	}
	chars, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return true
	}
	octets, err := syntax.Parse(latin1(pattern), syntax.Perl)
	return err != nil || wideClass(chars) || repeatsTail(octets)
}

// wideClass finds a class with characters beyond ASCII.
func wideClass(re *syntax.Regexp) bool {
	wide := func(r rune) bool { return r > 0x7f && r < utf8.MaxRune }
	return re.Op == syntax.OpCharClass && slices.ContainsFunc(re.Rune, wide) || slices.ContainsFunc(re.Sub, wideClass)
}

// repeatsTail finds a repetition of the last byte of a character alone, in an
// expression whose characters are bytes.
func repeatsTail(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat:
		if sub := re.Sub[0]; sub.Op == syntax.OpLiteral && sub.Rune[0] >= 0x80 && sub.Rune[0] < 0xc0 {
			return true
		}
	}
	return slices.ContainsFunc(re.Sub, repeatsTail)
}

// regexSize is an upper bound, close, of RE2's program size: RE2 counts one step
// for each range of bytes, two for a group, one or two for a repetition and a few
// for start and end, after it shared common beginnings. A test compares it with
// Envoy's own count.
func regexSize(re *syntax.Regexp) int { return 4 + steps(re) }

func steps(re *syntax.Regexp) int {
	n := 0
	for _, sub := range re.Sub {
		n += steps(sub)
	}
	switch re.Op {
	case syntax.OpLiteral:
		n += len(re.Rune)
	case syntax.OpCharClass:
		for i := 0; i < len(re.Rune); i += 2 {
			if re.Rune[i] <= 0xff {
				n++
			}
		}
	case syntax.OpAnyChar:
		n++
	case syntax.OpAnyCharNotNL:
		n += 2
	case syntax.OpCapture, syntax.OpPlus, syntax.OpQuest, syntax.OpStar:
		n += 2
	case syntax.OpAlternate:
		n += len(re.Sub) - 1
	case syntax.OpBeginLine, syntax.OpEndLine, syntax.OpWordBoundary, syntax.OpNoWordBoundary,
		syntax.OpBeginText, syntax.OpEndText, syntax.OpEmptyMatch, syntax.OpNoMatch:
		n += 2
	}
	return n
}

// matchRegex reports whether an expression matches a whole text, by bytes. An
// expression that checkRegex refuses matches nothing.
func matchRegex(pattern, text string) bool {
	if checkRegex(pattern) != nil {
		return false
	}
	re, err := regexp.Compile(`\A(?:` + latin1(pattern) + `)\z`)
	return err == nil && re.MatchString(latin1(text))
}

// latin1 makes one character of each byte.
func latin1(s string) string {
	var b strings.Builder
	for i := range len(s) {
		b.WriteRune(rune(s[i]))
	}
	return b.String()
}
