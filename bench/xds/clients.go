package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/xds"
)

// startClients starts the process of clients and returns its standard input and
// what ends it.
func startClients(r role) (in io.Writer, stop func(), err error) {
	cmd, err := self(r)
	if err != nil {
		return nil, nil, err
	}
	cmd.Stderr = os.Stderr
	if in, err = cmd.StdinPipe(); err != nil {
		return nil, nil, err
	}
	if err := launch.Start(cmd); err != nil {
		return nil, nil, err
	}
	return in, func() {
		_ = launch.Signal(cmd, syscall.SIGKILL)
		_ = cmd.Wait()
	}, nil
}

// runClients is the process of clients: each acknowledges what it gets. A line on
// its standard input has all open new streams; it ends with its input.
func runClients(r role) error {
	var all []*client
	for i := range r.Clients {
		base := filepath.Join(r.Dir, clientName(i))
		conf, err := pki.ClientTLS(base+".crt", base+".key", r.CA, "localhost")
		if err != nil {
			return err
		}
		conn, err := grpc.NewClient("passthrough:///"+r.ServerAddress, grpc.WithTransportCredentials(credentials.NewTLS(conf)),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
		if err != nil {
			return err
		}
		// All have the same resources: the first one notes their versions.
		all = append(all, &client{conn: conn, notes: i == 0, again: make(chan map[string]string, 1)})
		go all[i].run()
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		versions := all[0].have()
		for _, c := range all {
			c.again <- versions
		}
	}
	return in.Err()
}

type client struct {
	conn  *grpc.ClientConn
	notes bool
	again chan map[string]string

	mu       sync.Mutex
	versions map[string]string
}

func (c *client) have() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.versions)
}

func (c *client) run() {
	var versions map[string]string
	for {
		ctx, cancel := context.WithCancel(context.Background())
		failed := make(chan error, 1)
		go func() { failed <- c.stream(ctx, versions) }()
		select {
		case err := <-failed:
			// A proxy comes back; this one without what it had.
			cancel()
			fmt.Fprintln(os.Stderr, "client:", err)
			time.Sleep(100 * time.Millisecond)
			versions = nil
		case versions = <-c.again:
			cancel()
			<-failed //nolint:errcheck // it was cancelled
		}
	}
}

// stream subscribes to all clusters.
func (c *client) stream(ctx context.Context, versions map[string]string) error {
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(c.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(xds.Cluster), InitialResourceVersions: versions}); err != nil {
		return err
	}
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		if c.notes {
			c.note(r)
		}
		if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}); err != nil {
			return err
		}
	}
}

func (c *client) note(r *discoveryv3.DeltaDiscoveryResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.versions == nil {
		c.versions = map[string]string{}
	}
	for _, x := range r.GetResources() {
		c.versions[x.GetName()] = x.GetVersion()
	}
}
