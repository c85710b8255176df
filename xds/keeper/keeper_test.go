package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/xds"
)

const controlID = "spiffe://" + pki.TrustDomain + "/control"

// options are those of a keeper of a proxy whose control plane is at an address.
func options(t *testing.T, control string) Options {
	t.Helper()
	return optionsFor(t, t.TempDir(), control, time.Hour)
}

func optionsFor(t *testing.T, dir, control string, life time.Duration) Options {
	t.Helper()
	ca, err := pki.OpenCA(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.EnsureFiles(dir, "proxy", pki.Request{SPIFFE: alice, TTL: life})
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Dir: filepath.Join(dir, "keep"), Identity: alice, Socket: filepath.Join(dir, "keep", "xds.sock"), Control: []string{control},
		CertFile: cert, KeyFile: key, CAFile: ca.CertFile(), ControlSPIFFE: controlID,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), wait: 50 * time.Millisecond,
	}
}

func open(t *testing.T, o Options) *Keeper {
	t.Helper()
	k, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func shut(t *testing.T, k *Keeper) {
	t.Helper()
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
}

func resource(name, version string) *discoveryv3.Resource {
	return &discoveryv3.Resource{Name: name, Version: version, Resource: &anypb.Any{Value: []byte(name + version)}}
}

// versions are what is kept of a type.
func versions(k *Keeper, t xds.Type) map[string]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]string{}
	for name, e := range k.state.types[t] {
		out[name] = e.version
	}
	return out
}

// exchange sends a response to the proxy and has it answer.
func exchange(n *notes, r *discoveryv3.DeltaDiscoveryResponse, refuse bool) {
	n.response(r)
	q := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	if refuse {
		q.ErrorDetail = &status.Status{Message: "no"}
	}
	n.request(q)
}

// TestKeepsWhatIsAcknowledged runs a proxy that acknowledges, refuses, lets go and comes
// back at random: what is kept is what it has, also for a keeper that is opened anew.
func TestKeepsWhatIsAcknowledged(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	o := options(t, "127.0.0.1:9")
	k := open(t, o)
	n := newNotes(k)
	types := []xds.Type{xds.Listener, xds.Cluster, xds.Endpoint}
	has := map[xds.Type]map[string]string{}
	for _, typ := range types {
		has[typ] = map[string]string{}
		n.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(typ)})
	}
	check := func(step int) {
		t.Helper()
		for _, typ := range types {
			if got := versions(k, typ); !maps.Equal(got, has[typ]) {
				t.Fatalf("step %d: of %s %v is kept, the proxy has %v", step, typ.Short(), got, has[typ])
			}
		}
	}
	for step := range 2000 {
		typ := types[random.IntN(len(types))]
		name := fmt.Sprint("r", random.IntN(20))
		switch random.IntN(20) {
		case 0: // the proxy opens its next stream; some of it is not kept
			n.stop()
			n = newNotes(k)
			for _, typ := range types {
				q := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(typ), InitialResourceVersions: maps.Clone(has[typ])}
				n.request(q)
				if !maps.Equal(q.InitialResourceVersions, has[typ]) {
					t.Fatalf("step %d: the control plane hears of %v, the proxy has %v", step, q.InitialResourceVersions, has[typ])
				}
			}
		case 1: // the keeper is started again
			n.stop()
			shut(t, k)
			k = open(t, o)
			n = newNotes(k)
			for _, typ := range types {
				n.begun[string(typ)] = true
			}
		case 2:
			n.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(typ), ResourceNamesUnsubscribe: []string{name, "*"}})
			delete(has[typ], name)
		case 3:
			exchange(n, &discoveryv3.DeltaDiscoveryResponse{TypeUrl: string(typ), Nonce: fmt.Sprint(step), RemovedResources: []string{name}}, false)
			delete(has[typ], name)
		default:
			version, refuse := fmt.Sprint("v", step), random.IntN(4) == 0
			exchange(n, &discoveryv3.DeltaDiscoveryResponse{
				TypeUrl: string(typ), Nonce: fmt.Sprint(step), Resources: []*discoveryv3.Resource{resource(name, version)},
			}, refuse)
			if !refuse {
				has[typ][name] = version
			}
		}
		check(step)
	}
	n.stop()
	shut(t, k)
}

// TestRewrite has the file written anew when most of it is of no use any more.
func TestRewrite(t *testing.T) {
	o := options(t, "127.0.0.1:9")
	k := open(t, o)
	n := newNotes(k)
	defer n.stop()
	big := &anypb.Any{Value: make([]byte, 100_000)}
	for i := range 100 {
		exchange(n, &discoveryv3.DeltaDiscoveryResponse{TypeUrl: string(xds.Cluster), Nonce: fmt.Sprint(i), Resources: []*discoveryv3.Resource{
			{Name: "c", Version: fmt.Sprint(i), Resource: big},
		}}, false)
	}
	info, err := os.Stat(k.path)
	if err != nil || info.Size() > 3*100_000+rewriteAfter+1000 {
		t.Errorf("100 versions of 100 kB make a file of %d bytes, %v", info.Size(), err)
	}
	shut(t, k)
	k = open(t, o)
	defer shut(t, k)
	if got := versions(k, xds.Cluster); got["c"] != "99" {
		t.Errorf("opened again: %v", got)
	}
}

// TestNewProxy starts a proxy with nothing where another one had been: what it does not
// get again is kept until it has all, so that there is always a whole configuration.
func TestNewProxy(t *testing.T) {
	k := open(t, options(t, "127.0.0.1:9"))
	defer shut(t, k)
	send := func(n *notes, typ xds.Type, nonce string, names ...string) {
		r := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: string(typ), Nonce: nonce}
		for _, name := range names {
			r.Resources = append(r.Resources, resource(name, "v"))
		}
		exchange(n, r, false)
	}
	first := newNotes(k)
	for _, typ := range []xds.Type{xds.Cluster, xds.Listener} {
		first.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(typ)})
	}
	send(first, xds.Cluster, "1", "a", "b")
	send(first, xds.Listener, "2", "old", "l")
	first.stop()

	n := newNotes(k)
	defer n.stop()
	n.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Cluster)})
	send(n, xds.Cluster, "1", "a")
	n.settle()
	if got := len(versions(k, xds.Cluster)); got != 2 {
		t.Errorf("before it has listeners: %d clusters", got)
	}
	n.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Listener)})
	n.response(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: string(xds.Listener), Nonce: "2", Resources: []*discoveryv3.Resource{resource("l", "v")}})
	n.settle()
	if got := len(versions(k, xds.Listener)); got != 2 {
		t.Errorf("before it answered: %d listeners", got)
	}
	n.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Listener), ResponseNonce: "2"})
	n.settle()
	got := slices.Concat(slices.Collect(maps.Keys(versions(k, xds.Cluster))), slices.Collect(maps.Keys(versions(k, xds.Listener))))
	if want := []string{"a", "l"}; !slices.Equal(got, want) {
		t.Errorf("at the end %v is kept, want %v", got, want)
	}
}

// TestSentAgain has a proxy come with what is not kept: the control plane is told that it
// does not have it, so it is sent once more.
func TestSentAgain(t *testing.T) {
	k := open(t, options(t, "127.0.0.1:9"))
	defer shut(t, k)
	n := newNotes(k)
	defer n.stop()
	n.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Cluster)})
	exchange(n, &discoveryv3.DeltaDiscoveryResponse{TypeUrl: string(xds.Cluster), Nonce: "1", Resources: []*discoveryv3.Resource{
		resource("a", "1"), resource("b", "1"), resource("gone", "1"),
	}}, false)
	next := newNotes(k)
	defer next.stop()
	q := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Cluster), InitialResourceVersions: map[string]string{"a": "1", "b": "2", "c": "1"}}
	if !k.older(q) {
		t.Error("a proxy that has something newer would be served from disk")
	}
	next.request(q)
	if want := map[string]string{"a": "1"}; !maps.Equal(q.InitialResourceVersions, want) {
		t.Errorf("the control plane hears of %v, want %v", q.InitialResourceVersions, want)
	}
	if got, want := versions(k, xds.Cluster), map[string]string{"a": "1"}; !maps.Equal(got, want) {
		t.Errorf("kept is %v, want %v", got, want)
	}
}

// filled is a keeper with a listener.
func filled(t *testing.T, o Options) *Keeper {
	t.Helper()
	k := open(t, o)
	n := newNotes(k)
	defer n.stop()
	n.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Listener)})
	exchange(n, &discoveryv3.DeltaDiscoveryResponse{TypeUrl: string(xds.Listener), Nonce: "1", Resources: []*discoveryv3.Resource{resource("l", "1")}}, false)
	if err := k.Usable(); err != nil {
		t.Fatal(err)
	}
	return k
}

// TestUsable goes through why a proxy may not start from disk.
func TestUsable(t *testing.T) {
	o := options(t, "127.0.0.1:9")
	k := open(t, o)
	if err := k.Usable(); err == nil || !strings.Contains(err.Error(), "no configuration is kept yet") {
		t.Errorf("nothing: %v", err)
	}
	shut(t, k)
	k = filled(t, o)
	defer shut(t, k)
	at := func(d time.Duration) error {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.usable(time.Now().Add(d))
	}
	if err := at(-23 * time.Hour); err != nil {
		t.Errorf("a clock that is wrong by less than the bound: %v", err)
	}
	if err := at(-25 * time.Hour); err == nil || !strings.Contains(err.Error(), "set the clock") {
		t.Errorf("a clock that was set back: %v", err)
	}
	if err := at(2 * time.Hour); err == nil || !strings.Contains(err.Error(), "certificate of the proxy expired") {
		t.Errorf("an expired certificate: %v", err)
	}
	if err := at(DefaultMaxAge + time.Minute); err == nil || !strings.Contains(err.Error(), "older than 24h0m0s") {
		t.Errorf("too old: %v", err)
	}
}

// TestDiskFull has a write fail: the file goes, since it would be an earlier
// configuration, and comes back.
func TestDiskFull(t *testing.T) {
	k := filled(t, options(t, "127.0.0.1:9"))
	defer shut(t, k)
	k.log.f.Close()
	k.keep(k.epoch, &discoveryv3.DeltaDiscoveryResponse{TypeUrl: string(xds.Listener), Resources: []*discoveryv3.Resource{resource("l", "2")}})
	if _, err := os.Stat(k.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file with the earlier version is there: %v", err)
	}
	if s := k.Status(); !strings.Contains(s.Problem, "is not kept") {
		t.Errorf("status: %+v", s)
	}
	k.tryWrite = time.Time{}
	k.contact()
	if s := k.Status(); s.Problem != "" {
		t.Errorf("status: %+v", s)
	}
	if records, err := readLog(k.path, alice, k.key); err != nil {
		t.Error(err)
	} else if s, err := replay(records); err != nil || s.types[xds.Listener]["l"].version != "2" {
		t.Errorf("written again: %v, %v", s, err)
	}
}

// refusing is a control plane that refuses every stream.
type refusing struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
}

func (refusing) DeltaAggregatedResources(discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return grpcstatus.Error(codes.PermissionDenied, "the certificate was revoked")
}

// TestRevoked has the control plane refuse the proxy: what is kept goes.
func TestRevoked(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := optionsFor(t, dir, l.Addr().String(), time.Hour)
	o.wait = time.Minute
	ca, err := pki.OpenCA(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.EnsureFiles(dir, "control", pki.Request{SPIFFE: controlID, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	config, err := pki.ServerTLS(cert, key, ca.CertFile())
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, refusing{})
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)

	k := filled(t, o)
	done := make(chan error, 1)
	socket, err := k.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go func() { done <- k.Serve(t.Context(), socket) }()
	t.Cleanup(func() {
		if err := errors.Join(<-done, k.Close()); err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("unix:"+o.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context(), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Cluster)}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); grpcstatus.Code(err) != codes.PermissionDenied {
		t.Errorf("the proxy is told %v", err)
	}
	if err := k.Usable(); err == nil {
		t.Error("a revoked proxy could start from disk")
	}
	if _, err := os.Stat(k.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is there: %v", err)
	}
}

// gone checks that nothing is kept, in memory and on disk.
func gone(t *testing.T, k *Keeper) {
	t.Helper()
	if err := k.Usable(); err == nil {
		t.Error("a revoked proxy could start from disk")
	}
	left, err := os.ReadDir(k.opt.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		if f.Name() != keyName {
			t.Errorf("%s is there", f.Name())
		}
	}
}

// TestForgetsForGood has the proxy acknowledge after it was revoked, and before its stream
// has ended: nothing of that comes back to the disk. A stream that begins later is one that
// the control plane lets in again.
func TestForgetsForGood(t *testing.T) {
	k := filled(t, options(t, "127.0.0.1:9"))
	defer shut(t, k)
	r := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: string(xds.Listener), Nonce: "2", Resources: []*discoveryv3.Resource{resource("l", "2")}}
	n := newNotes(k)
	defer n.stop()
	n.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Listener), InitialResourceVersions: map[string]string{"l": "1"}})
	n.response(r)
	k.forget(errors.New("revoked"))
	gone(t, k)
	n.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Listener), ResponseNonce: "2"})
	n.settle()
	k.contact()
	gone(t, k)

	next := newNotes(k)
	defer next.stop()
	next.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Listener)})
	exchange(next, r, false)
	if err := k.Usable(); err != nil {
		t.Errorf("after it was allowed again: %v", err)
	}
}

// TestForgetsAtTheEnd has the proxy's own stream end at the moment in which it is refused.
func TestForgetsAtTheEnd(t *testing.T) {
	k := filled(t, options(t, "127.0.0.1:9"))
	defer shut(t, k)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := k.ended(ctx, grpcstatus.Error(codes.PermissionDenied, "revoked")); err == nil {
		t.Error("the stream ended without an error")
	}
	gone(t, k)
}

// TestForgetsWhatItCannotRead: a file that this process refused goes, too, since a later
// one might read it, and so does what was half written.
func TestForgetsWhatItCannotRead(t *testing.T) {
	o := options(t, "127.0.0.1:9")
	k := filled(t, o)
	shut(t, k)
	b, err := os.ReadFile(k.path)
	if err != nil {
		t.Fatal(err)
	}
	for what, content := range map[string][]byte{
		"altered": append(slices.Clone(b[:len(b)-1]), b[len(b)-1]^1), "of another version": append([]byte("penstock kept configuration 2"), b[len(magic):]...),
	} {
		for _, name := range []string{fileName, ".kept-1"} {
			if err := os.WriteFile(filepath.Join(o.Dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		k := open(t, o)
		if k.refused == nil {
			t.Errorf("%s: it is used", what)
		}
		k.forget(errors.New("revoked"))
		gone(t, k)
		shut(t, k)
	}
}
