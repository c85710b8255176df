package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/penstock-gateway/penstock/internal/keyfile"
)

// Pin implements Store.
func (s *etcdStore) Pin(ctx context.Context, name, value string) (string, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return "", err
	}
	defer end()
	if name == "" {
		return "", fmt.Errorf("store: %w: a pin has no name", ErrInvalid)
	}
	if err := s.haveTags(); err != nil {
		return "", err
	}
	key := s.key("pin", name)
	tagged := ""
	if value != "" {
		tagged = s.seal.tagged(key, []byte(value))
	}
	stored, err := s.pin(ctx, key, tagged)
	if err != nil || stored == "" {
		return "", err
	}
	pinned, _, err := s.seal.untag(key, []byte(stored))
	if err != nil {
		return "", fmt.Errorf("store: %w: the pin %s: %w; %s", ErrState, name, err, mendState)
	}
	return string(pinned), nil
}

// pin returns the value of a key, and sets it first when there is none and value is
// not empty.
func (s *etcdStore) pin(ctx context.Context, key, value string) (string, error) {
	var kvs []*mvccpb.KeyValue
	if value == "" {
		resp, err := s.get(ctx, key)
		if err != nil {
			return "", err
		}
		kvs = resp.Kvs
	} else {
		resp, err := s.txn(ctx,
			[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)},
			[]clientv3.Op{clientv3.OpPut(key, value)},
			[]clientv3.Op{clientv3.OpGet(key)})
		if err != nil || resp.Succeeded {
			return value, err
		}
		kvs = resp.Responses[0].GetResponseRange().GetKvs()
	}
	if len(kvs) == 0 {
		return "", nil
	}
	return string(kvs[0].Value), nil
}

// Repin implements Store.
func (s *etcdStore) Repin(ctx context.Context, name, old, value string) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := s.haveTags(); err != nil {
		return err
	}
	key := s.key("pin", name)
	is := clientv3.Compare(clientv3.Value(key), "=", s.seal.tagged(key, []byte(old)))
	if old == "" {
		is = clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
	}
	resp, err := s.txn(ctx, []clientv3.Cmp{is}, []clientv3.Op{clientv3.OpPut(key, s.seal.tagged(key, []byte(value)))}, nil)
	if err == nil && !resp.Succeeded {
		err = fmt.Errorf("store: another process has pinned %s meanwhile: try again", name)
	}
	return err
}

// openSeal makes the sealer. It is the first exchange with etcd. The first store that
// comes with a seal key leaves the key's name; one with another key, or without the
// file of it, is refused at once rather than at its first secret. A key is made only
// for a store that was never opened with one.
func (s *etcdStore) openSeal(ctx context.Context) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	pinned, err := s.pin(ctx, s.sealKey(), "")
	if err != nil {
		return err
	}
	key := s.opts.SealKey
	if file := s.opts.SealKeyFile; file != "" {
		if key, err = sealKeyOf(file, pinned != ""); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("store: %w: %s was sealed with key %s, and %s is not there: name the right file, or restore it from a backup. No key was made in its place",
				ErrSealKey, s.where(), pinned, file)
		} else if err != nil {
			return err
		}
	}
	if s.seal, err = newSealer(key); err != nil {
		return err
	}
	if s.seal == nil {
		s.keyless = pinned != ""
		return nil
	}
	id := fmt.Sprintf("%x", s.seal.id)
	if pinned, err = s.pin(ctx, s.sealKey(), id); err == nil && pinned != id {
		err = fmt.Errorf("store: %w: %s was sealed with key %s, this is key %s: bring back the key file it was made with", ErrSealKey, s.where(), pinned, id)
	}
	return err
}

// sealKeyOf reads the key of a file; one that is not there is made unless it is expected.
func sealKeyOf(file string, expected bool) ([]byte, error) {
	if !expected {
		return LoadOrCreateSealKey(file)
	}
	if _, err := os.Stat(file); err != nil {
		return nil, fmt.Errorf("store: seal key: %w", err)
	}
	if err := keyfile.Check(file); err != nil {
		return nil, fmt.Errorf("store: seal key: %w", err)
	}
	return loadSealKey(file)
}
