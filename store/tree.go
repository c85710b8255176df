package store

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// hash is the SHA-256 of stored content and, in hex, its key.
type hash [sha256.Size]byte

// String returns the hash in hex.
func (h hash) String() string { return hex.EncodeToString(h[:]) }

// parseHash reverses String.
func parseHash(s string) (h hash, err error) {
	if len(s) != 2*len(h) {
		return h, fmt.Errorf("hash %q has %d characters, it must have %d", s, len(s), 2*len(h))
	}
	_, err = hex.Decode(h[:], []byte(s))
	return h, err
}

// A tree has fan groups of fan buckets. A change rewrites one bucket, its group and the
// root, 1 KiB each: the bucket at 10,000 resources less, at 100,000 some 6.
const (
	fan     = 32
	buckets = fan * fan
)

// bucketOf says which bucket a name belongs to.
func bucketOf(name string) int {
	sum := sha256.Sum256([]byte(name))
	return int(binary.BigEndian.Uint16(sum[:])) % buckets
}

// The first byte of stored content says what it is, so that no kind of content can
// be taken for another.
const (
	kindRoot     = 'N'
	kindOldRoot  = 'T' // of trees without groups, which are not read any more
	kindGroup    = 'G'
	kindBucket   = 'B' // without footprints
	kindMarked   = 'b' // a bucket with footprints
	kindResource = 'R'
	kindSealed   = 'S'
)

// entry is one resource of a bucket.
type entry struct {
	name string
	hash hash
	// foot is the footprint of the resource, "" for none; see Options.Footprint.
	foot string
}

// bucket is a list of entries sorted by name. It is immutable.
type bucket []entry

// find returns the position of a name, or where it would be.
func (b bucket) find(name string) (int, bool) {
	return slices.BinarySearchFunc(b, name, func(e entry, n string) int { return cmp.Compare(e.name, n) })
}

// encode returns the stored form: for each entry the length of the name as uvarint,
// the name, the hash and, when one of them has a footprint, its length and it.
func (b bucket) encode() []byte {
	kind := byte(kindBucket)
	size := 1
	for _, e := range b {
		size += 2 + len(e.name) + len(e.hash)
		if e.foot != "" {
			kind = kindMarked
			size += len(e.foot)
		}
	}
	if kind == kindMarked {
		size += 3 * len(b)
	}
	out := append(make([]byte, 0, size), kind)
	for _, e := range b {
		out = binary.AppendUvarint(out, uint64(len(e.name)))
		out = append(out, e.name...)
		out = append(out, e.hash[:]...)
		if kind == kindMarked {
			out = binary.AppendUvarint(out, uint64(len(e.foot)))
			out = append(out, e.foot...)
		}
	}
	return out
}

// decodeBucket reverses encode and refuses everything encode cannot have made.
func decodeBucket(data []byte) (bucket, error) {
	if len(data) == 0 || data[0] != kindBucket && data[0] != kindMarked {
		return nil, errors.New("not a bucket")
	}
	marked, feet := data[0] == kindMarked, 0
	var b bucket
	for rest := data[1:]; len(rest) > 0; {
		var e entry
		var ok bool
		if e.name, rest, ok = cutText(rest, maxNameBytes); !ok || e.name == "" || len(rest) < len(hash{}) {
			return nil, fmt.Errorf("entry %d is cut off", len(b))
		}
		rest = rest[copy(e.hash[:], rest):]
		if marked {
			if e.foot, rest, ok = cutText(rest, maxFootprintBytes); !ok {
				return nil, fmt.Errorf("the footprint of entry %d is cut off", len(b))
			}
			feet += len(e.foot)
		}
		if len(b) > 0 && b[len(b)-1].name >= e.name {
			return nil, fmt.Errorf("entry %q is out of order", e.name)
		}
		b = append(b, e)
	}
	if len(b) == 0 || marked && feet == 0 {
		return nil, errors.New("bucket is empty")
	}
	return b, nil
}

// cutText takes a text that follows its length off the front of data. Only the shortest
// form of the length is accepted.
func cutText(data []byte, limit int) (text string, rest []byte, ok bool) {
	n, w := binary.Uvarint(data)
	if w <= 0 || n > uint64(limit) || len(data) < w+int(n) || w != len(binary.AppendUvarint(nil, n)) {
		return "", nil, false
	}
	return string(data[w : w+int(n)]), data[w+int(n):], true
}

// hashes are those of the parts of a root or a group. Zero: the part is empty.
type hashes [fan]hash

// encode returns the stored form: for each part that is not empty its number and hash.
func (p *hashes) encode(kind byte) []byte {
	out := append(make([]byte, 0, 1+fan*(1+len(hash{}))), kind)
	for i, h := range p {
		if h != (hash{}) {
			out = append(out, byte(i))
			out = append(out, h[:]...)
		}
	}
	return out
}

// decodeHashes reverses encode and refuses everything encode cannot have made.
func decodeHashes(kind byte, data []byte) (p hashes, err error) {
	const width = 1 + len(hash{})
	if kind == kindRoot && len(data) > 0 && data[0] == kindOldRoot {
		return p, errors.New("an earlier build wrote it, whose trees have no groups: begin with an empty data directory (or prefix) and apply the configuration again")
	}
	if len(data) == 0 || data[0] != kind || (len(data)-1)%width != 0 {
		return p, fmt.Errorf("it does not begin with %q, or is cut off", kind)
	}
	last := -1
	for part := range slices.Chunk(data[1:], width) {
		i := int(part[0])
		if i <= last || i >= fan {
			return p, fmt.Errorf("part %d is out of order", i)
		}
		last = i
		copy(p[i][:], part[1:])
		if p[i] == (hash{}) {
			return p, fmt.Errorf("part %d has no hash", i)
		}
	}
	return p, nil
}

// group is a part of the buckets of a tree, and those of them that were needed so far.
// It is immutable but for what it has loaded.
type group struct {
	hashes hashes
	loaded [fan]atomic.Pointer[bucket]
}

// decodeGroup makes a group of its stored form.
func decodeGroup(data []byte) (*group, error) {
	p, err := decodeHashes(kindGroup, data)
	if err == nil && p == (hashes{}) {
		err = errors.New("the group is empty")
	}
	return &group{hashes: p}, err
}

// clone returns a group to change; nil is an empty one.
func (g *group) clone() *group {
	next := &group{}
	if g != nil {
		next.hashes = g.hashes
		for i := range g.loaded {
			next.loaded[i].Store(g.loaded[i].Load())
		}
	}
	return next
}

// share takes from another group what is the same and loaded there.
func (g *group) share(other *group) {
	for i := range g.loaded {
		if b := other.loaded[i].Load(); b != nil && g.hashes[i] == other.hashes[i] && g.loaded[i].Load() == nil {
			g.loaded[i].Store(b)
		}
	}
}

// tree is the content of one revision: the hashes of its groups, and those groups that
// were needed so far. It is immutable but for what it has loaded.
type tree struct {
	root   hash
	hashes hashes
	loaded [fan]atomic.Pointer[group]
}

// emptyTree is the content of revision 0.
func emptyTree() *tree {
	t := new(tree)
	t.root = sha256.Sum256(t.encode())
	return t
}

// encode returns the stored form of the root.
func (t *tree) encode() []byte { return t.hashes.encode(kindRoot) }

// decodeTree reverses encode.
func decodeTree(data []byte) (*tree, error) {
	p, err := decodeHashes(kindRoot, data)
	return &tree{root: sha256.Sum256(data), hashes: p}, err
}

// at returns a bucket that need has loaded.
func (t *tree) at(i int) bucket {
	if g := t.loaded[i/fan].Load(); g != nil {
		if b := g.loaded[i%fan].Load(); b != nil {
			return *b
		}
	}
	return nil
}

// hashOf is the hash of a bucket whose group is loaded, or not there.
func (t *tree) hashOf(i int) hash {
	if g := t.loaded[i/fan].Load(); g != nil {
		return g.hashes[i%fan]
	}
	return hash{}
}

// blob is content to be stored under its hash.
type blob struct {
	hash hash
	data []byte
}

// newBlob hashes content.
func newBlob(data []byte) blob { return blob{sha256.Sum256(data), data} }

// edit sets one entry of a bucket, or deletes it when hash is zero.
type edit struct {
	name string
	hash hash
	foot string
}

// apply returns the tree with edits made, and the buckets, groups and the root that are
// new. The buckets that the edits touch must be loaded. Edits to the same name apply in
// order.
func (t *tree) apply(edits []edit) (*tree, []blob, error) {
	touched := map[int]bucket{}
	for _, e := range edits {
		i := bucketOf(e.name)
		b, ok := touched[i]
		if !ok {
			if t.hashes[i/fan] != (hash{}) && t.loaded[i/fan].Load() == nil {
				return nil, nil, fmt.Errorf("group %d is not loaded", i/fan)
			}
			if b = slices.Clone(t.at(i)); b == nil && t.hashOf(i) != (hash{}) {
				return nil, nil, fmt.Errorf("bucket %d is not loaded", i)
			}
		}
		touched[i] = b.with(e)
	}
	groups := map[int]*group{}
	var blobs []blob
	for i, b := range touched {
		g := groups[i/fan]
		if g == nil {
			g = t.loaded[i/fan].Load().clone()
			groups[i/fan] = g
		}
		bl, err := g.set(i, b)
		if err != nil {
			return nil, nil, err
		}
		if len(b) > 0 && bl.hash != t.hashOf(i) {
			blobs = append(blobs, bl)
		}
	}
	next := &tree{hashes: t.hashes}
	for i := range t.loaded {
		next.loaded[i].Store(t.loaded[i].Load())
	}
	for i, g := range groups {
		if g.hashes == (hashes{}) {
			next.hashes[i] = hash{}
			next.loaded[i].Store(nil)
			continue
		}
		bl := newBlob(g.hashes.encode(kindGroup))
		if bl.hash != t.hashes[i] {
			blobs = append(blobs, bl)
		}
		next.hashes[i] = bl.hash
		next.loaded[i].Store(g)
	}
	root := newBlob(next.encode())
	next.root = root.hash
	if next.root != t.root {
		blobs = append(blobs, root)
	}
	return next, blobs, nil
}

// set puts a bucket of a tree into its group, and returns its stored form.
func (g *group) set(i int, b bucket) (blob, error) {
	if len(b) == 0 {
		g.hashes[i%fan] = hash{}
		g.loaded[i%fan].Store(nil)
		return blob{}, nil
	}
	bl := newBlob(b.encode())
	if len(bl.data) > MaxObjectBytes {
		return blob{}, fmt.Errorf("%w: bucket %d of the tree would take %d bytes, at most %d fit: there are too many resources", ErrInvalid, i, len(bl.data), MaxObjectBytes)
	}
	g.hashes[i%fan] = bl.hash
	g.loaded[i%fan].Store(&b)
	return bl, nil
}

// with returns the bucket with one edit made, in place where it can be.
func (b bucket) with(e edit) bucket {
	at, found := b.find(e.name)
	switch {
	case e.hash == (hash{}) && found:
		return slices.Delete(b, at, at+1)
	case e.hash == (hash{}):
		return b
	case found:
		b[at] = entry(e)
		return b
	default:
		return slices.Insert(b, at, entry(e))
	}
}

// difference is one name that two buckets disagree on; a zero hash is absence.
type difference struct {
	name     string
	from, to hash
	// foot is the footprint of what is at to.
	foot string
}

// diffBuckets merges two buckets and appends what differs.
func diffBuckets(out []difference, from, to bucket) []difference {
	for len(from) > 0 || len(to) > 0 {
		var order int
		switch {
		case len(from) == 0:
			order = 1
		case len(to) == 0:
			order = -1
		default:
			order = cmp.Compare(from[0].name, to[0].name)
		}
		switch {
		case order < 0:
			out = append(out, difference{name: from[0].name, from: from[0].hash})
			from = from[1:]
		case order > 0:
			out = append(out, difference{name: to[0].name, to: to[0].hash, foot: to[0].foot})
			to = to[1:]
		default:
			if !bytes.Equal(from[0].hash[:], to[0].hash[:]) {
				out = append(out, difference{from[0].name, from[0].hash, to[0].hash, to[0].foot})
			}
			from, to = from[1:], to[1:]
		}
	}
	return out
}
