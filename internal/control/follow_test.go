package control

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/fleet"
	"github.com/penstock-gateway/penstock/internal/control/quarantine"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// failingStore fails the first read that would return a key of the run-time state.
type failingStore struct {
	store.Store
	key    string
	failed atomic.Int32
}

func (s *failingStore) State(ctx context.Context, prefix string) (map[string][]byte, error) {
	values, err := s.Store.State(ctx, prefix)
	if _, found := values[s.key]; found && s.failed.CompareAndSwap(0, 1) {
		return nil, context.DeadlineExceeded
	}
	return values, err
}

func (s *failingStore) ReadState(ctx context.Context, prefix string) (store.StateValues, error) {
	read, err := s.Store.ReadState(ctx, prefix)
	if _, found := read.Values[s.key]; found && s.failed.CompareAndSwap(0, 1) {
		return store.StateValues{}, context.DeadlineExceeded
	}
	return read, err
}

// TestFollowTriesAgain: what another replica says is known here although the one read
// after it fails, and nothing changes any more.
func TestFollowTriesAgain(t *testing.T) {
	refused := &quarantine.Entry{
		View: "default/other", // that nobody has, so nothing ends it
		Type: xds.Cluster, Name: "c", Refused: []quarantine.Refusal{{Version: "bad", Detail: "no", Proxy: "p"}},
	}
	revoked := "revoked/identity/spiffe://x"
	for _, c := range []struct {
		key   string
		say   func(t *testing.T, st store.Store)
		known func(c *Core) bool
	}{
		{refused.Key(), func(t *testing.T, st store.Store) {
			if _, err := refused.Put(t.Context(), st); err != nil {
				t.Fatal(err)
			}
		}, func(c *Core) bool { return len(c.refused.List()) == 1 }},
		{revoked, func(t *testing.T, st store.Store) {
			value, err := proto.Marshal(&pb.Revocation{Reason: "stolen"})
			if err == nil {
				err = st.PutState(t.Context(), revoked, value)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, func(c *Core) bool { return len(c.admission.Revocations()) == 1 }},
		{fleet.Prefix + "other", func(t *testing.T, st store.Store) {
			other := fleet.ReplicaState{Revision: 1, Proxies: []delivery.Standing{{ProxyStatus: ledger.ProxyStatus{Name: "p", Identity: "spiffe://p"}}}}
			if err := other.Put(t.Context(), st, "other", time.Now()); err != nil {
				t.Fatal(err)
			}
		}, func(c *Core) bool { return len(c.fleet.Proxies()) == 1 }},
		{runnersPrefix + "r1", func(t *testing.T, st store.Store) {
			value, err := proto.Marshal(&pb.RunnerState{Sequence: 7})
			if err == nil {
				err = st.PutState(t.Context(), runnersPrefix+"r1", append(make([]byte, 8), value...))
			}
			if err != nil {
				t.Fatal(err)
			}
		}, func(c *Core) bool {
			c.runners.mu.Lock()
			defer c.runners.mu.Unlock()
			return c.runners.known["r1"] != nil
		}},
	} {
		t.Run(c.key[:strings.Index(c.key, "/")], func(t *testing.T) {
			dir := t.TempDir()
			st := &failingStore{Store: openStore(t, dir), key: c.key}
			p := serve(t, st, dir)
			c.say(t, st.Store)
			until(t, "the read that fails", func() bool { return st.failed.Load() > 0 })
			until(t, "what the other replica said", func() bool { return c.known(p.core) })
		})
	}
}
