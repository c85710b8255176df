package audit

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// TestPlain goes through what callers may put into a record.
func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"GET /debug/x":                   "GET /debug/x",
		"user:Zoë 東京":                    "user:Zoë 東京",
		"/x\n9 2026-01-01 root allowed":  `/x\n9 2026-01-01 root allowed`,
		"\x1b[2J\x00\x7f":                `\x1b[2J\x00\x7f`,
		"\u009b2J":                       `\u009b2J`,
		"\u202egnp.exe":                  `\u202egnp.exe`, // writes from right to left
		"\xff\xfe":                       `\xff\xfe`,
		"it's":                           "it's",
		strings.Repeat("a", maxText):     strings.Repeat("a", maxText),
		strings.Repeat("a", maxText+1):   strings.Repeat("a", maxText) + "…",
		"a" + strings.Repeat("é", 1<<10): "a" + strings.Repeat("é", maxText/2-1) + "…",
	} {
		if got := Plain(in); got != want {
			t.Errorf("%.80q: %.80q, want %.80q", in, got, want)
		}
	}
}

func FuzzPlain(f *testing.F) {
	f.Add("a\x1b\xe6")
	f.Fuzz(func(t *testing.T, s string) {
		got := Plain(s)
		if !utf8.ValidString(got) || len(got) > 10*maxText || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q", got)
		}
	})
}

// TestRecordIsBounded: whatever a caller sends, its record stays short, on one line, and
// in the chain.
func TestRecordIsBounded(t *testing.T) {
	dir, m := t.TempDir(), &memory{values: map[string][]byte{}}
	l := open(t, dir, m)
	long := strings.Repeat("\x1b\n", 1<<20)
	if err := l.Append(Record{Identity: long, From: long, Action: long, Verdict: "refused", Reason: long, Objects: []Object{{Name: long}}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	segments, err := l.segments()
	if err != nil || len(segments) != 1 {
		t.Fatalf("%v, %v", segments, err)
	}
	b, err := os.ReadFile(segments[0])
	if err != nil || len(b) > 64<<10 || bytes.Count(b, []byte("\n")) != 1 {
		t.Errorf("a record of %d bytes, %v", len(b), err)
	}
	if r := verify(t, dir, m); r.Broken != 0 || r.Last != 1 {
		t.Errorf("%+v", r)
	}
}
