package quarantine

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

func clusterOf(version string, body []byte) *xds.Resource {
	return &xds.Resource{
		Type: xds.Cluster, Name: "c", Version: version, Owners: []string{"projects/default/backends/c"},
		Body: &anypb.Any{TypeUrl: string(xds.Cluster), Value: body}, Refs: []xds.Ref{{Type: xds.Endpoint, Name: "c"}},
	}
}

func refusedCluster(body []byte) *Entry {
	return &Entry{
		View: "default/-", Type: xds.Cluster, Name: "c", Owners: []string{"projects/default/backends/c"},
		Refused: []Refusal{{Version: "bad", Detail: "no", Proxy: "p", Envoy: "1.40.0", Time: time.Unix(1, 0).UTC()}},
		Since:   time.Unix(1, 0).UTC(), Revision: 7, Good: clusterOf("good", body), GoodRevision: 5,
		Gone: []*xds.Resource{{Type: xds.Endpoint, Name: "c", Version: "e", Body: &anypb.Any{TypeUrl: string(xds.Endpoint), Value: []byte("e")}}},
	}
}

// TestQuarantineStored: what is stored is sealed and comes back whole; what is too
// large comes back without its last good version.
func TestQuarantineStored(t *testing.T) {
	st, err := store.Open(t.Context(), store.Options{
		DataDir: filepath.Join(t.TempDir(), "etcd"), SealKey: make([]byte, store.SealKeyBytes), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	room := New(Params{State: st, Log: slog.New(slog.DiscardHandler)})
	random := make([]byte, store.MaxObjectBytes+1)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	for name, c := range map[string]struct {
		body  []byte
		whole bool
	}{"small": {[]byte("a secret body"), true}, "large": {bytes.Repeat([]byte("a"), 8<<20), true}, "too large": {random, false}} {
		e := refusedCluster(c.body)
		value, whole, err := e.encode(st)
		if err != nil || whole != c.whole {
			t.Fatalf("%s: %v %v", name, whole, err)
		}
		if bytes.Contains(value, []byte("backends/c")) {
			t.Errorf("%s: the value is not sealed", name)
		}
		if err := room.put(t.Context(), e.Key(), e); err != nil {
			t.Fatal(name, err)
		}
		all, err := room.stored(t.Context())
		got := all[e.Key()]
		if err != nil || got == nil || (got.Good != nil) != c.whole || !got.has("bad") {
			t.Fatalf("%s: %+v %v", name, got, err)
		}
		if c.whole && (!bytes.Equal(got.Good.Body.GetValue(), c.body) || string(got.Gone[0].Body.GetValue()) != "e" ||
			got.Good.Body.GetTypeUrl() != string(xds.Cluster) || len(got.Good.Refs) != 1) {
			t.Errorf("%s: the good version came back as %v", name, got.Good)
		}
	}
	if err := st.PutState(t.Context(), Prefix+"garbage", []byte("garbage")); err != nil {
		t.Fatal(err)
	}
	if all, err := room.stored(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("beside one that cannot be read: %d entries, %v", len(all), err)
	}
}

func FuzzDecodeRefused(f *testing.F) {
	add := func(s storedEntry) {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if err := json.NewEncoder(z).Encode(s); err != nil {
			f.Fatal(err)
		}
		z.Close()
		f.Add(b.Bytes())
	}
	e := refusedCluster(nil)
	add(storedEntry{Entry: *e, Bodies: [][]byte{{1}, {2}}})
	add(storedEntry{Entry: *e})
	e.Gone = []*xds.Resource{nil}
	add(storedEntry{Entry: *e, Bodies: [][]byte{{1}, {2}}})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeRefused(b)
		if err != nil {
			return
		}
		if e.Name == "" || len(e.Refused) == 0 || (e.Good != nil && (e.Good.Body == nil || e.has(e.Good.Version))) {
			t.Errorf("%+v", e)
		}
		e.message()
		fieldOf(e, nil)
	})
}

func TestOfOneHost(t *testing.T) {
	for _, c := range []struct {
		t      xds.Type
		detail string
		want   bool
	}{
		{xds.Listener, "error adding listener: cannot bind '192.0.2.1:80': Cannot assign requested address", true},
		{xds.Listener, "cannot bind '0.0.0.0:80': Permission denied", true},
		{xds.Listener, "Error adding/updating listener(s) p/g/l: Listener p/g/l: reuse port cannot be changed during an update", true},
		{xds.Listener, "Didn't find a registered implementation for 'x'", false},
		{xds.Cluster, "cannot bind", false},
	} {
		if got := ofOneHost(delivery.Refusal{Culprit: ledger.Culprit{Resource: &xds.Resource{Type: c.t}}, Detail: c.detail}); got != c.want {
			t.Errorf("%s %q: %v", c.t.Short(), c.detail, got)
		}
	}
}
