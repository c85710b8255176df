package compile

import "testing"

// SetTrees lays out every host as a tree, whether it gains by that or not, with
// branches of a cost, until the test ends.
func SetTrees(t testing.TB, leaf int) {
	old := trees
	trees = treeLimits{leaf: leaf, regex: 1, copies: 1 << 20}
	t.Cleanup(func() { trees = old })
}
