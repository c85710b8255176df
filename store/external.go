package store

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// dial makes the client of an external etcd. It connects when it is first used.
func dial(o Options) (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints:            o.Endpoints,
		TLS:                  o.TLS,
		DialTimeout:          o.RequestTimeout,
		DialKeepAliveTime:    30 * time.Second,
		DialKeepAliveTimeout: 10 * time.Second,
		Logger:               zapOver(o.Logger.With(slog.String("component", "etcd"))),
	})
	if err != nil {
		return nil, fmt.Errorf("store: etcd endpoints %v: %w", o.Endpoints, err)
	}
	return c, nil
}

// checkSealKey is the first exchange with etcd. The first store that comes with a
// seal key leaves the key's name; one with another key is refused at once rather
// than at its first secret.
func (s *etcdStore) checkSealKey(ctx context.Context) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if s.seal == nil {
		_, err := s.readHead(ctx)
		return err
	}
	id := fmt.Sprintf("%x", s.seal.id)
	resp, err := s.txn(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(s.sealKey()), "=", 0)},
		[]clientv3.Op{clientv3.OpPut(s.sealKey(), id)},
		[]clientv3.Op{clientv3.OpGet(s.sealKey())})
	if err != nil || resp.Succeeded {
		return err
	}
	if kvs := resp.Responses[0].GetResponseRange().GetKvs(); len(kvs) > 0 && string(kvs[0].GetValue()) != id {
		return fmt.Errorf("store: %w: %s was sealed with key %s, this is key %s: bring back the key file it was made with", ErrSealKey, s.where(), kvs[0].GetValue(), id)
	}
	return nil
}
