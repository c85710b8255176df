package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// allBuckets are the indexes of a whole tree.
var allBuckets = func() []int {
	out := make([]int, buckets)
	for i := range out {
		out[i] = i
	}
	return out
}()

// Load implements Store.
func (s *etcdStore) Load(ctx context.Context, number int64) ([]*pb.Resource, error) {
	changes, err := s.Diff(ctx, 0, number)
	out := make([]*pb.Resource, len(changes))
	for i, c := range changes {
		out[i] = c.Resource
	}
	return out, err
}

// Diff implements Store.
func (s *etcdStore) Diff(ctx context.Context, from, to int64) ([]Change, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var revs [2]Revision
	var trees [2]*tree
	for i, n := range []int64{from, to} {
		if n != 0 {
			if revs[i], err = s.revision(ctx, n); err != nil {
				return nil, err
			}
		}
		if trees[i], err = s.tree(ctx, revs[i]); err != nil {
			return nil, err
		}
	}
	diffs, err := s.differences(ctx, revs[0], trees[0], revs[1], trees[1])
	if err != nil {
		return nil, err
	}
	return s.resolve(ctx, revs[1], diffs)
}

// differences compares two trees, reading only the buckets that differ. Sorted by name.
func (s *etcdStore) differences(ctx context.Context, fromRev Revision, from *tree, toRev Revision, to *tree) ([]difference, error) {
	var groups, indexes []int
	for i := range fan {
		if from.hashes[i] != to.hashes[i] {
			groups = append(groups, i)
		}
	}
	if err := s.needGroups(ctx, fromRev, from, groups); err != nil {
		return nil, err
	}
	if err := s.needGroups(ctx, toRev, to, groups); err != nil {
		return nil, err
	}
	for _, g := range groups {
		for i := g * fan; i < (g+1)*fan; i++ {
			if from.hashOf(i) != to.hashOf(i) {
				indexes = append(indexes, i)
			}
		}
	}
	if err := s.need(ctx, fromRev, from, indexes); err != nil {
		return nil, err
	}
	if err := s.need(ctx, toRev, to, indexes); err != nil {
		return nil, err
	}
	var out []difference
	for _, i := range indexes {
		out = diffBuckets(out, from.at(i), to.at(i))
	}
	slices.SortFunc(out, func(a, b difference) int { return cmp.Compare(a.name, b.name) })
	return out, nil
}

// resolve reads the new contents of differences.
func (s *etcdStore) resolve(ctx context.Context, to Revision, diffs []difference) ([]Change, error) {
	var hashes []hash
	for _, d := range diffs {
		if d.to != (hash{}) {
			hashes = append(hashes, d.to)
		}
	}
	got, err := s.fetch(ctx, hashes)
	if err != nil {
		return nil, err
	}
	out := make([]Change, 0, len(diffs))
	var damaged []*CorruptError
	var other []error
	for _, d := range diffs {
		c := Change{Name: d.name}
		if d.to != (hash{}) {
			var err error
			if c.Resource, err = s.readResource(ctx, d, got[d.to]); err != nil {
				if bad, ok := errors.AsType[*CorruptError](err); ok {
					bad.Footprint = []byte(d.foot)
					damaged = append(damaged, bad)
				} else {
					other = append(other, err)
				}
				continue
			}
		}
		out = append(out, c)
	}
	switch {
	case len(damaged)+len(other) == 0:
		return out, nil
	case len(other) == 0:
		if _, err := s.revision(ctx, to.Number); errors.Is(err, ErrNotFound) {
			return out, err // it has gone meanwhile
		}
		return out, &DamageError{damaged}
	}
	for _, bad := range damaged {
		other = append(other, bad)
	}
	return out, s.lost(ctx, to, errors.Join(other...))
}

// readResource decodes the new content of a difference, and mends it when it is damaged
// and can be.
func (s *etcdStore) readResource(ctx context.Context, d difference, data []byte) (*pb.Resource, error) {
	r, err := s.seal.decodeResource(d.name, d.to, data)
	if bad, damaged := errors.AsType[*CorruptError](err); !damaged || bad.Newer {
		return r, err
	}
	s.noteDamage(d.to, err)
	if right := s.mend(ctx, d.name, d.to, data); right != nil {
		return s.seal.decodeResource(d.name, d.to, right)
	}
	return nil, err
}

// noteDamage remembers damaged objects, so that writing the same content again
// mends them.
func (s *etcdStore) noteDamage(h hash, err error) {
	if _, ok := errors.AsType[*CorruptError](err); ok {
		s.mu.Lock()
		s.damaged[h] = true
		s.mu.Unlock()
	}
}

// Watch implements Store.
func (s *etcdStore) Watch(ctx context.Context, from int64) <-chan Revision {
	out := make(chan Revision)
	ctx, end, err := s.begin(ctx)
	if err != nil {
		close(out)
		return out
	}
	go func() {
		defer end()
		defer close(out)
		s.follow(ctx, from, out)
	}()
	return out
}

// checkInfo refuses what does not fit into a revision record.
func checkInfo(i Info) error {
	for _, f := range []struct {
		name, value string
		limit       int
	}{
		{"author", i.Author, maxAuthorBytes},
		{"message", i.Message, maxMessageBytes},
		{"request id", i.RequestID, maxRequestIDBytes},
	} {
		if len(f.value) > f.limit {
			return fmt.Errorf("store: %w: the %s has %d bytes, at most %d fit", ErrInvalid, f.name, len(f.value), f.limit)
		}
	}
	return nil
}
