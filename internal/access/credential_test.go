package access

import (
	"strings"
	"testing"
)

// FuzzParseToken: what is read is what FormatToken writes, whatever surrounds it, and an
// error never repeats the text.
func FuzzParseToken(f *testing.F) {
	good := FormatToken(NewToken([32]byte{1, 2, 3}))
	for _, text := range []string{good, " " + good + "\n", good[:len(good)-1], good + "A", good[:20] + "\n" + good[20:], good[:20] + "\r" + good[20:], strings.ToUpper(good), TokenPrefix, "psj1_" + good[len(TokenPrefix):], ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err == nil && FormatToken(token) != strings.TrimSpace(text) {
			t.Errorf("%q is read as %q", text, FormatToken(token))
		}
		if err != nil && len(text) > 20 && strings.Contains(err.Error(), text) {
			t.Errorf("the error repeats the text: %v", err)
		}
	})
}
