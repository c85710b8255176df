package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// load puts everything that was stored into a tree, as reads from etcd would.
func load(t *rapid.T, root hash, stored map[hash][]byte) *tree {
	tr, err := decodeTree(stored[root])
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range tr.hashes {
		if h == (hash{}) {
			continue
		}
		g, err := decodeGroup(stored[h])
		if err != nil {
			t.Fatal(err)
		}
		tr.loaded[i].Store(g)
		for j, h := range g.hashes {
			if h == (hash{}) {
				continue
			}
			b, err := decodeBucket(stored[h])
			if err != nil {
				t.Fatal(err)
			}
			g.loaded[j].Store(&b)
		}
	}
	return tr
}

// names lists a tree.
func (t *tree) names() map[string]hash {
	out := map[string]hash{}
	for i := range buckets {
		for _, e := range t.at(i) {
			out[e.name] = e.hash
		}
	}
	return out
}

// TestTreeModel compares trees with maps over random edits: the content, that the
// root depends on the content alone, that everything needed was handed out to be
// stored and nothing else, and differences both ways.
func TestTreeModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		empty := emptyTree()
		stored := map[hash][]byte{empty.root: empty.encode()}
		tr, model := empty, map[string]hash{}
		for range rapid.IntRange(1, 6).Draw(t, "commits") {
			before, old := maps.Clone(model), tr
			var edits []edit
			for range rapid.IntRange(0, 40).Draw(t, "edits") {
				e := edit{name: fmt.Sprint("n", rapid.IntRange(0, 60).Draw(t, "name"))}
				if v := rapid.IntRange(0, 3).Draw(t, "value"); v > 0 {
					e.hash = sha256.Sum256([]byte{byte(v)})
					model[e.name] = e.hash
				} else {
					delete(model, e.name)
				}
				edits = append(edits, e)
			}
			next, blobs, err := tr.apply(edits)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range blobs {
				if sha256.Sum256(b.data) != b.hash {
					t.Fatal("a blob under a wrong hash")
				}
				stored[b.hash] = b.data
			}
			if maps.Equal(before, model) != (len(blobs) == 0) {
				t.Fatalf("%d blobs for a change from %v to %v", len(blobs), before, model)
			}
			if tr = next; !maps.Equal(tr.names(), model) {
				t.Fatalf("got %v, want %v", tr.names(), model)
			}
			if !maps.Equal(load(t, tr.root, stored).names(), model) {
				t.Fatal("what was stored differs")
			}
			checkDifferences(t, old, before, tr, model)
			checkDifferences(t, tr, model, old, before)
		}
		var all []edit
		for name, h := range model {
			all = append(all, edit{name: name, hash: h})
		}
		again, _, err := emptyTree().apply(all)
		if err != nil || again.root != tr.root {
			t.Fatalf("the same content has the roots %v and %v (%v)", again.root, tr.root, err)
		}
	})
}

// checkDifferences applies the differences of two trees to the content of the first.
func checkDifferences(t *rapid.T, from *tree, content map[string]hash, to *tree, want map[string]hash) {
	got := maps.Clone(content)
	for i := range buckets {
		for _, d := range diffBuckets(nil, from.at(i), to.at(i)) {
			if d.from == d.to || d.from != content[d.name] {
				t.Fatalf("difference %+v", d)
			}
			if got[d.name] = d.to; d.to == (hash{}) {
				delete(got, d.name)
			}
		}
	}
	if !maps.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func TestApplyNeedsBuckets(t *testing.T) {
	one, _, err := emptyTree().apply([]edit{{"a", hash{1}, "foot"}})
	if err != nil {
		t.Fatal(err)
	}
	cold, err := decodeTree(one.encode())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := cold.apply([]edit{{"a", hash{2}, ""}}); err == nil {
		t.Error("a group that was not loaded was taken for empty")
	}
	i := bucketOf("a") / fan
	g, err := decodeGroup(one.loaded[i].Load().hashes.encode(kindGroup))
	if err != nil {
		t.Fatal(err)
	}
	cold.loaded[i].Store(g)
	if _, _, err := cold.apply([]edit{{"a", hash{2}, ""}}); err == nil {
		t.Error("a bucket that was not loaded was taken for empty")
	}
}

func TestDecodeRefuses(t *testing.T) {
	h := bytes.Repeat([]byte{7}, sha256.Size)
	entryOf := func(name string) []byte {
		return slices.Concat(binary.AppendUvarint(nil, uint64(len(name))), []byte(name), h)
	}
	for name, data := range map[string][]byte{
		"empty":     nil,
		"kind":      []byte("T"),
		"no entry":  []byte("B"),
		"cut":       append([]byte("B"), entryOf("a")[:20]...),
		"no name":   append([]byte("B"), entryOf("")...),
		"order":     slices.Concat([]byte("B"), entryOf("b"), entryOf("a")),
		"twice":     slices.Concat([]byte("B"), entryOf("a"), entryOf("a")),
		"long name": append([]byte("B"), entryOf(string(make([]byte, maxNameBytes+1)))...),
		"length":    slices.Concat([]byte("B\x81\x00a"), h),
		"huge":      append([]byte("B"), bytes.Repeat([]byte{0xff}, 12)...),
	} {
		if b, err := decodeBucket(data); err == nil {
			t.Errorf("bucket %s: accepted as %v", name, b)
		}
	}
	part := func(i byte) []byte { return append([]byte{i}, h...) }
	for name, data := range map[string][]byte{
		"cut":     part(1)[:10],
		"order":   slices.Concat(part(2), part(1)),
		"twice":   slices.Concat(part(1), part(1)),
		"number":  part(fan),
		"no hash": make([]byte, 33),
	} {
		if _, err := decodeTree(append([]byte{kindRoot}, data...)); err == nil {
			t.Errorf("root %s: accepted", name)
		}
		if _, err := decodeGroup(append([]byte{kindGroup}, data...)); err == nil {
			t.Errorf("group %s: accepted", name)
		}
	}
	for _, data := range [][]byte{nil, {kindGroup}, {kindBucket}, append([]byte{kindGroup}, part(1)...)} {
		if _, err := decodeTree(data); err == nil {
			t.Errorf("root %x: accepted", data)
		}
	}
	for _, data := range [][]byte{nil, {kindGroup}, {kindRoot}, append([]byte{kindRoot}, part(1)...)} {
		if _, err := decodeGroup(data); err == nil {
			t.Errorf("group %x: accepted", data)
		}
	}
	for _, s := range []string{"", "xx", string(bytes.Repeat([]byte("z"), 64))} {
		if _, err := parseHash(s); err == nil {
			t.Errorf("hash %q: accepted", s)
		}
	}
}

// TestOldRoot: what an earlier build wrote is named as that, and how to go on.
func TestOldRoot(t *testing.T) {
	if _, err := decodeTree(append([]byte{kindOldRoot, 200}, make([]byte, 32)...)); err == nil || !strings.Contains(err.Error(), "empty data directory") {
		t.Error(err)
	}
}

// FuzzDecodeBucket: whatever is accepted is what encode makes.
func FuzzDecodeBucket(f *testing.F) {
	f.Add(bucket{{"a", hash{1}, ""}, {"b", hash{2}, ""}}.encode())
	f.Add(bucket{{"a", hash{1}, ""}, {"b", hash{2}, "foot"}}.encode())
	f.Add([]byte("B"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if b, err := decodeBucket(data); err == nil && !bytes.Equal(b.encode(), data) {
			t.Errorf("%x became %x", data, b.encode())
		}
	})
}

// FuzzDecodeTree: whatever is accepted is what encode makes.
func FuzzDecodeTree(f *testing.F) {
	f.Add(emptyTree().encode())
	one, _, _ := emptyTree().apply([]edit{{"a", hash{1}, "foot"}})
	f.Add(one.encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		if tr, err := decodeTree(data); err == nil && !bytes.Equal(tr.encode(), data) {
			t.Errorf("%x became %x", data, tr.encode())
		}
	})
}

// FuzzDecodeGroup: whatever is accepted is what encode makes.
func FuzzDecodeGroup(f *testing.F) {
	p := hashes{3: {1}}
	f.Add(p.encode(kindGroup))
	f.Fuzz(func(t *testing.T, data []byte) {
		if g, err := decodeGroup(data); err == nil && !bytes.Equal(g.hashes.encode(kindGroup), data) {
			t.Errorf("%x became %x", data, g.hashes.encode(kindGroup))
		}
	})
}

// FuzzDecodeRevision: whatever is accepted survives another round.
func FuzzDecodeRevision(f *testing.F) {
	text, _ := encodeRevision(Revision{Number: 3, Root: hash{}.String(), Author: "a"})
	f.Add([]byte(text))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRevision("k", data)
		if err != nil {
			return
		}
		text, err := encodeRevision(r)
		if err != nil {
			return // a year that JSON has no form for
		}
		if again, err := decodeRevision("k", []byte(text)); err != nil || again.Number != r.Number || again.Root != r.Root {
			t.Errorf("%+v became %+v (%v)", r, again, err)
		}
	})
}
