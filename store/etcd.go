package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/internal/signal"
)

const (
	// maxOps and maxBatchBytes bound one transaction: etcd's defaults are 128
	// operations and 1.5 MiB, of which some must be left for keys and framing.
	maxOps        = 128
	maxBatchBytes = 1 << 20
	// parallel is how many batches are under way at once, so that one waits for the
	// disk while another is being sent.
	parallel = 4
	// cachedTrees is how many trees are kept: the head, and those that followers
	// which lag a little compare it with. Trees share their buckets.
	cachedTrees = 8
)

// etcdStore is the Store.
type etcdStore struct {
	opts     Options
	client   *clientv3.Client
	embedded *embedded // nil when etcd is external
	seal     *sealer
	keyless  bool // there is a seal key, and this process was not given it

	// budget is how many bytes an embedded etcd may hold before history is cut short.
	budget int64

	// ctx ends with Close; ops counts what is under way.
	ctx    context.Context
	cancel context.CancelFunc
	ops    sync.WaitGroup

	// grown lets maintenance look at once whether the store has grown too large.
	grown signal.Wake
	// committing lets one commit of this process at a time prepare its writes: the
	// others would lose anyway.
	committing chan struct{}

	mu      sync.Mutex
	closed  bool
	head    headState
	trees   []*tree // most recently used first
	damaged map[hash]bool
	lease   requestLease
	told    map[StateDamage]bool // damage that was logged
	changes map[list]int64       // of each list, the most that was seen
	garbage bool                 // there may be objects that a lost commit left behind
}

// headState is the head key as last seen.
type headState struct {
	known bool
	rev   Revision
	mod   int64 // etcd's modification revision of the key; 0: no key
}

// open makes the store of checked options.
func open(ctx context.Context, o Options) (_ Store, err error) {
	s := &etcdStore{
		opts:  o,
		grown: signal.NewWake(), committing: make(chan struct{}, 1),
		damaged: map[hash]bool{}, told: map[StateDamage]bool{}, changes: map[list]int64{},
		garbage: true, // of a process that died in a commit
		budget:  1 << 30,
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if len(o.Endpoints) > 0 {
		s.client, err = dial(o)
	} else if s.embedded, err = startEmbedded(ctx, o); err == nil {
		s.client = s.embedded.client
	}
	if err != nil {
		s.cancel()
		return nil, err
	}
	if err := s.openFormat(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.openSeal(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.openState(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if o.MaintenanceInterval > 0 {
		s.ops.Go(s.maintain)
	}
	return s, nil
}

// Close implements Store.
func (s *etcdStore) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.ops.Wait()
	err := s.client.Close()
	if errors.Is(err, context.Canceled) { // what the in-process client answers
		err = nil
	}
	if s.embedded != nil {
		err = errors.Join(err, s.embedded.close())
	}
	return err
}

// begin registers an operation; its context ends with ctx and with the store.
func (s *etcdStore) begin(ctx context.Context) (context.Context, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, fmt.Errorf("store: %w", ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("store: %w", err)
	}
	s.ops.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(ErrClosed) })
	return ctx, func() { stop(); cancel(nil); s.ops.Done() }, nil
}

// admit refuses a write of an embedded etcd that has no space for it; see space.
func (s *etcdStore) admit(bytes int, state bool) error {
	if s.embedded == nil {
		return nil
	}
	return s.embedded.space.admit(bytes, state)
}

// Refusing implements Store.
func (s *etcdStore) Refusing() (since time.Time, err error) {
	if s.embedded == nil {
		return time.Time{}, nil
	}
	return s.embedded.space.refusing()
}

// Keys below the prefix.
func (s *etcdStore) key(parts ...string) string {
	return s.opts.Prefix + "/" + strings.Join(parts, "/")
}
func (s *etcdStore) objectKey(h hash) string     { return s.key("o", h.String()) }
func (s *etcdStore) revisionKey(n int64) string  { return s.key("r", fmt.Sprintf("%019d", n)) }
func (s *etcdStore) requestKey(id string) string { return s.key("q", id) }
func (s *etcdStore) stateKey(key string) string  { return s.key("s", key) }
func (s *etcdStore) listKey(l list) string       { return s.key("i", l.part+fmt.Sprintf("%02d", l.bucket)) }
func (s *etcdStore) headKey() string             { return s.key("head") }
func (s *etcdStore) epochKey() string            { return s.key("epoch") }
func (s *etcdStore) formatKey() string           { return s.key("format") }
func (s *etcdStore) sealKey() string             { return s.key("seal") }
func prefixEnd(prefix string) clientv3.OpOption {
	return clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix))
}

// do runs one exchange with etcd under the request timeout and explains its failure.
func do[R any](s *etcdStore, ctx context.Context, call func(context.Context) (R, error)) (R, error) {
	bounded, cancel := context.WithTimeout(ctx, s.opts.RequestTimeout)
	defer cancel()
	r, err := call(bounded)
	switch {
	case err == nil:
		return r, nil
	case ctx.Err() != nil:
		return r, ended(ctx)
	case bounded.Err() != nil, status.Code(err) == codes.DeadlineExceeded:
		// etcd is told our deadline and may come to it a moment before we do.
		return r, s.silent(ctx)
	}
	return r, s.explained(err)
}

// ended says why a context of begin is over.
func ended(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), ErrClosed) {
		return fmt.Errorf("store: %w", ErrClosed)
	}
	return fmt.Errorf("store: %w", ctx.Err())
}

// where names the etcd in errors.
func (s *etcdStore) where() string {
	if s.embedded != nil {
		return "embedded etcd in " + s.opts.DataDir
	}
	return "etcd at " + strings.Join(s.opts.Endpoints, ",")
}

// get reads one key or range.
func (s *etcdStore) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	return do(s, ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return s.client.Get(ctx, key, opts...) })
}

// txn runs one transaction.
func (s *etcdStore) txn(ctx context.Context, cmps []clientv3.Cmp, then, otherwise []clientv3.Op) (*clientv3.TxnResponse, error) {
	return do(s, ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.client.Txn(ctx).If(cmps...).Then(then...).Else(otherwise...).Commit()
	})
}

// readHead reads the head key and remembers it.
func (s *etcdStore) readHead(ctx context.Context) (headState, error) {
	resp, err := s.get(ctx, s.headKey())
	if err != nil {
		return headState{}, err
	}
	h := headState{known: true}
	if len(resp.Kvs) == 0 {
		// None in a new store; or its name was damaged.
		if h.rev, err = s.newestRecord(ctx, nil); err != nil {
			return headState{}, err
		}
	} else {
		h.mod = resp.Kvs[0].ModRevision
		if h.rev, err = decodeRevision(s.headKey(), resp.Kvs[0].Value); err != nil {
			if h.rev, err = s.newestRecord(ctx, err); err != nil {
				return headState{}, err
			}
		}
	}
	s.remember(h)
	return h, nil
}

// remember keeps the head as last seen. An older one that comes late does no harm:
// the next commit reads the head again.
func (s *etcdStore) remember(h headState) {
	s.mu.Lock()
	s.head = h
	s.mu.Unlock()
}

// headAt returns the head if it is base, from memory where possible: whether the
// memory is right is checked by the transaction that flips it.
func (s *etcdStore) headAt(ctx context.Context, base int64) (headState, error) {
	s.mu.Lock()
	h := s.head
	s.mu.Unlock()
	if !h.known || h.rev.Number != base {
		var err error
		if h, err = s.readHead(ctx); err != nil {
			return h, err
		}
	}
	if h.rev.Number != base {
		return h, &ConflictError{Base: base, Head: h.rev.Number}
	}
	return h, nil
}

// Head implements Store.
func (s *etcdStore) Head(ctx context.Context) (Revision, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return Revision{}, err
	}
	defer end()
	h, err := s.readHead(ctx)
	return h.rev, err
}

// Get implements Store.
func (s *etcdStore) Get(ctx context.Context, number int64) (Revision, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return Revision{}, err
	}
	defer end()
	return s.revision(ctx, number)
}

// List implements Store.
func (s *etcdStore) List(ctx context.Context, before int64, limit int) ([]Revision, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if limit <= 0 {
		limit = defaultList
	}
	return s.list(ctx, before, min(limit, maxList))
}

// list is List within a call that has begun, and without its bounds.
func (s *etcdStore) list(ctx context.Context, before int64, limit int) ([]Revision, error) {
	last := clientv3.GetPrefixRangeEnd(s.key("r", ""))
	if before > 0 {
		last = s.revisionKey(before)
	}
	resp, err := s.get(ctx, s.key("r", ""), clientv3.WithRange(last),
		clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, err
	}
	return s.decodeRevisions(resp), nil
}

// fetch reads objects by hash. What is not there is absent from the result.
func (s *etcdStore) fetch(ctx context.Context, hashes []hash) (map[hash][]byte, error) {
	var mu sync.Mutex
	out := make(map[hash][]byte, len(hashes))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for chunk := range slices.Chunk(hashes, maxOps) {
		g.Go(func() error {
			gets := make([]clientv3.Op, len(chunk))
			for i, h := range chunk {
				gets[i] = clientv3.OpGet(s.objectKey(h))
			}
			resp, err := s.txn(ctx, nil, gets, nil)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for i, r := range resp.Responses {
				if kvs := r.GetResponseRange().GetKvs(); len(kvs) > 0 {
					out[chunk[i]] = kvs[0].GetValue()
				}
			}
			return nil
		})
	}
	return out, g.Wait()
}
