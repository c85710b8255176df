package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// segment is what a path segment of an id may be: the characters of SPIFFE-ID
// 2.2, and no dot at the start, so "." and ".." are out.
var segment = regexp.MustCompile(`^[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,127}$`)

// ProxyID is the SPIFFE id of a proxy. gateway "-" stands for all gateways of
// the project. ParseProxyID is its inverse.
func ProxyID(project, gateway, name string) string {
	return "spiffe://" + TrustDomain + "/proxy/" + project + "/" + gateway + "/" + name
}

// ParseProxyID takes spiffe://penstock.local/proxy/{project}/{gateway or -}/{name}
// apart.
func ParseProxyID(spiffe string) (project, gateway, name string, err error) {
	id, err := parseSPIFFE(spiffe)
	if err != nil {
		return "", "", "", err
	}
	parts := strings.Split(id.Path, "/")
	if len(parts) != 5 || parts[1] != "proxy" {
		return "", "", "", fmt.Errorf("%q is not the id of a proxy: want spiffe://%s/proxy/{project}/{gateway or -}/{name}", spiffe, TrustDomain)
	}
	return parts[2], parts[3], parts[4], nil
}

// ControlID is the SPIFFE id of the control plane, of every replica alike.
const ControlID = "spiffe://" + TrustDomain + "/control"

// RunnerID is the SPIFFE id of a runner.
func RunnerID(name string) string { return "spiffe://" + TrustDomain + "/runner/" + name }

// UserID is the SPIFFE id of a person. ParseUserID is its inverse.
func UserID(name string) string { return "spiffe://" + TrustDomain + "/user/" + name }

// ParseUserID takes spiffe://penstock.local/user/{name} apart.
func ParseUserID(spiffe string) (name string, err error) {
	id, err := parseSPIFFE(spiffe)
	if err != nil {
		return "", err
	}
	parts := strings.Split(id.Path, "/")
	if len(parts) != 3 || parts[1] != "user" {
		return "", fmt.Errorf("%q is not the id of a person: want spiffe://%s/user/{name}", spiffe, TrustDomain)
	}
	return parts[2], nil
}

// parseSPIFFE checks an id of our trust domain.
func parseSPIFFE(spiffe string) (*url.URL, error) {
	path, ok := strings.CutPrefix(spiffe, "spiffe://"+TrustDomain+"/")
	if !ok {
		return nil, fmt.Errorf("%q is not an id of the trust domain: want spiffe://%s/…", spiffe, TrustDomain)
	}
	for s := range strings.SplitSeq(path, "/") {
		if !segment.MatchString(s) {
			return nil, fmt.Errorf("id %q: the part %q may only have letters, digits and . _ - and not begin with a dot", spiffe, s)
		}
	}
	return &url.URL{Scheme: "spiffe", Host: TrustDomain, Path: "/" + path}, nil
}

// PeerSPIFFE is the identity of the caller of an RPC, from its verified client
// certificate. The error is a gRPC status Unauthenticated.
func PeerSPIFFE(ctx context.Context) (string, error) {
	id, _, err := PeerCertificate(ctx)
	return id, err
}

// PeerCertificate is the identity of the caller of an RPC with its verified
// client certificate. The error is a gRPC status Unauthenticated.
func PeerCertificate(ctx context.Context) (spiffe string, cert *x509.Certificate, err error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", nil, status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return "", nil, status.Error(codes.Unauthenticated, "the connection is not TLS")
	}
	id, cert, err := StateSPIFFE(info.State)
	if err != nil {
		return "", nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return id, cert, nil
}

// StateSPIFFE is the identity of the peer of a TLS connection with its verified
// certificate.
func StateSPIFFE(s tls.ConnectionState) (spiffe string, cert *x509.Certificate, err error) {
	id, err := spiffeOf(s)
	if err != nil {
		return "", nil, err
	}
	return id, s.VerifiedChains[0][0], nil
}

func spiffeOf(s tls.ConnectionState) (string, error) {
	// Only a chain that the handshake verified counts; PeerCertificates alone is
	// what the peer says.
	if len(s.VerifiedChains) == 0 {
		return "", errors.New("no verified client certificate")
	}
	leaf := s.VerifiedChains[0][0]
	// More than one URI is not an SVID (X.509-SVID 2).
	if len(leaf.URIs) != 1 {
		return "", fmt.Errorf("the client certificate has %d URI names, want one SPIFFE id", len(leaf.URIs))
	}
	id, err := parseSPIFFE(leaf.URIs[0].String())
	if err != nil {
		return "", err
	}
	return id.String(), nil
}
