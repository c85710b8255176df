package azure

import (
	"cmp"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// route is a template such as "api/orders/{id:int}/{part?}".
type route struct{ parts []part }

// part is one segment: a literal, or a parameter with constraints.
type part struct {
	literal string // lower case; empty for a parameter
	name    string
	// rest takes all that follows.
	rest        bool
	optional    bool
	fallback    string
	constraints []constraint
}

type constraint struct {
	text string
	ok   func(string) bool
}

var parameterName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// parseRoute reads the template of a route, by the rules of ASP.NET Core as far as
// each segment is a literal or one parameter.
func parseRoute(template string) (*route, error) {
	r := &route{}
	seen := map[string]bool{}
	trimmed := strings.Trim(template, "/")
	if trimmed == "" {
		return r, nil
	}
	for s := range strings.SplitSeq(trimmed, "/") {
		if n := len(r.parts); n > 0 && (r.parts[n-1].rest || r.parts[n-1].optional) {
			if r.parts[n-1].rest || !strings.HasPrefix(s, "{") {
				return nil, fmt.Errorf("%q: nothing may follow {%s}", template, r.parts[n-1].name)
			}
		}
		p, err := parsePart(s)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", template, err)
		}
		if p.name != "" {
			if key := strings.ToLower(p.name); seen[key] {
				return nil, fmt.Errorf("%q: duplicate parameter %s", template, p.name)
			} else {
				seen[key] = true
			}
		}
		r.parts = append(r.parts, p)
	}
	for i := 1; i < len(r.parts); i++ {
		if r.parts[i-1].optional && !r.parts[i].optional && !r.parts[i].rest {
			return nil, fmt.Errorf("%q: %s is optional, so what follows it must be, too", template, r.parts[i-1].name)
		}
	}
	return r, nil
}

func parsePart(s string) (part, error) {
	if !strings.ContainsAny(s, "{}") {
		if s == "" || strings.ContainsAny(s, "?*\\") {
			return part{}, fmt.Errorf("the segment %q is empty or holds ?, * or \\", s)
		}
		return part{literal: strings.ToLower(s)}, nil
	}
	if !strings.HasPrefix(s, "{") || !strings.HasSuffix(s, "}") || strings.ContainsAny(s[1:len(s)-1], "{}") {
		return part{}, fmt.Errorf("the segment %q must be all text or one {parameter}", s)
	}
	var p part
	s = s[1 : len(s)-1]
	if rest := strings.TrimLeft(s, "*"); rest != s {
		p.rest, s = true, rest
	}
	if name, fallback, ok := strings.Cut(s, "="); ok {
		s, p.fallback, p.optional = name, fallback, true
	} else if name, ok := strings.CutSuffix(s, "?"); ok {
		s, p.optional = name, true
	}
	names := strings.Split(s, ":")
	if p.name = names[0]; !parameterName.MatchString(p.name) {
		return p, fmt.Errorf("{%s} is not the name of a parameter", p.name)
	}
	for _, text := range names[1:] {
		c, err := parseConstraint(text)
		if err != nil {
			return p, fmt.Errorf("parameter %s: %w", p.name, err)
		}
		p.constraints = append(p.constraints, c)
	}
	return p, nil
}

var (
	guid  = regexp.MustCompile(`(?i)^(\{|\()?[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}(\}|\))?$`)
	alpha = regexp.MustCompile(`^[A-Za-z]*$`)
)

// plainConstraints take no argument.
var plainConstraints = map[string]func(string) bool{
	"int":     func(s string) bool { _, err := strconv.ParseInt(s, 10, 32); return err == nil },
	"long":    func(s string) bool { _, err := strconv.ParseInt(s, 10, 64); return err == nil },
	"bool":    func(s string) bool { return strings.EqualFold(s, "true") || strings.EqualFold(s, "false") },
	"double":  isNumber,
	"float":   isNumber,
	"decimal": isNumber,
	"guid":    guid.MatchString,
	"alpha":   alpha.MatchString,
	// A parameter that is there is not empty.
	"required": func(s string) bool { return s != "" },
}

func isNumber(s string) bool { _, err := strconv.ParseFloat(s, 64); return err == nil }

// argumentConstraints take numbers.
var argumentConstraints = map[string]func(s string, n []int64) bool{
	"length":    func(s string, n []int64) bool { l := length(s); return l >= n[0] && l <= n[len(n)-1] },
	"minlength": func(s string, n []int64) bool { return length(s) >= n[0] },
	"maxlength": func(s string, n []int64) bool { return length(s) <= n[0] },
	"min":       func(s string, n []int64) bool { v, err := strconv.ParseInt(s, 10, 64); return err == nil && v >= n[0] },
	"max":       func(s string, n []int64) bool { v, err := strconv.ParseInt(s, 10, 64); return err == nil && v <= n[0] },
	"range": func(s string, n []int64) bool {
		v, err := strconv.ParseInt(s, 10, 64)
		return err == nil && v >= n[0] && v <= n[1]
	},
}

func length(s string) int64 { return int64(utf8.RuneCountInString(s)) }

func parseConstraint(text string) (constraint, error) {
	if ok := plainConstraints[strings.ToLower(text)]; ok != nil {
		return constraint{text, ok}, nil
	}
	name, argument, found := strings.Cut(strings.ToLower(text), "(")
	check := argumentConstraints[name]
	if !found || check == nil || !strings.HasSuffix(argument, ")") {
		return constraint{}, fmt.Errorf("the constraint %q is not known here", text)
	}
	var numbers []int64
	for a := range strings.SplitSeq(strings.TrimSuffix(argument, ")"), ",") {
		n, err := strconv.ParseInt(strings.TrimSpace(a), 10, 64)
		if err != nil {
			return constraint{}, fmt.Errorf("the constraint %q: %q is not a number", text, a)
		}
		numbers = append(numbers, n)
	}
	if want := len(numbers); (name == "range") != (want == 2) && !(name == "length" && want == 2) || want > 2 {
		return constraint{}, fmt.Errorf("the constraint %q has %d numbers", text, want)
	}
	return constraint{text, func(s string) bool { return check(s, numbers) }}, nil
}

// match returns the parameters of a path. Literals are compared without regard to
// case.
func (r *route) match(path string) (map[string]string, bool) {
	var segments []string
	if p := strings.Trim(path, "/"); p != "" {
		segments = strings.Split(p, "/")
	}
	params := map[string]string{}
	for i, p := range r.parts {
		if p.rest {
			rest := ""
			if i < len(segments) {
				rest = strings.Join(segments[i:], "/")
			}
			if rest == "" {
				rest = p.fallback
			}
			if !p.accepts(rest) {
				return nil, false
			}
			params[p.name] = decode(rest)
			return params, true
		}
		if i >= len(segments) {
			if !p.optional {
				return nil, false
			}
			if p.fallback != "" {
				params[p.name] = p.fallback
			}
			continue
		}
		s := decode(segments[i])
		switch {
		case p.name == "" && p.literal != strings.ToLower(s), p.name != "" && !p.accepts(s):
			return nil, false
		case p.name != "":
			params[p.name] = s
		}
	}
	return params, len(segments) <= len(r.parts)
}

func decode(s string) string {
	if t, err := url.PathUnescape(s); err == nil {
		return t
	}
	return s
}

func (p *part) accepts(s string) bool {
	if s == "" {
		return p.optional || p.rest
	}
	return !slices.ContainsFunc(p.constraints, func(c constraint) bool { return !c.ok(s) })
}

// rank orders segments: literals first, then parameters with constraints, then
// others, then those that take all the rest.
func (p *part) rank() int {
	switch {
	case p.name == "":
		return 0
	case p.rest:
		return 3
	case len(p.constraints) > 0:
		return 1
	}
	return 2
}

// compare orders routes: the more special first. Of two that begin alike the
// longer one has optional segments more, where both match.
func (r *route) compare(o *route) int {
	for i := range min(len(r.parts), len(o.parts)) {
		if c := cmp.Compare(r.parts[i].rank(), o.parts[i].rank()); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(r.parts), len(o.parts))
}

// same reports whether two routes match the same paths, as far as that is plain.
func (r *route) same(o *route) bool {
	return slices.EqualFunc(r.parts, o.parts, func(p, q part) bool {
		return p.literal == q.literal && p.rest == q.rest && p.optional == q.optional && (p.name == "") == (q.name == "") &&
			slices.EqualFunc(p.constraints, q.constraints, func(a, b constraint) bool { return strings.EqualFold(a.text, b.text) })
	})
}
