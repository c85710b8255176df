package gateway

import (
	"fmt"
	"slices"
	"strings"
)

// NormalizePath brings the path of a request (without query) into the form that
// routes match, on a listener with the default edge profile.
func NormalizePath(path string) (string, error) { return Edge{}.NormalizePath(path) }

// NormalizePath brings the path of a request (without query) into the form that
// routes match, as Envoy 1.40 was seen to do with normalize_path and
// merge_slashes: "\" is "/", unreserved characters are decoded (RFC 3986, section
// 6.2.2), characters that may not stand in a path are encoded, dot segments are
// resolved, slashes merged. The error is an *EdgeError: that of RefusedFirst or, for what
// is left of the path then, that the edge refuses ";" (also encoded) unless the profile
// says otherwise, encoded control characters, broken escapes and overlong UTF-8.
func (e Edge) NormalizePath(path string) (string, error) {
	if err := e.RefusedFirst(path); err != nil {
		return "", err
	}
	normal := e.normal(path)
	if err := e.refusedThen(normal); err != nil {
		return "", err
	}
	return normal, nil
}

// normal is the form of a path that Envoy does not refuse by itself.
func (e Edge) normal(path string) string {
	if e.DecodeSlashes {
		path = strings.NewReplacer("%2F", "/", "%2f", "/", "%5C", "/", "%5c", "/").Replace(path)
	}
	var b []byte
	for i := 0; i < len(path); i++ {
		c := path[i]
		switch {
		case c == '%' && escape(path[i:]):
			if v := unescape(path[i:]); unreserved(v) {
				b = nested(append(b, v), path[i+3:])
			} else {
				b = append(b, path[i:i+3]...)
			}
			i += 2
		case c == '\\':
			b = append(b, '/')
		case strings.IndexByte("\"<>^`{|}", c) >= 0:
			b = fmt.Appendf(b, "%%%02X", c)
		default:
			b = append(b, c)
		}
	}
	normal := removeDots(string(b))
	if !e.KeepRepeated {
		normal = mergeSlashes(normal)
	}
	return normal
}

// RefusedFirst says why Envoy itself refuses a path (without query), before the edge filter
// looks at anything of the request: what is not a path at all, or not ASCII, "#", NUL, and
// encoded slashes unless the profile says otherwise. The error is an *EdgeError.
func (e Edge) RefusedFirst(path string) error {
	if !strings.HasPrefix(path, "/") {
		return edgeError(BadPath, "the path does not start with /")
	}
	for i, r := range path {
		if r <= ' ' || r >= 0x7f {
			return edgeError(BadProtocol, "HTTP has no %q in a path: write it percent-encoded", path[i:i+1])
		}
	}
	for _, text := range [...]string{"#", "%00"} {
		if strings.Contains(path, text) {
			return edgeError(BadPath, "the edge refuses %s in a path", text)
		}
	}
	if slash := encodedSlash.FindString(path); slash != "" && !e.KeepSlashes && !e.DecodeSlashes {
		return edgeError(BadSlash, "the edge refuses %s in a path; edge.encoded_slashes of the listener can keep or decode it", slash)
	}
	return nil
}

// refusedThen says why the edge filter refuses a normalized path; nil when it does not.
func (e Edge) refusedThen(path string) error {
	for i := range len(path) {
		text := path[i:]
		switch {
		case text[0] != '%':
			continue
		case !escape(text):
			return edgeError(BadPath, "the edge refuses a %% that two hexadecimal digits do not follow")
		case wholeRegex(overlong + ".*").MatchString(strings.ToUpper(text[1:])):
			return edgeError(BadPath, "the edge refuses the overlong UTF-8 sequence at %s", text[:3])
		}
		if v := unescape(text); v < ' ' || v == 0x7f {
			return edgeError(BadPath, "the edge refuses %s in a path, because servers read it differently", text[:3])
		}
	}
	if semicolon := semicolons.FindString(path); semicolon != "" && !e.KeepSemicolons {
		return edgeError(BadSemicolon, "the edge refuses %s in a path, because servers read it differently", semicolon)
	}
	return nil
}

// nested keeps a byte that was just decoded from making a new escape of a stray % before it:
// that is encoded. rest is what follows in the path.
func nested(b []byte, rest string) []byte {
	n := len(b)
	switch {
	case n >= 2 && b[n-2] == '%' && isHex(b[n-1]) && rest != "":
		next := rest[0]
		if escape(rest) {
			next = unescape(rest)
		}
		if isHex(next) {
			return append(b[:n-1], '2', '5', b[n-1])
		}
	case n >= 3 && b[n-3] == '%' && isHex(b[n-2]) && isHex(b[n-1]):
		return append(b[:n-2], '2', '5', b[n-2], b[n-1])
	}
	return b
}

// unescape is the byte that an escape at the start of a text stands for.
func unescape(text string) byte { return unhex(text[1])<<4 | unhex(text[2]) }

// escape reports whether a text begins with a percent-encoded byte.
func escape(text string) bool {
	return len(text) >= 3 && text[0] == '%' && isHex(text[1]) && isHex(text[2])
}

// overlong is the start of a UTF-8 sequence that is longer than it has to be (RFC
// 3629, section 10), percent-encoded in capitals, without its first %: to some
// servers %C0%AF is a slash.
const overlong = `(C[01]%[89AB]|E0%[89]|F0%8)`

// PathRefused matches, as RE2 over the whole path, the paths that the edge refuses,
// whatever its profile, and that Envoy would not refuse by itself.
const PathRefused = `.*%([01]|7[fF]|[cC][01]%[89abAB]|[eE]0%[89]|[fF]0%8|[^0-9a-fA-F]|[0-9a-fA-F][^0-9a-fA-F]|[0-9a-fA-F]?$).*`

// removeDots resolves "." and ".." segments (RFC 3986, section 5.2.4), with the
// parameters that they may have.
func removeDots(path string) string {
	if !strings.Contains(path, "/.") {
		return path
	}
	var out []string
	segments := strings.Split(path[1:], "/")
	for i, s := range segments {
		last := i == len(segments)-1
		name, _, _ := strings.Cut(s, ";")
		switch name {
		case ".":
			if last {
				out = append(out, "")
			}
		case "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/")
}

// mergeSlashes leaves one of several slashes; "//" alone stays, as in Envoy.
func mergeSlashes(path string) string {
	if !strings.Contains(path, "//") {
		return path
	}
	parts := slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" })
	merged := "/" + strings.Join(parts, "/")
	if strings.HasSuffix(path, "/") {
		merged += "/"
	}
	return merged
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}
