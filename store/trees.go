package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// tree returns the content of a revision, its root only.
func (s *etcdStore) tree(ctx context.Context, r Revision) (*tree, error) {
	if r.Number == 0 {
		return emptyTree(), nil
	}
	root, err := parseHash(r.Root)
	if err != nil {
		return nil, err
	}
	if t := s.cached(root); t != nil {
		return t, nil
	}
	got, err := s.fetch(ctx, []hash{root})
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("root of revision %d", r.Number)
	if err := verify(name, root, got[root]); err != nil {
		if got[root] = s.mend(ctx, name, root, got[root]); got[root] == nil {
			return nil, s.lost(ctx, r, err)
		}
	}
	t, err := decodeTree(got[root])
	if err != nil {
		return nil, fmt.Errorf("store: %w", &CorruptError{Name: name, Hash: r.Root, Detail: err.Error()})
	}
	return s.cache(t), nil
}

// lost explains content of a revision that is missing: when the revision itself has
// gone since, nothing is damaged.
func (s *etcdStore) lost(ctx context.Context, r Revision, cause error) error {
	if _, err := s.revision(ctx, r.Number); errors.Is(err, ErrNotFound) {
		return err
	}
	return fmt.Errorf("store: %w", cause)
}

// cached returns a tree that is in memory and marks it as used.
func (s *etcdStore) cached(root hash) *tree {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.trees, func(t *tree) bool { return t.root == root })
	if i < 0 {
		return nil
	}
	t := s.trees[i]
	s.trees = slices.Insert(slices.Delete(s.trees, i, i+1), 0, t)
	return t
}

// cache keeps a tree, shares buckets with those in memory, and returns the tree to
// use from now on.
func (s *etcdStore) cache(t *tree) *tree {
	if old := s.cached(t.root); old != nil {
		return old
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range t.loaded {
		s.adopt(t, i)
	}
	s.trees = slices.Insert(s.trees, 0, t)
	s.trees = slices.Delete(s.trees, min(cachedTrees, len(s.trees)), len(s.trees))
	return t
}

// adopt lets a group of a tree be that of another in memory, or take from that what is
// the same. The caller holds mu.
func (s *etcdStore) adopt(t *tree, i int) {
	for _, other := range s.trees {
		g := other.loaded[i].Load()
		switch own := t.loaded[i].Load(); {
		case g == nil || g == own:
		case own != nil:
			own.share(g)
		case other.hashes[i] == t.hashes[i]:
			t.loaded[i].Store(g)
		}
	}
}

// need loads those of the given buckets of a tree that are not in memory.
func (s *etcdStore) need(ctx context.Context, r Revision, t *tree, indexes []int) error {
	var groups []int
	for _, i := range indexes {
		groups = append(groups, i/fan)
	}
	if err := s.needGroups(ctx, r, t, groups); err != nil {
		return err
	}
	missing := map[int]hash{}
	for _, i := range indexes {
		if h := t.hashOf(i); h != (hash{}) && t.at(i) == nil {
			missing[i] = h
		}
	}
	return s.parts(ctx, r, "bucket", missing, func(i int, data []byte) error {
		b, err := decodeBucket(data)
		if err == nil {
			t.loaded[i/fan].Load().loaded[i%fan].Store(&b)
		}
		return err
	})
}

// needGroups loads those of the given groups of a tree that are not in memory.
func (s *etcdStore) needGroups(ctx context.Context, r Revision, t *tree, indexes []int) error {
	missing := map[int]hash{}
	for _, i := range indexes {
		if t.hashes[i] != (hash{}) && t.loaded[i].Load() == nil {
			missing[i] = t.hashes[i]
		}
	}
	return s.parts(ctx, r, "group", missing, func(i int, data []byte) error {
		g, err := decodeGroup(data)
		if err == nil {
			t.loaded[i].Store(g)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.adopt(t, i)
		}
		return err
	})
}

// parts reads and verifies parts of a tree.
func (s *etcdStore) parts(ctx context.Context, r Revision, kind string, missing map[int]hash, f func(i int, data []byte) error) error {
	if len(missing) == 0 {
		return nil
	}
	got, err := s.fetch(ctx, slices.Collect(maps.Values(missing)))
	if err != nil {
		return err
	}
	for i, h := range missing {
		name := fmt.Sprintf("%s %d of revision %d", kind, i, r.Number)
		if err := verify(name, h, got[h]); err != nil {
			if got[h] = s.mend(ctx, name, h, got[h]); got[h] == nil {
				return s.lost(ctx, r, err)
			}
		}
		if err := f(i, got[h]); err != nil {
			return fmt.Errorf("store: %w", &CorruptError{Name: name, Hash: h.String(), Detail: err.Error()})
		}
	}
	return nil
}
