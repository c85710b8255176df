package gateway

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/internal/envoytest"
)

// randomRegex makes an expression out of what people write and what is rare.
func randomRegex(r *rand.Rand, depth int) string {
	atoms := []string{
		"a", "b", "é", ".", "[a-z]", "[^/]", `\d`, `\w`, `\s`, `\S`, "[A-Za-z0-9_-]", `\pL`, "/", "-", "(?:x|y)", "abc",
		"[^a-c]", `\b`, "^", "$", "users", "[0-9a-f]", `\.`, `\x41`, "(?s:.)", "(?i:abc)", "(?i:k)", `\D`, `\W`, "[[:alpha:]]",
	}
	if depth == 0 || r.IntN(3) == 0 {
		return atoms[r.IntN(len(atoms))]
	}
	sub := func() string { return randomRegex(r, depth-1) }
	one := func(options ...string) string { return options[r.IntN(len(options))] }
	switch r.IntN(9) {
	case 0, 1, 2:
		return sub() + sub()
	case 3:
		return "(" + sub() + "|" + sub() + ")"
	case 4:
		return "(?:" + sub() + "|" + sub() + "|" + sub() + ")"
	case 5:
		return "(?:" + sub() + ")" + one("*", "+", "?", "*?", "+?", "??")
	case 6:
		return "(" + sub() + ")" + one("*", "+", "?")
	case 7:
		return "(?:" + sub() + ")" + one("{2}", "{3}", "{1,3}", "{2,}", "{0,2}")
	}
	return "(?i)" + sub()
}

// TestRegexSizeAgainstEnvoy asks the real Envoy for the program size of many
// expressions. None that Envoy refuses may pass, and few that it takes may be
// refused.
func TestRegexSizeAgainstEnvoy(t *testing.T) {
	patterns := []string{
		"/users/[^/]+/orders/[0-9]+", "/api/v[0-9]+/(users|orders|items)/[0-9a-f]{8}", "(?i)/users/.*", `/[\w.-]+/\d{4}-\d{2}-\d{2}`,
		"/(en|de|fr|it|es)/(products|categories)/[a-z0-9-]+(/reviews)?", "[a-z]{94}", "[a-z]{95}", "[a-z]{96}", "[a-z]{97}", "/.*", ".+",
	}
	r := rand.New(rand.NewPCG(1, 2))
	for len(patterns) < 2000 {
		if p := randomRegex(r, 5); checkSyntax(p) {
			patterns = append(patterns, p)
		}
	}
	sizes := envoySizes(t, patterns)
	refused := 0
	for _, p := range patterns {
		size, ok := sizes[p]
		if !ok {
			t.Errorf("Envoy says nothing of %q", p)
			continue
		}
		re, err := syntax.Parse(latin1(p), syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		switch ours := regexSize(re.Simplify()); {
		case size > MaxRegexSize && ours <= MaxRegexSize:
			t.Errorf("%q has %d steps in Envoy, and we take it with %d", p, size, ours)
		case size <= MaxRegexSize && ours > MaxRegexSize:
			refused++
		}
	}
	if refused > len(patterns)/50 {
		t.Errorf("%d of %d expressions are refused and Envoy would take them", refused, len(patterns))
	}
}

func checkSyntax(p string) bool {
	_, err := syntax.Parse(latin1(p), syntax.Perl)
	return err == nil
}

// envoySizes runs Envoy with a warning level of 0, so that it prints every size.
func envoySizes(t *testing.T, patterns []string) map[string]int {
	t.Helper()
	type object = map[string]any
	const api = "type.googleapis.com/envoy.extensions.filters."
	var routes []object
	for _, p := range patterns {
		routes = append(routes, object{"match": object{"safe_regex": object{"regex": p}}, "direct_response": object{"status": 200}})
	}
	hcm := object{
		"@type": api + "network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "x",
		"route_config": object{"virtual_hosts": []object{{"name": "v", "domains": []string{"*"}, "routes": routes}}},
		"http_filters": []object{{"name": "router", "typed_config": object{"@type": api + "http.router.v3.Router"}}},
	}
	config, err := json.Marshal(object{
		"layered_runtime": object{"layers": []object{{"name": "s", "static_layer": object{
			"re2.max_program_size.error_level": 100000, "re2.max_program_size.warn_level": 0,
		}}}},
		"static_resources": object{"listeners": []object{{
			"name":    "l",
			"address": object{"socket_address": object{"address": "127.0.0.1", "port_value": 0}},
			"filter_chains": []object{{"filters": []object{{
				"name": "hcm", "typed_config": hcm,
			}}}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), envoytest.Binary(t), "--mode", "validate", "-c", file, "--disable-hot-restart")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%.4000s", err, out.String())
	}
	sizes := map[string]int{}
	for _, m := range regexp.MustCompile(`regex '(.*)' RE2 program size of (\d+) >`).FindAllStringSubmatch(out.String(), -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		sizes[m[1]] = n
	}
	return sizes
}

func TestCheckRegex(t *testing.T) {
	for pattern, want := range map[string]string{
		"/a": "", ".*": "", "[a-z]{96}": "", "[a-z]{97}": "too large", "(?i)é": "", "(?:é)+": "", "é": "", "[^é]": "group", "é?": "group",
		"(": "missing closing", `\C`: "invalid escape", "(?P<n>a)": "", "(?<n>a)": "", "a{1001}": "invalid repeat count", `\x{e9}`: "", `\x{20ac}`: "can never match",
		`\p{Greek}`: "can never match", "[^a]": "", "(?i)k": "", "": "",
		strings.Repeat("(", 1001) + strings.Repeat(")", 1001): "nests too deeply",
	} {
		err := checkRegex(pattern)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.40q: got %v, want %q", pattern, err, want)
		}
		if got := matchRegex(pattern, "x"); got && err != nil {
			t.Errorf("%.40q is refused, but matches", pattern)
		}
	}
	for _, row := range []struct {
		pattern, text string
		want          bool
	}{{"a|ab", "ab", true}, {"a", "ab", false}, {"a", "a\n", false}, {".", "\n", false}, {`\xc3\xa9`, "é", true}, {"[^/]+", "é", true}} {
		if got := matchRegex(row.pattern, row.text); got != row.want {
			t.Errorf("%q on %q: %v", row.pattern, row.text, got)
		}
	}
}
