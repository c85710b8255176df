package xds

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestGenerations: a generation holds what was set, its copies are its own, and what
// differs between any two is named.
func TestGenerations(t *testing.T) {
	refs := []Ref{{Cluster, "a"}, {Cluster, "b"}, {Route, "a"}, {Scope, "a"}, {Scope, "b"}}
	rapid.Check(t, func(t *rapid.T) {
		all, want := []*Generation{nil}, []map[Ref]*Resource{{}}
		for step := range rapid.IntRange(1, 6).Draw(t, "steps") {
			i := rapid.IntRange(0, step).Draw(t, "from")
			g, w := all[i].Clone(), maps.Clone(want[i])
			for _, ref := range rapid.SliceOf(rapid.SampledFrom(refs)).Draw(t, "writes") {
				if rapid.Bool().Draw(t, "set") {
					w[ref] = &Resource{Type: ref.Type, Name: ref.Name}
					g.Set(w[ref])
				} else {
					delete(w, ref)
					g.Delete(ref.Type, ref.Name)
				}
			}
			all, want = append(all, g), append(want, w)
		}
		for i, g := range all {
			if err := holds(g, want[i]); err != nil {
				t.Fatal(err)
			}
			for j, before := range all {
				var differ []Ref
				for _, ref := range refs {
					if want[i][ref] != want[j][ref] {
						differ = append(differ, ref)
					}
				}
				if got := g.Since(before); !slices.Equal(got, slices.SortedFunc(slices.Values(differ), Ref.compare)) {
					t.Fatalf("%d since %d: %v, want %v", i, j, got, differ)
				}
			}
		}
	})
}

func holds(g *Generation, want map[Ref]*Resource) error {
	n := 0
	for _, t := range g.Types() {
		names := g.Names(t)
		if len(names) != g.Len(t) || len(names) == 0 || !slices.IsSorted(names) {
			return fmt.Errorf("%s: %d names, Len is %d: %v", t.Short(), len(names), g.Len(t), names)
		}
		for r := range g.All(t) {
			if r != want[Ref{t, r.Name}] || g.Get(t, r.Name) != r {
				return fmt.Errorf("%s %s is another", t.Short(), r.Name)
			}
			n++
		}
	}
	if n != len(want) {
		return fmt.Errorf("%d resources, want %d", n, len(want))
	}
	return nil
}
