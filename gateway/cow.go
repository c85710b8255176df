package gateway

import (
	"hash/maphash"
	"maps"
)

// shards of a cowMap. At 10,000 keys a shard holds about 10 of them; copying the
// array of shards costs 8 kB.
const shards = 1024

var seed = maphash.MakeSeed()

// cowMap is a map that is cheap to copy: clones share the shards that neither has
// written since. So a Snapshot that differs in one key costs one shard. It
// cannot be ranged over, so nothing can come to depend on the order of a map.
type cowMap[V any] struct {
	shard [shards]map[string]V
	// owned marks the shards that this map alone holds and may write.
	owned [shards / 64]uint64
}

// clone returns a map with the same content. Neither map sees the other's writes,
// but m must not be written any more.
func (m *cowMap[V]) clone() *cowMap[V] {
	if m == nil {
		return &cowMap[V]{}
	}
	return &cowMap[V]{shard: m.shard}
}

func (m *cowMap[V]) get(key string) (v V) {
	if m == nil {
		return v
	}
	return m.shard[index(key)][key]
}

func (m *cowMap[V]) set(key string, v V) { m.own(index(key))[key] = v }

func (m *cowMap[V]) delete(key string) {
	if i := index(key); m.shard[i] != nil {
		delete(m.own(i), key)
	}
}

func (m *cowMap[V]) own(i uint64) map[string]V {
	if m.owned[i/64]&(1<<(i%64)) == 0 {
		m.owned[i/64] |= 1 << (i % 64)
		if m.shard[i] = maps.Clone(m.shard[i]); m.shard[i] == nil {
			m.shard[i] = map[string]V{}
		}
	}
	return m.shard[i]
}

func index(key string) uint64 { return maphash.String(seed, key) % shards }
