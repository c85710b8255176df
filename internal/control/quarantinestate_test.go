package control

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"strings"
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

func refusedCluster(body []byte) *refusedResource {
	return &refusedResource{
		View: "default/-", Type: xds.Cluster, Name: "c", Owners: []string{"projects/default/backends/c"},
		Refused: []refusedVersion{{Version: "bad", Detail: "no", Proxy: "p", Envoy: "1.40.0", Time: time.Unix(1, 0).UTC()}},
		Since:   time.Unix(1, 0).UTC(), Revision: 7, Good: clusterOf("good", body), GoodRevision: 5,
		Gone: []*xds.Resource{{Type: xds.Endpoint, Name: "c", Version: "e", Body: &anypb.Any{TypeUrl: string(xds.Endpoint), Value: []byte("e")}}},
	}
}

// TestQuarantineStored: what is stored is sealed and comes back whole; what is too
// large comes back without its last good version.
func TestQuarantineStored(t *testing.T) {
	p := start(t, t.TempDir())
	random := make([]byte, store.MaxObjectBytes+1)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	for name, c := range map[string]struct {
		body  []byte
		whole bool
	}{"small": {[]byte("a secret body"), true}, "large": {bytes.Repeat([]byte("a"), 8<<20), true}, "too large": {random, false}} {
		e := refusedCluster(c.body)
		value, whole, err := e.encode(p.core.store)
		if err != nil || whole != c.whole {
			t.Fatalf("%s: %v %v", name, whole, err)
		}
		if bytes.Contains(value, []byte("backends/c")) {
			t.Errorf("%s: the value is not sealed", name)
		}
		if err := p.core.bad.put(t.Context(), e.key(), e); err != nil {
			t.Fatal(name, err)
		}
		all, err := p.core.bad.stored(t.Context())
		got := all[e.key()]
		if err != nil || got == nil || (got.Good != nil) != c.whole || !got.has("bad") {
			t.Fatalf("%s: %+v %v", name, got, err)
		}
		if c.whole && (!bytes.Equal(got.Good.Body.GetValue(), c.body) || string(got.Gone[0].Body.GetValue()) != "e" ||
			got.Good.Body.GetTypeUrl() != string(xds.Cluster) || len(got.Good.Refs) != 1) {
			t.Errorf("%s: the good version came back as %v", name, got.Good)
		}
	}
	if err := p.core.store.PutState(t.Context(), quarantinePrefix+"garbage", []byte("garbage")); err != nil {
		t.Fatal(err)
	}
	if all, err := p.core.bad.stored(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("beside one that cannot be read: %d entries, %v", len(all), err)
	}
}

func FuzzDecodeRefused(f *testing.F) {
	add := func(s storedResource) {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if err := json.NewEncoder(z).Encode(s); err != nil {
			f.Fatal(err)
		}
		z.Close()
		f.Add(b.Bytes())
	}
	e := refusedCluster(nil)
	add(storedResource{refusedResource: *e, Bodies: [][]byte{{1}, {2}}})
	add(storedResource{refusedResource: *e})
	e.Gone = []*xds.Resource{nil}
	add(storedResource{refusedResource: *e, Bodies: [][]byte{{1}, {2}}})
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

// TestQuarantinePages: bad requests for another try are answered with what is wrong.
func TestQuarantinePages(t *testing.T) {
	p := start(t, t.TempDir())
	for query, want := range map[string]string{
		"": "say which", "?name=a&all=true": "say which", "?name=backends/b": "nothing of", "?all=true": "",
	} {
		code, body := httpPost(t, p, "/debug/quarantine/retry"+query)
		if (code == http.StatusOK) != (want == "") || !strings.Contains(body, want) {
			t.Errorf("%q: %d %s", query, code, body)
		}
	}
}
