package salvage_test

import (
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/penstock-gateway/penstock/xds/compile/salvage"
)

// proxy is a model of one that refuses versions by what they hold.
type proxy struct {
	bad map[string]bool
	// worse are parts that are refused in every form: only leaving them out helps.
	worse map[string]bool
	// broken: refused whatever the parts are.
	broken bool
}

func (p proxy) refuses(parts, held []string, out bool) (bool, string) {
	for _, name := range parts {
		isHeld := slices.Contains(held, name)
		if p.bad[name] && !isHeld || p.worse[name] && !(isHeld && out) {
			return true, "because of " + name
		}
	}
	return p.broken, "broken"
}

// search runs a search to its end and returns what it held at last.
func search(t interface{ Fatalf(string, ...any) }, p proxy, parts []string, known bool, point func(string) string) (*salvage.Search, []string) {
	_, words := p.refuses(parts, nil, false)
	s := salvage.Start(parts, known, words, point)
	for !s.Done() {
		refused, words := p.refuses(parts, s.Hold(), s.Out())
		s.Answer(refused, words)
		if s.Tries() > 3*len(parts)+70 {
			t.Fatalf("%d tries for %d parts", s.Tries(), len(parts))
		}
	}
	return s, s.Hold()
}

// TestSimulation: whatever is bad, at the end just that is held, and what is then
// sent is accepted.
func TestSimulation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var parts []string
		for i := range rapid.IntRange(1, 60).Draw(t, "parts") {
			parts = append(parts, fmt.Sprintf("p%02d", i))
		}
		p := proxy{bad: map[string]bool{}, worse: map[string]bool{}}
		for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom(parts), 1, min(4, len(parts)), rapid.ID).Draw(t, "bad") {
			p.bad[name] = true
			p.worse[name] = rapid.IntRange(0, 4).Draw(t, "worse") == 0
		}
		known := rapid.Bool().Draw(t, "known")
		var point func(string) string
		switch rapid.IntRange(0, 2).Draw(t, "words") {
		case 1:
			point = func(words string) string { return strings.TrimPrefix(words, "because of ") }
		case 2: // misled
			name := rapid.SampledFrom(parts).Draw(t, "misled")
			point = func(string) string { return name }
		}
		s, held := search(t, p, parts, known, point)
		if s.Failed() {
			t.Fatal("failed")
		}
		if refused, words := p.refuses(parts, held, s.Out()); refused {
			t.Fatalf("it ends with a version that is refused: %s", words)
		}
		if want := slices.Sorted(maps.Keys(p.bad)); !slices.Equal(held, want) || !slices.Equal(slices.Sorted(maps.Keys(s.Bad())), want) {
			t.Fatalf("held %v, bad are %v", held, want)
		}
		for name, words := range s.Bad() {
			if (known || len(p.bad) == 1) && words != "because of "+name {
				t.Fatalf("%s: %s", name, words)
			}
		}
		if known && s.Tries() > 4+2*len(p.bad)*(1+bits.Len(uint(len(parts)))) {
			t.Fatalf("%d tries for %d bad ones of %d", s.Tries(), len(p.bad), len(parts))
		}
	})
}

// TestUnknown: when there is nothing to serve instead, one part at a time is held,
// the most suspicious first.
func TestUnknown(t *testing.T) {
	parts := []string{"c", "a", "b"}
	s := salvage.Start(parts, false, "first", nil)
	p := proxy{bad: map[string]bool{"b": true}}
	for _, want := range parts {
		if got := s.Hold(); !slices.Equal(got, []string{want}) || s.Done() {
			t.Fatalf("held %v, want %s alone", got, want)
		}
		refused, words := p.refuses(parts, s.Hold(), false)
		s.Answer(refused, words)
	}
	s.Answer(p.refuses(parts, s.Hold(), s.Out()))
	if !s.Done() || !maps.Equal(s.Bad(), map[string]string{"b": "because of b"}) {
		t.Errorf("%v", s.Bad())
	}
}

// TestFailed: when it is none of the suspects, none is blamed.
func TestFailed(t *testing.T) {
	for _, parts := range [][]string{nil, {"a"}, {"a", "b", "c", "d", "e"}} {
		for _, known := range []bool{true, false} {
			s, held := search(t, proxy{broken: true}, parts, known, nil)
			if !s.Failed() || len(held) != 0 {
				t.Errorf("%v: failed %v, held %v", parts, s.Failed(), held)
			}
		}
	}
}
