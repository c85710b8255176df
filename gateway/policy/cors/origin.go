package cors

import (
	"net/netip"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
)

var (
	schemes  = regexp.MustCompile(`^[a-z][-+.a-z0-9]*$`)
	hostname = regexp.MustCompile(`^[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?(\.[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?)*$`)
)

// badOrigin says why a text can never be an origin that a browser sends (RFC 6454, section
// 6.1), or must not be allowed; "" when it may be.
func badOrigin(o string) string {
	if o == "*" {
		return ""
	}
	if o == "null" {
		return "is what browsers send for every page without an origin, such as a local file or a sandboxed frame, which anybody can make; give the page an origin and name that"
	}
	scheme, host, ok := strings.Cut(o, "://")
	if !ok || !schemes.MatchString(scheme) {
		return "must begin with a scheme, such as https://; a host alone is not an origin, and browsers compare the whole"
	}
	if strings.ContainsAny(host, "/?#@") {
		return "is a URL; an origin is a scheme, a host and perhaps a port, without a slash at its end"
	}
	name := host
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		port := host[i+1:]
		name = host[:i]
		n, err := strconv.ParseUint(port, 10, 16)
		switch {
		case err != nil || n == 0 || strconv.FormatUint(n, 10) != port:
			return "has a port that is not a number from 1 to 65535"
		case scheme == "https" && n == 443, scheme == "http" && n == 80:
			return "names the default port of its scheme, which browsers never send; remove :" + port
		}
	}
	domain, wild := strings.CutPrefix(name, "*.")
	switch a, err := netip.ParseAddr(strings.Trim(name, "[]")); {
	case err == nil && (a.Is4() || name == "["+a.String()+"]") && a.Zone() == "":
		return ""
	case strings.Contains(domain, "*"):
		return "has \"*\" inside; it may stand alone, or for the first labels, as in https://*.example.com"
	case !hostname.MatchString(domain) || len(domain) > 253:
		return "has a host that no browser sends: letters, digits, dashes and dots, in ASCII (a name in other letters in its xn-- form)"
	case wild && !strings.Contains(domain, ".") && domain != "localhost":
		return "would allow every host of a top-level domain; name more of the domain"
	}
	return ""
}

// local reports whether an origin is this machine, where nobody is on the way.
func local(o string) bool {
	_, host, _ := strings.Cut(o, "://")
	name, _, _ := strings.Cut(host, ":")
	return name == "localhost" || strings.HasSuffix(name, ".localhost") || strings.HasPrefix(name, "127.")
}

// wildcard is the expression of an origin with a wildcard: labels of a host, and nothing that
// could end the host before it.
func wildcard(o string) (pattern string, ok bool) {
	before, after, ok := strings.Cut(o, "*.")
	return regexp.QuoteMeta(before) + `(?:[-0-9a-z_]+\.)+` + regexp.QuoteMeta(after), ok
}

// somewhere are origins that are nobody's: an expression that matches one matches all.
var somewhere = []string{"https://penstock-probe.invalid", "http://penstock-probe.invalid", "https://a.b.penstock-probe.invalid:8443"}

// badRegex says why an expression cannot be one of origins; "" when it can.
func badRegex(pattern string, credentials bool) string {
	if why := gateway.CheckRegex(pattern); why != "" {
		return why
	}
	re, err := regexp.Compile(`\A(?:` + pattern + `)\z`)
	if err != nil {
		return "is not a valid RE2 regular expression: " + err.Error()
	}
	if !strings.HasPrefix(pattern, "https://") && !strings.HasPrefix(pattern, "http://") && !strings.HasPrefix(pattern, "https?://") {
		return "must begin with https://, http:// or https?://, so that it matches whole origins and never \"null\""
	}
	// Envoy takes an expression that matches "*" for one of every origin.
	if re.MatchString("null") || re.MatchString("*") {
		return "matches \"null\" or \"*\", which would allow every page; leave out alternatives without a scheme"
	}
	for _, o := range somewhere {
		if credentials && re.MatchString(o) {
			return "matches every origin, so with allow_credentials any page in the world could act as your users; name the domain"
		}
	}
	return ""
}

// looseRegex says where an expression is likely to match more than is meant.
func looseRegex(pattern string) []string {
	tree, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil
	}
	var out []string
	if last := tree; last.Op == syntax.OpConcat {
		if last = last.Sub[len(last.Sub)-1]; many(last) && single(last.Sub[0]) {
			out = append(out, "lets any text follow, so that a host which only begins like yours is allowed, too: end with the host, or with (:[0-9]+)?")
		}
	}
	var walk func(r *syntax.Regexp)
	walk = func(r *syntax.Regexp) {
		for i, sub := range r.Sub {
			walk(sub)
			if r.Op != syntax.OpConcat || i+1 == len(r.Sub) || r.Sub[i+1].Op != syntax.OpLiteral {
				continue
			}
			next := string(r.Sub[i+1].Rune)
			switch {
			case single(sub) && i > 0:
				out = append(out, `has a dot before "`+next+`" that stands for any character: write \.`)
			case many(sub) && !strings.HasPrefix(next, ".") && !strings.HasPrefix(next, ":"):
				out = append(out, `lets any text come before "`+next+`", so that a host such as evil`+next+` is allowed, too: begin with \.`)
			}
		}
	}
	walk(tree)
	return out
}

// single reports whether an expression is one of any character.
func single(r *syntax.Regexp) bool {
	return r.Op == syntax.OpAnyChar || r.Op == syntax.OpAnyCharNotNL
}

// many reports whether an expression is a repetition of characters that a label may end with.
func many(r *syntax.Regexp) bool {
	if r.Op == syntax.OpCapture {
		return many(r.Sub[0])
	}
	if r.Op != syntax.OpStar && r.Op != syntax.OpPlus {
		return false
	}
	of := r.Sub[0]
	return single(of) || of.Op == syntax.OpCharClass
}
