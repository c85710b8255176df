package gateway

import (
	"bufio"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
)

// hostTable reads testdata/hosts.txt.
func hostTable(t testing.TB) map[string]string {
	t.Helper()
	f, err := os.Open("testdata/hosts.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]string{}
	for in := bufio.NewScanner(f); in.Scan(); {
		line := in.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		quoted, err := strconv.QuotedPrefix(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		host, _ := strconv.Unquote(quoted)
		out[host] = strings.TrimSpace(line[len(quoted):])
	}
	return out
}

func TestCanonicalHost(t *testing.T) {
	table := hostTable(t)
	table[strings.Repeat("a.", 127)+"a"] = strings.Repeat("a.", 127) + "a"
	table[strings.Repeat("a.", 127)+"a."] = strings.Repeat("a.", 127) + "a"
	table[strings.Repeat("a.", 127)+"aa"] = "PK-EDGE-HOST-LENGTH"
	table[strings.Repeat("a.", 126)+"a:80"] = "PK-EDGE-HOST-LENGTH"
	for authority, want := range table {
		got, _, err := CanonicalHost(authority)
		if e, ok := errors.AsType[*EdgeError](err); ok {
			got = e.Answer.Code
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", authority, got, want)
		}
	}
}

// TestHostForms: each expression is one that Envoy takes.
func TestHostForms(t *testing.T) {
	all := []string{PathRefused}
	for _, f := range HostForms() {
		all = append(append(all, f.Match...), f.Not...)
	}
	for _, p := range all {
		if err := checkRegex(p); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
}

// TestCanonicalHostAddresses: what is accepted as an address is one, and every
// address is accepted as it is usually written.
func TestCanonicalHostAddresses(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		var b [16]byte
		for i := range b {
			if r.IntN(2) == 0 {
				b[i] = byte(r.Uint32())
			}
		}
		for _, text := range []string{netip.AddrFrom4([4]byte(b[:4])).String(), "[" + netip.AddrFrom16(b).String() + "]", "[" + netip.AddrFrom16(b).StringExpanded() + "]"} {
			if host, _, err := CanonicalHost(text); err != nil || host != text {
				t.Errorf("%s: %q, %v", text, host, err)
			}
		}
		const letters = "01af:::.["
		text := make([]byte, r.IntN(24))
		for i := range text {
			text[i] = letters[r.IntN(len(letters))]
		}
		in := "[" + string(text) + "]"
		if _, _, err := CanonicalHost(in); err == nil {
			if _, err := netip.ParseAddr(strings.Trim(trimHostDot(in), "[]")); err != nil {
				t.Errorf("%s is accepted: %v", in, err)
			}
		}
	}
}

// FuzzCanonicalHost: a canonical host stays as it is, and holds nothing but what a
// host name or an address has.
func FuzzCanonicalHost(f *testing.F) {
	for host := range hostTable(f) {
		f.Add(host)
	}
	f.Fuzz(func(t *testing.T, authority string) {
		host, port, err := CanonicalHost(authority)
		if err != nil {
			return
		}
		if again, p, err := CanonicalHost(host); again != host || p != 0 || err != nil {
			t.Errorf("%q becomes %q, then %q, %v", authority, host, again, err)
		}
		if strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789-_.:[]") != "" || strings.Contains(host, "..") || host[len(host)-1] == '.' || port > 65535 {
			t.Errorf("%q becomes %q, port %d", authority, host, port)
		}
	})
}
