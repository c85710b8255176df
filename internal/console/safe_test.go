package console

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

func TestSafe(t *testing.T) {
	for in, want := range map[string]string{
		"plain, ü, 日本\n\tx":                      "plain, ü, 日本\n\tx",
		"\x1b[31mred\x1b[0m":                     "\x1b[31mred\x1b[0m",
		"\x1b[2Jcleared":                         "cleared",
		"\x1b]0;title\x07x":                      "]0;titlex",
		"over\rwritten":                          "overwritten",
		"windows\r\n":                            "windows\r\n",
		"\u009b2J, \u0085, \u00a0, é":            "2J, , \u00a0, é",
		"\x7f\x00\b":                             "",
		"\x1b\x1b[1mx":                           "\x1b[1mx",
		"\x1b[" + strings.Repeat("1", 100) + "m": strings.Repeat("1", 100-maxHeld+2) + "m",
	} {
		var whole, bytewise bytes.Buffer
		if n, err := Safe(&whole).Write([]byte(in)); n != len(in) || err != nil {
			t.Errorf("%q: %d %v", in, n, err)
		}
		w := Safe(&bytewise)
		for i := range len(in) {
			_, _ = w.Write([]byte{in[i]})
		}
		if whole.String() != want || bytewise.String() != want {
			t.Errorf("%q became %q, and %q byte by byte, want %q", in, whole.String(), bytewise.String(), want)
		}
	}
}

var colours = regexp.MustCompile("\x1b\\[[0-9;:]*m")

func FuzzSafe(f *testing.F) {
	f.Add("\x1b[31mred\x1b[0m\u009b\r\r\n")
	f.Fuzz(func(t *testing.T, in string) {
		var out bytes.Buffer
		_, _ = Safe(&out).Write([]byte(in))
		rest := colours.ReplaceAllString(out.String(), "")
		for _, r := range strings.ReplaceAll(rest, "\r\n", "") {
			if unicode.IsControl(r) && r != '\n' && r != '\t' && r != unicode.ReplacementChar {
				t.Errorf("%q became %q, which has %U", in, out.String(), r)
			}
		}
		var again bytes.Buffer
		_, _ = Safe(&again).Write(out.Bytes())
		if again.String() != out.String() {
			t.Errorf("%q became %q, and then %q", in, out.String(), again.String())
		}
	})
}
