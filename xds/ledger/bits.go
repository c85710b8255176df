package ledger

import (
	"iter"
	"math/bits"
)

// bitset is a set of small numbers.
type bitset []uint64

func (b bitset) has(i int32) bool {
	w := int(i >> 6)
	return w < len(b) && b[w]&(1<<(i&63)) != 0
}

func (b *bitset) set(i int32) {
	w := int(i >> 6)
	if w >= len(*b) {
		// Round up, so that a growing table does not grow the set at each name.
		grown := make(bitset, (w+1+15)&^15)
		copy(grown, *b)
		*b = grown
	}
	(*b)[w] |= 1 << (i & 63)
}

func (b bitset) clear(i int32) {
	if w := int(i >> 6); w < len(b) {
		b[w] &^= 1 << (i & 63)
	}
}

func (b bitset) word(w int) uint64 {
	if w < len(b) {
		return b[w]
	}
	return 0
}

func (b bitset) empty() bool {
	for _, w := range b {
		if w != 0 {
			return false
		}
	}
	return true
}

func (b bitset) count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// ones are the members of n words that word computes, ascending.
func ones(n int, word func(w int) uint64) iter.Seq[int32] {
	return func(yield func(int32) bool) {
		for w := range n {
			for rest := word(w); rest != 0; rest &= rest - 1 {
				if !yield(int32(w<<6 + bits.TrailingZeros64(rest))) {
					return
				}
			}
		}
	}
}
