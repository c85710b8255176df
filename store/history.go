package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Edition is what one revision made of one object.
type Edition struct {
	Revision Revision
	// Before and After are the content; nil when the object was not there.
	Before, After *pb.Resource
	// Oldest: the revision before is no longer kept, so whether this one changed the
	// object is not known. It is there in it.
	Oldest bool
	// Damaged says what of the content or of the tree cannot be read.
	Damaged string
}

// maxHistory bounds how many revisions one call of History looks at.
const maxHistory = maxList

// History implements Store.
func (s *etcdStore) History(ctx context.Context, name string, before int64, limit int) ([]Edition, int64, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer end()
	if limit <= 0 {
		limit = defaultList
	}
	// One more than is looked at: each is compared with the one before.
	revs, err := s.list(ctx, before, maxHistory+1)
	if err != nil {
		return nil, 0, err
	}
	entries, err := s.entriesOf(ctx, name, revs)
	if err != nil {
		return nil, 0, err
	}
	more := len(revs) > maxHistory
	for i, e := range entries {
		if e.err == nil {
			continue
		}
		if _, err := s.revision(ctx, revs[i].Number); errors.Is(err, ErrNotFound) {
			revs, more = revs[:i], false // it and what is older are no longer kept
			break
		}
	}
	var out []Edition
	var next int64
	var pairs [][2]hash
	for i, r := range revs {
		if i == maxHistory {
			next = revs[i-1].Number
			break
		}
		now, then := entries[i], entryAt{}
		if i+1 < len(revs) {
			then = entries[i+1]
		}
		damage := errors.Join(now.err, then.err)
		if damage == nil && now.hash == then.hash {
			continue
		}
		if len(out) == limit {
			next = r.Number + 1
			break
		}
		e := Edition{Revision: r, Oldest: i == len(revs)-1 && !more && r.Number > 1}
		if damage != nil {
			e.Damaged = damage.Error()
		}
		out = append(out, e)
		pairs = append(pairs, [2]hash{then.hash, now.hash})
	}
	return out, next, s.fillEditions(ctx, name, out, pairs)
}

// entryAt is where the content of an object lies in one revision: the zero hash when it
// is not there.
type entryAt struct {
	hash hash
	err  error
}

// entriesOf finds an object in many revisions. It reads of all of them at once the root,
// then the one group, then the one bucket in which the object is, each content once, and
// leaves alone the trees in memory, which are those that changes need.
func (s *etcdStore) entriesOf(ctx context.Context, name string, revs []Revision) ([]entryAt, error) {
	out := make([]entryAt, len(revs))
	for i, r := range revs {
		if r.Damaged != "" {
			out[i].err = errors.New(r.Damaged)
			continue
		}
		out[i].hash, out[i].err = parseHash(r.Root)
	}
	index := bucketOf(name)
	for _, level := range []struct {
		what string
		next func(data []byte) (hash, error)
	}{
		{"root", func(data []byte) (hash, error) {
			t, err := decodeTree(data)
			if err != nil {
				return hash{}, err
			}
			return t.hashes[index/fan], nil
		}},
		{"group", func(data []byte) (hash, error) {
			g, err := decodeGroup(data)
			return g.hashes[index%fan], err
		}},
		{"bucket", func(data []byte) (hash, error) {
			b, err := decodeBucket(data)
			if at, ok := b.find(name); ok {
				return b[at].hash, err
			}
			return hash{}, err
		}},
	} {
		if err := s.descend(ctx, level.what, revs, out, level.next); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// descend replaces the hash of each entry by what next finds in its content.
func (s *etcdStore) descend(ctx context.Context, what string, revs []Revision, entries []entryAt, next func([]byte) (hash, error)) error {
	var wanted []hash
	seen := map[hash]int{}
	for i, e := range entries {
		if _, ok := seen[e.hash]; !ok && e.hash != (hash{}) && e.err == nil {
			seen[e.hash] = i
			wanted = append(wanted, e.hash)
		}
	}
	got, err := s.fetch(ctx, wanted)
	if err != nil {
		return err
	}
	below := make(map[hash]entryAt, len(wanted))
	for _, h := range wanted {
		name := fmt.Sprintf("%s of revision %d", what, revs[seen[h]].Number)
		var found entryAt
		if bad := verify(name, h, got[h]); bad != nil {
			if got[h] = s.mend(ctx, name, h, got[h]); got[h] == nil {
				found.err = bad
			}
		}
		if found.err == nil {
			found.hash, found.err = next(got[h])
		}
		below[h] = found
	}
	for i, e := range entries {
		if e.hash != (hash{}) && e.err == nil {
			entries[i] = below[e.hash]
		}
	}
	return nil
}

// fillEditions reads the contents of editions: pairs are their hashes before and after.
func (s *etcdStore) fillEditions(ctx context.Context, name string, out []Edition, pairs [][2]hash) error {
	var wanted []hash
	for _, p := range pairs {
		for _, h := range p {
			if h != (hash{}) && !slices.Contains(wanted, h) {
				wanted = append(wanted, h)
			}
		}
	}
	got, err := s.fetch(ctx, wanted)
	if err != nil {
		return err
	}
	for i := range out {
		if out[i].Damaged != "" {
			continue
		}
		for j, to := range []**pb.Resource{&out[i].Before, &out[i].After} {
			h := pairs[i][j]
			if h == (hash{}) {
				continue
			}
			var err error
			if *to, err = s.readResource(ctx, difference{name: name, to: h}, got[h]); err != nil {
				out[i].Damaged = err.Error()
			}
		}
	}
	return nil
}
