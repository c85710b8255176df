package gateway

import (
	"iter"
	"slices"
	"sync/atomic"
)

// chunkSize is about how many elements a chunk of a sorted list has: a change
// copies one chunk and the list of chunks.
const chunkSize = 256

// sorted is an immutable sorted list that is cheap to change: the next one shares
// the chunks that did not change. nil is empty.
type sorted[T any] struct {
	chunks [][]T // none is empty
	n      int
	flat   atomic.Pointer[[]T]
}

func (l *sorted[T]) len() int {
	if l == nil {
		return 0
	}
	return l.n
}

// slice returns all elements. The slice is made once for a list and shared.
func (l *sorted[T]) slice() []T {
	switch {
	case l == nil || l.n == 0:
		return nil
	case len(l.chunks) == 1:
		return l.chunks[0]
	}
	if s := l.flat.Load(); s != nil {
		return *s
	}
	s := slices.Concat(l.chunks...)
	l.flat.Store(&s)
	return s
}

// all yields the elements in order.
func (l *sorted[T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		if l == nil {
			return
		}
		for _, c := range l.chunks {
			for _, e := range c {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// splice returns the list without removed and with added elements, as splice for
// slices does. Both are sorted in place.
func (l *sorted[T]) splice(removed, added []T, compare func(a, b T) int) *sorted[T] {
	slices.SortFunc(removed, compare)
	slices.SortFunc(added, compare)
	if l.len() == 0 {
		return cut(&sorted[T]{}, splice(nil, removed, added, compare))
	}
	next := &sorted[T]{chunks: make([][]T, 0, len(l.chunks)+1)}
	for i := 0; i < len(l.chunks); {
		if len(removed)+len(added) == 0 {
			next.keep(l.chunks[i:]...)
			break
		}
		// The next change is in the last chunk that begins before it or at it.
		at := first(removed, added, compare)
		n, found := slices.BinarySearchFunc(l.chunks[i:], at, func(c []T, e T) int { return compare(c[0], e) })
		if !found {
			n = max(n-1, 0)
		}
		next.keep(l.chunks[i : i+n]...)
		i += n
		goes, comes := removed, added
		if i+1 < len(l.chunks) {
			end := l.chunks[i+1][0]
			goes, removed = before(removed, end, compare)
			comes, added = before(added, end, compare)
		} else {
			removed, added = nil, nil
		}
		cut(next, splice(l.chunks[i], goes, comes, compare))
		i++
	}
	return next
}

// first is the smaller of the first elements; one of the lists has one.
func first[T any](a, b []T, compare func(a, b T) int) T {
	if len(b) == 0 || len(a) > 0 && compare(a[0], b[0]) <= 0 {
		return a[0]
	}
	return b[0]
}

// before parts a sorted list at an element.
func before[T any](list []T, end T, compare func(a, b T) int) (head, tail []T) {
	n, _ := slices.BinarySearchFunc(list, end, compare)
	return list[:n:n], list[n:]
}

// keep appends chunks as they are.
func (l *sorted[T]) keep(chunks ...[]T) {
	for _, c := range chunks {
		l.n += len(c)
	}
	l.chunks = append(l.chunks, chunks...)
}

// cut appends elements in chunks that are neither large nor, beside another small
// one, small.
func cut[T any](l *sorted[T], elements []T) *sorted[T] {
	if len(elements) > 0 && len(elements) < chunkSize/2 && len(l.chunks) > 0 {
		if last := l.chunks[len(l.chunks)-1]; len(last) < chunkSize/2 {
			l.chunks = l.chunks[:len(l.chunks)-1]
			l.n -= len(last)
			elements = slices.Concat(last, elements)
		}
	}
	if len(elements) <= 2*chunkSize {
		if len(elements) > 0 {
			l.keep(elements)
		}
		return l
	}
	for c := range slices.Chunk(elements, chunkSize) {
		l.keep(slices.Clone(c)) // else one chunk would hold the memory of all
	}
	return l
}
