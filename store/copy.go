package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Export is what a store holds of some revisions, in its stored form: secrets are sealed.
type Export struct {
	// Revisions, oldest first. The last one is the newest.
	Revisions []Revision
	// SealKey is the name of the key that secrets are sealed with, "" when none ever was.
	SealKey string
	// Objects are all that the revisions reach, each with an error in its place when it
	// cannot be read. One that is damaged is a *CorruptError.
	Objects iter.Seq2[[]byte, error]
}

// Export returns the newest revision, or all that are kept.
func (s *etcdStore) Export(caller context.Context, history bool) (*Export, error) {
	ctx, end, err := s.begin(caller)
	if err != nil {
		return nil, err
	}
	defer end()
	h, err := s.readHead(ctx)
	if err != nil {
		return nil, err
	}
	out := &Export{}
	if h.rev.Number > 0 {
		out.Revisions = []Revision{h.rev}
	}
	if history {
		if out.Revisions, err = s.allRevisions(ctx, h.rev.Number); err != nil {
			return nil, err
		}
	}
	if out.SealKey, err = s.pin(ctx, s.sealKey(), ""); err != nil {
		return nil, err
	}
	reached := map[hash]bool{}
	if err := s.markRevisions(ctx, reached, out.Revisions); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	out.Objects = func(yield func([]byte, error) bool) {
		ctx, end, err := s.begin(caller)
		if err != nil {
			yield(nil, err)
			return
		}
		defer end()
		err = s.eachObject(ctx, slices.SortedFunc(maps.Keys(reached), func(a, b hash) int { return bytes.Compare(a[:], b[:]) }), "object", func(data []byte) error {
			if !yield(data, nil) {
				return errStopped
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStopped) {
			yield(nil, fmt.Errorf("store: %w", err))
		}
	}
	return out, nil
}

// errStopped ends an iteration.
var errStopped = errors.New("stopped")

// allRevisions are the kept revisions up to one, oldest first. One whose record is damaged
// is left out.
func (s *etcdStore) allRevisions(ctx context.Context, last int64) ([]Revision, error) {
	var out []Revision
	for first := s.key("r", ""); ; {
		resp, err := s.get(ctx, first, clientv3.WithRange(s.revisionKey(last+1)), clientv3.WithLimit(maxList))
		if err != nil {
			return nil, err
		}
		for _, r := range s.decodeRevisions(resp) {
			if r.Damaged != "" {
				if r, err = s.revision(ctx, r.Number); err != nil {
					continue
				}
			}
			out = append(out, r)
		}
		if !resp.More {
			return out, nil
		}
		first = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// Import fills a store that is empty. All of the revisions are there afterwards, or none:
// objects that they reach and that are missing are an error (CorruptError).
func (s *etcdStore) Import(ctx context.Context, e *Export) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	h, err := s.readHead(ctx)
	if err != nil {
		return err
	}
	if h.rev.Number != 0 {
		return fmt.Errorf("store: %w: %s is not empty, its newest revision is %d", ErrInvalid, s.where(), h.rev.Number)
	}
	if len(e.Revisions) == 0 {
		return nil
	}
	var blobs []blob
	size := 0
	for data, err := range e.Objects {
		if err != nil {
			return err
		}
		blobs = append(blobs, newBlob(bytes.Clone(data)))
		if size += len(data); size > 8*maxBatchBytes {
			if err := s.write(ctx, blobs); err != nil {
				return err
			}
			blobs, size = nil, 0
		}
	}
	if err := s.write(ctx, blobs); err != nil {
		return err
	}
	if err := s.checkReached(ctx, e.Revisions); err != nil {
		return err
	}
	return s.putRevisions(ctx, e.Revisions)
}

// checkReached reads everything that revisions reach.
func (s *etcdStore) checkReached(ctx context.Context, revs []Revision) error {
	reached := map[hash]bool{}
	if err := s.markRevisions(ctx, reached, revs); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return s.eachObject(ctx, slices.Collect(maps.Keys(reached)), "object", func([]byte) error { return nil })
}

// putRevisions writes the records, the head last and only when there is none.
func (s *etcdStore) putRevisions(ctx context.Context, revs []Revision) error {
	var puts []clientv3.Op
	for _, r := range revs {
		value, err := encodeRevision(r)
		if err != nil {
			return fmt.Errorf("store: %w: revision %d: %w", ErrInvalid, r.Number, err)
		}
		puts = append(puts, clientv3.OpPut(s.revisionKey(r.Number), value))
	}
	head, err := encodeRevision(revs[len(revs)-1])
	if err != nil {
		return fmt.Errorf("store: %w: %w", ErrInvalid, err)
	}
	for chunk := range slices.Chunk(puts, maxOps) {
		if _, err := s.txn(ctx, nil, chunk, nil); err != nil {
			return err
		}
	}
	resp, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(s.headKey()), "=", 0)}, []clientv3.Op{clientv3.OpPut(s.headKey(), head)}, nil)
	if err == nil && !resp.Succeeded {
		err = fmt.Errorf("store: %w: somebody else has written to %s meanwhile", ErrInvalid, s.where())
	}
	return err
}

// DecodeExported returns the resources of one revision of an Export, with secrets unsealed.
// It holds all objects in memory.
func (s *etcdStore) DecodeExported(revision Revision, objects map[string][]byte) ([]Change, error) {
	get := func(h hash) ([]byte, error) {
		data := objects[h.String()]
		if err := verify("object", h, data); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		return data, nil
	}
	root, err := parseHash(revision.Root)
	if err != nil {
		return nil, fmt.Errorf("store: %w: %w", ErrInvalid, err)
	}
	all := []hash{root}
	for _, kind := range []byte{kindRoot, kindGroup} {
		var next []hash
		for _, h := range all {
			data, err := get(h)
			if err != nil {
				return nil, err
			}
			parts, err := decodeHashes(kind, data)
			if err != nil {
				return nil, fmt.Errorf("store: %w: %w", ErrInvalid, err)
			}
			for _, p := range parts {
				if p != (hash{}) {
					next = append(next, p)
				}
			}
		}
		all = next
	}
	var out []Change
	for _, h := range all {
		data, err := get(h)
		if err != nil {
			return nil, err
		}
		b, err := decodeBucket(data)
		if err != nil {
			return nil, fmt.Errorf("store: %w: %w", ErrInvalid, err)
		}
		for _, e := range b {
			r, err := s.seal.decodeResource(e.name, e.hash, objects[e.hash.String()])
			if err != nil {
				return nil, fmt.Errorf("store: %w", err)
			}
			out = append(out, Change{Name: e.name, Resource: r})
		}
	}
	return out, nil
}
