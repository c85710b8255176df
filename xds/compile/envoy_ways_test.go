package compile_test

import (
	"slices"
	"strings"
	"testing"
)

// way is how rig.do sends a request.
type way string

// The ways. In absolute form (RFC 9112, section 3.2.2) the host is in the request line, and
// the header says another.
const (
	http11   way = "" // the host in a header
	absolute way = "absolute form"
	overH2   way = "HTTP/2"
)

var ways = []way{http11, absolute, overH2}

// send sends a request in the rig's way. header are "name: value" lines.
func (r *rig) send(t *testing.T, port int, method, host, path string, header ...string) answer {
	t.Helper()
	switch r.way {
	case absolute:
		lines := append([]string{method + " http://" + host + path + " HTTP/1.1", "Host: elsewhere.test", "Connection: close"}, header...)
		return r.raw(t, port, strings.Join(lines, "\r\n")+"\r\n\r\n")
	case overH2:
		fields := []string{":method", method, ":scheme", "http", ":authority", host, ":path", path}
		for _, line := range header {
			name, value, _ := strings.Cut(line, ":")
			// HTTP/2 has no blanks around values (RFC 9113, section 8.2.1).
			fields = append(fields, strings.ToLower(name), strings.Trim(value, " \t"))
		}
		return r.h2(t, port, fields...)
	}
	lines := append([]string{method + " " + path + " HTTP/1.1", "Host: " + host, "Connection: close"}, header...)
	return r.raw(t, port, strings.Join(lines, "\r\n")+"\r\n\r\n")
}

// testWays: the tables of the guard, of claims and of limits hold in whatever way a request
// comes, in all layouts.
func testWays(t *testing.T, r *rig) {
	defer func() { r.way = http11 }()
	for _, w := range ways {
		if r.way = w; w == http11 {
			continue // that is how all others are sent
		}
		t.Run(string(w), func(t *testing.T) {
			t.Run("JWT", func(t *testing.T) { testJWT(t, r) })
			t.Run("Forged", func(t *testing.T) { forgedTokens(t, r) })
			t.Run("Claims", func(t *testing.T) { testClaims(t, r) })
			t.Run("Tokens", func(t *testing.T) { testTokens(t, r) })
			t.Run("KeySets", func(t *testing.T) { testKeySets(t, r) })
			t.Run("Limits", func(t *testing.T) { testLimits(t, r) })
			t.Run("Profiles", func(t *testing.T) { testProfiles(t, r) })
		})
	}
}

// testWaysLayouts: the tables of good and forged tokens, in each layout, eager and on
// demand, in each way. On demand each request is the first of its host.
func testWaysLayouts(t *testing.T, r *rig) {
	defer func() { r.way = http11; r.setEager(0) }()
	type row struct {
		path   string
		header []string
		status int
	}
	// Made again for each way: one that is not valid yet is valid 20 seconds later.
	tokens := func() (rows []row) {
		as := func(claims map[string]any) string { return "Authorization: Bearer " + r.token(t, claims) }
		for _, c := range jwtCases(as(nil), as) {
			rows = append(rows, row{c.path, slices.DeleteFunc([]string{c.auth}, func(s string) bool { return s == "" }), c.status})
		}
		for _, header := range r.forged(t) {
			rows = append(rows, row{"/must", header, 401})
		}
		return rows
	}
	const wild = `
---
kind: Route
name: wild
hostnames: ["*.x.test", "*.cold.test"]
rules: [{name: all, forward: {backends: [{backend: up}]}}]
`
	cold := newColdHosts(len(tokens()) * len(ways))
	for _, c := range []struct {
		layout string
		eager  int
		next   func() string
		yaml   string
	}{
		{"table", 0, func() string { return "a.x.test" }, hosts(protected)},
		{"scopes", 0, func() string { return "a.x.test" }, hosts(protected, "a.x.test")},
		{"wildcard", 0, func() string { return "a.x.test" }, hosts(protected, "*.x.test")},
		{"exact under a wildcard", 0, func() string { return "a.x.test" }, hosts(protected, "a.x.test") + wild},
		{"in capitals", 0, func() string { return "A.x.TEST" }, hosts(protected, "a.x.test")},
		{"wildcard on demand", -1, func() string { return "a.x.test" }, hosts(protected, "*.x.test")},
		{"on demand", -1, cold.next, hosts(protected, cold.names...)},
		{"on demand under a wildcard", -1, cold.next, hosts(protected, cold.names...) + wild},
		{"on demand in capitals", -1, func() string { return strings.ToUpper(cold.next()) }, hosts(protected, cold.names...)},
	} {
		cold.used = 0
		r.setEager(c.eager)
		port := r.serve(t, gatewayOn+c.yaml)
		for _, r.way = range ways {
			for _, row := range tokens() {
				a := r.do(t, port, "GET", c.next()+row.path, row.header...)
				if a.status != row.status || a.got != nil && row.status != 200 {
					t.Errorf("%s, %s, %s %.60q: %d, want %d (%s)", c.layout, r.way, row.path, row.header, a.status, row.status, a.body)
				}
			}
		}
	}
}
