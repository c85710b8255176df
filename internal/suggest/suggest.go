// Package suggest finds the name that was meant.
package suggest

import (
	"fmt"
	"strings"
)

// Name returns the hint for a name that is none of some names: the nearest one, or all
// when they are few; "" when there is nothing to suggest.
func Name(name string, names []string) string {
	best, bestDistance := "", min(max(1, len([]rune(name))/3), 8)+1
	for _, n := range names {
		if d := distance(fold(name), fold(n)); d < bestDistance {
			best, bestDistance = n, d
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("did you mean %q?", best)
	case len(names) > 0 && len(names) <= 24:
		return "allowed: " + strings.Join(names, ", ")
	}
	return ""
}

// fold makes names equal that differ in case and separators only.
func fold(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "", " ", "").Replace(s))
}

// distance is the number of letters to change, add, take away or swap with a
// neighbour (optimal string alignment). Long inputs count as far away.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	if len(x) > 64 || len(y) > 64 {
		return 64
	}
	var before []int
	last := make([]int, len(y)+1)
	for j := range last {
		last[j] = j
	}
	for i := range x {
		row := make([]int, len(y)+1)
		row[0] = i + 1
		for j := range y {
			cost := 1
			if x[i] == y[j] {
				cost = 0
			}
			row[j+1] = min(last[j]+cost, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && x[i] == y[j-1] && x[i-1] == y[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(y)]
}
