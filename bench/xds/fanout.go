package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	deltav3 "github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// fanoutResult is what one server showed with one number of clients.
type fanoutResult struct {
	CPUPerPush, CPUFirstSync float64 // ms
	HeapPerStream            float64 // kB
	Rounds                   int
	// Resent is what went out when all clients reconnected with all they had; ours
	// only.
	Resent       int64
	CPUReconnect float64 // ms for each client
	// Broken is how many streams ended that should not.
	Broken int
	// Note says why there is no figure.
	Note string
}

// fanout measures the servers against simulated clients.
func (b *bench) fanout(ctx context.Context) error {
	var errs []error
	size, clients, rounds, limit := 10_000, []int{1, 10, 100}, 20, 60
	switch {
	case b.short:
		size, clients, rounds = 100, []int{3}, 2
	case b.full:
		clients, limit = append(clients, 1000), 300
	}
	if b.clients != "" {
		var err error
		if clients, err = numbers("-clients", b.clients, 1); err != nil {
			return err
		}
		limit = 300
	}
	for _, n := range clients {
		for _, impl := range []string{"ours", "LinearCache", "SnapshotCache"} {
			fmt.Fprintf(os.Stderr, "fan-out, %s, %d clients …\n", impl, n)
			r, err := b.fanoutCase(ctx, role{Name: "fanout", Impl: impl, Resources: size, Clients: n, Rounds: rounds, LimitSeconds: limit})
			if err == nil && r.Broken > 0 && impl != "ours" {
				r.Note = fmt.Sprintf("%d streams broke", r.Broken) // its acknowledgements cannot be counted
			}
			name := fmt.Sprintf("fan-out, %s, %d resources, %d clients: ", impl, size, n)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s%w", name, err))
				continue
			}
			if r.Note != "" {
				b.report.AddNote(name+"CPU per push", r.Note)
				continue
			}
			b.report.Add(name+"CPU per push", "ms", r.CPUPerPush)
			if impl == "ours" {
				b.report.Judge("<= 0.13", r.CPUPerPush <= 0.13)
			}
			b.report.Add(name+"heap per stream", "kB", r.HeapPerStream)
			if impl == "ours" {
				b.report.Judge("<= 64", r.HeapPerStream <= 64)
			}
			b.report.Add(name+"CPU of the first sync of a client", "ms", r.CPUFirstSync)
			if impl == "ours" {
				b.report.AddTarget(name+"all reconnect unchanged, resources sent", "", float64(r.Resent), "0", r.Resent == 0)
				b.report.Add(name+"CPU of a client that reconnects unchanged", "ms", r.CPUReconnect)
				b.report.Add(name+"streams that broke", "", float64(r.Broken))
			}
		}
	}
	return errors.Join(errs...)
}

func (b *bench) fanoutCase(ctx context.Context, r role) (*fanoutResult, error) {
	cert, key, err := b.ca.EnsureFiles(b.dir, "control-fanout", pki.Request{SPIFFE: pki.ControlID, DNS: []string{"localhost"}})
	if err != nil {
		return nil, err
	}
	r.CA, r.Cert, r.Key, r.Dir, r.Listen = b.ca.CertFile(), cert, key, b.dir, "127.0.0.1:0"
	for i := range r.Clients {
		if _, _, err := b.ca.EnsureFiles(b.dir, clientName(i), pki.Request{SPIFFE: pki.ProxyID("default", "-", clientName(i))}); err != nil {
			return nil, err
		}
	}
	l, err := startLines(b.dir, fmt.Sprintf("fanout-%s-%d", r.Impl, r.Clients), r)
	if err != nil {
		return nil, err
	}
	defer l.stop()
	stop := context.AfterFunc(ctx, l.stop)
	defer stop()
	line, err := l.ask("")
	if err != nil {
		return nil, err
	}
	out := &fanoutResult{}
	return out, json.Unmarshal([]byte(line), out)
}

func clientName(i int) string { return fmt.Sprint("client", i) }

// fanoutServer is one implementation under test. All resources are clusters of
// about 750 bytes, subscribed to as a whole.
type fanoutServer interface {
	// register serves it.
	register(grpc.ServiceRegistrar)
	// change gives the resource i of the table a new content.
	change(i, version int) error
	// synced returns once all clients have acknowledged the last change, or the
	// first state.
	synced(ctx context.Context, clients int) error
	// open is how many streams there are, opened how many there ever were.
	open() int
	opened() int
}

// errLimit ends a case that takes too long.
var errLimit = errors.New("the time limit is over")

// serveFanout is the process of one server; it starts the process of clients and
// prints the result as JSON.
func serveFanout(r role) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), time.Duration(r.LimitSeconds)*time.Second, errLimit)
	defer cancel()
	out, err := measureFanout(ctx, r)
	if errors.Is(err, errLimit) || (err != nil && errors.Is(context.Cause(ctx), errLimit)) {
		out, err = &fanoutResult{Note: fmt.Sprintf("not done in %d s", r.LimitSeconds)}, nil
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func measureFanout(ctx context.Context, r role) (*fanoutResult, error) {
	s, err := newFanoutServer(r)
	if err != nil {
		return nil, err
	}
	conf, err := pki.ServerTLS(r.Cert, r.Key, r.CA)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer(append(delivery.GRPCOptions(0), grpc.Creds(credentials.NewTLS(conf)))...)
	s.register(server)
	lis, err := net.Listen("tcp", r.Listen)
	if err != nil {
		return nil, err
	}
	go func() { _ = server.Serve(lis) }()
	r.Name, r.ServerAddress = "clients", lis.Addr().String()
	if err := warmUp(ctx, r, s); err != nil {
		return nil, err
	}
	heap, spent := heapNow(), ownCPU()
	clients, stop, err := startClients(r)
	if err != nil {
		return nil, err
	}
	defer stop()
	if err := s.synced(ctx, r.Clients); err != nil {
		return nil, err
	}
	out := &fanoutResult{CPUFirstSync: ms(ownCPU()-spent) / float64(r.Clients)}
	out.HeapPerStream = float64(heapNow()-heap) / 1000 / float64(r.Clients)
	spent = ownCPU()
	// At least some changes, and more while they are quick.
	enough := time.Now().Add(time.Duration(r.LimitSeconds) * time.Second / 3)
	for out.Rounds < r.Rounds && (out.Rounds < 3 || time.Now().Before(enough)) {
		out.Rounds++
		if err := s.change(r.Resources/2, out.Rounds); err != nil {
			return nil, err
		}
		if err := s.synced(ctx, r.Clients); err != nil {
			return nil, err
		}
	}
	out.CPUPerPush = ms(ownCPU()-spent) / float64(out.Rounds*r.Clients)
	out.Broken = s.opened() - r.Clients - 1 // one to warm up
	if d, ok := s.(*deliveryFanout); ok {
		spent = ownCPU()
		if out.Resent, err = d.reconnect(ctx, clients, r.Clients); err != nil {
			return nil, err
		}
		out.CPUReconnect = ms(ownCPU()-spent) / float64(r.Clients)
	}
	return out, nil
}

// warmUp has a client come and go, so that what a server makes once (marshalled
// resources, hashes) is counted to no stream.
func warmUp(ctx context.Context, r role, s fanoutServer) error {
	r.Clients = 1
	_, stop, err := startClients(r)
	if err != nil {
		return err
	}
	err = s.synced(ctx, 1)
	stop()
	for err == nil && s.open() > 0 {
		err = pause(ctx)
	}
	return err
}

// heapNow is what is live after a collection, in bytes.
func heapNow() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// ownCPU is the CPU time of this process.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // RUSAGE_SELF cannot fail
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func clusterOf(i, version int) *clusterv3.Cluster {
	return &clusterv3.Cluster{Name: clusterNameOf(i), AltStatName: strings.Repeat("x", 640) + strconv.Itoa(version)}
}

func clusterNameOf(i int) string { return fmt.Sprintf("projects/default/backends/backend-%05d", i) }

func newFanoutServer(r role) (fanoutServer, error) {
	switch r.Impl {
	case "ours":
		return newDeliveryFanout(r)
	case "LinearCache":
		all := map[string]types.Resource{}
		for i := range r.Resources {
			all[clusterNameOf(i)] = clusterOf(i, 0)
		}
		c := cachev3.NewLinearCache(string(xds.Cluster), cachev3.WithInitialResources(all))
		f := newCacheFanout(c)
		f.update = func(i, version int) error { return c.UpdateResource(clusterNameOf(i), clusterOf(i, version)) }
		return f, nil
	case "SnapshotCache":
		var all []types.Resource
		for i := range r.Resources {
			all = append(all, clusterOf(i, 0))
		}
		c := cachev3.NewSnapshotCache(true, node{}, nil)
		f := newCacheFanout(c)
		f.update = func(i, version int) error {
			all = slices.Clone(all)
			all[i] = clusterOf(i, version)
			s, err := cachev3.NewSnapshot(strconv.Itoa(version+1), map[string][]types.Resource{string(xds.Cluster): all})
			if err != nil {
				return err
			}
			return c.SetSnapshot(context.Background(), "node", s)
		}
		return f, f.update(0, 0)
	}
	return nil, fmt.Errorf("no implementation %q", r.Impl)
}

// deliveryFanout is the product's own delivery.
type deliveryFanout struct {
	server *delivery.Server
	g      *xds.Generation
	size   int
	// tables are two states that differ in one resource, in turn: to make them is
	// the compiler's work, not the delivery's.
	tables  [2]*xds.Generation
	streams atomic.Int64
}

const fanoutView = "default/-"

func newDeliveryFanout(r role) (*deliveryFanout, error) {
	f := &deliveryFanout{size: r.Resources, g: &xds.Generation{Revision: 1}}
	f.server = delivery.New(delivery.Options{
		Logger: slog.New(slog.DiscardHandler), SilentAfter: time.Minute,
		Authenticate: func(ctx context.Context) (delivery.Identity, error) {
			f.streams.Add(1)
			id, err := pki.PeerSPIFFE(ctx)
			return delivery.Identity{Proxy: id, SPIFFE: id, View: fanoutView}, err
		},
	})
	for i := range r.Resources {
		c, err := xds.NewResource(xds.Cluster, clusterNameOf(i), clusterOf(i, 0), nil, nil)
		if err != nil {
			return nil, err
		}
		f.g.Set(c)
	}
	changed, err := xds.NewResource(xds.Cluster, clusterNameOf(r.Resources/2), clusterOf(r.Resources/2, 1), nil, nil)
	if err != nil {
		return nil, err
	}
	other := f.g.Clone()
	other.Set(changed)
	f.tables = [2]*xds.Generation{f.g, other}
	f.server.Update(fanoutView, f.g)
	return f, nil
}

func (f *deliveryFanout) register(s grpc.ServiceRegistrar) { f.server.Register(s) }
func (f *deliveryFanout) open() int                        { return len(f.server.Proxies()) }

func (f *deliveryFanout) opened() int { return int(f.streams.Load()) }

// change goes to the other table; only one resource ever changes.
func (f *deliveryFanout) change(_, version int) error {
	next := f.tables[version%2].Clone()
	next.Revision = f.g.Revision + 1
	f.g = next
	f.server.Update(fanoutView, f.g)
	return nil
}

func (f *deliveryFanout) synced(ctx context.Context, clients int) error {
	for {
		rep, err := f.server.Wait(ctx, f.g.Revision, nil)
		if err != nil || rep.Serving == clients {
			return err
		}
		// A proxy that is not connected is not waited for.
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// reconnect has all clients open new streams that tell what they have, and returns
// how many resources went out.
func (f *deliveryFanout) reconnect(ctx context.Context, in io.Writer, clients int) (int64, error) {
	before := f.server.Stats()
	// A new stream is told by its time of connection.
	begin := map[string]time.Time{}
	for _, p := range f.server.Proxies() {
		begin[p.Identity] = p.Connected
	}
	if _, err := io.WriteString(in, "reconnect\n"); err != nil {
		return 0, err
	}
	for {
		back := 0
		for _, p := range f.server.Proxies() {
			if p.Connected.After(begin[p.Identity]) && p.State == ledger.Serving && p.Resources[xds.Cluster] == f.size {
				back++
			}
		}
		if back == clients {
			break
		}
		if err := pause(ctx); err != nil {
			return 0, err
		}
	}
	var sent int64
	for t, now := range f.server.Stats().Types {
		sent += now.Sent - before.Types[t].Sent
	}
	return sent, nil
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(20 * time.Millisecond):
		return nil
	}
}

// cacheFanout is a cache of go-control-plane behind its own delta server.
type cacheFanout struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	delta  deltav3.Server
	update func(i, version int) error

	acknowledged, streams, all atomic.Int64
	wake                       chan struct{}
	want                       int64
}

func newCacheFanout(c cachev3.ConfigWatcher) *cacheFanout {
	f := &cacheFanout{wake: make(chan struct{}, 1)}
	f.delta = deltav3.NewServer(context.Background(), c, &callbacks{streams: &f.streams, all: &f.all, acknowledged: func(int64, *discoveryv3.DeltaDiscoveryRequest) {
		f.acknowledged.Add(1)
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}})
	return f
}

func (f *cacheFanout) register(s grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, f)
}

// DeltaAggregatedResources is what go-control-plane's server package registers.
func (f *cacheFanout) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return f.delta.DeltaStreamHandler(s, "")
}

func (f *cacheFanout) open() int   { return int(f.streams.Load()) }
func (f *cacheFanout) opened() int { return int(f.all.Load()) }

func (f *cacheFanout) change(i, version int) error { return f.update(i, version) }

// synced waits for one acknowledgement of each client: each change is one response.
func (f *cacheFanout) synced(ctx context.Context, clients int) error {
	f.want += int64(clients)
	for f.acknowledged.Load() < f.want {
		select {
		case <-f.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
