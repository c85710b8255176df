package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	deltav3 "github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
)

// changer is what a peer does with "route i now answers body".
type changer interface {
	discoveryv3.AggregatedDiscoveryServiceServer
	change(i int, body string) error
}

// servePeer is the process of a control plane to compare with: it reads lines
// "ROUTE BODY" and answers "ok" once the change is handed over.
func servePeer(r role) error {
	t := &table{role: r}
	var c changer
	var err error
	switch r.Name {
	case "bare":
		c, err = newBare(t)
	case "snapshot":
		c, err = newSnapshotPlane(t)
	}
	if err != nil {
		return err
	}
	s, lis, err := listenADS(r, c)
	if err != nil {
		return err
	}
	go func() { _ = s.Serve(lis) }()
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		i, body, _ := strings.Cut(in.Text(), " ")
		n, err := strconv.Atoi(i)
		if err != nil {
			return err
		}
		if err := c.change(n, body); err != nil {
			return err
		}
		fmt.Println("ok")
	}
	return in.Err()
}

// listenADS makes a gRPC server of an ADS implementation, with mutual TLS as the
// product has it.
func listenADS(r role, ads discoveryv3.AggregatedDiscoveryServiceServer) (*grpc.Server, net.Listener, error) {
	conf, err := pki.ServerTLS(r.Cert, r.Key, r.CA)
	if err != nil {
		return nil, nil, err
	}
	lis, err := net.Listen("tcp", r.Listen)
	if err != nil {
		return nil, nil, err
	}
	s := grpc.NewServer(append(delivery.GRPCOptions(0), grpc.Creds(credentials.NewTLS(conf)))...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, ads)
	return s, lis, nil
}

// bare is the limit: a delta server that knows names and bytes, one proxy and no
// more. One RouteConfiguration per host, chosen by scopes.
type bare struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	table *table

	mu        sync.Mutex
	resources map[string]map[string]*anypb.Any // by type, name
	version   int
	changed   map[string]bool // RouteConfigurations not sent yet
	poke      chan struct{}
}

func newBare(t *table) (*bare, error) {
	b := &bare{table: t, changed: map[string]bool{}, poke: make(chan struct{}, 1)}
	b.resources = map[string]map[string]*anypb.Any{}
	put := func(kind xds.Type, name string, m proto.Message) error {
		if b.resources[string(kind)] == nil {
			b.resources[string(kind)] = map[string]*anypb.Any{}
		}
		a, err := anypb.New(m)
		b.resources[string(kind)][name] = a
		return err
	}
	l, err := t.listener(true)
	if err != nil {
		return nil, err
	}
	errs := []error{put(xds.Listener, listenerName, l), put(xds.Cluster, clusterName, t.cluster())}
	for h := range t.hosts() {
		errs = append(errs, put(xds.Scope, hostname(h), scope(h)), put(xds.Route, hostname(h), t.hostRoutes(h, "")))
	}
	return b, errors.Join(errs...)
}

func (b *bare) change(i int, body string) error {
	h := i / perHost
	a, err := anypb.New(b.table.hostRoutes(h, body))
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.resources[string(xds.Route)][hostname(h)] = a
	b.changed[hostname(h)] = true
	b.mu.Unlock()
	select {
	case b.poke <- struct{}{}:
	default:
	}
	return nil
}

// DeltaAggregatedResources answers each subscription and pushes changes.
func (b *bare) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	requests := make(chan *discoveryv3.DeltaDiscoveryRequest)
	go func() {
		defer close(requests)
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			if e := r.GetErrorDetail(); e != nil {
				fmt.Fprintln(os.Stderr, "refused:", e.GetMessage())
			}
			select {
			case requests <- r:
			case <-s.Context().Done():
				return
			}
		}
	}()
	for {
		select {
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			names := r.GetResourceNamesSubscribe()
			if r.GetResponseNonce() != "" && len(names) == 0 {
				continue // an acknowledgement
			}
			if err := s.Send(b.response(r.GetTypeUrl(), names)); err != nil {
				return err
			}
		case <-b.poke:
			b.mu.Lock()
			var names []string
			for name := range b.changed {
				names = append(names, name)
			}
			clear(b.changed)
			b.mu.Unlock()
			if err := s.Send(b.response(string(xds.Route), names)); err != nil {
				return err
			}
		}
	}
}

// response holds these resources of a type; all without names.
func (b *bare) response(kind string, names []string) *discoveryv3.DeltaDiscoveryResponse {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.version++
	version := strconv.Itoa(b.version)
	out := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: kind, Nonce: version, SystemVersionInfo: version}
	add := func(name string, a *anypb.Any) {
		out.Resources = append(out.Resources, &discoveryv3.Resource{Name: name, Version: version, Resource: a})
	}
	if len(names) == 0 || names[0] == "*" {
		for name, a := range b.resources[kind] {
			add(name, a)
		}
		return out
	}
	for _, name := range names {
		if a := b.resources[kind][name]; a != nil {
			add(name, a)
		}
	}
	return out
}

// snapshotPlane is go-control-plane's SnapshotCache as most control planes use it:
// one RouteConfiguration for the port, set whole with each change.
type snapshotPlane struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	table    *table
	cache    cachev3.SnapshotCache
	delta    deltav3.Server
	hosts    []*routev3.VirtualHost
	revision int
}

// node is the one that all proxies are.
type node struct{}

func (node) ID(*corev3.Node) string { return "node" }

func newSnapshotPlane(t *table) (*snapshotPlane, error) {
	p := &snapshotPlane{table: t, cache: cachev3.NewSnapshotCache(true, node{}, nil)}
	for h := range t.hosts() {
		p.hosts = append(p.hosts, t.virtualHost(h, hostname(h), ""))
	}
	p.delta = deltav3.NewServer(context.Background(), p.cache, &callbacks{})
	return p, p.set()
}

func (p *snapshotPlane) change(i int, body string) error {
	p.hosts[i/perHost] = p.table.virtualHost(i/perHost, hostname(i/perHost), body)
	return p.set()
}

func (p *snapshotPlane) set() error {
	p.revision++
	l, err := p.table.listener(false)
	if err != nil {
		return err
	}
	s, err := cachev3.NewSnapshot(strconv.Itoa(p.revision), map[string][]types.Resource{
		string(xds.Listener): {l},
		string(xds.Cluster):  {p.table.cluster()},
		string(xds.Route):    {&routev3.RouteConfiguration{Name: listenerName, VirtualHosts: slices.Clone(p.hosts)}},
	})
	if err != nil {
		return err
	}
	return p.cache.SetSnapshot(context.Background(), "node", s)
}

// DeltaAggregatedResources is what go-control-plane's server package registers.
func (p *snapshotPlane) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return p.delta.DeltaStreamHandler(s, "")
}

// callbacks tell of acknowledgements.
type callbacks struct {
	acknowledged func(stream int64, r *discoveryv3.DeltaDiscoveryRequest)
	streams, all *atomic.Int64 // open now, and ever
}

func (c *callbacks) OnDeltaStreamOpen(context.Context, int64, string) error {
	c.count(1)
	if c.all != nil {
		c.all.Add(1)
	}
	return nil
}

func (c *callbacks) OnDeltaStreamClosed(int64, *corev3.Node) { c.count(-1) }

func (c *callbacks) count(n int64) {
	if c.streams != nil {
		c.streams.Add(n)
	}
}

func (c *callbacks) OnStreamDeltaRequest(id int64, r *discoveryv3.DeltaDiscoveryRequest) error {
	if e := r.GetErrorDetail(); e != nil {
		fmt.Fprintln(os.Stderr, "refused:", e.GetMessage())
	}
	if c.acknowledged != nil && r.GetResponseNonce() != "" {
		c.acknowledged(id, r)
	}
	return nil
}
func (*callbacks) OnStreamDeltaResponse(int64, *discoveryv3.DeltaDiscoveryRequest, *discoveryv3.DeltaDiscoveryResponse) {
}
