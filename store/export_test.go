package store

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Client is the etcd client of a store, for tests that look at or damage what it holds.
func Client(s Store) *clientv3.Client { return s.(*etcdStore).client }

// SetBudget sets how much an embedded etcd may hold.
func SetBudget(s Store, bytes int64) { s.(*etcdStore).budget = bytes }

// InUse is how much an embedded etcd holds.
func InUse(s Store) int64 { return s.(*etcdStore).embedded.inUse() }

// Tidy is one round of maintenance.
func Tidy(ctx context.Context, s Store, full bool) error { return s.(*etcdStore).tidy(ctx, full) }

// Collect runs garbage collection.
func Collect(ctx context.Context, s Store) (Collected, error) { return s.(*etcdStore).Collect(ctx) }
