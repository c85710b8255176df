package gateway

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// MaxAuthority is how long the Host of a request may be, in bytes, with its port.
// A name has at most 253 (RFC 1035, section 2.3.4, without length octets).
const MaxAuthority = 255

// HostForm is one form that the Host of a request may have: it matches all of
// Match and none of Not. The expressions are RE2 over the whole text, without the
// one dot that a name may end with. The compiler gives them to Envoy as they are,
// so that the gateway and explain cannot differ.
type HostForm struct{ Match, Not []string }

const (
	portNumber = `([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])`
	// hostName ends with a label that is not a number: what ends with one is an IPv4
	// address to many parsers (WHATWG URL, section 3.5), in whatever spelling.
	hostName = `([A-Za-z0-9_-]+\.)*[A-Za-z0-9_-]*[A-Za-z_-][A-Za-z0-9_-]*`
	octet    = `(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])`
	ipv4     = octet + `\.` + octet + `\.` + octet + `\.` + octet
	hextets  = `([0-9a-fA-F]+(:[0-9a-fA-F]+)*)?`
	// A port after an address: the expression of the address has no room to check it.
	anyPort = `(:[0-9]+)?`
)

var hostForms = []HostForm{
	{Match: []string{hostName + `(:` + portNumber + `)?`}},
	{Match: []string{ipv4 + anyPort, `[^:]*(:` + portNumber + `)?`}},
	{
		Match: []string{`\[` + hextets + `::` + hextets + `\]` + anyPort, `\[[^\]]*\](:` + portNumber + `)?`},
		Not:   []string{longHextet, `\[(:*[0-9a-fA-F]+:){7}:*[0-9a-fA-F].*`},
	},
	{
		Match: []string{`\[([0-9a-fA-F]+:){7}[0-9a-fA-F]+\]` + anyPort, `\[[^\]]*\](:` + portNumber + `)?`},
		Not:   []string{longHextet},
	},
	{Match: []string{`\[::([fF]{4}:)?` + ipv4 + `\]` + anyPort, `\[[^\]]*\](:` + portNumber + `)?`}},
}

// longHextet is a part of an IPv6 address that is longer than four digits.
const longHextet = `\[[^\]]*[0-9a-fA-F]{5}.*`

// HostForms are the forms of a canonical host: a name of labels of letters, digits,
// "-" and "_"; an IPv4 address; an IPv6 address in brackets; each with a port from
// 1 to 65535 or without (RFC 9110, section 7.2; RFC 3986, section 3.2.2, of which
// percent-encoded and other names are left out: servers were seen to read them as
// another host than Envoy).
func HostForms() []HostForm { return hostForms }

// Matches reports whether a text has this form.
func (f HostForm) Matches(text string) bool {
	for _, p := range f.Match {
		if !wholeRegex(p).MatchString(text) {
			return false
		}
	}
	for _, p := range f.Not {
		if wholeRegex(p).MatchString(text) {
			return false
		}
	}
	return true
}

var wholeRegexes sync.Map // of *regexp.Regexp by pattern

func wholeRegex(pattern string) *regexp.Regexp {
	if re, ok := wholeRegexes.Load(pattern); ok {
		return re.(*regexp.Regexp)
	}
	re := regexp.MustCompile(`\A(?:` + pattern + `)\z`)
	wholeRegexes.Store(pattern, re)
	return re
}

// CanonicalHost is the host that a request is served for, from its Host header or
// :authority: in lower case, without its port and without the one dot that may end
// it. port is 0 when there is none. The error is an *EdgeError.
func CanonicalHost(authority string) (host string, port uint32, err error) {
	text := trimHostDot(authority)
	if len(text) > MaxAuthority {
		return "", 0, edgeError(HostTooLong, "the host has %d characters, and the edge takes %d", len(text), MaxAuthority)
	}
	for _, f := range hostForms {
		if f.Matches(text) {
			name, digits := splitPort(text)
			n, _ := strconv.ParseUint(digits, 10, 16)
			return strings.ToLower(name), uint32(n), nil
		}
	}
	return "", 0, edgeError(BadHost, "%q is not a host name or IP address with an optional port", authority)
}

// trimHostDot removes the last dot where a name may end: at the end of the text or
// before a colon. It does exactly what Envoy does with strip_trailing_host_dot before
// anything else looks at the host, "a.test:80." included.
func trimHostDot(authority string) string {
	i := strings.LastIndexByte(authority, '.')
	if i >= 0 && (i == len(authority)-1 || authority[i+1] == ':') {
		return authority[:i] + authority[i+1:]
	}
	return authority
}

// splitPort splits an authority of one of the forms.
func splitPort(authority string) (host, port string) {
	i := strings.LastIndexByte(authority, ':')
	if i < 0 || strings.HasSuffix(authority, "]") {
		return authority, ""
	}
	return authority[:i], authority[i+1:]
}

// EdgeError is why the edge refuses a request, before any route is looked at.
type EdgeError struct {
	// Answer is what the client gets.
	Answer Answer
	// Reason says what of the request it is about.
	Reason string
}

func edgeError(a Answer, format string, args ...any) *EdgeError {
	return &EdgeError{Answer: a, Reason: fmt.Sprintf(format, args...)}
}

// Error implements error: `400 Bad Request: "a..b" is not a host name … (PK-EDGE-HOST)`.
func (e *EdgeError) Error() string {
	return fmt.Sprintf("%d %s: %s (%s)", e.Answer.Status, http.StatusText(int(e.Answer.Status)), e.Reason, e.Answer.Code)
}
