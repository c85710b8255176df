package store

import (
	"context"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
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

// Interrupt makes the next transactions of a store fail as when etcd loses its leader:
// before they are done, or after.
func Interrupt(s Store, failures ...Interruption) {
	c := s.(*etcdStore).client
	c.KV = &interruptedKV{KV: c.KV, failures: failures}
}

// Interruption is when a transaction fails, and what happens between it and the next one.
type Interruption struct {
	Done bool
	Then func()
}

type interruptedKV struct {
	clientv3.KV
	failures []Interruption
}

func (k *interruptedKV) Txn(ctx context.Context) clientv3.Txn {
	t := k.KV.Txn(ctx)
	if len(k.failures) == 0 {
		return t
	}
	f := k.failures[0]
	k.failures = k.failures[1:]
	return &interruptedTxn{t, f}
}

type interruptedTxn struct {
	txn clientv3.Txn
	f   Interruption
}

func (t *interruptedTxn) If(c ...clientv3.Cmp) clientv3.Txn  { t.txn = t.txn.If(c...); return t }
func (t *interruptedTxn) Then(o ...clientv3.Op) clientv3.Txn { t.txn = t.txn.Then(o...); return t }
func (t *interruptedTxn) Else(o ...clientv3.Op) clientv3.Txn { t.txn = t.txn.Else(o...); return t }
func (t *interruptedTxn) Commit() (*clientv3.TxnResponse, error) {
	if t.f.Done {
		if _, err := t.txn.Commit(); err != nil {
			return nil, err
		}
	}
	if t.f.Then != nil {
		t.f.Then()
	}
	return nil, rpctypes.ErrTimeoutDueToLeaderFail
}
