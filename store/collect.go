package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Collected is what a garbage collection removed.
type Collected struct {
	// Revisions and Objects are counts; objects include buckets, groups and roots.
	Revisions, Objects int64
}

// maintain collects garbage from time to time, when there may be some.
func (s *etcdStore) maintain() {
	tick := time.NewTicker(s.opts.MaintenanceInterval)
	defer tick.Stop()
	for {
		full := true
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		case <-s.grown:
			full = false
		}
		err := s.tidy(s.ctx, full)
		if s.ctx.Err() != nil {
			return
		}
		if err != nil {
			s.opts.Logger.Error("store: garbage collection failed and will be tried again", "error", err)
		}
	}
}

// tidy collects when that would find a tenth more revisions than are to be kept, or,
// if full is set, objects of lost commits. When an embedded etcd is over its budget,
// it keeps half as many revisions, and again half, until it is not: a configuration
// that is rewritten whole each time would fill etcd's quota with history.
func (s *etcdStore) tidy(ctx context.Context, full bool) error {
	keep := s.opts.KeepRevisions
	resp, err := s.get(ctx, s.key("r", ""), prefixEnd(s.key("r", "")), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	s.mu.Lock()
	due := full && s.garbage
	s.mu.Unlock()
	if due || resp.Count > int64(keep+keep/10) {
		if err := s.collectLogged(ctx, keep); err != nil {
			return err
		}
	}
	for kept := min(int64(keep), resp.Count); s.overBudget() && kept > 2; {
		kept = max(2, kept/2)
		s.opts.Logger.Warn("store: embedded etcd holds too much and keeps fewer revisions", "bytes", s.embedded.inUse(), "budget", s.budget, "revisions", kept)
		if err := s.collectLogged(ctx, int(kept)); err != nil {
			return err
		}
	}
	return nil
}

// overBudget says whether an embedded etcd holds more than it should.
func (s *etcdStore) overBudget() bool { return s.embedded != nil && s.embedded.inUse() > s.budget }

// collectLogged is collect with a line for the log.
func (s *etcdStore) collectLogged(ctx context.Context, keep int) error {
	c, err := s.collect(ctx, keep)
	if err == nil {
		s.opts.Logger.Debug("store: garbage collected", "revisions", c.Revisions, "objects", c.Objects)
	}
	return err
}

// Collect removes revisions that are no longer to be kept and all objects that no
// kept revision reaches. The Store of Open has this method for tests and tools; it
// is also done from time to time by itself.
func (s *etcdStore) Collect(ctx context.Context) (Collected, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return Collected{}, err
	}
	defer end()
	return s.collect(ctx, s.opts.KeepRevisions)
}

// collect is safe beside commits, also of other processes, without a clock: it moves
// the epoch key first. A commit that stored objects ahead of its flip compares the
// epoch in the flip, fails if it moved, and stores them again. So objects older than
// the move are either reached by a revision that is read after it, or garbage. An
// object that was stored anew since has another modification revision and stays.
func (s *etcdStore) collect(ctx context.Context, keep int) (c Collected, err error) {
	s.mu.Lock()
	s.garbage = false
	s.mu.Unlock()
	defer func() {
		if err != nil {
			s.littered()
		}
	}()
	h, err := s.readHead(ctx)
	if err != nil || h.mod == 0 {
		return c, err
	}
	if err := s.admit(0, false); err != nil {
		return c, err
	}
	gone, err := do(s, ctx, func(ctx context.Context) (*clientv3.DeleteResponse, error) {
		first := s.revisionKey(max(0, h.rev.Number-int64(keep)) + 1)
		return s.client.Delete(ctx, s.key("r", ""), clientv3.WithRange(first))
	})
	if err != nil {
		return c, err
	}
	c.Revisions = gone.Deleted
	moved, err := do(s, ctx, func(ctx context.Context) (*clientv3.PutResponse, error) {
		return s.client.Put(ctx, s.epochKey(), strconv.FormatInt(time.Now().Unix(), 10))
	})
	if err != nil {
		return c, err
	}
	reached, err := s.mark(ctx)
	for range 3 {
		if _, missing := errors.AsType[*CorruptError](err); !missing {
			break
		}
		reached, err = s.mark(ctx) // another process may have collected the revision since it was listed
	}
	if err != nil {
		return c, fmt.Errorf("store: nothing was removed: %w", err)
	}
	c.Objects, err = s.sweep(ctx, reached, moved.Header.GetRevision())
	if err != nil {
		return c, err
	}
	if s.embedded != nil {
		err = s.embedded.shrink(ctx, moved.Header.GetRevision())
	}
	return c, err
}

// mark returns the hashes that the kept revisions reach.
func (s *etcdStore) mark(ctx context.Context) (map[hash]bool, error) {
	reached := map[hash]bool{}
	for first := s.key("r", ""); ; {
		resp, err := s.get(ctx, first, clientv3.WithRange(clientv3.GetPrefixRangeEnd(s.key("r", ""))), clientv3.WithLimit(maxList))
		if err != nil {
			return nil, err
		}
		revs := s.decodeRevisions(resp)
		for i, r := range revs {
			if r.Damaged == "" {
				continue
			}
			// What it reaches is not known, so nothing may be removed beside it.
			if revs[i], err = s.revision(ctx, r.Number); err != nil {
				return nil, err
			}
		}
		if err := s.markRevisions(ctx, reached, revs); err != nil {
			return nil, err
		}
		if !resp.More {
			return reached, nil
		}
		first = s.revisionKey(revs[len(revs)-1].Number + 1)
	}
}

// markRevisions adds what some revisions reach. Roots, groups and buckets seen before are
// not read again, and few at a time are held in memory.
func (s *etcdStore) markRevisions(ctx context.Context, reached map[hash]bool, revs []Revision) error {
	var roots []hash
	for _, r := range revs {
		if h, err := parseHash(r.Root); err == nil && !reached[h] {
			reached[h] = true
			roots = append(roots, h)
		}
	}
	parts := func(of []hash, kind byte, name string) (out []hash, err error) {
		err = s.eachObject(ctx, of, name, func(data []byte) error {
			all, err := decodeHashes(kind, data)
			for _, h := range all {
				if h != (hash{}) && !reached[h] {
					reached[h] = true
					out = append(out, h)
				}
			}
			return err
		})
		return out, err
	}
	groups, err := parts(roots, kindRoot, "root")
	if err != nil {
		return err
	}
	all, err := parts(groups, kindGroup, "group")
	if err != nil {
		return err
	}
	return s.eachObject(ctx, all, "bucket", func(data []byte) error {
		b, err := decodeBucket(data)
		for _, e := range b {
			reached[e.hash] = true
		}
		return err
	})
}

// eachObject reads and verifies objects, some at a time.
func (s *etcdStore) eachObject(ctx context.Context, hashes []hash, name string, f func([]byte) error) error {
	for chunk := range slices.Chunk(hashes, maxOps) {
		got, err := s.fetch(ctx, chunk)
		if err != nil {
			return err
		}
		for _, h := range chunk {
			if err := verify(name, h, got[h]); err != nil {
				return err
			}
			if err := f(got[h]); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweep deletes the objects that are not reached and older than the move of the epoch.
func (s *etcdStore) sweep(ctx context.Context, reached map[hash]bool, epoch int64) (deleted int64, err error) {
	prefix := s.key("o", "")
	for first := prefix; ; {
		resp, err := s.get(ctx, first, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(maxList), clientv3.WithKeysOnly())
		if err != nil {
			return deleted, err
		}
		var cmps []clientv3.Cmp
		for _, kv := range resp.Kvs {
			h, err := parseHash(string(kv.Key[len(prefix):]))
			if err == nil && !reached[h] && kv.ModRevision < epoch {
				cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(string(kv.Key)), "=", kv.ModRevision))
			}
		}
		for chunk := range slices.Chunk(cmps, maxOps) {
			n, err := s.remove(ctx, chunk)
			if deleted += n; err != nil {
				return deleted, err
			}
		}
		if !resp.More {
			return deleted, nil
		}
		first = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// remove deletes the keys of comparisons that hold: all in one transaction, or when
// one of them does not hold, each in its own.
func (s *etcdStore) remove(ctx context.Context, cmps []clientv3.Cmp) (int64, error) {
	dels := make([]clientv3.Op, len(cmps))
	for i, c := range cmps {
		dels[i] = clientv3.OpDelete(string(c.KeyBytes()))
	}
	resp, err := s.txn(ctx, cmps, dels, nil)
	if err != nil || resp.Succeeded {
		return int64(len(cmps)), err
	}
	if len(cmps) == 1 {
		return 0, nil
	}
	var deleted int64
	for i := range cmps {
		n, err := s.remove(ctx, cmps[i:i+1])
		if deleted += n; err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}
