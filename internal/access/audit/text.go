package audit

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxText bounds each text of a record, in bytes: callers who are not known yet choose
// some of them, such as the path of a request, and long ones would push out what is older.
const maxText = 1 << 10

// bounded is a record whose texts have a bound, and nothing in them that a terminal would
// take for a command or another line.
func (r Record) bounded() Record {
	for _, s := range []*string{&r.Identity, &r.Via, &r.From, &r.Action, &r.Verdict, &r.Reason} {
		*s = Plain(*s)
	}
	objects := make([]Object, len(r.Objects))
	for i, o := range r.Objects {
		objects[i] = Object{Name: Plain(o.Name), Before: Plain(o.Before), After: Plain(o.After)}
	}
	r.Objects = objects
	return r
}

// Plain is a text with escapes, as in Go, for what cannot be printed, cut after maxText.
func Plain(s string) string {
	cut := len(s) > maxText
	if cut {
		s = s[:maxText]
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			if cut && !utf8.FullRuneInString(s) {
				size = len(s) // half a character, of which the rest was cut off
				break
			}
			b.WriteString(`\x` + strconv.FormatUint(uint64(s[0])|0x100, 16)[1:])
		case unicode.IsPrint(r):
			b.WriteString(s[:size])
		default:
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
		s = s[size:]
	}
	if cut {
		b.WriteString("…")
	}
	return b.String()
}
