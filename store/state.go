package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/penstock-gateway/penstock/internal/pause"
)

// StateValues is run-time state that was read.
type StateValues struct {
	// Values are those that are as they were written, by key.
	Values map[string][]byte
	// Damaged is what is not, sorted by key.
	Damaged []StateDamage
}

// StateDamage is damage of run-time state.
type StateDamage struct {
	// Key is that of the damaged value. When List is set, it is a prefix of keys: some that
	// begin with it may be missing, or there again.
	Key  string
	List bool
	// Detail says what is wrong with it.
	Detail string
}

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
	return s.putState(ctx, key, value)
}

// putState is PutState once the arguments are good.
func (s *etcdStore) putState(ctx context.Context, key string, value []byte) error {
	if err := s.haveTags(); err != nil {
		return err
	}
	at := s.stateKey(key)
	tagged := s.seal.tagged(at, value)
	l, listed := listOf(key)
	if !listed {
		if err := s.admit(len(tagged), true); err != nil {
			return err
		}
		_, err := again(s, ctx, func(ctx context.Context) (*clientv3.PutResponse, error) { return s.client.Put(ctx, at, tagged) })
		return err
	}
	return s.changeListed(ctx, l, func(tags map[string]string) []clientv3.Op {
		tags[key] = listedForm(s.seal.tag(at, value))
		return []clientv3.Op{clientv3.OpPut(at, tagged)}
	})
}

// DeleteState implements Store.
func (s *etcdStore) DeleteState(ctx context.Context, key string) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return s.deleteState(ctx, key)
}

func (s *etcdStore) deleteState(ctx context.Context, key string) error {
	if err := s.haveTags(); err != nil {
		return err
	}
	l, listed := listOf(key)
	if !listed {
		_, err := again(s, ctx, func(ctx context.Context) (*clientv3.DeleteResponse, error) {
			return s.client.Delete(ctx, s.stateKey(key))
		})
		return err
	}
	return s.changeListed(ctx, l, func(tags map[string]string) []clientv3.Op {
		delete(tags, key)
		return []clientv3.Op{clientv3.OpDelete(s.stateKey(key))}
	})
}

// changeListed makes a change of values together with that of their list.
func (s *etcdStore) changeListed(ctx context.Context, l list, change func(tags map[string]string) []clientv3.Op) error {
	for {
		seen := s.seen(l)
		resp, err := s.get(ctx, s.listKey(l))
		if err != nil {
			return err
		}
		c, err := s.listing(l, resp.Kvs, seen)
		if err != nil {
			return fmt.Errorf("store: %w %s: %w; %s", ErrState, l.part, err, mendState)
		}
		ops := change(c.Tags)
		c.Changes++
		content, err := s.encodeListing(l, c)
		if err != nil {
			return err
		}
		if len(content) > MaxObjectBytes {
			return fmt.Errorf("store: %w: there is too much run-time state below %s", ErrInvalid, l.part)
		}
		if err := s.admit(len(content)+MaxObjectBytes/16, true); err != nil {
			return err
		}
		// A try that was interrupted may have happened: then this one fails, and the change is
		// made once more, which changes nothing.
		same := clientv3.Compare(clientv3.ModRevision(s.listKey(l)), "=", resp.Kvs[0].ModRevision)
		done, err := again(s, ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
			return s.client.Txn(ctx).If(same).Then(append(ops, clientv3.OpPut(s.listKey(l), content))...).Commit()
		})
		if err != nil {
			return err
		}
		if done.Succeeded {
			s.saw(l, c.Changes)
			return nil
		}
		// Somebody else changed the list: of all who do at once, one always succeeds.
	}
}

// mendState says what to do about damage that keeps a change from being made.
const mendState = "`penstock store check` says what is damaged, and `penstock store repair` mends it"

// listing reads a list out of the answer of etcd. seen is what was seen of it before the
// question: a list never goes back.
func (s *etcdStore) listing(l list, kvs []*mvccpb.KeyValue, seen int64) (listing, error) {
	if len(kvs) == 0 {
		return listing{}, errors.New("the list of its values is missing")
	}
	c, err := s.decodeListing(l, kvs[0].Value)
	if c.Tags == nil {
		c.Tags = map[string]string{}
	}
	if err == nil && c.Changes < seen {
		err = errors.New("an earlier list of its values was put in the place of the newest")
	}
	return c, err
}

// seen is the most changes of a list that this process has seen.
func (s *etcdStore) seen(l list) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changes[l]
}

func (s *etcdStore) saw(l list, changes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes[l] = max(s.changes[l], changes)
}

// State implements Store.
func (s *etcdStore) State(ctx context.Context, prefix string) (map[string][]byte, error) {
	read, err := s.ReadState(ctx, prefix)
	return read.Values, err
}

// ReadState implements Store.
func (s *etcdStore) ReadState(ctx context.Context, prefix string) (StateValues, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return StateValues{}, err
	}
	defer end()
	out, err := s.readState(ctx, prefix)
	s.tell(out.Damaged)
	return out, err
}

// ReadKey implements Store.
func (s *etcdStore) ReadKey(ctx context.Context, key string) (StateValues, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return StateValues{}, err
	}
	defer end()
	var lists []list
	if l, listed := listOf(key); listed {
		lists = []list{l}
	}
	out, err := s.readWith(ctx, lists, func(k string) bool { return k == key }, func(at int64, f func(string, []byte)) error {
		resp, err := s.get(ctx, s.stateKey(key), clientv3.WithRev(at))
		if err == nil && len(resp.Kvs) > 0 {
			f(key, resp.Kvs[0].Value)
		}
		return err
	})
	s.tell(out.Damaged)
	return out, err
}

// readState reads all below a prefix.
func (s *etcdStore) readState(ctx context.Context, prefix string) (StateValues, error) {
	return s.readWith(ctx, listsOf(prefix), func(k string) bool { return strings.HasPrefix(k, prefix) }, func(at int64, f func(string, []byte)) error {
		return s.eachState(ctx, prefix, at, f)
	})
}

// readWith reads lists, and values at the same point of history: those that each finds, and
// asked says which these are.
func (s *etcdStore) readWith(ctx context.Context, of []list, asked func(key string) bool, each func(at int64, f func(string, []byte)) error) (StateValues, error) {
	if err := s.haveTags(); err != nil {
		return StateValues{}, err
	}
	lists, at, err := s.readLists(ctx, of)
	if err != nil {
		return StateValues{}, err
	}
	out := StateValues{Values: map[string][]byte{}}
	damaged := func(key string, list bool, detail string) {
		out.Damaged = append(out.Damaged, StateDamage{Key: key, List: list, Detail: detail})
	}
	found := map[string]bool{}
	err = each(at, func(key string, stored []byte) {
		found[key] = true
		value, tag, err := s.seal.untag(s.stateKey(key), stored)
		if l, listed := listOf(key); listed && err == nil {
			err = lists[l].holds(key, tag)
		}
		if err != nil {
			damaged(key, false, err.Error())
			return
		}
		out.Values[key] = value
	})
	if err != nil {
		return StateValues{}, err
	}
	parts := map[string]bool{}
	for l, c := range lists {
		if c.err != nil && !parts[l.part] {
			parts[l.part] = true
			damaged(l.part, true, c.err.Error())
		}
		for key := range c.Tags {
			if asked(key) && !found[key] {
				damaged(key, false, "it was removed by somebody without the seal key, or lost")
			}
		}
	}
	slices.SortFunc(out.Damaged, func(a, b StateDamage) int { return strings.Compare(a.Key, b.Key) })
	return out, nil
}

// eachState calls f with all values below a prefix at a point of history; 0: now.
func (s *etcdStore) eachState(ctx context.Context, prefix string, at int64, f func(key string, stored []byte)) error {
	first := s.stateKey(prefix)
	last := clientv3.GetPrefixRangeEnd(first)
	for {
		resp, err := s.get(ctx, first, clientv3.WithRange(last), clientv3.WithLimit(maxList), clientv3.WithRev(at))
		if err != nil {
			return err
		}
		for _, kv := range resp.Kvs {
			f(strings.TrimPrefix(string(kv.Key), s.stateKey("")), kv.Value)
		}
		if !resp.More {
			return nil
		}
		if at == 0 {
			at = resp.Header.GetRevision()
		}
		first = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// readListing is a list that was read; err says what is wrong with it.
type readListing struct {
	listing
	err error
}

// holds checks the tag of a value against the list.
func (r readListing) holds(key, tag string) error {
	listed, ok := r.Tags[key]
	switch {
	case r.err != nil:
		return r.err
	case !ok:
		return errors.New("it was put back after it had been removed")
	case listed != tag:
		return errors.New("an earlier value was put in the place of the newest")
	}
	return nil
}

// readLists reads lists, and says at which point of history; 0 when there are none.
func (s *etcdStore) readLists(ctx context.Context, lists []list) (map[list]readListing, int64, error) {
	if len(lists) == 0 {
		return nil, 0, nil
	}
	s.mu.Lock()
	seen := maps.Clone(s.changes)
	s.mu.Unlock()
	gets := make([]clientv3.Op, len(lists))
	for i, l := range lists {
		gets[i] = clientv3.OpGet(s.listKey(l))
	}
	resp, err := s.txn(ctx, nil, gets, nil)
	if err != nil {
		return nil, 0, err
	}
	out := map[list]readListing{}
	for i, l := range lists {
		c, err := s.listing(l, resp.Responses[i].GetResponseRange().GetKvs(), seen[l])
		if err == nil {
			s.saw(l, c.Changes)
		}
		out[l] = readListing{c, err}
	}
	return out, resp.Header.GetRevision(), nil
}

// tell logs each damage once.
func (s *etcdStore) tell(damaged []StateDamage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range damaged {
		if s.told[d] {
			continue
		}
		s.told[d] = true
		s.opts.Logger.Error("store: run-time state is damaged and is not used; "+mendState, "key", d.Key, "detail", d.Detail)
	}
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
		for again := pause.Between(200*time.Millisecond, 2*time.Second); ctx.Err() == nil; again.Wait(ctx) {
			events := s.client.Watch(clientv3.WithRequireLeader(ctx), s.stateKey(prefix), clientv3.WithPrefix(), clientv3.WithCreatedNotify())
			for e := range events {
				if len(e.Events) > 0 {
					again.Reset() // not at its creation alone: one that breaks at once is begun ever more rarely
				}
				signal()
			}
			// The watch broke: etcd went away, or a member lost its leader. The
			// signal after the next one's beginning covers what was missed.
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
