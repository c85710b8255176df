package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// A request id is kept for at least requestTTL. Its lease is shared by the commits
// of leaseRenewal, because a lease of its own would cost each commit one more write.
const (
	requestTTL   = time.Hour
	leaseRenewal = 10 * time.Minute
)

// requestLease is the lease that request ids are written under at present.
type requestLease struct {
	id      clientv3.LeaseID
	granted time.Time
}

// Commit implements Store.
func (s *etcdStore) Commit(ctx context.Context, base int64, changes []Change, info Info) (Revision, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return Revision{}, err
	}
	defer end()
	if err := errors.Join(checkInfo(info), checkChanges(changes)); err != nil {
		return Revision{}, err
	}
	return s.once(ctx, base, info, func(h headState) (Revision, error) {
		old, err := s.tree(ctx, h.rev)
		if err != nil {
			return Revision{}, err
		}
		p, err := s.prepare(ctx, h, old, changes)
		if err != nil {
			return Revision{}, err
		}
		if len(p.repairs) > 0 {
			if err := s.repair(ctx, p.repairs); err != nil {
				return Revision{}, err
			}
		}
		if p.next.root == old.root {
			return s.unchanged(ctx, h, info)
		}
		p.info = info
		return s.flip(ctx, p)
	})
}

// Rollback implements Store.
func (s *etcdStore) Rollback(ctx context.Context, base, to int64, info Info) (Revision, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return Revision{}, err
	}
	defer end()
	if err := checkInfo(info); err != nil {
		return Revision{}, err
	}
	return s.once(ctx, base, info, func(h headState) (Revision, error) {
		target, err := s.revision(ctx, to)
		if err != nil {
			return Revision{}, err
		}
		if target.Root == h.rev.Root {
			return s.unchanged(ctx, h, info)
		}
		next, err := s.tree(ctx, target)
		if err == nil {
			err = s.need(ctx, target, next, allBuckets)
		}
		if err != nil {
			return Revision{}, err
		}
		n, err := s.countChanges(ctx, h.rev, target, next)
		if err != nil {
			return Revision{}, err
		}
		return s.flip(ctx, &proposal{
			head: h, next: next, resources: target.Resources, changes: n, info: info, keep: to,
		})
	})
}

// countChanges says in how many resources two revisions differ. A damaged head must
// not keep anybody from leaving it: everything counts as changed then.
func (s *etcdStore) countChanges(ctx context.Context, head, target Revision, next *tree) (int, error) {
	old, err := s.tree(ctx, head)
	var diffs []difference
	if err == nil {
		diffs, err = s.differences(ctx, head, old, target, next)
	}
	if _, damaged := errors.AsType[*CorruptError](err); damaged {
		return target.Resources, nil
	}
	return len(diffs), err
}

// once runs a commit on the head if it is base, one at a time in this process. A
// commit that was made already under the same request id is not made again.
func (s *etcdStore) once(ctx context.Context, base int64, info Info, commit func(headState) (Revision, error)) (Revision, error) {
	select {
	case s.committing <- struct{}{}:
		defer func() { <-s.committing }()
	case <-ctx.Done():
		return Revision{}, ended(ctx)
	}
	if err := s.admit(0, false); err != nil {
		return Revision{}, err
	}
	h, err := s.headAt(ctx, base)
	var rev Revision
	if err == nil {
		rev, err = commit(h)
	}
	if _, conflict := errors.AsType[*ConflictError](err); conflict {
		made, ok, rerr := s.byRequest(ctx, info.RequestID)
		if rerr != nil {
			return Revision{}, rerr
		}
		if ok {
			return made, nil
		}
		return Revision{}, fmt.Errorf("store: %w", err)
	}
	return rev, err
}

// unchanged is the outcome of a commit that changes nothing.
func (s *etcdStore) unchanged(ctx context.Context, h headState, info Info) (Revision, error) {
	if made, ok, err := s.byRequest(ctx, info.RequestID); err != nil || ok {
		return made, err
	}
	return h.rev, nil
}

// checkChanges refuses what cannot be stored, all of it at once.
func checkChanges(changes []Change) error {
	var bad []error
	seen := make(map[string]bool, len(changes))
	for i, c := range changes {
		err := checkName(c.Name)
		if err == nil && seen[c.Name] {
			err = fmt.Errorf("%s appears twice in one commit", c.Name)
		}
		if err == nil && c.Resource != nil {
			name, nerr := resourceName(c.Resource)
			if err = nerr; err == nil && name != c.Name {
				err = fmt.Errorf("change of %q carries the resource %q", c.Name, name)
			}
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("store: %w: change %d: %w", ErrInvalid, i, err))
		}
		seen[c.Name] = true
	}
	return errors.Join(bad...)
}

// proposal is a new head that waits for its flip.
type proposal struct {
	head               headState
	next               *tree
	resources, changes int
	info               Info
	blobs              []blob // what must be stored first
	keep               int64  // a revision that must still be kept; 0: none
	repairs            []blob // damaged objects with their right content
}

// prepare works out which objects, buckets and root the changes make.
func (s *etcdStore) prepare(ctx context.Context, h headState, old *tree, changes []Change) (*proposal, error) {
	indexes := make([]int, len(changes))
	for i, c := range changes {
		indexes[i] = bucketOf(c.Name)
	}
	if err := s.need(ctx, h.rev, old, indexes); err != nil {
		return nil, err
	}
	sealed, err := s.sealedBefore(ctx, old, changes, indexes)
	if err != nil {
		return nil, err
	}
	p := &proposal{head: h, resources: h.rev.Resources}
	var edits []edit
	for i, c := range changes {
		b := old.at(indexes[i])
		at, exists := b.find(c.Name)
		if c.Resource == nil {
			if exists {
				edits = append(edits, edit{name: c.Name})
				p.resources--
			}
			continue
		}
		data, err := s.seal.encodeResource(c.Name, c.Resource)
		if err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		bl := newBlob(data)
		switch {
		case !exists:
			p.resources++
		case bl.hash == b[at].hash:
			if s.isDamaged(bl.hash) {
				p.repairs = append(p.repairs, bl)
			}
			continue
		case s.sameSecret(c, b[at].hash, sealed):
			continue
		}
		edits = append(edits, edit{c.Name, bl.hash, s.footprint(c.Resource)})
		p.blobs = append(p.blobs, bl)
	}
	p.changes = len(edits)
	next, blobs, err := old.apply(edits)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	p.next, p.blobs = next, append(p.blobs, blobs...)
	return p, nil
}

// footprint is what is kept of a resource beside it.
func (s *etcdStore) footprint(r *pb.Resource) string {
	if s.opts.Footprint == nil {
		return ""
	}
	foot := s.opts.Footprint(r)
	if len(foot) > MaxFootprintBytes {
		return ""
	}
	return string(foot)
}

// sealedBefore reads the stored form of the secrets that changes replace: sealing
// is random, so only unsealing reports whether a secret differs.
func (s *etcdStore) sealedBefore(ctx context.Context, old *tree, changes []Change, indexes []int) (map[hash][]byte, error) {
	var hashes []hash
	for i, c := range changes {
		if c.Resource.GetSecret() == nil {
			continue
		}
		if at, ok := old.at(indexes[i]).find(c.Name); ok {
			hashes = append(hashes, old.at(indexes[i])[at].hash)
		}
	}
	if len(hashes) == 0 {
		return nil, nil
	}
	return s.fetch(ctx, hashes)
}

// sameSecret says whether a change sets a secret to what it is. One that cannot be
// read is not the same, so that writing it again mends it.
func (s *etcdStore) sameSecret(c Change, h hash, sealed map[hash][]byte) bool {
	data, ok := sealed[h]
	if !ok {
		return false
	}
	before, err := s.seal.decodeResource(c.Name, h, data)
	if err != nil {
		return false
	}
	was, err1 := plainBytes(before)
	is, err2 := plainBytes(c.Resource)
	return err1 == nil && err2 == nil && bytes.Equal(was, is)
}

// isDamaged says whether an object was found damaged when it was last read.
func (s *etcdStore) isDamaged(h hash) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.damaged[h]
}

// repair writes objects again that the head refers to and that are damaged.
func (s *etcdStore) repair(ctx context.Context, blobs []blob) error {
	if err := s.write(ctx, blobs); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range blobs {
		delete(s.damaged, b.hash)
	}
	return nil
}

// write stores objects in batches, several at once.
func (s *etcdStore) write(ctx context.Context, blobs []blob) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for len(blobs) > 0 {
		n := batch(blobs)
		puts := s.puts(blobs[:n])
		blobs = blobs[n:]
		g.Go(func() error {
			_, err := again(s, ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
				return s.client.Txn(ctx).Then(puts...).Commit()
			})
			return err
		})
	}
	return g.Wait()
}

// batch says how many of the blobs fit into one transaction: at least one.
func batch(blobs []blob) int {
	size := 0
	for i, b := range blobs {
		size += len(b.data)
		if i == maxOps || (i > 0 && size > maxBatchBytes) {
			return i
		}
	}
	return len(blobs)
}

// puts are the operations that store blobs.
func (s *etcdStore) puts(blobs []blob) []clientv3.Op {
	out := make([]clientv3.Op, len(blobs))
	for i, b := range blobs {
		out[i] = clientv3.OpPut(s.objectKey(b.hash), string(b.data))
	}
	return out
}

// flipOps is how many operations a flip needs beside the puts of blobs.
const flipOps = 3

// flip stores what a proposal needs and makes it the head, in one transaction when
// it fits. Objects that were stored before may be taken for garbage by a collection
// that runs between; it moves the epoch, and then they are stored again.
func (s *etcdStore) flip(ctx context.Context, p *proposal) (Revision, error) {
	small := len(p.blobs) <= maxOps-flipOps && batch(p.blobs) == len(p.blobs)
	for range 5 {
		var epoch int64
		if !small {
			resp, err := s.get(ctx, s.epochKey())
			if err != nil {
				return Revision{}, err
			}
			if len(resp.Kvs) > 0 {
				epoch = resp.Kvs[0].ModRevision
			}
			if err := s.write(ctx, p.blobs); err != nil {
				s.littered()
				return Revision{}, err
			}
		}
		rev, err := s.tryFlip(ctx, p, small, epoch)
		if errors.Is(err, errAgain) {
			continue
		}
		if !small && err != nil {
			s.littered()
		}
		if !small && err == nil {
			s.grown.Set()
		}
		return rev, err
	}
	return Revision{}, fmt.Errorf("store: the commit was overtaken by garbage collection five times: try again later")
}

// errAgain is a flip that failed for a reason that is gone on the next try.
var errAgain = errors.New("try again")

// littered notes that a commit may leave objects behind that nothing refers to.
func (s *etcdStore) littered() {
	s.mu.Lock()
	s.garbage = true
	s.mu.Unlock()
}

// tryFlip is the compare-and-swap.
func (s *etcdStore) tryFlip(ctx context.Context, p *proposal, small bool, epoch int64) (Revision, error) {
	rev := Revision{
		Number: p.head.rev.Number + 1, Root: p.next.root.String(), Time: time.Now().UTC(),
		Author: p.info.Author, Message: p.info.Message, RequestID: p.info.RequestID,
		Resources: p.resources, Changes: p.changes,
	}
	if rev.Time.Before(p.head.rev.Time) {
		rev.Time = p.head.rev.Time
	}
	value, err := encodeRevision(rev)
	if err != nil {
		return Revision{}, fmt.Errorf("store: %w: %w", ErrInvalid, err)
	}
	cmps := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(s.headKey()), "=", p.head.mod)}
	then := []clientv3.Op{
		clientv3.OpPut(s.headKey(), value),
		clientv3.OpPut(s.revisionKey(rev.Number), value),
	}
	if small {
		then = append(then, s.puts(p.blobs)...)
	} else {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(s.epochKey()), "=", epoch))
	}
	if p.keep > 0 {
		cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(s.revisionKey(p.keep)), ">", 0))
	}
	if id := rev.RequestID; id != "" {
		lease, err := s.leaseForRequests(ctx)
		if err != nil {
			return Revision{}, err
		}
		cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(s.requestKey(id)), "=", 0))
		then = append(then, clientv3.OpPut(s.requestKey(id), strconv.FormatInt(rev.Number, 10), clientv3.WithLease(lease)))
	}
	// A try that was interrupted may have happened. Then the next one finds the
	// very record of it.
	resp, err := again(s, ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.client.Txn(ctx).If(cmps...).Then(then...).Else(clientv3.OpGet(s.headKey())).Commit()
	})
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		s.dropLease()
		return Revision{}, errAgain
	case err != nil:
		return Revision{}, err
	}
	mod := resp.Header.GetRevision()
	if !resp.Succeeded {
		kvs := resp.Responses[0].GetResponseRange().GetKvs()
		if len(kvs) == 0 || string(kvs[0].GetValue()) != value {
			return s.refused(ctx, p)
		}
		mod = kvs[0].GetModRevision()
	}
	s.remember(headState{known: true, rev: rev, mod: mod})
	s.cache(p.next)
	return rev, nil
}

// refused finds out why a flip did not happen.
func (s *etcdStore) refused(ctx context.Context, p *proposal) (Revision, error) {
	if made, ok, err := s.byRequest(ctx, p.info.RequestID); err != nil || ok {
		return made, err
	}
	h, err := s.readHead(ctx)
	if err != nil {
		return Revision{}, err
	}
	if h.mod != p.head.mod {
		return Revision{}, &ConflictError{Base: p.head.rev.Number, Head: h.rev.Number}
	}
	if p.keep > 0 {
		if _, err := s.revision(ctx, p.keep); err != nil {
			return Revision{}, err
		}
	}
	return Revision{}, errAgain
}

// leaseForRequests returns a lease that lasts for at least requestTTL from now.
func (s *etcdStore) leaseForRequests(ctx context.Context) (clientv3.LeaseID, error) {
	s.mu.Lock()
	l := s.lease
	s.mu.Unlock()
	if l.id != 0 && time.Since(l.granted) < leaseRenewal {
		return l.id, nil
	}
	resp, err := again(s, ctx, func(ctx context.Context) (*clientv3.LeaseGrantResponse, error) {
		return s.client.Grant(ctx, int64((requestTTL + leaseRenewal).Seconds()))
	})
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	s.lease = requestLease{resp.ID, time.Now()}
	s.mu.Unlock()
	return resp.ID, nil
}

// dropLease forgets a lease that etcd does not know any more.
func (s *etcdStore) dropLease() {
	s.mu.Lock()
	s.lease = requestLease{}
	s.mu.Unlock()
}

// ByRequest implements Store.
func (s *etcdStore) ByRequest(ctx context.Context, requestID string) (Revision, bool, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return Revision{}, false, err
	}
	defer end()
	return s.byRequest(ctx, requestID)
}

// byRequest is ByRequest of an open store.
func (s *etcdStore) byRequest(ctx context.Context, id string) (Revision, bool, error) {
	if id == "" {
		return Revision{}, false, nil
	}
	resp, err := s.get(ctx, s.requestKey(id))
	if err != nil || len(resp.Kvs) == 0 {
		return Revision{}, false, err
	}
	n, err := strconv.ParseInt(string(resp.Kvs[0].Value), 10, 64)
	if err != nil {
		return Revision{}, false, fmt.Errorf("store: %w", &CorruptError{Name: "request id " + id, Detail: err.Error()})
	}
	rev, err := s.revision(ctx, n)
	if errors.Is(err, ErrNotFound) {
		return Revision{}, false, nil
	}
	return rev, err == nil, err
}
