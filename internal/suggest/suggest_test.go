package suggest

import (
	"strings"
	"testing"
)

func TestName(t *testing.T) {
	names := []string{"timeout", "retry", "rate_limit", "headers", "authentication"}
	for name, want := range map[string]string{
		"timeouts": `did you mean "timeout"?`, "tiemout": `did you mean "timeout"?`, "rateLimit": `did you mean "rate_limit"?`, "RATE-LIMIT": `did you mean "rate_limit"?`,
		"retyr": `did you mean "retry"?`, "authentification": `did you mean "authentication"?`,
		"x": "allowed: timeout, retry, rate_limit, headers, authentication", "cors": "allowed: timeout, retry, rate_limit, headers, authentication",
	} {
		if got := Name(name, names); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
	if got := Name(strings.Repeat("timeout", 100), names); strings.HasPrefix(got, "did") {
		t.Errorf("a long name: %q", got)
	}
	if got := Name("x", nil); got != "" {
		t.Errorf("no names: %q", got)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "abd", 1}, {"kitten", "sitting", 3}, {"über", "uber", 1}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q %q: got %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
