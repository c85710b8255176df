// Package bootstrap makes the configuration that an Envoy starts with: who it is,
// where the control plane is and how it is trusted, and everything about a
// process that xDS cannot change later (overload manager, admin, runtime, stats).
package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Names of the clusters that are in every bootstrap.
const (
	// XDSCluster is the control plane.
	XDSCluster = "penstock/xds"
	// LocalCluster is the group of proxies that this one belongs to. Policies
	// that share a limit between proxies (local_cluster_rate_limit) make Envoy
	// refuse their route when the bootstrap names no local cluster. It has one
	// member, so such a limit is not divided until the control plane knows more.
	LocalCluster = "penstock/local"
)

const (
	// ControlSPIFFE is the identity that the control plane must prove.
	ControlSPIFFE = "spiffe://penstock.local/control"
	// DefaultMaxHeapBytes is the heap at which the overload manager counts 100 %.
	DefaultMaxHeapBytes = 2 << 30
	// DefaultMaxConnections bounds the downstream connections of all listeners.
	DefaultMaxConnections = 50_000
	// DefaultListenerConnections bounds those of each listener in Config.Listeners.
	DefaultListenerConnections = 10_000
)

// maxSocketPath is what sockaddr_un holds on Linux, without the final NUL.
const maxSocketPath = 107

// Config is what differs between two Envoys.
type Config struct {
	// NodeID and Cluster are sent as node.id and node.cluster. They are for
	// reading only: the control plane goes by the certificate.
	NodeID, Cluster string
	// Region and Zone, when set, are the locality of this proxy.
	Region, Zone string

	// XDSAddresses are host:port of each replica of the control plane. Any replica serves any proxy; when the one
	// that a proxy is connected to goes, it takes the next that answers. Empty: no
	// dynamic resources; the caller puts static ones into the result of New.
	XDSAddresses []string
	// XDSSocket is the path of the Unix socket of a keeper (package keeper), in the place
	// of XDSAddresses: it knows the control plane, and proves who the proxy is.
	XDSSocket string
	// XDSServerName is sent as SNI; empty: none.
	XDSServerName string
	// XDSSPIFFE is the URI SAN that the control plane must have; empty:
	// ControlSPIFFE.
	XDSSPIFFE string
	// CAFile, CertFile and KeyFile are PEM files for mTLS with the control plane.
	// When one is replaced by a rename in its directory, Envoy takes the new one.
	CAFile, CertFile, KeyFile string
	// SDSDir is where WriteFiles puts the two small files that make Envoy watch
	// the PEM files. New only refers to them.
	SDSDir string

	// AdminSocket is the path of the admin UNIX socket; empty: no admin.
	AdminSocket string
	// AdminAll allows every admin path, also those that change or stop the
	// process. For tests.
	AdminAll bool

	// MaxHeapBytes is the memory limit of the overload manager; 0:
	// DefaultMaxHeapBytes. Set it to what the container is given.
	MaxHeapBytes uint64
	// MaxConnections bounds downstream connections; 0: DefaultMaxConnections.
	MaxConnections int64
	// Listeners names listeners that get a connection limit of their own.
	Listeners []string
	// FastTraces sends spans within 200 ms, for development and tests. They still go
	// together: each by itself costs Envoy as much CPU as all else that a request does.
	FastTraces bool
}

// sdsFile returns the path of one of the files that WriteFiles writes.
func (c Config) sdsFile(name string) string { return filepath.Join(c.SDSDir, "sds-"+name+".json") }

func (c Config) withDefaults() Config {
	if c.Cluster == "" {
		c.Cluster = "penstock"
	}
	if c.XDSSPIFFE == "" {
		c.XDSSPIFFE = ControlSPIFFE
	}
	if c.MaxHeapBytes == 0 {
		c.MaxHeapBytes = DefaultMaxHeapBytes
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = DefaultMaxConnections
	}
	if c.SDSDir == "" && c.CertFile != "" {
		c.SDSDir = filepath.Dir(c.CertFile)
	}
	return c
}

// check returns every problem of the configuration at once.
func (c Config) check() error {
	var errs []error
	if c.NodeID == "" {
		errs = append(errs, errors.New("NodeID is empty: every proxy needs a name"))
	}
	if n := len(c.AdminSocket); n > maxSocketPath {
		errs = append(errs, fmt.Errorf("AdminSocket %q is %d bytes long, a UNIX socket path may have %d: choose a shorter directory", c.AdminSocket, n, maxSocketPath))
	}
	if c.MaxHeapBytes < 16<<20 {
		errs = append(errs, fmt.Errorf("MaxHeapBytes is %d: an Envoy needs at least 16 MiB", c.MaxHeapBytes))
	}
	if c.MaxConnections < 0 {
		errs = append(errs, fmt.Errorf("MaxConnections is %d: it must be positive", c.MaxConnections))
	}
	if n := len(c.XDSSocket); n > maxSocketPath {
		errs = append(errs, fmt.Errorf("XDSSocket %q is %d bytes long, a UNIX socket path may have %d: choose a shorter directory", c.XDSSocket, n, maxSocketPath))
	}
	if c.XDSSocket != "" && len(c.XDSAddresses) > 0 {
		errs = append(errs, errors.New("XDSSocket and XDSAddresses are both set: the configuration comes by one of them"))
	}
	if len(c.XDSAddresses) == 0 {
		return errors.Join(errs...)
	}
	for _, a := range c.XDSAddresses {
		if _, _, err := splitAddress(a); err != nil {
			errs = append(errs, fmt.Errorf("XDSAddresses: %w", err))
		}
	}
	for _, f := range []struct{ name, path string }{{"CAFile", c.CAFile}, {"CertFile", c.CertFile}, {"KeyFile", c.KeyFile}} {
		switch {
		case f.path == "":
			errs = append(errs, fmt.Errorf("%s is empty: the control plane is reached by mTLS only", f.name))
		case !filepath.IsAbs(f.path):
			errs = append(errs, fmt.Errorf("%s %q must be an absolute path: Envoy has a working directory of its own", f.name, f.path))
		}
	}
	return errors.Join(errs...)
}

func splitAddress(address string) (host string, port uint32, err error) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not host:port: %w", address, err)
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q has no port from 1 to 65535", address)
	}
	if host == "" {
		return "", 0, fmt.Errorf("%q has no host", address)
	}
	return host, uint32(n), nil
}

// New returns the bootstrap. It reads and writes no file; see WriteFiles.
func New(c Config) (*bootstrapv3.Bootstrap, error) {
	c = c.withDefaults()
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	overload, err := overloadManager(c)
	if err != nil {
		return nil, err
	}
	layers, err := runtimeLayers(c)
	if err != nil {
		return nil, err
	}
	b := &bootstrapv3.Bootstrap{
		Node:            &corev3.Node{Id: c.NodeID, Cluster: c.Cluster},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{localCluster(c)}},
		ClusterManager:  &bootstrapv3.ClusterManager{LocalClusterName: LocalCluster},
		OverloadManager: overload,
		LayeredRuntime:  layers,
		StatsConfig:     statsConfig(),
		// Statistics of a cluster or listener are made when it is first used, so
		// that thousands of idle backends cost nothing.
		DeferredStatOptions: &bootstrapv3.Bootstrap_DeferredStatOptions{EnableDeferredCreationStats: true},
		Admin:               admin(c),
	}
	if c.Region != "" || c.Zone != "" {
		b.Node.Locality = &corev3.Locality{Region: c.Region, Zone: c.Zone}
	}
	if len(c.XDSAddresses) > 0 || c.XDSSocket != "" {
		cluster, err := xdsCluster(c)
		if err != nil {
			return nil, err
		}
		b.StaticResources.Clusters = append(b.StaticResources.Clusters, cluster)
		b.DynamicResources = dynamicResources()
	}
	if err := b.ValidateAll(); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	return b, nil
}

// JSON returns New as indented JSON, which is the same bytes for the same Config.
func JSON(c Config) ([]byte, error) {
	b, err := New(c)
	if err != nil {
		return nil, err
	}
	return Marshal(b)
}

// Marshal renders a bootstrap as Envoy reads it, the same bytes each time
// (protojson alone varies its spaces on purpose).
func Marshal(m proto.Message) ([]byte, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	var value any
	if err := json.Unmarshal(raw, &value); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	out, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	return append(out, '\n'), nil
}

// WriteFiles writes the bootstrap to file and, when there is a control plane, the
// SDS files into SDSDir (default: the directory of CertFile). Each file is
// replaced by a rename, never seen half written.
func WriteFiles(file string, c Config) error {
	c = c.withDefaults()
	b, err := JSON(c)
	if err != nil {
		return err
	}
	if len(c.XDSAddresses) > 0 {
		for name, m := range sdsResponses(c) {
			content, err := Marshal(m)
			if err != nil {
				return err
			}
			if err := replaceFile(c.sdsFile(name), content); err != nil {
				return err
			}
		}
	}
	return replaceFile(file, b)
}

func replaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func dynamicResources() *bootstrapv3.Bootstrap_DynamicResources {
	// A proxy without a control plane must still come up, and say so.
	source := func() *corev3.ConfigSource {
		return &corev3.ConfigSource{
			ResourceApiVersion:    corev3.ApiVersion_V3,
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
			InitialFetchTimeout:   durationpb.New(initialFetchTimeout),
		}
	}
	return &bootstrapv3.Bootstrap_DynamicResources{
		LdsConfig: source(),
		CdsConfig: source(),
		AdsConfig: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices: []*corev3.GrpcService{{
				TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
					ClusterName: XDSCluster,
					RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
						BaseInterval: durationpb.New(reconnectBase),
						MaxInterval:  durationpb.New(reconnectMax),
					}},
				}},
			}},
		},
	}
}

// endpointType returns how Envoy finds the addresses of hosts: a STATIC cluster
// takes IP addresses only, a STRICT_DNS one takes both.
func endpointType(hosts []string) clusterv3.Cluster_DiscoveryType {
	for _, host := range hosts {
		if _, err := netip.ParseAddr(host); err != nil {
			return clusterv3.Cluster_STRICT_DNS
		}
	}
	return clusterv3.Cluster_STATIC
}
