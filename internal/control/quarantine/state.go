package quarantine

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

// Prefix is where the store's run-time state keeps what proxies refused
// and what serves in its place, sealed, for that may be a private key.
const Prefix = "quarantine/"

// maxQuarantineBytes bounds what a stored entry may unpack to.
const maxQuarantineBytes = 64 << 20

// saving is how long the store may take for one entry, until it is tried again.
const saving = 2 * time.Second

// Entry is a resource that proxies refused. It is immutable.
type Entry struct {
	View   string
	Type   xds.Type
	Name   string
	Owners []string
	// Refused are the refused versions, the newest last.
	Refused []Refusal
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

// Refusal is what a proxy said of a version.
type Refusal struct {
	Version, Detail string
	Proxy, Envoy    string
	Time            time.Time
}

func stateKey(view string, ref xds.Ref) string {
	sum := sha256.Sum256([]byte(view + "\x00" + string(ref.Type) + "\x00" + ref.Name))
	return Prefix + hex.EncodeToString(sum[:])
}

func (e *Entry) ref() xds.Ref { return xds.Ref{Type: e.Type, Name: e.Name} }

// object is the one that a user should look at; "" for none.
func (e *Entry) object() string {
	if len(e.Owners) == 0 {
		return ""
	}
	return e.Owners[0]
}

func (e *Entry) has(version string) bool {
	return slices.ContainsFunc(e.Refused, func(v Refusal) bool { return v.Version == version })
}

// equal reports whether two entries say the same; e may be nil.
func (e *Entry) equal(o *Entry) bool {
	return e != nil && e.Accepted == o.Accepted && e.Revision == o.Revision && (e.Good == nil) == (o.Good == nil) &&
		(e.Good == nil || e.Good.Version == o.Good.Version) && slices.Equal(e.Refused, o.Refused) && len(e.Gone) == len(o.Gone)
}

// ledger is what the ledger has to know. Of what some proxy took it knows only what
// to serve to those who refuse it.
func (e *Entry) ledger() *ledger.Quarantine {
	out := &ledger.Quarantine{Refused: map[string]string{}, Good: e.Good, GoodRevision: e.GoodRevision}
	if !e.Accepted {
		for _, v := range e.Refused {
			out.Refused[v.Version] = v.Detail
		}
	}
	return out
}

// storedEntry is how an entry is stored: bodies, which hide what they are, stand
// beside the resources, Good's first.
type storedEntry struct {
	Entry
	Bodies [][]byte `json:",omitempty"`
}

// encode packs an entry. What serves in place of the refused version is left out
// when all would be larger than the store takes; then a restart forgets it.
func (e *Entry) encode(st State) (value []byte, whole bool, err error) {
	s := storedEntry{Entry: *e}
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
		value, err := st.Seal(e.Key(), b.Bytes())
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
func decodeRefused(plain []byte) (*Entry, error) {
	z, err := gzip.NewReader(bytes.NewReader(plain))
	if err != nil {
		return nil, err
	}
	var s storedEntry
	if err := json.NewDecoder(io.LimitReader(z, maxQuarantineBytes)).Decode(&s); err != nil {
		return nil, err
	}
	e := s.Entry
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
func (r *Room) saveOne(ctx context.Context, key string, e *Entry) error {
	ctx, cancel := context.WithTimeout(ctx, saving)
	defer cancel()
	return r.put(ctx, key, e)
}

// Put puts an entry into the store. What serves in place of the refused version is left
// out, and whole is false, when all would be larger than the store takes.
func (e *Entry) Put(ctx context.Context, to State) (whole bool, err error) {
	value, whole, err := e.encode(to)
	if err != nil {
		return whole, err
	}
	return whole, to.PutState(ctx, e.Key(), value)
}

// Key is where the store keeps an entry.
func (e *Entry) Key() string { return stateKey(e.View, e.ref()) }

// put is saveOne without its bound on time.
func (r *Room) put(ctx context.Context, key string, e *Entry) error {
	if e == nil {
		return r.State.DeleteState(ctx, key)
	}
	whole, err := e.Put(ctx, r.State)
	if errors.Is(err, store.ErrSealKey) {
		r.Log.Warn("what proxies refused is not saved, since the store has no seal key: a restart tries it again", "resource", e.ref().String())
		return nil
	}
	if err != nil {
		return err
	}
	if !whole {
		r.Log.Warn("the last good version of a refused resource is too large for the store: it serves until all replicas have restarted",
			"resource", e.ref().String(), "bytes", len(e.Good.Body.GetValue()), "limit", store.MaxObjectBytes)
	}
	return nil
}

// stored reads all entries of the store, by key. One that cannot be read is logged
// and left out: the resource is then tried again.
func (r *Room) stored(ctx context.Context) (map[string]*Entry, error) {
	values, err := r.State.State(ctx, Prefix)
	if err != nil {
		return nil, fmt.Errorf("read what proxies refused: %w", err)
	}
	out := map[string]*Entry{}
	for key, value := range values {
		plain, err := r.State.Unseal(key, value)
		var e *Entry
		if err == nil {
			e, err = decodeRefused(plain)
		}
		if err == nil && e.Key() != key {
			err = errors.New("it stands under the key of another")
		}
		if err != nil {
			r.Log.Warn("cannot read what proxies refused; that resource is tried again", "key", key, "error", err)
			continue
		}
		out[key] = e
	}
	return out, nil
}

// List is all entries, by object and resource.
func (r *Room) List() []*Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*Entry, 0, len(r.entries))
	for _, e := range r.entries {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *Entry) int {
		return cmp.Or(cmp.Compare(a.object(), b.object()), cmp.Compare(a.View, b.View), cmp.Compare(a.ref().String(), b.ref().String()))
	})
	return out
}
