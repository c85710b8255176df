package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// PutState implements Store.
func (s *etcdStore) PutState(ctx context.Context, key string, value []byte) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if key == "" || len(key) > maxStateKeyBytes {
		return fmt.Errorf("store: %w: a state key has %d bytes, it must have 1 to %d", ErrInvalid, len(key), maxStateKeyBytes)
	}
	if len(value) > MaxObjectBytes {
		return fmt.Errorf("store: %w: state %q has %d bytes, at most %d fit", ErrInvalid, key, len(value), MaxObjectBytes)
	}
	if err := s.admit(len(value), true); err != nil {
		return err
	}
	_, err = again(s, ctx, func(ctx context.Context) (*clientv3.PutResponse, error) {
		return s.client.Put(ctx, s.stateKey(key), string(value))
	})
	return err
}

// State implements Store.
func (s *etcdStore) State(ctx context.Context, prefix string) (map[string][]byte, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	out := map[string][]byte{}
	first := s.stateKey(prefix)
	last := clientv3.GetPrefixRangeEnd(first)
	var at int64 // pages are read at one point of history
	for {
		resp, err := s.get(ctx, first, clientv3.WithRange(last), clientv3.WithLimit(maxList), clientv3.WithRev(at))
		if err != nil {
			return nil, err
		}
		for _, kv := range resp.Kvs {
			out[strings.TrimPrefix(string(kv.Key), s.stateKey(""))] = kv.Value
		}
		if !resp.More {
			return out, nil
		}
		if at == 0 {
			at = resp.Header.GetRevision()
		}
		first = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// DeleteState implements Store.
func (s *etcdStore) DeleteState(ctx context.Context, key string) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	_, err = again(s, ctx, func(ctx context.Context) (*clientv3.DeleteResponse, error) {
		return s.client.Delete(ctx, s.stateKey(key))
	})
	return err
}

// WatchState implements Store.
func (s *etcdStore) WatchState(ctx context.Context, prefix string) <-chan struct{} {
	out := make(chan struct{}, 1)
	signal := func() {
		select {
		case out <- struct{}{}:
		default:
		}
	}
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			events := s.client.Watch(clientv3.WithRequireLeader(ctx), s.stateKey(prefix), clientv3.WithPrefix(), clientv3.WithCreatedNotify())
			for range events {
				signal()
			}
			// The watch broke: etcd went away, or a member lost its leader. The
			// signal after the next one's beginning covers what was missed.
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	return out
}

// Seal implements Store.
func (s *etcdStore) Seal(name string, plain []byte) ([]byte, error) {
	out, err := s.seal.seal(name, plain)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return out, nil
}

// Unseal implements Store.
func (s *etcdStore) Unseal(name string, sealed []byte) ([]byte, error) {
	out, err := s.seal.unseal(name, sealed)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return out, nil
}
