// Package cow has a map that is cheap to copy, for values that are made anew at each
// change and share what did not change: snapshots and generations.
package cow

import (
	"hash/maphash"
	"iter"
	"maps"
	"reflect"
	"sync/atomic"
)

// A Map is a tree of two levels: branches of leaves. At 100,000 keys a leaf holds
// about 50 of them; a clone copies 512 bytes, the first write to a branch 256 more.
const (
	branches = 64
	leaves   = 32
)

var seed = maphash.MakeSeed()

// Map is a map from strings that is cheap to copy: clones share the leaves that
// neither has written since. So a copy that differs in one key costs one leaf, and
// what differs between two is found without looking at what they share.
//
// The zero Map is empty and ready to use; a nil *Map can be read. Any number of
// goroutines may read and clone a Map at once while none writes to it.
type Map[V comparable] struct {
	branch [branches]*branch[V]
	// owned marks the branches that this map alone holds and may write.
	owned atomic.Uint64
	n     int
}

type branch[V comparable] struct {
	leaf  [leaves]map[string]V
	owned uint32
}

// Clone returns a map with the same content. Neither map sees the other's writes.
func (m *Map[V]) Clone() *Map[V] {
	if m == nil {
		return &Map[V]{}
	}
	if m.owned.Load() != 0 {
		m.owned.Store(0)
	}
	return &Map[V]{branch: m.branch, n: m.n}
}

// Len is the number of keys.
func (m *Map[V]) Len() int {
	if m == nil {
		return 0
	}
	return m.n
}

// Get returns the value of a key, or the zero value.
func (m *Map[V]) Get(key string) (v V) {
	if m == nil {
		return v
	}
	i, j := place(key)
	if b := m.branch[i]; b != nil {
		v = b.leaf[j][key]
	}
	return v
}

// Set gives a key a value.
func (m *Map[V]) Set(key string, v V) {
	leaf := m.own(place(key))
	before := len(leaf)
	leaf[key] = v
	m.n += len(leaf) - before
}

// Delete takes a key out, if it is there.
func (m *Map[V]) Delete(key string) {
	i, j := place(key)
	if b := m.branch[i]; b != nil {
		if _, ok := b.leaf[j][key]; ok {
			delete(m.own(i, j), key)
			m.n--
		}
	}
}

// All goes through keys and values in no order, which differs from time to time.
func (m *Map[V]) All() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		if m == nil {
			return
		}
		for _, b := range m.branch {
			if b == nil {
				continue
			}
			for _, leaf := range b.leaf {
				for key, v := range leaf {
					if !yield(key, v) {
						return
					}
				}
			}
		}
	}
}

// own returns a leaf to write to.
func (m *Map[V]) own(i, j int) map[string]V {
	b := m.branch[i]
	if owned := m.owned.Load(); owned&(1<<i) == 0 {
		m.owned.Store(owned | 1<<i)
		next := &branch[V]{}
		if b != nil {
			next.leaf = b.leaf
		}
		b = next
		m.branch[i] = b
	}
	if b.owned&(1<<j) == 0 {
		b.owned |= 1 << j
		if b.leaf[j] = maps.Clone(b.leaf[j]); b.leaf[j] == nil {
			b.leaf[j] = map[string]V{}
		}
	}
	return b.leaf[j]
}

func place(key string) (i, j int) {
	h := maphash.String(seed, key)
	return int(h % branches), int(h / branches % leaves)
}

// Differing returns the keys that two maps do not have the same value for, in no
// order. Either may be nil. The cost is that of what they do not share.
func Differing[V comparable](a, b *Map[V]) []string {
	if a == b {
		return nil
	}
	if a == nil {
		a = &Map[V]{}
	}
	if b == nil {
		b = &Map[V]{}
	}
	var out []string
	var none branch[V]
	for i := range branches {
		x, y := a.branch[i], b.branch[i]
		if x == y {
			continue
		}
		if x == nil {
			x = &none
		}
		if y == nil {
			y = &none
		}
		for j := range leaves {
			if !same(x.leaf[j], y.leaf[j]) {
				out = differing(out, x.leaf[j], y.leaf[j])
			}
		}
	}
	return out
}

func differing[V comparable](out []string, a, b map[string]V) []string {
	for key, v := range a {
		if w, ok := b[key]; !ok || v != w {
			out = append(out, key)
		}
	}
	for key := range b {
		if _, ok := a[key]; !ok {
			out = append(out, key)
		}
	}
	return out
}

// same reports whether both are one map, not only equal ones.
func same[V any](a, b map[string]V) bool {
	return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}
