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

// buckets is how many parts a tree has. A change rewrites one bucket and the root
// (8 KiB), so more buckets make the root dearer and fewer the bucket; 256 keeps the
// sum below 50 KiB up to 100,000 resources.
const buckets = 256

// bucketOf says which bucket a name belongs to.
func bucketOf(name string) int { return int(sha256.Sum256([]byte(name))[0]) }

// The first byte of stored content says what it is, so that no kind of content can
// be taken for another.
const (
	kindRoot     = 'T'
	kindBucket   = 'B'
	kindResource = 'R'
	kindSealed   = 'S'
)

// entry is one resource of a bucket.
type entry struct {
	name string
	hash hash
}

// bucket is a list of entries sorted by name. It is immutable.
type bucket []entry

// find returns the position of a name, or where it would be.
func (b bucket) find(name string) (int, bool) {
	return slices.BinarySearchFunc(b, name, func(e entry, n string) int { return cmp.Compare(e.name, n) })
}

// encode returns the stored form: for each entry the length of the name as uvarint,
// the name, the hash.
func (b bucket) encode() []byte {
	size := 1
	for _, e := range b {
		size += 2 + len(e.name) + len(e.hash)
	}
	out := append(make([]byte, 0, size), kindBucket)
	for _, e := range b {
		out = binary.AppendUvarint(out, uint64(len(e.name)))
		out = append(out, e.name...)
		out = append(out, e.hash[:]...)
	}
	return out
}

// decodeBucket reverses encode and refuses everything encode cannot have made.
func decodeBucket(data []byte) (bucket, error) {
	if len(data) == 0 || data[0] != kindBucket {
		return nil, errors.New("not a bucket")
	}
	var b bucket
	for rest := data[1:]; len(rest) > 0; {
		n, w := binary.Uvarint(rest)
		if w <= 0 || n == 0 || n > maxNameBytes || len(rest) < w+int(n)+len(hash{}) {
			return nil, fmt.Errorf("entry %d is cut off", len(b))
		}
		if w != len(binary.AppendUvarint(nil, n)) {
			return nil, fmt.Errorf("entry %d has a length that is not minimal", len(b))
		}
		var e entry
		e.name = string(rest[w : w+int(n)])
		rest = rest[w+int(n):]
		rest = rest[copy(e.hash[:], rest):]
		if len(b) > 0 && b[len(b)-1].name >= e.name {
			return nil, fmt.Errorf("entry %q is out of order", e.name)
		}
		b = append(b, e)
	}
	if len(b) == 0 {
		return nil, errors.New("bucket is empty")
	}
	return b, nil
}

// tree is the content of one revision: the hashes of its buckets, and those buckets
// that were needed so far. It is immutable but for what it has loaded.
type tree struct {
	root   hash
	hashes [buckets]hash // zero: the bucket is empty
	loaded [buckets]atomic.Pointer[bucket]
}

// emptyTree is the content of revision 0.
func emptyTree() *tree {
	t := new(tree)
	t.root = sha256.Sum256(t.encode())
	return t
}

// encode returns the stored form: for each bucket that is not empty its number and hash.
func (t *tree) encode() []byte {
	out := append(make([]byte, 0, 1+buckets*(1+len(hash{}))), kindRoot)
	for i, h := range t.hashes {
		if h != (hash{}) {
			out = append(out, byte(i))
			out = append(out, h[:]...)
		}
	}
	return out
}

// decodeTree reverses encode and refuses everything encode cannot have made.
func decodeTree(data []byte) (*tree, error) {
	const width = 1 + len(hash{})
	if len(data) == 0 || data[0] != kindRoot || (len(data)-1)%width != 0 {
		return nil, errors.New("not a root")
	}
	t := &tree{root: sha256.Sum256(data)}
	last := -1
	for part := range slices.Chunk(data[1:], width) {
		i := int(part[0])
		if i <= last {
			return nil, fmt.Errorf("bucket %d is out of order", i)
		}
		last = i
		copy(t.hashes[i][:], part[1:])
		if t.hashes[i] == (hash{}) {
			return nil, fmt.Errorf("bucket %d has no hash", i)
		}
	}
	return t, nil
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
}

// apply returns the tree with edits made, and the buckets and the root that are new.
// The buckets that the edits touch must be loaded. Edits to the same name apply in order.
func (t *tree) apply(edits []edit) (*tree, []blob, error) {
	next := &tree{hashes: t.hashes}
	for i := range t.loaded {
		next.loaded[i].Store(t.loaded[i].Load())
	}
	touched := map[int]bucket{}
	for _, e := range edits {
		i := bucketOf(e.name)
		b, ok := touched[i]
		if !ok {
			if old := t.loaded[i].Load(); old != nil {
				b = slices.Clone(*old)
			} else if t.hashes[i] != (hash{}) {
				return nil, nil, fmt.Errorf("bucket %d is not loaded", i)
			}
		}
		touched[i] = b.with(e)
	}
	var blobs []blob
	for i, b := range touched {
		if len(b) == 0 {
			next.hashes[i] = hash{}
			next.loaded[i].Store(nil)
			continue
		}
		bl := newBlob(b.encode())
		if len(bl.data) > MaxObjectBytes {
			return nil, nil, fmt.Errorf("%w: bucket %d of the tree would take %d bytes, at most %d fit: there are too many resources", ErrInvalid, i, len(bl.data), MaxObjectBytes)
		}
		if bl.hash != t.hashes[i] {
			blobs = append(blobs, bl)
		}
		next.hashes[i] = bl.hash
		next.loaded[i].Store(&b)
	}
	root := newBlob(next.encode())
	next.root = root.hash
	if next.root != t.root {
		blobs = append(blobs, root)
	}
	return next, blobs, nil
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
		b[at].hash = e.hash
		return b
	default:
		return slices.Insert(b, at, entry(e))
	}
}

// difference is one name that two buckets disagree on; a zero hash is absence.
type difference struct {
	name     string
	from, to hash
}

// diffBuckets merges two buckets and appends what differs.
func diffBuckets(out []difference, from, to bucket) []difference {
	for len(from) > 0 || len(to) > 0 {
		order := 0
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
			out = append(out, difference{name: to[0].name, to: to[0].hash})
			to = to[1:]
		default:
			if !bytes.Equal(from[0].hash[:], to[0].hash[:]) {
				out = append(out, difference{from[0].name, from[0].hash, to[0].hash})
			}
			from, to = from[1:], to[1:]
		}
	}
	return out
}
