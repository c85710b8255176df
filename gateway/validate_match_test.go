package gateway

import (
	"strconv"
	"strings"
	"testing"
)

// servedBy is a snapshot of a route and gateways g0, g1, …, each with a listener of its
// profile.
func servedBy(t *testing.T, route string, profiles ...string) *Snapshot {
	t.Helper()
	text := "route r " + route + "\nbackend b {'static': {'endpoints': [{'address': '10.0.0.1', 'port': 1}]}}\n"
	for i, p := range profiles {
		text += "gateway g" + string(rune('0'+i)) + " {'listeners': [{'name': 'a', 'port': 1, 'hostnames': ['*.x'], 'edge': {" + p + "}}]}\n"
	}
	all := objects(t, text)
	for _, o := range all {
		for _, p := range model.Validate(o) {
			t.Fatalf("%s: %s: %s", p.Object, p.Field, p.Message)
		}
	}
	return model.Build(nil, 1, Changes{Updates: all})
}

// TestMatchesOfProfiles: a match is refused when none of the listeners that serve the route
// lets a request through that satisfies it; served is the profile of one that does.
func TestMatchesOfProfiles(t *testing.T) {
	const (
		repeated, slashes = `'repeatedSlashes': 'REPEATED_SLASHES_KEEP'`, `'encodedSlashes': 'ENCODED_SLASHES_KEEP'`
		semicolons, under = `'semicolons': 'SEMICOLONS_KEEP'`, `'headerUnderscores': 'HEADER_UNDERSCORES_ALLOW'`
		decode, refuse    = `'encodedSlashes': 'ENCODED_SLASHES_DECODE'`, `'headerUnderscores': 'HEADER_UNDERSCORES_REFUSE'`
	)
	for _, c := range []struct{ match, served, field, message string }{
		{`{'path': {'exact': '/a//b'}}`, repeated, "path.exact", `requests arrive normalized; write "/a/b", or let edge.repeated_slashes`},
		{`{'path': {'prefix': '/a//b'}}`, repeated, "path.prefix", `write "/a/b"`},
		{`{'path': {'textPrefix': '/a//'}}`, repeated, "path.text_prefix", `write "/a/"`},
		{`{'path': {'regex': '/a//b'}}`, repeated, "path.regex", "slashes are merged before"},
		{`{'path': {'regex': '/a/{2}b'}}`, repeated, "path.regex", "no //"},
		{`{'path': {'exact': '/a%2Fb'}}`, slashes, "path.exact", "edge.encoded_slashes of the listener can keep or decode it"},
		{`{'path': {'regex': '/a%(2[fF]|5[cC])b'}}`, slashes, "path.regex", "can never match"},
		{`{'path': {'exact': '/a;b=1'}}`, semicolons, "path.exact", "edge.semicolons of the listener can keep them"},
		{`{'path': {'prefix': '/a%3Bb'}}`, semicolons, "path.prefix", "edge.semicolons of the listener can keep them"},
		{`{'path': {'regex': '/a;b=[0-9]+'}}`, semicolons, "path.regex", "edge.semicolons of the listener can keep them"},
		{`{'headers': [{'name': 'x_a', 'value': {'exact': '1'}}]}`, under, "headers[0].name", "use -, or let edge.header_underscores"},
	} {
		route := strings.Replace(match(c.match), "{", "{'hostnames': ['a.x'], ", 1)
		for _, profiles := range [][]string{{""}, {decode}, {refuse}, {"", decode}} {
			problems := servedBy(t, route, profiles...).Check()
			if len(problems) != 1 || problems[0].Field != "rules[0].matches[0]."+c.field || !strings.Contains(problems[0].Message, c.message) && profiles[0] == "" {
				t.Errorf("%s on %q: %v", c.match, profiles, problems)
			}
		}
		for _, profiles := range [][]string{nil, {c.served}, {"", c.served}, {c.served, decode}} {
			if problems := servedBy(t, route, profiles...).Check(); len(problems) > 0 {
				t.Errorf("%s on %q: %v", c.match, profiles, problems)
			}
		}
		// Served nowhere, it is judged by the default profile, if that is asked for.
		for profile, want := range map[string]int{"none": 1, "": 0, c.served: 0} {
			profiles := []string{profile}
			if profile == "none" {
				profiles = nil
			}
			if problems := servedBy(t, route, profiles...).UnservedByDefault([]string{"projects/p/routes/r"}); len(problems) != want {
				t.Errorf("%s on %q, by default: %v", c.match, profiles, problems)
			}
		}
		// A listener for other hosts does not serve the route.
		elsewhere := strings.Replace(route, "'a.x'", "'a.y'", 1)
		if problems := servedBy(t, elsewhere, "").Check(); len(problems) > 0 {
			t.Errorf("%s on no listener: %v", c.match, problems)
		}
		// A change of the listener makes and takes the problem, however it was got to.
		s := servedBy(t, route, c.served)
		for _, change := range []struct {
			to   string
			want int
		}{{"", 1}, {c.served, 0}} {
			gw := objectOf(t, "gateway", "g0", `{'listeners': [{'name': 'a', 'port': 1, 'edge': {`+change.to+`}}]}`)
			if s = model.Build(s, 2, Changes{Updates: []Object{gw}}); len(s.Check()) != change.want {
				t.Errorf("%s, changed to %q: %v", c.match, change.to, s.Check())
			}
		}
		named := strings.Replace(route, "{", "{'gateways': ['g0'], ", 1)
		if problems := servedBy(t, named, "", c.served).Check(); len(problems) != 1 {
			t.Errorf("%s on g0 only: %v", c.match, problems)
		}
	}
}

// TestMatchesOfOwnHeaders: matches of headers that the listener itself sets.
func TestMatchesOfOwnHeaders(t *testing.T) {
	const proto, id = `{'headers': [{'name': 'x-forwarded-proto', 'value': `, `{'headers': [{'name': 'x-request-id', 'value': `
	const replace, uuid = `'requestIds': 'CLIENT_REQUEST_IDS_REPLACE'`, `'requestIds': 'CLIENT_REQUEST_IDS_KEEP_UUID'`
	const some = `'5f3ac60e-9c1c-4b1a-8e6f-0242ac120002'`
	listener := func(more string) string { return `{'listeners': [{'name': 'a', 'port': 1` + more + `}]}` }
	plain, trusting, secure := listener(""), listener(`, 'trustedHops': 1`), listener(`, 'protocol': 'LISTENER_PROTOCOL_HTTPS'`)
	profile := func(p string) string { return listener(`, 'edge': {` + p + `}`) }
	for _, c := range []struct {
		match    string
		gateways []string
		message  string
	}{
		{proto + `{'exact': 'https'}}]}`, []string{plain}, "it is http in every request"},
		{proto + `{'exact': 'https'}}]}`, []string{plain, secure}, ""},
		{proto + `{'exact': 'https'}}]}`, []string{trusting}, ""},
		{proto + `{'exact': 'https'}}]}`, nil, ""},
		{proto + `{'exact': 'http'}}]}`, []string{plain}, ""},
		{proto + `{'exact': 'http'}}]}`, []string{secure}, "it is https in every request"},
		{proto + `{'regex': 'https?'}}]}`, []string{secure}, ""},
		{proto + `{'regex': 'ws+'}}]}`, []string{secure}, "can never match"},
		{proto + `{'exact': 'https'}, 'invert': true}]}`, []string{plain}, ""},
		{proto + `{'present': true}}]}`, []string{plain}, ""},
		{id + `{'exact': 'abc'}}]}`, []string{plain}, ""},
		{id + `{'exact': 'a b'}}]}`, []string{plain}, "letters, digits"},
		{id + `{'regex': '[.]+'}}]}`, []string{plain}, "letters, digits"},
		{id + `{'exact': 'abc'}}]}`, []string{profile(uuid)}, "ids are UUIDs"},
		{id + `{'exact': ` + some + `}}]}`, []string{profile(uuid)}, ""},
		{id + `{'exact': ` + some + `}}]}`, []string{profile(replace)}, "an id of its own"},
		{id + `{'exact': ` + some + `}}]}`, []string{profile(replace), plain}, ""},
		{id + `{'prefix': '5f'}}]}`, []string{profile(replace)}, ""},
		{id + `{'prefix': '5g'}}]}`, []string{profile(replace)}, "ids are UUIDs"},
	} {
		route := strings.Replace(match(c.match), "{", "{'hostnames': ['a.x'], ", 1)
		r := objectOf(t, "route", "r", route)
		all := append(objects(t, "backend b {'static': {'endpoints': [{'address': '10.0.0.1', 'port': 1}]}}\n"), r)
		for i, g := range c.gateways {
			all = append(all, objectOf(t, "gateway", "g"+strconv.Itoa(i), g))
		}
		problems := append(model.Validate(r), model.Build(nil, 1, Changes{Updates: all}).Check()...)
		if c.message == "" && len(problems) > 0 || c.message != "" && (len(problems) != 1 || !strings.Contains(problems[0].Message, c.message)) {
			t.Errorf("%s on %q: %v, want %q", c.match, c.gateways, problems, c.message)
		}
	}
}

// TestMatchesOfAnyProfile: what every profile lets match is refused by none.
func TestMatchesOfAnyProfile(t *testing.T) {
	for _, m := range []string{
		`{'path': {'exact': '//'}}`, `{'path': {'exact': '/a%20b'}}`, `{'path': {'prefix': '/'}}`, `{'path': {'regex': '/(a|//|;)+'}}`, `{'headers': [{'name': 'x-a', 'value': {'exact': '1'}}]}`,
		`{'headers': [{'name': 'x_a', 'value': {'exact': '1'}, 'invert': true}]}`, `{'headers': [{'name': 'x-real-ip', 'value': {'present': false}}]}`,
	} {
		for _, profile := range []string{"", `'encodedSlashes': 'ENCODED_SLASHES_DECODE'`, `'repeatedSlashes': 'REPEATED_SLASHES_KEEP', 'semicolons': 'SEMICOLONS_KEEP'`} {
			if problems := servedBy(t, match(m), profile).Check(); len(problems) > 0 {
				t.Errorf("%s on %q: %v", m, profile, problems)
			}
		}
	}
}

// TestMatchWarnings: what is valid, and may not be meant.
func TestMatchWarnings(t *testing.T) {
	for _, c := range []struct{ match, field, message string }{
		{`{'path': {'prefix': '/api/*'}}`, "path.prefix", "not a wildcard; prefix: /api matches whatever is below /api"},
		{`{'path': {'exact': '/api/v1/x*/y'}}`, "path.exact", "prefix: /api/v1 matches"},
		{`{'path': {'prefix': '/*'}}`, "path.prefix", "prefix: / matches"},
		{`{'methods': ['GET', 'FOO']}`, "methods[1]", "HTTP/2 only"},
		{`{'headers': [{'name': 'x-real-ip', 'value': {'exact': 'a'}, 'invert': true}]}`, "headers[0]", "satisfied by every request"},
		{`{'headers': [{'name': 'forwarded', 'value': {'present': false}}]}`, "headers[0]", "satisfied by every request"},
		{`{'headers': [{'name': 'x_request_id', 'value': {'present': true}, 'invert': true}]}`, "headers[0]", "satisfied by every request"},
		{`{'headers': [{'name': 'x-a', 'value': {'regex': 'a\\n.*'}, 'invert': true}]}`, "headers[0]", "no header has that value"},
		{`{'headers': [{'name': 'x-a', 'value': {'exact': 'a'}, 'invert': true}]}`, "", ""},
		{`{'path': {'exact': '/a//b'}}`, "path", `can be read as "/a/b"`},
		{`{'path': {'prefix': '/a;v=1'}}`, "path", `can be read as "/a"`},
		{`{'path': {'exact': '/a//b'}}, {'path': {'prefix': '/a'}}`, "", ""},
		{`{'path': {'exact': '/a%20b'}}`, "", ""},
	} {
		r := objectOf(t, "route", "r", match(c.match))
		if p := model.Validate(r); len(p) > 0 {
			t.Errorf("%s: %v", c.match, p)
		}
		w := model.Warnings(r)
		if c.field == "" && len(w) == 0 {
			continue
		}
		if len(w) != 1 || w[0].Field != "rules[0].matches[0]."+c.field || !strings.Contains(w[0].Message, c.message) {
			t.Errorf("%s: %v", c.match, w)
		}
	}
}
