package store

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/penstock-gateway/penstock/internal/pause"
)

// follow sends every revision above from to out until ctx ends. It lists what is
// there and then watches from that very point of etcd's history; when the watch
// breaks (etcd was compacted or went away) it begins again after the last one sent.
func (s *etcdStore) follow(ctx context.Context, from int64, out chan<- Revision) {
	for again := pause.Between(100*time.Millisecond, 5*time.Second); ctx.Err() == nil; {
		last, err := s.followOnce(ctx, from, out)
		if last > from {
			from = last
			again.Reset()
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		s.opts.Logger.Warn("store: watch of revisions was interrupted and is resumed", "after", from, "error", err)
		again.Wait(ctx)
	}
}

// followOnce is one listing and one watch. It returns the last revision sent.
func (s *etcdStore) followOnce(ctx context.Context, from int64, out chan<- Revision) (int64, error) {
	prefix := s.key("r", "")
	send := func(r Revision) bool {
		if r.Number <= from {
			return true
		}
		select {
		case out <- r:
			from = r.Number
			return true
		case <-ctx.Done():
			return false
		}
	}
	var at int64
	for {
		resp, err := s.get(ctx, s.revisionKey(from+1), clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(maxList))
		if err != nil {
			return from, err
		}
		for _, r := range s.decodeRevisions(resp) {
			if r.Damaged != "" {
				if r, err = s.revision(ctx, r.Number); err != nil {
					continue // as one that is no longer kept
				}
			}
			if !send(r) {
				return from, nil
			}
		}
		if at = resp.Header.GetRevision(); !resp.More {
			break
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// RequireLeader: a member cut off from its cluster ends the watch instead of
	// staying silent.
	events := s.client.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(at+1), clientv3.WithFilterDelete())
	for resp := range events {
		if err := resp.Err(); err != nil {
			return from, err
		}
		for _, e := range resp.Events {
			r, err := decodeRevision(string(e.Kv.Key), e.Kv.Value)
			if err != nil {
				return from, err
			}
			if !send(r) {
				return from, nil
			}
		}
	}
	return from, errors.New("etcd ended the watch")
}
