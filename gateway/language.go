package gateway

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// A regular expression that no request can satisfy is refused: not by a list of
// spellings, but because the set of texts that it matches and the set of texts that
// requests can have share no element. The second is an automaton here, the first the
// program that Go makes of the expression; both are walked side by side.

// language is the set of texts that a part of a request can have, as a deterministic
// automaton over bytes. State 0 is the start.
type language struct {
	// next is the state after a byte, or dead.
	next func(state int, b byte) int
	// last reports whether a text may end in a state.
	last func(state int) bool
}

const dead = -1

// possible reports whether some text of the language matches the whole of an expression
// that checkRegex takes. Word boundaries and the ends of lines inside a text count as
// satisfied, so in doubt it is true.
func (l language) possible(pattern string) bool {
	re, err := syntax.Parse(`\A(?:`+latin1(pattern)+`)\z`, syntax.Perl)
	if err != nil {
		return true
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return true
	}
	type place struct {
		pc    uint32
		state int
		begun bool // a byte was read
		ended bool // no byte may follow
	}
	seen := map[place]bool{}
	todo := []place{{pc: uint32(prog.Start)}}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if at.state == dead || seen[at] {
			continue
		}
		seen[at] = true
		in := &prog.Inst[at.pc]
		jump := func(pc uint32) { todo = append(todo, place{pc, at.state, at.begun, at.ended}) }
		switch in.Op {
		case syntax.InstMatch:
			if l.last(at.state) {
				return true
			}
		case syntax.InstAlt, syntax.InstAltMatch:
			jump(in.Out)
			jump(in.Arg)
		case syntax.InstCapture, syntax.InstNop:
			jump(in.Out)
		case syntax.InstEmptyWidth:
			op := syntax.EmptyOp(in.Arg)
			at.ended = at.ended || op&syntax.EmptyEndText != 0
			if op&syntax.EmptyBeginText == 0 || !at.begun {
				jump(in.Out)
			}
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			for b := range 256 {
				if !at.ended && in.MatchRune(rune(b)) {
					todo = append(todo, place{in.Out, l.next(at.state, byte(b)), true, false})
				}
			}
		}
	}
	return false
}

// The states of a normalized path, as NormalizePath makes it. From firstDigit on they
// are those after % and a digit, whose value they hold.
const (
	pathStart = iota
	pathSlash // at the beginning of a segment
	pathDot   // the segment is "."
	pathDots  // the segment is ".."
	pathOther
	pathFirst   // "/"
	pathDoubled // "//", which Envoy leaves of a path of slashes and dots
	pathPercent
	firstDigit
	pathStates = firstDigit + 16
)

// What a path holds that backends may read in several ways, of which a path has one kind
// at most (Edge.Reading). It is the rest of a state above those of pathStates.
const (
	holdsNothing = iota
	holdsSlash
	holdsBackslash
	holdsSemicolon
	holdsRepeated
)

// paths are the paths that routes see on a listener with this profile.
func (e Edge) paths() language {
	return language{
		next: func(state int, b byte) int {
			to, holds := e.nextInPath(state%pathStates, b)
			switch before := state / pathStates; {
			case to == dead || before != holdsNothing && holds != holdsNothing && holds != before:
				return dead
			case holds == holdsNothing:
				holds = before
				fallthrough
			default:
				return holds*pathStates + to
			}
		},
		last: func(state int) bool {
			state %= pathStates
			return state == pathFirst || state == pathDoubled || state == pathSlash || state == pathOther
		},
	}
}

// nextInPath returns what follows a state that holds nothing, and what the path holds by
// it.
func (e Edge) nextInPath(state int, b byte) (to, holds int) {
	switch {
	case state >= firstDigit:
		return e.escaped(byte(state-firstDigit)<<4|unhex(b), isHex(b))
	case state == pathPercent:
		if isHex(b) {
			return firstDigit + int(unhex(b)), holdsNothing
		}
		return dead, holdsNothing
	case state == pathStart && b == '/':
		return pathFirst, holdsNothing
	case (state == pathFirst || state == pathSlash) && b == '/' && e.KeepRepeated:
		return pathSlash, holdsRepeated
	case state == pathFirst && b == '/':
		return pathDoubled, holdsNothing
	case state == pathOther && b == '/':
		return pathSlash, holdsNothing
	case b == ';' && e.KeepSemicolons && state != pathDot && state != pathDots && state != pathStart && state != pathDoubled:
		return pathOther, holdsSemicolon
	case state == pathStart || state == pathDoubled || b == '/' || b <= ' ' || b >= 0x7f || strings.IndexByte("?#;\\\"<>^`{|}", b) >= 0:
		return dead, holdsNothing
	case b == '%':
		return pathPercent, holdsNothing
	case b == '.' && state == pathFirst:
		return pathDot, holdsNothing
	case b == '.' && state < pathOther:
		return state + 1, holdsNothing // the third dot is as any other character
	}
	return pathOther, holdsNothing
}

// escaped is nextInPath for the last digit of an escape of v.
func (e Edge) escaped(v byte, isHex bool) (to, holds int) {
	if !isHex || unreserved(v) {
		return dead, holdsNothing
	}
	if normal, err := e.NormalizePath(fmt.Sprintf("/%%%02X", v)); err != nil || normal[1:] == "" || normal[1] != '%' {
		return dead, holdsNothing
	}
	return pathOther, map[byte]int{'/': holdsSlash, '\\': holdsBackslash, ';': holdsSemicolon}[v]
}

// only is the language of one text.
func only(text string) language {
	return language{
		next: func(state int, b byte) int {
			if state < len(text) && text[state] == b {
				return state + 1
			}
			return dead
		},
		last: func(state int) bool { return state == len(text) },
	}
}

// requestIDs are the values of x-request-id that routes see: those of clients that are
// well formed, and UUIDs.
func requestIDs(uuid bool) language {
	if !uuid {
		return language{
			next: func(state int, b byte) int {
				if state < 128 && (isHex(b) || 'g' <= b|0x20 && b|0x20 <= 'z' || b == '-' || b == '_') {
					return state + 1
				}
				return dead
			},
			last: func(state int) bool { return state > 0 },
		}
	}
	const form = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
	return language{
		next: func(state int, b byte) int {
			if state < len(form) && (form[state] == '-') == (b == '-') && (b == '-' || isHex(b)) {
				return state + 1
			}
			return dead
		},
		last: func(state int) bool { return state == len(form) },
	}
}

// headerValues are the values of a header: no control characters but tabs, and no blanks
// around (RFC 9110, section 5.5). States: nothing yet, a character, a blank.
var headerValues = language{
	next: func(state int, b byte) int {
		switch {
		case b == ' ' || b == '\t':
			if state == 0 {
				return dead
			}
			return 2
		case b < ' ' || b == 0x7f:
			return dead
		}
		return 1
	},
	last: func(state int) bool { return state != 2 },
}

// queryValues are the values of a parameter as they stand in a URL, which is how Envoy
// compares them: visible ASCII, and neither what ends the value nor what begins a
// fragment (RFC 3986, section 3.4).
var queryValues = language{
	next: func(_ int, b byte) int {
		if b <= ' ' || b >= 0x7f || b == '&' || b == '#' {
			return dead
		}
		return 0
	},
	last: func(int) bool { return true },
}

// meets reports whether some text of the language satisfies a match, with the field of the
// match that says what text that is. Whether a text is there at all is not asked.
func (l language) meets(m *pb.StringMatch) (field, text string, ok bool) {
	switch k := m.GetMatch().(type) {
	case *pb.StringMatch_Exact:
		return ".exact", k.Exact, l.possibleString("exact", k.Exact)
	case *pb.StringMatch_Prefix:
		return ".prefix", k.Prefix, l.possibleString("prefix", k.Prefix)
	case *pb.StringMatch_Suffix:
		return ".suffix", k.Suffix, l.possibleString("suffix", k.Suffix)
	case *pb.StringMatch_Regex:
		return ".regex", k.Regex, l.possible(k.Regex)
	}
	return "", "", true
}

// possibleString is possible for a match of a text.
func (l language) possibleString(kind, text string) bool {
	states := []int{0}
	if kind == "suffix" { // whatever may stand before
		states = l.reachable()
	}
	for _, state := range states {
		for i := range len(text) {
			if state = l.next(state, text[i]); state == dead {
				break
			}
		}
		if state != dead && (kind == "prefix" || l.last(state)) {
			return true
		}
	}
	return false
}

// reachable are the states that texts lead to.
func (l language) reachable() []int {
	out := []int{0}
	for i := 0; i < len(out); i++ {
		for b := range 256 {
			if s := l.next(out[i], byte(b)); s != dead && !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return out
}
