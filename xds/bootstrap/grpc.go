package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
)

// certificateRefresh is how often a gRPC client looks whether its certificate was
// replaced.
const certificateRefresh = "60s"

// grpcBootstrap is the file that GRPC_XDS_BOOTSTRAP names (gRFC A27, A65).
type grpcBootstrap struct {
	Servers      []grpcServer                   `json:"xds_servers"`
	Node         grpcNode                       `json:"node"`
	Certificates map[string]certificateProvider `json:"certificate_providers"`
}

type grpcServer struct {
	URI         string            `json:"server_uri"`
	Credentials []grpcCredentials `json:"channel_creds"`
	Features    []string          `json:"server_features"`
}

type grpcCredentials struct {
	Type   string           `json:"type"`
	Config certificateFiles `json:"config"`
}

type certificateProvider struct {
	Plugin string           `json:"plugin_name"`
	Config certificateFiles `json:"config"`
}

type certificateFiles struct {
	Certificate string `json:"certificate_file"`
	Key         string `json:"private_key_file"`
	CA          string `json:"ca_certificate_file"`
	Refresh     string `json:"refresh_interval"`
}

type grpcNode struct {
	ID      string `json:"id"`
	Cluster string `json:"cluster"`
	// Locality is there even when it is empty: gRPC for Node.js reads its members
	// without looking.
	Locality grpcLocality `json:"locality"`
}

type grpcLocality struct {
	Region string `json:"region,omitempty"`
	Zone   string `json:"zone,omitempty"`
}

// GRPC is the bootstrap of a gRPC client without a proxy, the same bytes for the
// same Config. Of that it takes the names, the addresses and the files. gRPC takes
// the first control plane that answers, so clients of different names begin with
// different ones; it knows them by CA and host name, which must be in their
// certificates (--xds-host of the control plane).
func GRPC(c Config) ([]byte, error) {
	c = c.withDefaults()
	err := c.check()
	if len(c.XDSAddresses) == 0 {
		err = errors.Join(err, errors.New("XDSAddresses is empty: a gRPC client gets all its configuration from there"))
	}
	if err != nil {
		return nil, fmt.Errorf("bootstrap of a gRPC client: %w", err)
	}
	files := certificateFiles{Certificate: c.CertFile, Key: c.KeyFile, CA: c.CAFile, Refresh: certificateRefresh}
	b := grpcBootstrap{
		Node:         grpcNode{ID: c.NodeID, Cluster: c.Cluster, Locality: grpcLocality{Region: c.Region, Zone: c.Zone}},
		Certificates: map[string]certificateProvider{"default": {Plugin: "file_watcher", Config: files}},
	}
	h := fnv.New32a()
	h.Write([]byte(c.NodeID))
	first := int(h.Sum32() % uint32(len(c.XDSAddresses)))
	for _, address := range slices.Concat(c.XDSAddresses[first:], c.XDSAddresses[:first]) {
		b.Servers = append(b.Servers, grpcServer{
			URI: address, Credentials: []grpcCredentials{{Type: "tls", Config: files}}, Features: []string{"xds_v3"},
		})
	}
	out, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("bootstrap of a gRPC client: %w", err)
	}
	return append(out, '\n'), nil
}

// WriteGRPC writes GRPC to a file, by a rename.
func WriteGRPC(file string, c Config) error {
	b, err := GRPC(c)
	if err != nil {
		return err
	}
	return replaceFile(file, b)
}
