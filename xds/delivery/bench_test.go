package delivery_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/delivery"
)

// clientsEnv makes the test binary a process of delta clients, so that the
// benchmark can count the CPU time of the server alone.
const clientsEnv = "PENSTOCK_BENCH_CLIENTS"

func TestMain(m *testing.M) {
	if spec := os.Getenv(clientsEnv); spec != "" {
		runClients(strings.Split(spec, "|"))
		return
	}
	os.Exit(m.Run())
}

// BenchmarkPush changes one of n resources with c connected clients and reports
// what one push costs the server, and what one client holds in its heap.
func BenchmarkPush(b *testing.B) {
	for _, mode := range []string{"wildcard", "named"} {
		for _, size := range []int{1_000, 10_000} {
			for _, clients := range []int{1, 10, 100} {
				b.Run(fmt.Sprintf("%s/resources=%d/clients=%d", mode, size, clients), func(b *testing.B) {
					benchPush(b, mode, size, clients)
				})
			}
		}
	}
}

func benchPush(b *testing.B, mode string, size, clients int) {
	p := newPlane(b, delivery.Options{Logger: slog.New(slog.DiscardHandler), SilentAfter: time.Minute})
	g := newGeneration(b, 1)
	kind, mutate := xds.Cluster, benchCluster
	if mode == "named" {
		kind, mutate = xds.Route, benchRoute
	}
	for i := range size {
		mutate(g, i, 0)
	}
	p.server.Update(view, g.Generation)
	before := heap()
	start := cpu()
	stop := p.spawn(b, mode, size, clients)
	defer stop()
	all := func(revision int64) {
		if rep := p.wait(revision); rep.Serving != clients {
			b.Fatalf("report %+v", rep)
		}
	}
	eventually(b, "the clients to be in sync", func() bool {
		n := 0
		for _, s := range p.server.Proxies() {
			if s.Resources[kind] == size {
				n++
			}
		}
		return n == clients
	})
	initial := cpu() - start
	perStream := float64(heap()-before) / float64(clients)

	// Two tables that differ in one resource, in turn.
	other := g.next()
	mutate(other, size/2, 1)
	tables := [2]*xds.Generation{g.Generation, other.Generation}
	var spent time.Duration
	n := 0
	for b.Loop() {
		n++
		next := tables[n%2].Clone()
		next.Revision = g.Revision + 1
		g.Generation = next
		start := cpu()
		p.server.Update(view, g.Generation)
		all(g.Revision)
		spent += cpu() - start
	}
	b.ReportMetric(spent.Seconds()*1e3/float64(n), "cpu-ms/change")
	b.ReportMetric(spent.Seconds()*1e6/float64(n*clients), "cpu-us/push")
	b.ReportMetric(perStream/1024, "heap-kB/stream")
	b.ReportMetric(initial.Seconds()*1e3/float64(clients), "cpu-ms/first-sync")
}

func benchCluster(g generation, i, v int) {
	name := fmt.Sprintf("projects/default/backends/backend-%05d", i)
	g.add(xds.Cluster, name, &clusterv3.Cluster{Name: name, AltStatName: strings.Repeat("x", 640) + strconv.Itoa(v)})
}

func benchRoute(g generation, i, v int) {
	name := fmt.Sprintf("default/public/http/host-%05d.example.com", i)
	g.add(xds.Route, name, &routev3.RouteConfiguration{Name: name, InternalOnlyHeaders: []string{strings.Repeat("x", 640) + strconv.Itoa(v)}})
}

// heap is what is live after a collection.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// cpu is the CPU time of this process.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// spawn starts a process with clients and returns what ends it.
func (p *plane) spawn(b *testing.B, mode string, size, clients int) func() {
	b.Helper()
	var certs []string
	for i := range clients {
		cert, key := p.files("-", fmt.Sprint("bench", i))
		certs = append(certs, cert+","+key)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), clientsEnv+"="+strings.Join([]string{
		p.addr, p.ca.CertFile(), mode, strconv.Itoa(size), strings.Join(certs, ";"),
	}, "|"))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	return func() {
		stdin.Close() // ends it
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	}
}

// runClients is the process of clients: each acknowledges what it gets. It ends
// with its standard input.
func runClients(spec []string) {
	addr, ca, mode, certs := spec[0], spec[1], spec[2], strings.Split(spec[4], ";")
	size, err := strconv.Atoi(spec[3])
	check(err)
	for _, pair := range certs {
		cert, key, _ := strings.Cut(pair, ",")
		conf, err := pki.ClientTLS(cert, key, ca, "localhost")
		check(err)
		conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(conf)),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
		check(err)
		go runClient(conn, mode, size)
	}
	_, _ = bufio.NewReader(os.Stdin).ReadString(0)
}

func runClient(conn *grpc.ClientConn, mode string, size int) {
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(context.Background())
	check(err)
	check(s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Cluster)}))
	if mode == "named" {
		r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Route)}
		for i := range size {
			r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, fmt.Sprintf("default/public/http/host-%05d.example.com", i))
		}
		check(s.Send(r))
	}
	for {
		r, err := s.Recv()
		check(err)
		check(s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}))
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench client:", err)
		os.Exit(1)
	}
}
