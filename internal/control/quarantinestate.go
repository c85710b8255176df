package control

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// quarantinePrefix is where the store's run-time state keeps what proxies refused
// and what serves in its place, sealed, for that may be a private key.
const quarantinePrefix = "quarantine/"

// maxQuarantineBytes bounds what a stored entry may unpack to.
const maxQuarantineBytes = 64 << 20

// refusedResource is a resource that proxies refused. It is immutable.
type refusedResource struct {
	View   string
	Type   xds.Type
	Name   string
	Owners []string
	// Refused are the refused versions, the newest last.
	Refused []refusedVersion
	// Since is the first refusal since some version was accepted, and Revision the
	// one that brought the last refused version.
	Since    time.Time
	Revision int64
	// Accepted: some proxy took what another one refused.
	Accepted bool
	// Good is the last version that was accepted, of GoodRevision; nil for none.
	Good         *xds.Resource
	GoodRevision int64
	// Gone is what Good refers to and what is not wanted any more.
	Gone []*xds.Resource
}

// refusedVersion is what a proxy said of a version.
type refusedVersion struct {
	Version, Detail string
	Proxy, Envoy    string
	Time            time.Time
}

func stateKey(view string, ref xds.Ref) string {
	sum := sha256.Sum256([]byte(view + "\x00" + string(ref.Type) + "\x00" + ref.Name))
	return quarantinePrefix + hex.EncodeToString(sum[:])
}

func (e *refusedResource) ref() xds.Ref { return xds.Ref{Type: e.Type, Name: e.Name} }

func (e *refusedResource) key() string { return stateKey(e.View, e.ref()) }

// object is the one that a user should look at; "" for none.
func (e *refusedResource) object() string {
	if len(e.Owners) == 0 {
		return ""
	}
	return e.Owners[0]
}

func (e *refusedResource) has(version string) bool {
	return slices.ContainsFunc(e.Refused, func(v refusedVersion) bool { return v.Version == version })
}

// equal reports whether two entries say the same; e may be nil.
func (e *refusedResource) equal(o *refusedResource) bool {
	return e != nil && e.Accepted == o.Accepted && e.Revision == o.Revision && (e.Good == nil) == (o.Good == nil) &&
		(e.Good == nil || e.Good.Version == o.Good.Version) && slices.Equal(e.Refused, o.Refused) && len(e.Gone) == len(o.Gone)
}

// ledger is what the ledger has to know. Of what some proxy took it knows only what
// to serve to those who refuse it.
func (e *refusedResource) ledger() *ledger.Quarantine {
	out := &ledger.Quarantine{Refused: map[string]string{}, Good: e.Good, GoodRevision: e.GoodRevision}
	if !e.Accepted {
		for _, v := range e.Refused {
			out.Refused[v.Version] = v.Detail
		}
	}
	return out
}

// storedResource is how an entry is stored: bodies, which hide what they are, stand
// beside the resources, Good's first.
type storedResource struct {
	refusedResource
	Bodies [][]byte `json:",omitempty"`
}

// encode packs an entry. What serves in place of the refused version is left out
// when all would be larger than the store takes; then a restart forgets it.
func (e *refusedResource) encode(st store.Store) (value []byte, whole bool, err error) {
	s := storedResource{refusedResource: *e}
	if s.Good != nil {
		s.Good, s.Bodies = bare(s.Good), append(s.Bodies, s.Good.Body.GetValue())
		s.Gone = slices.Clone(s.Gone)
		for i, r := range s.Gone {
			s.Gone[i], s.Bodies = bare(r), append(s.Bodies, r.Body.GetValue())
		}
	}
	for whole = true; ; whole = false {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		err := json.NewEncoder(z).Encode(&s)
		if err = errors.Join(err, z.Close()); err != nil {
			return nil, false, err
		}
		value, err := st.Seal(e.key(), b.Bytes())
		if err != nil || len(value) <= store.MaxObjectBytes || s.Good == nil {
			return value, whole, err
		}
		s.Good, s.Gone, s.Bodies = nil, nil, nil
	}
}

// bare is a resource without its body.
func bare(r *xds.Resource) *xds.Resource {
	out := *r
	out.Body = nil
	return &out
}

// decodeRefused unpacks an entry.
func decodeRefused(plain []byte) (*refusedResource, error) {
	z, err := gzip.NewReader(bytes.NewReader(plain))
	if err != nil {
		return nil, err
	}
	var s storedResource
	if err := json.NewDecoder(io.LimitReader(z, maxQuarantineBytes)).Decode(&s); err != nil {
		return nil, err
	}
	e := s.refusedResource
	if e.View == "" || e.Type == "" || e.Name == "" || len(e.Refused) == 0 {
		return nil, errors.New("it names no view, type, resource or refused version")
	}
	if e.Good == nil {
		return &e, nil
	}
	if e.Good.Type != e.Type || e.Good.Name != e.Name || e.has(e.Good.Version) {
		return nil, fmt.Errorf("its last good version is of another resource, %s %q, or a refused one", e.Good.Type.Short(), e.Good.Name)
	}
	all := append([]*xds.Resource{e.Good}, e.Gone...)
	if len(s.Bodies) != len(all) {
		return nil, fmt.Errorf("it has %d bodies of %d resources", len(s.Bodies), len(all))
	}
	for i, r := range all {
		if r == nil || r.Type == "" || r.Name == "" || r.Version == "" {
			return nil, errors.New("it has a resource without a type, name or version")
		}
		r.Body = &anypb.Any{TypeUrl: string(r.Type), Value: s.Bodies[i]}
	}
	return &e, nil
}

// saveOne puts one entry into the store, or deletes it.
func (q *quarantine) saveOne(ctx context.Context, key string, e *refusedResource) error {
	ctx, cancel := context.WithTimeout(ctx, remembering)
	defer cancel()
	return q.put(ctx, key, e)
}

// put is saveOne without its bound on time.
func (q *quarantine) put(ctx context.Context, key string, e *refusedResource) error {
	if e == nil {
		return q.core.store.DeleteState(ctx, key)
	}
	value, whole, err := e.encode(q.core.store)
	if errors.Is(err, store.ErrSealKey) {
		q.log.Warn("what proxies refused is not saved, since the store has no seal key: a restart tries it again", "resource", e.ref().String())
		return nil
	}
	if err != nil {
		return err
	}
	if !whole {
		q.log.Warn("the last good version of a refused resource is too large for the store: it serves until all replicas have restarted",
			"resource", e.ref().String(), "bytes", len(e.Good.Body.GetValue()), "limit", store.MaxObjectBytes)
	}
	return q.core.store.PutState(ctx, key, value)
}

// stored reads all entries of the store, by key. One that cannot be read is logged
// and left out: the resource is then tried again.
func (q *quarantine) stored(ctx context.Context) (map[string]*refusedResource, error) {
	values, err := q.core.store.State(ctx, quarantinePrefix)
	if err != nil {
		return nil, fmt.Errorf("read what proxies refused: %w", err)
	}
	out := map[string]*refusedResource{}
	for key, value := range values {
		plain, err := q.core.store.Unseal(key, value)
		var e *refusedResource
		if err == nil {
			e, err = decodeRefused(plain)
		}
		if err == nil && e.key() != key {
			err = errors.New("it stands under the key of another")
		}
		if err != nil {
			q.log.Warn("cannot read what proxies refused; that resource is tried again", "key", key, "error", err)
			continue
		}
		out[key] = e
	}
	return out, nil
}

// list is all entries, by object and resource.
func (q *quarantine) list() []*refusedResource {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]*refusedResource, 0, len(q.entries))
	for _, e := range q.entries {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *refusedResource) int {
		return cmp.Or(cmp.Compare(a.object(), b.object()), cmp.Compare(a.View, b.View), cmp.Compare(a.ref().String(), b.ref().String()))
	})
	return out
}
