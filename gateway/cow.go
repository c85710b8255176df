package gateway

import (
	"hash/maphash"
	"maps"
	"reflect"
)

// A cowMap is a tree of two levels: branches of leaves. At 100,000 keys a leaf holds
// about 50 of them; a clone copies 512 bytes, the first write to a branch 256 more.
const (
	branches = 64
	leaves   = 32
)

var seed = maphash.MakeSeed()

// cowMap is a map that is cheap to copy: clones share the leaves that neither has
// written since. So a Snapshot that differs in one key costs one leaf, and what
// differs between two is found without looking at what they share. It cannot be
// ranged over, so nothing can come to depend on the order of a map.
type cowMap[V comparable] struct {
	branch [branches]*cowBranch[V]
	// owned marks the branches that this map alone holds and may write.
	owned uint64
}

type cowBranch[V comparable] struct {
	leaf  [leaves]map[string]V
	owned uint32
}

// clone returns a map with the same content. Neither map sees the other's writes,
// but m must not be written any more.
func (m *cowMap[V]) clone() *cowMap[V] {
	if m == nil {
		return &cowMap[V]{}
	}
	return &cowMap[V]{branch: m.branch}
}

func (m *cowMap[V]) get(key string) (v V) {
	if m == nil {
		return v
	}
	i, j := place(key)
	if b := m.branch[i]; b != nil {
		v = b.leaf[j][key]
	}
	return v
}

func (m *cowMap[V]) set(key string, v V) { m.own(place(key))[key] = v }

func (m *cowMap[V]) delete(key string) {
	if i, j := place(key); m.branch[i] != nil && m.branch[i].leaf[j] != nil {
		delete(m.own(i, j), key)
	}
}

// own returns a leaf to write to.
func (m *cowMap[V]) own(i, j int) map[string]V {
	b := m.branch[i]
	if m.owned&(1<<i) == 0 {
		m.owned |= 1 << i
		next := &cowBranch[V]{}
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

// differing returns the keys that two maps do not have the same value for, in no
// order. Either may be nil.
func differing[V comparable](a, b *cowMap[V]) []string {
	if a == nil {
		a = &cowMap[V]{}
	}
	if b == nil {
		b = &cowMap[V]{}
	}
	var out []string
	var none cowBranch[V]
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
			if !sameMap(x.leaf[j], y.leaf[j]) {
				out = differingLeaf(out, x.leaf[j], y.leaf[j])
			}
		}
	}
	return out
}

func differingLeaf[V comparable](out []string, a, b map[string]V) []string {
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

// sameMap tells whether both are one map, not only equal ones.
func sameMap[V any](a, b map[string]V) bool {
	return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}
