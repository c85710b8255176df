package compile_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

const claimsYAML = `
---
kind: Secret
name: keys
jwks: JWKS
---
kind: Route
name: must
HOSTS
rules: [{name: all, matches: [{path: {prefix: /must}}], forward: {backends: [{backend: up}]}}]
policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app, "https://api.test/"], jwks_secret: keys, claim_headers: CLAIMS}}}
---
kind: Route
name: may
HOSTS
rules: [{name: all, matches: [{path: {prefix: /may}}], forward: {backends: [{backend: up}]}}]
policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app, "https://api.test/"], jwks_secret: keys, optional: true, claim_headers: CLAIMS}}}
---
kind: Route
name: public
HOSTS
rules: [{name: all, matches: [{path: {prefix: /public}}], forward: {backends: [{backend: up}]}}]
`

// claimHeaders are the claims of claimsYAML that become headers.
var claimHeaders = map[string]string{
	"sub": "x-sub", "v": "x-v", "nested.deep.v": "x-nested", "https://shop.example/tenant": "x-tenant", "acme.io": "x-acme",
}

func claimsConfig(names ...string) string {
	var list []string
	for claim, header := range claimHeaders {
		list = append(list, fmt.Sprintf("{claim: %q, header: %s}", claim, header))
	}
	slices.Sort(list)
	return hosts(strings.ReplaceAll(claimsYAML, "CLAIMS", "["+strings.Join(list, ", ")+"]"), names...)
}

// verdict is what a route should do with a request: its status and, when it reaches the
// backend, the claim headers.
type verdict struct {
	status  int
	headers map[string]string
}

var (
	oneToken  = regexp.MustCompile(`^(?i:bearer) +([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)$`)
	cleanText = regexp.MustCompile(`^([^\x00-\x20\x7f]([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?)?$`)
)

// strict is the verdict by the letter of the RFCs and of the documentation, by another
// library than Envoy's. authorization is nil for no header.
func (r *rig) strict(authorization *string, optional bool) verdict {
	if authorization == nil {
		if optional {
			return verdict{200, map[string]string{}}
		}
		return verdict{status: 401}
	}
	refused := verdict{status: 401}
	m := oneToken.FindStringSubmatch(*authorization)
	if m == nil {
		return refused
	}
	signed, err := jose.ParseSignedCompact(m[1], []jose.SignatureAlgorithm{jose.ES256})
	if err != nil || len(signed.Signatures) != 1 {
		return refused
	}
	if _, critical := signed.Signatures[0].Protected.ExtraHeaders["crit"]; critical {
		return refused // the library knows b64
	}
	payload, err := signed.Verify(r.key.Public()) // refuses crit
	if err != nil {
		return refused
	}
	var claims map[string]any
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	if d.Decode(&claims) != nil || !registered(claims) {
		return refused
	}
	out := verdict{200, map[string]string{}}
	for claim, header := range claimHeaders {
		text, ok := headerOf(claims, claim)
		if !ok {
			return refused
		}
		if text != "" {
			out.headers[header] = text
		}
	}
	return out
}

// registered checks the claims that RFC 7519 defines.
func registered(claims map[string]any) bool {
	now := float64(time.Now().Unix())
	number := func(name string) (v float64, there, ok bool) {
		n, there := claims[name]
		if !there {
			return 0, false, true
		}
		j, ok := n.(json.Number)
		if !ok {
			return 0, true, false
		}
		v, err := strconv.ParseFloat(j.String(), 64)
		return v, true, err == nil && v >= 0 && v < 4e9
	}
	exp, there, ok := number("exp")
	if !there || !ok || exp < now-30 || exp > now+24*3600 {
		return false
	}
	if nbf, _, ok := number("nbf"); !ok || nbf > now+30 {
		return false
	}
	if iat, _, ok := number("iat"); !ok || iat > now+30 {
		return false
	}
	if claims["iss"] != "https://issuer.test" {
		return false
	}
	if sub, there := claims["sub"]; there {
		if s, ok := sub.(string); !ok || !cleanText.MatchString(s) {
			return false
		}
	}
	wanted := func(v any) bool { return v == "app" || v == "https://api.test/" }
	switch aud := claims["aud"].(type) {
	case string:
		return wanted(aud)
	case []any:
		texts := !slices.ContainsFunc(aud, func(v any) bool { _, ok := v.(string); return !ok })
		return texts && slices.ContainsFunc(aud, wanted)
	}
	return false
}

// headerOf is the documented form of a claim as a header; "" for none. It reports
// whether the claim can be a header.
func headerOf(claims map[string]any, name string) (string, bool) {
	v, there := claims[name]
	if strings.Contains(name, ".") && there {
		s, ok := v.(string)
		if !ok || !cleanText.MatchString(s) {
			return "", false
		}
		if s != "" {
			return s, true
		}
	}
	if strings.Contains(name, ".") {
		v = claims
		for part := range strings.SplitSeq(name, ".") {
			m, _ := v.(map[string]any)
			v = m[part]
		}
	}
	switch v := v.(type) {
	case string:
		return v, cleanText.MatchString(v)
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		f, err := strconv.ParseFloat(v.String(), 64)
		if err != nil || f < 0 || f > 1<<53-1 || f != float64(int64(f)) {
			return "", false
		}
		return strconv.FormatInt(int64(f), 10), true
	case map[string]any, []any:
		b, err := json.Marshal(v)
		return "JSON" + string(b), err == nil
	}
	return "", true
}

// sameHeaders compares the claim headers that came with those that should; objects and
// lists are base64 of JSON.
func sameHeaders(got http.Header, want map[string]string) bool {
	for _, name := range claimHeaders {
		have := strings.Join(got.Values(name), "|")
		text, ok := strings.CutPrefix(want[name], "JSON")
		if !ok {
			if have != want[name] || len(got.Values(name)) > 1 {
				return false
			}
			continue
		}
		b, err := base64.StdEncoding.DecodeString(have)
		var x, y any
		if err != nil || json.Unmarshal(b, &x) != nil || json.Unmarshal([]byte(text), &y) != nil || !reflect.DeepEqual(x, y) {
			return false
		}
	}
	return true
}

// checkVerdict sends a request and compares.
func (r *rig) checkVerdict(t *testing.T, port int, what, host, path string, authorization *string) {
	t.Helper()
	var lines []string
	if authorization != nil {
		lines = []string{"Authorization: " + *authorization}
	}
	want := r.strict(authorization, path == "/may")
	a := r.do(t, port, "GET", host+path, append(lines, "x-sub: root", "x-tenant: root", "x-v: root")...)
	switch {
	case a.status != want.status:
		t.Errorf("%s %s: %d %q, want %d (%.300s)", what, path, a.status, a.body, want.status, payloadOf(authorization))
	case a.status == 200 && (a.got == nil || !sameHeaders(a.got.Header, want.headers)):
		t.Errorf("%s %s: headers %v, want %v (%.300s)", what, path, a.got.Header, want.headers, payloadOf(authorization))
	case a.status == 200 && a.got.Header.Get("authorization") != "":
		t.Errorf("%s %s: the token was passed on", what, path)
	case a.status == 401 && (a.header.Get("www-authenticate") == "" || a.got != nil):
		t.Errorf("%s %s: 401 without WWW-Authenticate, or with a request at the backend: %v", what, path, a.header)
	}
}

func payloadOf(authorization *string) string {
	if authorization == nil {
		return "none"
	}
	if p := strings.Split(*authorization, "."); len(p) == 3 {
		if b, err := base64.RawURLEncoding.DecodeString(p[1]); err == nil {
			return string(b)
		}
	}
	return *authorization
}

// placements are ways to write a good token that are not "Bearer TOKEN".
func placements(token string) map[string]string {
	return map[string]string{
		"Bearer": "Bearer " + token, "bearer": "bearer " + token, "BEARER": "BEARER " + token, "BeArEr": "BeArEr " + token, "two blanks": "Bearer  " + token,
		"xBearer": "xBearer " + token, "Basic, Bearer": "Basic x, Bearer " + token, "Bearer, Basic": "Bearer " + token + ", Basic x",
		"tab": "Bearer\t" + token, "no scheme": token, "Token": "Token " + token, "JWT": "JWT " + token, "no blank": "Bearer" + token,
		"quoted": `Bearer "` + token + `"`, "parameter": "Bearer token=" + token, "two tokens": "Bearer " + token + " " + token,
		"more after it": "Bearer " + token + " x", "a fourth part": "Bearer " + token + ".x", "padding": "Bearer " + token + "=",
		"comma": "Bearer " + token + ",", "Bearer twice": "Bearer Bearer " + token, "two parts": "Bearer " + token[:strings.LastIndexByte(token, '.')],
		"empty signature": "Bearer " + token[:strings.LastIndexByte(token, '.')+1], "basic": "Basic eDp5", "scheme alone": "Bearer", "dots": "Bearer ..",
	}
}

// claimValues are what issuers were seen to write, and what attackers would.
var claimValues = []string{
	`"gold"`, `"é ☃"`, `"a b"`, `"a,b"`, `""`, `" "`, `" root"`, `"root "`, `"\troot"`, `"a\u0000b"`, `"a\r\nx-admin: 1"`, `"\u007f"`, `"\u0080"`, `"a\u001b[0m"`,
	`null`, `true`, `false`, `0`, `42`, `-7`, `-0`, `"15"`, `1.0`, `1e3`, `9007199254740991`, `9007199254740992`, `-9007199254740993`, `12345678901234567890`, `1e300`,
	`0.5`, `-0.25`, `3.14159265358979`, `100000.5`, `123456789.125`, `1e-9`, `[]`, `{}`, `["a"]`, `["a", 1, null, {"b": [true]}]`, `{"a": "b\n"}`, `"%REQ(host)%"`, `"` + strings.Repeat("x", 3000) + `"`,
}

// testClaims: verdict and headers are those of a strict verifier, for every claim, every
// place of the token, every layout, at the first and at the second request.
func testClaims(t *testing.T, r *rig) {
	for layout, names := range map[string][]string{"table": nil, "scopes": {"a.x.test"}, "wildcard": {"*.x.test"}} {
		t.Run(layout, func(t *testing.T) {
			port := r.serve(t, gatewayOn+claimsConfig(names...))
			check := func(what string, authorization string) {
				t.Helper()
				for _, path := range []string{"/must", "/may"} {
					for range 2 { // the second is found among the verified tokens
						r.checkVerdict(t, port, what, "a.x.test", path, &authorization)
					}
				}
			}
			for _, path := range []string{"/must", "/may"} {
				r.checkVerdict(t, port, "no header", "a.x.test", path, nil)
			}
			for what, value := range placements(r.sign(t, claimsOf(), nil)) {
				check(what, value)
			}
			for what, value := range placements(r.sign(t, claimsOf("exp", "1000"), nil)) {
				check("expired, "+what, value)
			}
			for what, members := range r.registeredCases() {
				check(what, "Bearer "+r.sign(t, claimsOf(members...), nil))
			}
			for what, header := range map[string]map[jose.HeaderKey]any{
				"crit": {"crit": []string{"x"}, "x": 1}, "crit of b64": {"crit": []string{"b64"}, "b64": true}, "typ": {"typ": "at+jwt"}, "unknown member": {"x": 1},
			} {
				check(what, "Bearer "+r.sign(t, claimsOf(), header))
			}
			for _, value := range claimValues {
				for _, claim := range []string{"sub", "v", "https://shop.example/tenant", "acme.io"} {
					check(claim+" "+value, "Bearer "+r.sign(t, claimsOf(claim, value), nil))
				}
				check("nested "+value, "Bearer "+r.sign(t, claimsOf("nested", `{"deep": {"v": `+value+`}}`, "acme", `{"io": `+value+`}`), nil))
			}
			check("literal before nested", "Bearer "+r.sign(t, claimsOf("acme", `{"io": "nested"}`, "acme.io", `"literal"`), nil))
			check("control characters elsewhere", "Bearer "+r.sign(t, claimsOf("other", `"a\r\nb"`), nil))
		})
	}
}

// registeredCases are changes of the claims that every verifier knows.
func (r *rig) registeredCases() map[string][]string {
	in := func(d time.Duration) string { return fmt.Sprint(time.Now().Add(d).Unix()) }
	return map[string][]string{
		"aud list": {"aud", `["x", "app"]`}, "aud with a slash": {"aud", `"https://api.test/"`},
		"aud without the slash": {"aud", `"https://api.test"`}, "aud without the scheme": {"aud", `"api.test/"`}, "aud http": {"aud", `"http://app"`},
		"aud slash": {"aud", `"app/"`}, "aud https slash": {"aud", `"https://app/"`}, "aud case": {"aud", `"App"`}, "aud blank": {"aud", `"app "`}, "aud list of other": {"aud", `["https://app", "app/"]`},
		"aud empty": {"aud", `[]`}, "aud none": {"aud", ``}, "aud number": {"aud", `5`}, "aud mixed": {"aud", `["app", 5]`}, "aud null": {"aud", `null`}, "aud object": {"aud", `{"app": 1}`},
		"exp in the past": {"exp", in(-time.Minute)}, "exp within the skew": {"exp", in(-10 * time.Second)}, "exp in two days": {"exp", in(48 * time.Hour)},
		"exp 1e18": {"exp", `1000000000000000000`}, "exp 1e19": {"exp", `10000000000000000000`}, "exp 2^63": {"exp", `9223372036854775808`}, "exp 1e300": {"exp", `1e300`}, "exp text": {"exp", `"9999999999"`}, "exp negative": {"exp", `-1`}, "exp none": {"exp", ``},
		"iat now": {"iat", in(0)}, "iat within the skew": {"iat", in(10 * time.Second)}, "iat later": {"iat", in(5 * time.Minute)}, "iat 1e18": {"iat", `1000000000000000000`}, "iat 1e300": {"iat", `1e300`}, "iat text": {"iat", `"1"`}, "iat negative": {"iat", `-5`},
		"nbf later": {"nbf", in(5 * time.Minute)}, "nbf before": {"nbf", in(-time.Hour)}, "nbf within the skew": {"nbf", in(10 * time.Second)},
		"iss other": {"iss", `"https://other.test"`}, "iss with a slash": {"iss", `"https://issuer.test/"`}, "iss list": {"iss", `["https://issuer.test"]`}, "iss none": {"iss", ``},
		"sub number": {"sub", `42`}, "sub none": {"sub", ``}, "sub list": {"sub", `["alice"]`},
	}
}

// testKeySets: a set with keys that Envoy does not know serves its others, also when two
// have one kid.
func testKeySets(t *testing.T, r *rig) {
	second := *r
	second.rotate(t)
	var one, two struct{ Keys []json.RawMessage }
	if err := json.Unmarshal([]byte(r.jwks()), &one); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(second.jwks()), &two); err != nil {
		t.Fatal(err)
	}
	keys := []string{
		`{"kty":"AKP","kid":"one","alg":"ML-DSA-44","pub":"AAAA"}`, `{"kty":"oct","kid":"one","k":"AAAA"}`, `{"kty":"EC","kid":"one","crv":"secp256k1","x":"AAAA","y":"AAAA"}`,
		string(one.Keys[0]), strings.Replace(string(two.Keys[0]), "{", `{"x5c":["MIIB"],"x5t":5,`, 1), `{"kty":"OKP","kid":"one","crv":"Ed448","x":"AAAA"}`,
	}
	set, err := json.Marshal(`{"keys": [` + strings.Join(keys, ",") + `]}`)
	if err != nil {
		t.Fatal(err)
	}
	port := r.serve(t, gatewayOn+strings.ReplaceAll(claimsConfig(), "JWKS", string(set)))
	for name, key := range map[string]*rig{"first": r, "second of the same kid": &second} {
		if a := r.do(t, port, "GET", "x.test/must", "Authorization: Bearer "+key.sign(t, claimsOf(), nil)); a.status != 200 {
			t.Errorf("the %s key: %d %s", name, a.status, a.body)
		}
	}
	third := *r
	third.rotate(t)
	if a := r.do(t, port, "GET", "x.test/must", "Authorization: Bearer "+third.sign(t, claimsOf(), nil)); a.status != 401 {
		t.Errorf("a foreign key: %d", a.status)
	}
}

// testTokens: tokens made at random differ in nothing from what the strict verifier says.
func testTokens(t *testing.T, r *rig) {
	port := r.serve(t, gatewayOn+claimsConfig())
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from []string) string { return from[random.IntN(len(from))] }
	registered := r.registeredCases()
	var names []string
	for name := range registered {
		names = append(names, name)
	}
	slices.Sort(names)
	for i := range 1000 {
		var members []string
		for range random.IntN(3) {
			members = append(members, pick([]string{"sub", "v", "acme.io", "https://shop.example/tenant", "more"}), pick(claimValues))
		}
		if random.IntN(3) == 0 {
			members = append(members, "nested", `{"deep": {"v": `+pick(claimValues)+`}}`)
		}
		if random.IntN(4) == 0 {
			members = append(members, registered[pick(names)]...)
		}
		value := "Bearer " + r.sign(t, claimsOf(members...), nil)
		switch random.IntN(8) {
		case 0: // a byte of it changed
			b := []byte(value)
			b[7+random.IntN(len(b)-7)] = "ABCxyz019-_. ,="[random.IntN(15)]
			value = string(b)
		case 1:
			all := placements(value[7:])
			var kinds []string
			for k := range all {
				kinds = append(kinds, k)
			}
			slices.Sort(kinds)
			value = all[pick(kinds)]
		}
		value = strings.TrimRight(value, " \t")
		for _, path := range []string{"/must", "/may"} {
			r.checkVerdict(t, port, fmt.Sprint("token ", i), "x.test", path, &value)
		}
	}
}
