package gateway

import (
	"cmp"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestSorted: a list that is changed step by step is the sorted list, its chunks
// stay of a size, and the lists before do not change.
func TestSorted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := map[int]bool{}
		var l *sorted[int]
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			before, was := slices.Collect(l.all()), l
			var removed, added []int
			for range rapid.SampledFrom([]int{0, 1, 3, 700, 3000}).Draw(t, "changes") {
				i := rapid.IntRange(0, 5000).Draw(t, "i")
				if slices.Contains(removed, i) || slices.Contains(added, i) {
					continue
				}
				switch {
				case !now[i]:
					added = append(added, i)
					now[i] = true
				case rapid.Bool().Draw(t, "replaced"):
					removed, added = append(removed, i), append(added, i)
				default:
					removed = append(removed, i)
					delete(now, i)
				}
			}
			l = l.splice(removed, added, cmp.Compare[int])
			want := slices.Sorted(maps.Keys(now))
			if !slices.Equal(l.slice(), want) || !slices.Equal(slices.Collect(l.all()), want) || l.len() != len(want) {
				t.Fatalf("%d elements, want %d: %v", l.len(), len(want), l.slice())
			}
			small := 0
			for i, c := range l.chunks {
				if len(c) == 0 || len(c) > 2*chunkSize {
					t.Fatalf("chunk %d has %d elements", i, len(c))
				}
				if len(c) < chunkSize/2 {
					small++
				}
			}
			if small > len(want)/(chunkSize/4)+12 {
				t.Fatalf("%d small chunks for %d elements", small, len(want))
			}
			if !slices.Equal(slices.Collect(was.all()), before) {
				t.Fatal("the list before was changed")
			}
		}
	})
}
