package store

import (
	"context"
	"fmt"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Format is the form of a store that this version writes: 2 since buckets hold footprints,
// 3 since run-time state has tags (decision 0035).
// Each version reads the forms of those before it, and refuses later ones. Fields of
// resources are no matter of it: one that is not known closes its resource alone.
const Format = 3

// openFormat refuses a store in a later form, and notes that it is in ours from now on. A
// store without the note is of a version that did not write it.
func (s *etcdStore) openFormat(ctx context.Context) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	resp, err := s.get(ctx, s.formatKey())
	if err != nil {
		return err
	}
	var mod int64
	if len(resp.Kvs) > 0 {
		mod = resp.Kvs[0].ModRevision
		if err := checkFormat(s.where(), string(resp.Kvs[0].Value)); err != nil || string(resp.Kvs[0].Value) == strconv.Itoa(Format) {
			return err
		}
	}
	if s.admit(0, true) != nil {
		return nil // there is no space for it now; the next start does it
	}
	unchanged := clientv3.Compare(clientv3.ModRevision(s.formatKey()), "=", mod)
	_, err = s.txn(ctx, []clientv3.Cmp{unchanged}, []clientv3.Op{clientv3.OpPut(s.formatKey(), strconv.Itoa(Format))}, nil)
	return err
}

// checkFormat refuses a format that is later than ours.
func checkFormat(where, value string) error {
	if n, err := strconv.Atoi(value); err != nil || n > Format {
		return fmt.Errorf("store: %w: %s has format %s, and this version of Penstock knows formats up to %d: run the version that wrote it, "+
			"or restore a backup that was made before it into an empty folder. Nothing was changed", ErrNewer, where, value, Format)
	}
	return nil
}
